# SPDX-License-Identifier: Apache-2.0
"""Clipping is exact: what a window keeps of a shape is what the shape's raster has there."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from florence2_jax.geometry import clip_box, clip_polygon, polygon_area

SIDE = 24  # Pixels; shapes may lie beyond.
# No point of the raster lies on an edge: corners are on eighths, and these are irrational.
CENTRES = np.arange(-4, SIDE + 4) + math.sqrt(2) - 1, np.arange(-4, SIDE + 4) + math.sqrt(3) - 1

# On eighths, so that corners often lie on the sides of a window, which are whole.
COORDINATE = st.integers(-4 * 8, (SIDE + 4) * 8).map(lambda v: v / 8) | st.integers(-4, SIDE + 4)
RINGS = st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=12)


@st.composite
def windows(draw):
    x0, y0 = draw(st.integers(0, SIDE - 1)), draw(st.integers(0, SIDE - 1))
    return x0, y0, draw(st.integers(x0 + 1, SIDE)), draw(st.integers(y0 + 1, SIDE))


@st.composite
def combs(draw):
    """Simple polygons with teeth: a window below their root takes them apart."""
    tips = draw(st.lists(st.integers(0, SIDE), min_size=5, max_size=11))
    step = SIDE / (len(tips) - 1)
    teeth = [(i * step, float(tip)) for i, tip in enumerate(tips)]
    ring = [*teeth, (SIDE, SIDE + 2.0), (0.0, SIDE + 2.0)]
    return [(y, x) for x, y in ring] if draw(st.booleans()) else ring


@st.composite
def stars(draw):
    """Simple polygons: one point on each of some rays."""
    radii = draw(st.lists(st.floats(1, 14), min_size=5, max_size=14))
    angles = 2 * math.pi * np.arange(len(radii)) / len(radii)
    x, y = 12 + radii * np.cos(angles), 12 + radii * np.sin(angles)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def flat(ring) -> tuple[float, ...]:
    return tuple(float(v) for point in ring for v in point)


def raster(polygon) -> np.ndarray:
    """Even-odd, in the middle of pixels: bool[Y, X]."""
    x, y = np.meshgrid(*CENTRES)
    inside = np.zeros(x.shape, bool)
    points = np.reshape(polygon, (-1, 2))
    for (xa, ya), (xb, yb) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if ya != yb:
            crosses = (ya > y) != (yb > y)
            inside ^= crosses & (x < xa + (y - ya) * (xb - xa) / (yb - ya))
    return inside


def raster_of_window(window) -> np.ndarray:
    x0, y0, x1, y1 = map(float, window)
    return raster((x0, y0, x1, y0, x1, y1, x0, y1))


@settings(deadline=None, max_examples=300)
@given(ring=RINGS, window=windows())
@example(ring=[(4, 4), (8, 2), (9, 9), (4, 6), (9, 12), (2, 12)], window=(4, 0, 24, 24))
def test_any_ring_keeps_what_it_covers_within_the_window(ring, window):
    parts = clip_polygon(flat(ring), window)
    together = np.zeros_like(raster_of_window(window))
    for part in parts:
        together ^= raster(part)  # Even-odd: also for rings that cross themselves.
    np.testing.assert_array_equal(together, raster(flat(ring)) & raster_of_window(window))


@settings(deadline=None, max_examples=300)
@given(ring=combs() | stars(), window=windows())
def test_simple_polygons_fall_into_parts_that_do_not_overlap(ring, window):
    parts = clip_polygon(flat(ring), window)
    expected = raster(flat(ring)) & raster_of_window(window)
    covered = sum((raster(part).astype(int) for part in parts), np.zeros(expected.shape, int))
    np.testing.assert_array_equal(covered, expected)
    x0, y0, x1, y1 = window
    for part in parts:
        x, y = np.reshape(part, (-1, 2)).T
        assert x.min() >= x0 and x.max() <= x1 and y.min() >= y0 and y.max() <= y1
    # What lies on either side of a line is all there is.
    areas = [
        sum(map(polygon_area, clip_polygon(flat(ring), side)))
        for side in ((-50, -50, x0, 50), (x0, -50, 50, 50))
    ]
    assert sum(areas) == pytest.approx(polygon_area(flat(ring)), rel=1e-12, abs=1e-9)


def test_a_comb_falls_apart_only_below_its_root():
    teeth = (0.0, 10, 0, 0, 2, 8, 4, 0, 6, 8, 8, 0, 8, 10)
    parts = clip_polygon(teeth, (0, 0, 10, 4))
    assert [polygon_area(part) for part in parts] == [2.0, 4.0, 2.0]
    assert len(clip_polygon(teeth, (0, 0, 10, 9))) == 1


def test_parts_that_meet_on_the_side_of_a_window_are_not_turned_inside_out():
    ring = (6.0, 2.0, 6.0, 8.0, 0.0, 8.0, 0.0, 1.0, 2.0, 1.0, 4.0, 4.0)  # The last point is on it.
    above, below = clip_polygon(ring, (0, 0, 9, 4)), clip_polygon(ring, (0, 4, 9, 9))
    assert sorted(map(polygon_area, above)) == [2.0, 9.0]
    assert list(map(polygon_area, below)) == [24.0]


def test_what_lies_within_or_without_is_left_alone():
    ring = (1.0, 1.0, 5.0, 2.0, 3.0, 7.0)
    assert clip_polygon(ring, (1, 1, 5, 7)) == (ring,)  # Touching is within.
    assert clip_polygon(ring, (5, 0, 9, 9)) == ()  # And without.
    assert clip_polygon((1.0, 1, 3, 1, 5, 1), (0, 0, 9, 9)) == ()  # No area.
    assert polygon_area(clip_polygon((0.0, 0, 9, 0, 9, 9, 0, 9), (2, 2, 4, 4))[0]) == 4


@settings(deadline=None)
@given(box=windows(), window=windows())
def test_boxes_are_clipped_as_their_rasters(box, window):
    box = tuple(map(float, box))
    clipped = clip_box(box, window)
    expected = raster_of_window(box) & raster_of_window(window)
    if clipped is None:
        assert not expected.any()
    else:
        np.testing.assert_array_equal(raster_of_window(clipped), expected)
        assert expected.any()
