# SPDX-License-Identifier: Apache-2.0
"""Pixels <-> the 1,000 location bins of each axis.

Source: Florence-2 §3 "Task formulation"; rounding down, the clamp and the bin centre follow the
released processor, except that coordinates stay floats (the native one truncates to whole pixels).
"""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from florence2_jax.typing import Size

NUM_BINS = 1000

_LOCATIONS = tuple(f"<loc_{k}>" for k in range(NUM_BINS))


def _px_per_bin(size: Size) -> tuple[float, float]:
    width, height = size
    if width <= 0 or height <= 0:
        raise ValueError(f"image sides must be positive, got {size}")
    return width / NUM_BINS, height / NUM_BINS


def quantize(points: Float[NDArray, "... 2"], size: Size) -> Int[NDArray, "... 2"]:
    """Maps pixel points to location bins.

    Args:
        points: `(x, y)` in pixels of the original image; what lies outside is moved to the border.
        size: `(width, height)` of the original image, in pixels.

    Returns:
        int32 bins in `[0, NUM_BINS)`, `<loc_k>` being bin `k`; the far border is in the last bin.

    Raises:
        ValueError: if a side of the image is not positive, or a coordinate is not finite.
    """
    if not np.isfinite(points).all():
        raise ValueError("coordinates must be finite")
    bins = np.floor(np.asarray(points, np.float64) / _px_per_bin(size))
    return np.clip(bins, 0, NUM_BINS - 1).astype(np.int32)


def dequantize(bins: Int[NDArray, "... 2"], size: Size) -> Float[NDArray, "... 2"]:
    """Maps location bins to the pixels of their centres, float64; inverse within half a bin."""
    return (np.asarray(bins, np.float64) + 0.5) * _px_per_bin(size)


def location_text(bins: Iterable[int]) -> str:
    """Writes bins as location tokens: `[5, 17]` becomes `<loc_5><loc_17>`."""
    return "".join(f"<loc_{k}>" for k in bins)


def coordinates_text(coordinates: Iterable[float], size: Size) -> str:
    """Writes `x, y, x, y, ...` in pixels (a box, quad or polygon) as location tokens.

    The bins are those of `quantize`, to the bit. Arrays of a few numbers would cost five times as
    much, and the input pipeline writes some sixty boxes per image.

    Raises:
        ValueError: as `quantize`, or if the last point has no `y`.
    """
    values = list(map(float, coordinates))
    if len(values) % 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"coordinates must be finite, in pairs, got {values[:8]}")
    x_px, y_px = _px_per_bin(size)
    bins = [x / x_px for x in values]
    bins[1::2] = [y / y_px for y in values[1::2]]
    last = NUM_BINS - 1
    return "".join([_LOCATIONS[int(b) if 0 < b < last else (last if b > 0 else 0)] for b in bins])
