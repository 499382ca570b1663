# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC average precision equals its published values and what is counted by hand."""

import dataclasses
import math

import pytest

from florence2_jax.evaluation.result_files.voc import read_voc
from florence2_jax.evaluation.voc import VocBox, voc_ap

# IoU threshold: every point, 11 points. Published with review_object_detection_metrics.
GOLDEN = {
    0.1: (0.3371980676, 0.3333333333),
    0.3: (0.2456866804, 0.2683982683),
    0.5: (0.0222222222, 0.0303030303),
    0.75: (0.0, 0.0),
}
HERE, THERE = (0.0, 0.0, 9.0, 9.0), (20.0, 20.0, 29.0, 29.0)


def box(corners, score=1.0, image="a", **kwargs):
    return VocBox(image_id=image, box=corners, score=score, **kwargs)


def test_published_values(shared_data):
    folder = shared_data / "metrics_golden" / "voc_ap_case1"
    classes, num_images, notes = read_voc(folder / "gts", folder / "dets")
    assert (list(classes), num_images, notes) == (["object"], 7, ())
    for threshold, expected in GOLDEN.items():
        ap = voc_ap(*classes["object"], iou_threshold=threshold)
        assert dataclasses.astuple(ap) == pytest.approx(
            expected, abs=1e-10
        )  # They are cut, not rounded.


def test_by_hand():
    """Right, wrong, right of three truths: precisions 1 at recall 1/3 and 2/3 at recall 2/3."""
    found = [box(HERE, 0.9), box((50.0, 50.0, 59.0, 59.0), 0.8), box(THERE, 0.7)]
    true = [box(HERE), box(THERE), box(HERE, image="b")]
    ap = voc_ap(found, true)
    assert ap.every_point == pytest.approx(1 / 3 + 2 / 3 / 3)
    assert ap.eleven_point == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)


def test_the_last_pixel_belongs_to_a_box():
    """5 of 15 columns are shared: plain IoU would be 4 / 14."""
    found, true = [box((0.0, 0.0, 9.0, 0.0))], [box((5.0, 0.0, 14.0, 0.0))]
    assert voc_ap(found, true, iou_threshold=1 / 3).every_point == 1
    assert voc_ap(found, true, iou_threshold=0.34).every_point == 0


def test_degenerate_input():
    for found in ([], [box(HERE)]):
        ap = voc_ap(found, [])
        assert math.isnan(ap.every_point) and math.isnan(ap.eleven_point)
    assert voc_ap([], [box(HERE)]).every_point == 0
    twice = voc_ap([box(HERE, 0.9), box(HERE, 0.8), box(THERE, 0.7)], [box(HERE), box(THERE)])
    assert twice.every_point == pytest.approx(1 / 2 + 2 / 3 / 2)  # The second is wrong.
    for odd in (box(HERE, math.nan), box((math.inf, 0.0, 1.0, 1.0))):
        with pytest.raises(ValueError, match="not finite"):
            voc_ap([odd], [box(HERE)])


def test_difficult_truths_count_neither_way():
    true = [box(HERE), box(THERE, is_difficult=True)]
    assert voc_ap([box(THERE, 0.9), box(HERE, 0.8)], true).every_point == 1
    assert voc_ap([box(HERE)], true).every_point == 1
    assert math.isnan(voc_ap([], true[1:]).every_point)
