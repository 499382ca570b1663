# SPDX-License-Identifier: Apache-2.0
"""The official VQA accuracy with its quirks."""

import math

import pytest

from florence2_jax.evaluation.vqa import (
    normalize_answer,
    official_vqa_accuracy,
    textvqa_accuracy,
    vqa_accuracy,
    vqa_metrics,
)


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


def test_the_official_formula_for_any_number_of_people():
    assert official_vqa_accuracy("dog", ["dog"]) == 0  # Nobody else agrees.
    assert official_vqa_accuracy("dog", ["dog", "dog"]) == pytest.approx(1 / 3)
    assert official_vqa_accuracy("2", ["two"] * 9 + ["3"]) == 1
    assert official_vqa_accuracy("2", ["two"] * 10) == 0  # All equal: taken literally.
    assert official_vqa_accuracy("", ["dog"] * 10) == 0
    for accuracy in (official_vqa_accuracy, textvqa_accuracy):
        with pytest.raises(ValueError, match="without answers of people"):
            accuracy("dog", [])


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("yes", "Yes", 1),  # Normalised where all agree, too.
        ("men s room", "men's room", 0),
        ("men 's room", "Men's room?", 1),
        ("10,000", "10000", 1),
        ("the nokia", "nokia.", 1),
        ("", "", 1),
        ("", "nokia", 0),
    ],
)
def test_textvqa_normalises_always_and_otherwise(answer, reference, expected):
    assert textvqa_accuracy(answer, [reference] * 10) == expected


def test_textvqa_agreement():
    assert textvqa_accuracy("Dog", ["dog", "dog", *"abcdefgh"]) == pytest.approx(0.6)
