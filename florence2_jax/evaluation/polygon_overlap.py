# SPDX-License-Identifier: Apache-2.0
"""How much area two polygons share, without a grid of pixels: writing is thin, and grids are not.

A ring is the sum of the triangles between its first point and each of its sides, those that turn
the other way counted negative; the overlap of two rings is then the sum over pairs of triangles.
Exact up to float64 for any ring that does not cross itself. One that does counts each place as
often as it goes around it.
"""

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from florence2_jax.geometry import hull_box, polygon_area
from florence2_jax.typing import Polygon

_Point: TypeAlias = tuple[float, float]


def overlap_area(a: Polygon, b: Polygon) -> float:
    """The area in both of two polygons, in square pixels."""
    # Around zero: far from it, small areas would be differences of large ones.
    x, y = a[0], a[1]
    triangles = _triangles(b, x, y)
    total = 0.0
    for sign, triangle in _triangles(a, x, y):
        total += sign * sum(other * _shared(triangle, corners) for other, corners in triangles)
    return abs(total)


def overlap_areas(rows: Sequence[Polygon], columns: Sequence[Polygon]) -> Float[NDArray, "R Q"]:
    """`overlap_area` of every pair."""
    shared = np.zeros((len(rows), len(columns)))
    if rows and columns:
        for i, j in np.argwhere(_hulls_meet(rows, columns)).tolist():
            shared[i, j] = overlap_area(rows[i], columns[j])
    return shared


def areas(polygons: Sequence[Polygon]) -> Float[NDArray, "R"]:
    """The area of each polygon, in square pixels."""
    return np.array([polygon_area(polygon) for polygon in polygons], np.float64)


def polygon_iou(rows: Sequence[Polygon], columns: Sequence[Polygon]) -> Float[NDArray, "R Q"]:
    """Intersection over union of every pair; 0 where neither has an area."""
    shared = overlap_areas(rows, columns)
    union = areas(rows)[:, None] + areas(columns)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _hulls_meet(rows: Sequence[Polygon], columns: Sequence[Polygon]) -> Bool[NDArray, "R Q"]:
    a, b = (np.array([hull_box(polygon) for polygon in some]) for some in (rows, columns))
    meet = (a[:, None, :2] < b[None, :, 2:]) & (b[None, :, :2] < a[:, None, 2:])
    return np.asarray(meet.all(axis=2))


def _triangles(ring: Polygon, x: float, y: float) -> list[tuple[float, list[_Point]]]:
    """The fan of a ring moved by `(-x, -y)`: the sign of each triangle, and it turned positive."""
    points = [(u - x, v - y) for u, v in zip(ring[::2], ring[1::2], strict=True)]
    fan = []
    for second, third in itertools.pairwise(points[1:]):
        twice = _cross(points[0], second, third)
        if twice > 0:
            fan.append((1.0, [points[0], second, third]))
        elif twice < 0:
            fan.append((-1.0, [points[0], third, second]))
    return fan


def _cross(origin: _Point, a: _Point, b: _Point) -> float:
    """Positive where `b` lies to the positive side of the way from `origin` to `a`."""
    return (a[0] - origin[0]) * (b[1] - origin[1]) - (a[1] - origin[1]) * (b[0] - origin[0])


def _shared(subject: list[_Point], window: list[_Point]) -> float:
    """The area in both of two convex rings that turn positive (Sutherland and Hodgman)."""
    for start, end in zip(window, window[1:] + window[:1], strict=True):
        if not subject:
            return 0.0
        kept = []
        previous, before = subject[-1], _cross(start, end, subject[-1])
        for point in subject:
            depth = _cross(start, end, point)
            if (depth < 0) != (before < 0):
                share = before / (before - depth)
                kept.append(
                    (
                        previous[0] + share * (point[0] - previous[0]),
                        previous[1] + share * (point[1] - previous[1]),
                    )
                )
            if depth >= 0:
                kept.append(point)
            previous, before = point, depth
        subject = kept
    if len(subject) < 3:
        return 0.0
    twice = sum(_cross(subject[0], *pair) for pair in itertools.pairwise(subject[1:]))
    return max(0.0, twice) / 2
