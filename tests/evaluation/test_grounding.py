# SPDX-License-Identifier: Apache-2.0
"""Grounding and referring expressions: the verified toys and what happens at the edges."""

import math

import pytest

from florence2_jax.evaluation.grounding import grounding_metrics, referring_metrics

TASK = "CAPTION_TO_PHRASE_GROUNDING"
LEFT, RIGHT = (0, 0, 10, 10), (30, 0, 40, 10)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 9), {"r1_any": 1, "r1_merged": 0}),  # IoU 0.90 with one, 0.225 with the hull.
        ((0, 0, 40, 10), {"r1_any": 0, "r1_merged": 1}),  # IoU 0.25 with either, 1 with the hull.
        ((0, 0, 10, 5), {"r1_any": 1, "r1_merged": 0}),  # IoU 0.5 is a hit.
    ],
)
def test_any_box_and_merged_box(ask, box, expected):
    truth = [("two men", LEFT), ("two men", RIGHT)]
    assert grounding_metrics([ask(TASK, truth, [("two men", box)])]) == expected


def test_only_the_first_box_of_a_phrase_counts(ask):
    answer = [("a man", RIGHT), ("a man", LEFT)]
    assert grounding_metrics([ask(TASK, [("a man", LEFT)], answer)])["r1_any"] == 0


def test_equal_phrases_match_in_order_of_occurrence(ask):
    truth = [("a man", LEFT), ("a dog", (50, 50, 60, 60)), ("a man", RIGHT)]
    assert grounding_metrics([ask(TASK, truth, truth)])["r1_any"] == 1
    swapped = [truth[2], truth[1], truth[0]]
    assert grounding_metrics([ask(TASK, truth, swapped)])["r1_any"] == pytest.approx(1 / 3)
    # The second mention finds nothing if the answer has but one.
    assert grounding_metrics([ask(TASK, truth, truth[:2])])["r1_any"] == pytest.approx(2 / 3)


def test_phrases_are_counted_not_captions(ask):
    one = ask(TASK, [("a man", LEFT), ("a dog", RIGHT)], [("a man", LEFT)])
    other = ask(TASK, [("a cat", LEFT)], [("a cat", LEFT), ("the sky", RIGHT)])
    assert grounding_metrics([one, other])["r1_any"] == pytest.approx(2 / 3)


def test_degenerate_grounding(ask):
    assert all(map(math.isnan, grounding_metrics([]).values()))
    assert all(map(math.isnan, grounding_metrics([ask(TASK, [], [("a man", LEFT)])]).values()))
    silent = ask(TASK, [("a man", LEFT)], [])
    assert grounding_metrics([silent]) == {"r1_any": 0, "r1_merged": 0}


REFERRING = "REFERRING_EXPRESSION_COMPREHENSION"


def test_referring_accuracy(ask):
    near = ask(REFERRING, [LEFT], [(1.5, 1.5, 11.5, 11.5), LEFT])  # IoU .566, GIoU .532.
    far = ask(REFERRING, [LEFT], [RIGHT, LEFT])  # The second box is not looked at.
    either = ask(REFERRING, [LEFT, RIGHT], [RIGHT])  # Any of several true boxes will do.
    silent = ask(REFERRING, [LEFT], [])
    iou = 8.5**2 / (200 - 8.5**2)
    assert referring_metrics([near]) == pytest.approx({"accuracy": 1, "mean_iou": iou})
    assert referring_metrics([near, far, either, silent]) == pytest.approx(
        {"accuracy": 0.5, "mean_iou": (iou + 1) / 4}
    )


def test_generalised_iou_would_decide_otherwise(ask):
    box = (0, 5, 10, 15)  # IoU 1/3.
    half = (2.7, 2.0, 12.0, 10.0)  # IoU 58.4 / 116: above a half; its GIoU is below.
    assert referring_metrics([ask(REFERRING, [LEFT], [box])])["accuracy"] == 0
    assert referring_metrics([ask(REFERRING, [LEFT], [half])])["accuracy"] == 1


def test_degenerate_referring(ask):
    assert all(map(math.isnan, referring_metrics([]).values()))
    assert all(map(math.isnan, referring_metrics([ask(REFERRING, [], [LEFT])]).values()))
