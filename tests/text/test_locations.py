# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2_jax.text.locations import (
    NUM_BINS,
    coordinates_text,
    dequantize,
    location_text,
    quantize,
)

SIDES = st.integers(1, 20_000)


def test_released_goldens():  # Facts 3.2, computed by the released processor at 640 x 480.
    boxes = [(0, 0, 640, 480), (0.64, 0.48, 1.28, 0.96), (639.999, 479.99, 320, 240)]
    expected = [(0, 0, 999, 999), (1, 1, 2, 2), (999, 999, 500, 500)]
    bins = quantize(np.array(boxes).reshape(-1, 2, 2), (640, 480))
    np.testing.assert_array_equal(bins.reshape(-1, 4), expected)


@given(SIDES, SIDES, st.floats(0, 1), st.floats(0, 1))
def test_round_trip_is_within_half_a_bin(width, height, u, v):
    point = np.array([[u * width, v * height]])
    back = dequantize(quantize(point, (width, height)), (width, height))
    half_bin = np.array([width, height]) / NUM_BINS / 2
    assert (np.abs(back - point) <= half_bin * (1 + 1e-9)).all()


def test_every_bin_is_its_own_centre():
    bins = np.stack([np.arange(NUM_BINS)] * 2, axis=1).astype(np.int32)
    np.testing.assert_array_equal(quantize(dequantize(bins, (777, 31)), (777, 31)), bins)


def test_the_far_border_never_makes_loc_1000():
    assert coordinates_text((0, 0, 640, 480), (640, 480)) == "<loc_0><loc_0><loc_999><loc_999>"
    assert coordinates_text((-5, -5, 900, 900), (640, 480)) == "<loc_0><loc_0><loc_999><loc_999>"


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
NEAR = st.floats(-50, 20_050) | st.integers(-5, 20_005)


@given(SIDES, SIDES, st.lists(st.tuples(NEAR | NUMBERS, NEAR | NUMBERS), max_size=9))
def test_text_has_the_bins_of_quantize(width, height, points):
    with np.errstate(over="ignore"):  # The largest floats over a small bin are infinite, as meant.
        bins = quantize(np.array(points, np.float64).reshape(-1, 2), (width, height))
    numbers = [v for point in points for v in point]
    assert coordinates_text(numbers, (width, height)) == location_text(bins.ravel().tolist())


@pytest.mark.parametrize("size", [(0, 10), (10, -1)])
def test_an_image_without_sides_is_refused(size):
    with pytest.raises(ValueError, match="sides must be positive"):
        quantize(np.zeros((1, 2)), size)
    with pytest.raises(ValueError, match="sides must be positive"):
        coordinates_text((0, 0), size)


@pytest.mark.parametrize("numbers", [(1.0,), (1.0, float("nan")), (float("inf"), 2.0)])
def test_text_needs_finite_pairs(numbers):
    with pytest.raises(ValueError, match="finite, in pairs"):
        coordinates_text(numbers, (10, 10))


def test_coordinates_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        quantize(np.array([[np.nan, 0.0]]), (10, 10))
