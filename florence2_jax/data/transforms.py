# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes -> the uint8 pixels a model sees."""

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.records.checks import ImageError, open_image
from florence2_jax.typing import Size


def decode(data: bytes) -> Image.Image:
    """An image in RGB at its own size; EXIF orientation is not applied, boxes are of stored pixels.

    Raises:
        ImageError: if it is damaged, truncated, of an unknown kind or too large.
    """
    image = open_image(data)
    try:
        return image.convert("RGB")
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead to.
        raise ImageError("truncated or damaged") from error


def resize(image: Image.Image, size: Size) -> UInt8[NDArray, "Y X 3"]:
    """Bicubic to exactly `(width, height)`, the aspect ratio ignored, as the released processor."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)
