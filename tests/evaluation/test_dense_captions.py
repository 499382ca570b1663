# SPDX-License-Identifier: Apache-2.0
"""Dense-caption mean average precision, counted by hand."""

import math

import numpy as np
import pytest

from florence2_jax.evaluation.dense_captions import DenseCaptions, dense_caption_scores

HERE, THERE = (0, 0, 9, 9), (20, 20, 29, 29)


def regions(*rows):
    boxes = np.array([row[0] for row in rows], float).reshape(-1, 4)
    texts, scores = [row[1] for row in rows], [float(row[2]) for row in rows if len(row) > 2]
    return DenseCaptions(boxes, texts, scores)


def share_of_equal_words(captions, references):
    return [
        max(len({*a.split()} & {*b.split()}) / len(b.split()) for b in texts)
        for a, texts in zip(captions, references, strict=True)
    ]


def score(found, true):
    return dense_caption_scores({"a": found}, {"a": true}, share_of_equal_words)


def test_perfect_answers_score_one():
    true = regions((HERE, "a dog"), (THERE, "a cat"))
    found = regions((THERE, "a cat", 0.5), (HERE, "a dog", 0.9))
    assert score(found, true) == pytest.approx({"map": 1, "map_boxes": 1})


def test_place_and_words_each_have_thresholds():
    """IoU 0.5: three of five thresholds. Similarity 0.2: four of six, the fifth is 0.2 itself."""
    true = regions((HERE, "one two three four five"))
    found = regions(((0, 0, 9, 4), "one", 1.0))
    scores = score(found, true)
    assert scores == pytest.approx({"map": 3 / 5 * 4 / 6, "map_boxes": 3 / 5})


def test_truths_of_one_place_are_one_truth_of_several_texts():
    true = regions((HERE, "a dog"), ((0, 0, 9, 8), "brown animal"), (THERE, "a cat"))
    found = regions((HERE, "brown animal", 0.9), (THERE, "a cat", 0.8))
    assert score(found, true)["map"] == pytest.approx(1)


def test_a_second_answer_to_a_truth_is_wrong_even_with_better_words():
    true = regions((HERE, "a dog"))
    found = regions((HERE, "xyz", 0.9), (HERE, "a dog", 0.8))
    scores = score(found, true)
    assert scores["map"] == 0 and scores["map_boxes"] == pytest.approx(1)


def test_a_box_beside_everything_takes_no_truth():
    true = regions((HERE, "a dog"))
    found = regions(((50, 50, 60, 60), "a dog", 0.9), (HERE, "a dog", 0.8))
    assert score(found, true)["map"] == pytest.approx(1 / 2)


def test_images_are_apart():
    true = {"a": regions((HERE, "a dog")), "b": regions((HERE, "a cat"))}
    found = {"a": regions((HERE, "a dog", 1))}
    scores = dense_caption_scores(found, true, share_of_equal_words)
    assert scores["map"] == pytest.approx(51 / 101)  # Recall 0.5, of 101 points.


def test_degenerate_input():
    nothing, dog = regions(), regions((HERE, "a dog"))
    for found in (nothing, regions((HERE, "a dog", 1))):
        assert all(map(math.isnan, score(found, nothing).values()))
    assert score(nothing, dog) == {"map": 0, "map_boxes": 0}
    assert dense_caption_scores({}, {"a": dog}, share_of_equal_words)["map"] == 0
    assert score(regions((HERE, "", 1)), dog) == pytest.approx({"map": 0, "map_boxes": 1})
    for odd in ((HERE, "a dog", math.nan), ((0, 0, math.inf, 9), "a dog", 1)):
        with pytest.raises(ValueError, match="not finite"):
            regions(odd)
