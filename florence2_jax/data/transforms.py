# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes -> the uint8 pixels a model sees."""

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.records.checks import open_image, to_rgb
from florence2_jax.typing import Size


def decode(data: bytes, *, upright: bool = False) -> Image.Image:
    """The first frame of an image in RGB, at its own size.

    Args:
        upright: turn it as its EXIF orientation says, as a viewer shows it. Records are not turned:
            their boxes are of the stored pixels.

    Raises:
        ImageError: if it is damaged, truncated, of an unknown kind or too large.
    """
    return to_rgb(open_image(data), upright=upright)


def resize(image: Image.Image, size: Size) -> UInt8[NDArray, "Y X 3"]:
    """Bicubic to exactly `(width, height)`, the aspect ratio ignored, as the released processor."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)
