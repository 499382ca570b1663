# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes -> the uint8 pixels a model sees."""

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.records.checks import open_image, to_rgb
from florence2_jax.typing import Box, Size


def decode(data: bytes, *, upright: bool = False) -> Image.Image:
    """The first frame of an image in RGB, at its own size.

    Args:
        upright: turn it as its EXIF orientation says, as a viewer shows it. Records are not turned:
            their boxes are of the stored pixels.

    Raises:
        ImageError: if it is damaged, truncated, of an unknown kind or too large.
    """
    return to_rgb(open_image(data), upright=upright)


def decode_scaled(data: bytes, at_least: Size) -> Image.Image:
    """As `decode`, but a JPEG may come out at 1/2, 1/4 or 1/8 of its size, in RGB.

    libjpeg leaves out frequencies that a smaller image cannot show, and the time they would take:
    decoding and resizing 1800 x 1200 to 384 x 384 takes 8 ms instead of 21. Resized to `at_least`,
    the pixels are not those of the exact path (`decode`, then an antialiased resize). On real
    photos they are off by 0.7 of 255 on average from 1600 x 1200 and more to 384 x 384; in the
    worst case, near exactly half the size (from 640 x 480 to 192 x 192), by 1.8 on average, by 24
    in one value of a thousand, by 102 at most. Saving a photo once more as a JPEG of quality 95
    changes it by 1.6, resizing it bilinearly by 1.2. So this is for training, where it lies well
    within what augmentation does; inference and evaluation take `decode`. Images of other formats,
    and those less than twice as large as `at_least`, are the same to the bit.

    Args:
        at_least: `(width, height)` as stored; the smallest of the four sizes that is no smaller on
            either side is decoded.

    Raises:
        ImageError: as `decode`.
    """
    image = open_image(data)
    image.draft(None, at_least)  # Does nothing to other formats.
    return to_rgb(image)


def resize(image: Image.Image, size: Size, *, box: Box | None = None) -> UInt8[NDArray, "Y X 3"]:
    """Bicubic to exactly `(width, height)`, the aspect ratio ignored, as the released processor.

    Args:
        box: part of the image to take, in its pixels; all of it by default.
    """
    if image.size != size or box is not None:
        image = image.resize(size, Image.Resampling.BICUBIC, box=box)
    return np.asarray(image, np.uint8)
