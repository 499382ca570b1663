# SPDX-License-Identifier: Apache-2.0
"""Grounding and referring expressions: the verified toys and what happens at the edges."""

import math

import numpy as np
import pytest

from florence2_jax.evaluation.grounding import (
    grounding_metrics,
    phrase_recall,
    referring_metrics,
    referring_scores,
)

TASK = "CAPTION_TO_PHRASE_GROUNDING"


def first(scores):
    return {name: scores[name] for name in ("r1_any", "r1_merged")}


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
    assert first(grounding_metrics([ask(TASK, truth, [("two men", box)])])) == expected


def test_later_boxes_of_a_phrase_count_up_to_k(ask):
    answer = [("a man", RIGHT), ("a man", LEFT)]
    scores = grounding_metrics([ask(TASK, [("a man", LEFT)], answer)])
    assert (scores["r1_any"], scores["r5_any"], scores["r10_any"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (0, ["r1", "r5", "r10", "upper_bound"]),
        (4, ["r5", "r10", "upper_bound"]),
        (5, ["r10", "upper_bound"]),
        (10, ["upper_bound"]),
        (None, []),
    ],
)
def test_recall_at_k_looks_at_k_boxes(place, names):
    boxes = np.array([RIGHT] * 11, float)
    if place is not None:
        boxes[place] = LEFT
    scores = phrase_recall([(boxes, np.array([LEFT], float))])
    assert [name for name, value in scores.items() if value] == [
        f"{name}_{protocol}" for name in names for protocol in ("any", "merged")
    ]


def test_a_box_that_is_not_finite_is_an_error():
    box, odd = np.array([LEFT], float), np.array([[0, 0, math.nan, 9]])
    for pair in ((odd, box), (box, odd)):
        with pytest.raises(ValueError, match="not finite"):
            phrase_recall([pair])
    with pytest.raises(ValueError, match="not finite"):
        referring_scores([1.0, math.nan])


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
    assert not any(grounding_metrics([silent]).values())


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
