# SPDX-License-Identifier: Apache-2.0
"""The official VQA accuracy with its quirks."""

import math

import pytest

from florence2_jax.evaluation.vqa import normalize_answer, vqa_accuracy, vqa_metrics


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dont", "don't"),
        ("1,000", "1000"),
        ("10.5 m", "10.5 m"),
        ("u.s.a.", "usa"),
        ("red/blue", "red blue"),
        ("it's a dog", "it's dog"),
        ("well-known", "well known"),
        ("$3.50", "$3.50"),
        ("no, thanks", "no thanks"),
        ("None", "0"),
        ("The\ntwo\tdogs!", "2 dogs"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),  # The official table has it the wrong way round.
        ("." * 33, "."),  # The 33rd period stays.
        ("", ""),
    ],
)
def test_normal_form(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("num_matching", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_agreement_of_ten_people(num_matching, expected):
    others = [f"other {i}" for i in range(10 - num_matching)]
    assert vqa_accuracy("cat", ["cat"] * num_matching + others) == pytest.approx(expected)


def test_ten_equal_answers_are_taken_literally():
    assert vqa_accuracy("yes", ["Yes"] * 10) == 0
    assert vqa_accuracy("Yes", ["Yes"] * 10) == 1
    assert vqa_accuracy("yes", ["Yes"] * 9 + ["no"]) == 1


def test_fewer_answers_need_one_match():
    assert vqa_accuracy("A dog.", ["cat", "dog"]) == 1
    assert vqa_accuracy("Two", ["2"]) == 1
    assert vqa_accuracy("dogs", ["dog"]) == 0
    assert vqa_accuracy("", ["dog"]) == 0


def test_mean_over_questions(ask):
    scored = [ask("VQA", ["dog"], "dog"), ask("VQA", ["cat"] + ["dog"] * 9, "cat")]
    assert vqa_metrics(scored) == {"accuracy": pytest.approx((1 + 0.3) / 2)}
    assert math.isnan(vqa_metrics([])["accuracy"])
    assert math.isnan(vqa_metrics([ask("VQA", [], "dog")])["accuracy"])
