# SPDX-License-Identifier: Apache-2.0
"""Boxes and polygons as arrays of pixels; no image, no model."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.typing import Box, Polygon


def hull_box(coordinates: Sequence[float]) -> Box:
    """The box around `x, y, x, y, ...`."""
    points = np.asarray(coordinates, np.float64).reshape(-1, 2)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def polygon_area(coordinates: Sequence[float]) -> float:
    """Area of a simple polygon `x, y, ...` in square pixels (shoelace, closing edge included)."""
    points = np.asarray(coordinates, np.float64).reshape(-1, 2)
    x, y = (points - points[0]).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def box_iou(a: Float[NDArray, "R 4"], b: Float[NDArray, "Q 4"]) -> Float[NDArray, "R Q"]:
    """Intersection over union of every pair, sides `x1 - x0`; 0 where the union is empty."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b))
    union = area_a[:, None] + area_b[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def simplify_polygon(polygon: Polygon, tolerance_px: float) -> Polygon:
    """Drops points that lie within a tolerance of the line their neighbours draw (Douglas-Peucker).

    The ring is cut at its first point and the point farthest from it. At least three points stay.
    """
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    far = int(np.square(points - points[0]).sum(axis=1).argmax())
    ring = np.concatenate([points, points[:1]])
    keep = {0, far}
    stack = [(0, far), (far, len(points))]
    while stack:
        start, end = stack.pop()
        if end - start < 2:
            continue
        chord = ring[end] - ring[start]
        offsets = ring[start + 1 : end] - ring[start]
        length = np.hypot(*chord)
        if length > 0:
            distances = np.abs(chord[0] * offsets[:, 1] - chord[1] * offsets[:, 0]) / length
        else:
            distances = np.hypot(*offsets.T)
        middle = start + 1 + int(distances.argmax())
        if distances.max() > tolerance_px:
            keep.add(middle)
            stack += [(start, middle), (middle, end)]
    kept = sorted(keep)
    if len(kept) < 3:
        return polygon
    return tuple(float(v) for v in points[kept].ravel())
