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


def clip_box(box: Box, window: Box) -> Box | None:
    """What of a box lies in a window; None if that has no area."""
    x0, y0 = max(box[0], window[0]), max(box[1], window[1])
    x1, y1 = min(box[2], window[2]), min(box[3], window[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def clip_polygon(polygon: Polygon, window: Box) -> tuple[Polygon, ...]:
    """What of a polygon lies in a window: no ring, one, or several where a concave one falls apart.

    Exact up to float64 for rings that do not cross themselves. One that does keeps all of its
    outline within the window; filled even-odd, its parts cover what it covered. A polygon that lies
    within the window comes back as it is; parts without an area do not.
    """
    rings = [np.asarray(polygon, np.float64).reshape(-1, 2)]
    x0, y0, x1, y1 = window
    for axis, limit, sign in ((0, x0, 1), (0, x1, -1), (1, y0, 1), (1, y1, -1)):
        rings = [part for ring in rings for part in _clip_ring(ring, axis, limit, sign)]
    parts = (tuple(float(v) for v in ring.clip((x0, y0), (x1, y1)).ravel()) for ring in rings)
    return tuple(part for part in parts if polygon_area(part) > 0)


def _clip_ring(
    ring: Float[NDArray, "P 2"], axis: int, limit: float, sign: int
) -> list[Float[NDArray, "_ 2"]]:
    """The parts of a ring on the positive (or, with sign -1, negative) side of a line.

    The line cuts the ring into chains. Along the line, inside and outside alternate at the ends of
    the chains, so that the first end belongs with the second, the third with the fourth: joining
    them closes the rings that remain. Points on the line count as outside, which makes the number
    of ends even however the ring touches it; where two ends meet in such a point, they are in the
    order that a line a hair further in would find.
    """
    along = 1 - axis
    depth = sign * (ring[:, axis] - limit)
    if (depth >= 0).all():
        return [ring]
    # Once around, from a point that is out back to it.
    around = np.arange(np.argmin(depth), np.argmin(depth) + len(ring) + 1) % len(ring)
    ring, depth = ring[around], depth[around]
    is_in = depth > 0
    chains, ends = [], []
    # Every other change of sides leads in, and the next one out again.
    changes = np.flatnonzero(is_in[1:] != is_in[:-1]).tolist()
    for first, last in zip(changes[::2], changes[1::2], strict=True):
        chain = ring[first : last + 2].copy()
        for end, outside, inside in ((0, first, first + 1), (-1, last + 1, last)):
            step, inwards = ring[inside] - ring[outside], depth[inside] - depth[outside]
            chain[end] = ring[outside] - depth[outside] / inwards * step
            chain[end, axis] = limit
            ends.append((chain[end, along], np.arctan2(step[along], inwards)))
        chains.append(chain)
    order = sorted(range(len(ends)), key=ends.__getitem__)
    return _join_chains(chains, list(zip(order[::2], order[1::2], strict=True)))


def _join_chains(
    chains: list[Float[NDArray, "_ 2"]], pairs: list[tuple[int, int]]
) -> list[Float[NDArray, "_ 2"]]:
    """Rings of chains; end 2i, where chain i begins, and 2i + 1, where it stops, come in pairs."""
    partner = dict(pairs) | {b: a for a, b in pairs}
    rings, left = [], set(range(len(chains)))
    while left:
        start = end = 2 * min(left)
        parts = []
        while not parts or end != start:
            left.discard(end // 2)
            chain = chains[end // 2]
            parts.append(chain if end % 2 == 0 else chain[::-1])
            end = partner[end ^ 1]
        rings.append(np.concatenate(parts))
    return rings
