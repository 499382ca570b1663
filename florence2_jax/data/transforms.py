# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes -> the uint8 pixels a model sees."""

import io

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.typing import Size

MAX_IMAGE_PIXELS = 178_956_970
"""Larger images are refused from their header, before a pixel is decoded (Pillow's own limit)."""


class ImageError(ValueError):
    """An image that cannot be used; the message says why."""


def open_image(data: bytes) -> Image.Image:
    """Decodes an image to RGB at its own size.

    Raises:
        ImageError: if it is damaged, truncated, of an unknown kind or too large.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise ImageError(f"{image.width} x {image.height} px exceed {MAX_IMAGE_PIXELS} pixels")
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"does not decode: {error}") from error


def resize(image: Image.Image, size: Size) -> UInt8[NDArray, "Y X 3"]:
    """Bicubic to exactly `(width, height)`, the aspect ratio ignored, as the released processor."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)
