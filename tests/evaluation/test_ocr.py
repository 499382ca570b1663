# SPDX-License-Identifier: Apache-2.0
"""Reading metrics, counted by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2_jax.evaluation.ocr import (
    edit_distance,
    reading_metrics,
    region_reading_metrics,
    spotting_metrics,
)
from florence2_jax.tasks.answers import QuadRegion

STOP = QuadRegion(label="STOP", quad=(10, 10, 50, 10, 50, 20, 10, 20))
EXIT = QuadRegion(label="EXIT", quad=(10, 40, 50, 40, 50, 50, 10, 50))


def end_to_end(scored):
    scores = spotting_metrics(scored)
    return {name: scores[name] for name in ("hmean", "precision", "recall")}


def test_words_by_hand(ask):
    one = ask("OCR", ["STOP HERE\nSTOP"], "HERE STOP now stop")  # 2 of 4 words, of 3 true ones.
    other = ask("OCR", ["EXIT"], "EXIT")
    scores = reading_metrics([one, other])
    assert next(iter(scores)) == "word_f1"
    assert scores["word_precision"] == pytest.approx(3 / 5)
    assert scores["word_recall"] == pytest.approx(3 / 4)
    assert scores["word_f1"] == pytest.approx(2 * 3 / (5 + 4))


def test_character_error_rate_by_hand(ask):
    read = ask("OCR", ["kitten\non  mat"], "sitting on mat")  # Blanks and line breaks are alike.
    assert reading_metrics([read])["cer"] == pytest.approx(3 / len("kitten on mat"))
    assert reading_metrics([ask("OCR", ["ab"], "abcdef")])["cer"] == 2  # Beyond 1.


def slow_edit_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        slow_edit_distance(a[1:], b) + 1,
        slow_edit_distance(a, b[1:]) + 1,
        slow_edit_distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_edit_distance_equals_its_definition(a, b):
    assert edit_distance(a, b) == slow_edit_distance(a, b)


def test_degenerate_readings(ask):
    for scored in ([], [ask("OCR", [], "words")]):
        assert all(map(math.isnan, reading_metrics(scored).values()))
    assert list(reading_metrics([ask("OCR", ["STOP"], "")]).values()) == [0, 0, 0, 1]


def test_spotting_wants_place_and_text(ask):
    moved = QuadRegion(label="STOP", quad=(10, 15, 50, 15, 50, 25, 10, 25))  # IoU 1/3.
    misread = QuadRegion(label="ST0P", quad=STOP.quad)
    for wrong in (moved, misread):
        scored = [ask("OCR_WITH_REGION", [STOP, EXIT], [wrong, EXIT])]
        assert end_to_end(scored) == {"hmean": 0.5, "precision": 0.5, "recall": 0.5}
    perfect = [ask("OCR_WITH_REGION", [STOP, EXIT], [EXIT, STOP])]
    assert end_to_end(perfect) == {"hmean": 1, "precision": 1, "recall": 1}


def test_a_word_found_twice_counts_once(ask):
    scores = end_to_end([ask("OCR_WITH_REGION", [STOP], [STOP, STOP])])
    assert scores == pytest.approx({"hmean": 2 / 3, "precision": 0.5, "recall": 1})


def test_quads_overlap_as_they_are_turned(ask):
    """Two diagonal strips whose boxes are equal but which only cross."""
    falling = QuadRegion(label="a", quad=(0, 0, 20, 0, 100, 100, 80, 100))
    rising = QuadRegion(label="a", quad=(80, 0, 100, 0, 20, 100, 0, 100))
    assert spotting_metrics([ask("OCR_WITH_REGION", [falling], [rising])])["hmean"] == 0
    assert spotting_metrics([ask("OCR_WITH_REGION", [falling], [falling])])["hmean"] == 1


def test_small_writing_in_a_large_image_keeps_its_iou(ask):
    word = QuadRegion(label="a", quad=(100, 100, 108, 100, 108, 102, 100, 102))
    good = QuadRegion(label="a", quad=(100, 100, 108, 100, 108, 101.2, 100, 101.2))  # IoU 0.6.
    poor = QuadRegion(label="a", quad=(100, 100, 108, 100, 108, 100.8, 100, 100.8))  # IoU 0.4.
    for answer, expected in ((good, 1), (poor, 0)):
        scored = [ask("OCR_WITH_REGION", [word], [answer], size=(1000, 800))]
        assert spotting_metrics(scored)["hmean"] == expected


def test_degenerate_spotting(ask):
    for scored in ([], [ask("OCR_WITH_REGION", [], [STOP])]):
        assert all(map(math.isnan, spotting_metrics(scored).values()))
    silent = spotting_metrics([ask("OCR_WITH_REGION", [STOP], [])])
    assert not any(silent.values())


def test_writing_of_a_region_is_right_or_wrong(ask):
    answers = [("STOP  HERE ", "STOP HERE"), ("STOP", "stop"), ("STOP", "")]
    scored = [ask("REGION_TO_OCR", [truth], answer) for truth, answer in answers]
    assert region_reading_metrics(scored) == {"word_accuracy": pytest.approx(1 / 3)}
    assert math.isnan(region_reading_metrics([])["word_accuracy"])
    assert math.isnan(region_reading_metrics([ask("REGION_TO_OCR", [], "a")])["word_accuracy"])
