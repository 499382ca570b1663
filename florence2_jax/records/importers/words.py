# SPDX-License-Identifier: Apache-2.0
"""Words and lines of writing: what the formats of text spotting share.

Models learn to read from quads: four corners, clockwise from the top left of the writing. So

- four points are taken as they are; where they run against the clock (some annotators begin at the
  bottom), they are turned, and the turning is counted;
- two points are the corners of an upright box, whose corners are the quad;
- any other outline is kept as the region's polygon, and the rectangle of least area around it is
  the quad. The rectangle's top runs the way the writing does: from the middle between the first and
  the last point of the outline to the middle of its turn, for such outlines follow the upper edge
  of the writing and come back along the lower one.

Writing that a data set says not to care for (illegible, or of another language) becomes a crowd
with an empty text: it is neither learnt from nor scored.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.records.importers.annotated import RawRegion
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import LabelKind

_LARGEST = 1e9  # Pixels; beyond, products of coordinates lose their last digits.
_MAX_HULL = 1000  # Corners of a hull that are looked at; no writing has as many.


def word_region(
    place: str,
    points: Any,
    text: Any,
    ledger: Ledger,
    *,
    is_ignored: bool = False,
    category: str | None = None,
) -> RawRegion:
    """One piece of writing.

    Args:
        points: `x, y, ...` of two corners of a box, of four corners, or of an outline.
        text: None where the data set has no transcripts; an empty one is illegible.
        is_ignored: writing that the data set does not care for.
        category: what kind of writing it is, if the data set tells.
    """
    is_ignored = is_ignored or (isinstance(text, str) and not text.strip())
    labels: list[tuple[Any, LabelKind]] = []
    if is_ignored:
        labels = [("", "text")]
    elif text is not None:
        labels = [(text, "text")]
    if category is not None and not is_ignored:
        labels.append((category, "category"))
    raw = RawRegion(place=place, labels=labels, is_crowd=is_ignored)
    numbers = _numbers(points)
    if numbers is not None and len(numbers) == 4:
        x0, x1 = sorted(numbers[::2])
        y0, y1 = sorted(numbers[1::2])
        raw.quad = [x0, y0, x1, y0, x1, y1, x0, y1]
    elif numbers is not None and len(numbers) == 8:
        raw.quad = clockwise(numbers)
        if raw.quad != numbers:
            ledger.repair("quad", "ran against the clock, turned")
    elif numbers is not None and len(numbers) >= 6 and len(numbers) % 2 == 0:
        raw.outline = [numbers]
        raw.quad = reading_quad(numbers)
        raw.box = [f(numbers[i::2]) for f in (min, max) for i in (0, 1)]  # Not that of the quad.
    else:
        raw.outline = [points]  # For mending to refuse.
    return raw


def _numbers(points: Any) -> list[float] | None:
    """Coordinates as numbers; None if they are none."""
    if not isinstance(points, list | tuple):
        return None
    try:
        numbers = [float(v) for v in points]
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(math.isfinite(v) and abs(v) < _LARGEST for v in numbers) else None


def clockwise(quad: Sequence[float]) -> list[float]:
    """Four corners clockwise (y grows downwards), those that are so already as they are.

    Of the two ways to turn a quad, keeping its first corner or its first edge, the one is taken
    whose top then runs more to the right.
    """
    points = np.reshape(quad, (4, 2))
    x, y = points.T
    if np.dot(x, np.roll(y, -1)) >= np.dot(y, np.roll(x, -1)):
        return list(quad)
    ways = (points[[0, 3, 2, 1]], points[[3, 2, 1, 0]])
    return max(ways, key=lambda way: way[1, 0] - way[0, 0]).ravel().tolist()


def reading_quad(ring: Sequence[float]) -> list[float] | None:
    """The rectangle of least area around an outline, from the top left of the writing.

    None if all points are one.
    """
    points = np.reshape(ring, (-1, 2)).astype(np.float64)
    if len(points) > 3 and (points[0] == points[-1]).all():
        points = points[:-1]
    rectangle = _least_rectangle(_hull(points))
    if rectangle is None:
        return None
    num = len(points)
    turn = (points[(num - 1) // 2] + points[num // 2]) / 2
    reading = turn - (points[0] + points[-1]) / 2
    edges = np.roll(rectangle, -1, axis=0) - rectangle
    lengths = np.maximum(np.linalg.norm(edges, axis=1), 1e-9)
    top = int((edges @ reading / lengths).argmax())
    return np.roll(rectangle, -top, axis=0).ravel().tolist()


def _hull(points: Float[NDArray, "P 2"]) -> Float[NDArray, "H 2"]:
    """Corners of the convex hull, in order; two where all points are on a line."""
    ordered = sorted(set(map(tuple, points.tolist())))

    def chain(points: Any) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for x, y in points:
            while len(kept) > 1:
                (ax, ay), (bx, by) = kept[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    corners = chain(ordered) + chain(reversed(ordered))
    return np.array(corners or ordered[:1], np.float64).reshape(-1, 2)


def _least_rectangle(hull: Float[NDArray, "H 2"]) -> Float[NDArray, "4 2"] | None:
    """Corners, clockwise, of the least rectangle; one of its sides lies along one of the hull's."""
    if len(hull) < 2:
        return None
    hull = hull[:: 1 + len(hull) // _MAX_HULL]
    sides = np.roll(hull, -1, axis=0) - hull
    along = sides / np.linalg.norm(sides, axis=1, keepdims=True)
    least, best = math.inf, None
    for ux, uy in along:
        axes = np.array([[ux, uy], [-uy, ux]])
        (left, top), (right, bottom) = (f(hull @ axes.T, axis=0) for f in (np.min, np.max))
        # Rounding must not decide between equals: the first stays.
        if (area := (right - left) * (bottom - top)) < least * (1 - 1e-9):
            least = area
            best = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) @ axes
    return best
