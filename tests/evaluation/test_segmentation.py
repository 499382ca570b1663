# SPDX-License-Identifier: Apache-2.0
"""Masks drawn from polygons, and the two ways to average their IoU."""

import math

import pytest
from pycocotools import mask

from florence2_jax.evaluation.segmentation import mask_scores, rasterize, segmentation_metrics
from florence2_jax.tasks.answers import MaskRegion

TASK = "REFERRING_EXPRESSION_SEGMENTATION"


def rectangle(x0, y0, x1, y1):
    return (x0, y0, x1, y0, x1, y1, x0, y1)


def drawn(*polygons):
    return MaskRegion(polygons=polygons)


def test_the_two_means_by_hand(ask):
    """IoU 50/100 and 10/400: mIoU is their mean, oIoU the quotient of sums."""
    half = ask(TASK, [drawn(rectangle(0, 0, 10, 10))], [drawn(rectangle(0, 0, 5, 10))])
    little = ask(TASK, [drawn(rectangle(0, 0, 20, 20))], [drawn(rectangle(0, 0, 1, 10))])
    scores = segmentation_metrics([half, little])
    assert list(scores) == ["miou", "oiou"]
    assert scores == pytest.approx({"miou": 0.2625, "oiou": 60 / 500})


def test_instances_and_polygons_unite(ask):
    top, bottom = rectangle(0, 0, 40, 20), rectangle(0, 20, 40, 40)
    whole = drawn(rectangle(0, 0, 40, 40))
    assert segmentation_metrics([ask(TASK, [drawn(top, bottom)], [whole])])["miou"] == 1
    assert segmentation_metrics([ask(TASK, [whole], [drawn(top), drawn(bottom)])])["miou"] == 1
    twice = [drawn(top), drawn(bottom), drawn(top)]
    assert segmentation_metrics([ask(TASK, [whole], twice)])["miou"] == 1


def test_masks_have_the_size_of_the_image():
    run = rasterize([rectangle(10, 20, 60, 40)], (80, 50))
    assert run["size"] == [50, 80]
    assert mask.area(run) == 50 * 20
    assert mask.toBbox(run).tolist() == [10, 20, 50, 20]
    assert mask.area(rasterize([rectangle(-50, -50, 500, 500)], (80, 50))) == 80 * 50
    assert mask.area(rasterize([(5, 5, 20, 20)], (80, 50))) == 0  # A line draws nothing.


def test_areas_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        mask_scores([(1.0, 2.0), (math.nan, 4.0)])


def test_degenerate_masks(ask):
    square = drawn(rectangle(0, 0, 10, 10))
    assert segmentation_metrics([ask(TASK, [square], [])]) == {"miou": 0, "oiou": 0}
    assert all(map(math.isnan, segmentation_metrics([]).values()))
    assert all(map(math.isnan, segmentation_metrics([ask(TASK, [], [square])]).values()))
    thin = drawn((5, 5, 5, 5, 5, 5))
    assert segmentation_metrics([ask(TASK, [thin], [])]) == {"miou": 0, "oiou": 0}
