# SPDX-License-Identifier: Apache-2.0
"""Scores are held against what is right, on examples worked out by hand."""

import pytest

from florence2_jax.data.examples import Example
from florence2_jax.evaluation.calibration import calibrations, ranked_by, reliability
from florence2_jax.evaluation.results import Answered
from florence2_jax.evaluation.unknown_labels import unknown_labels
from florence2_jax.inference.predictor import Prediction
from florence2_jax.inference.scores import AnswerScores, RegionScore, with_scores
from florence2_jax.tasks.answers import BoxRegion, RegionsAnswer, TextAnswer
from florence2_jax.tasks.registry import get_task

PLACE, FAR = (10.0, 10.0, 40.0, 40.0), (60.0, 60.0, 90.0, 90.0)


def detected(number, *boxes):
    """A cat is at `PLACE`; boxes found are `(label, box, score of the box, of the label)`."""
    task = get_task("od")
    answer = RegionsAnswer(
        task=task.token, regions=tuple(BoxRegion(label=label, box=box) for label, box, *_ in boxes)
    )
    scores = AnswerScores(regions=tuple(RegionScore(score=s, label=n) for *_, s, n in boxes))
    prediction = Prediction(
        answer=with_scores(answer, scores), raw="", mean_log_prob=0.0, scores=scores
    )
    example = Example(task=task, regions=(BoxRegion(label="cat", box=PLACE),))
    return Answered(
        index=number, record_id=f"{number}", size=(100, 100), example=example, prediction=prediction
    )


def test_the_error_is_the_mean_distance_of_score_and_accuracy():
    found = reliability("od", "box", [(0.95, True), (0.85, True), (0.85, False), (1.0, True)])
    assert [(one.low, one.number, one.accuracy) for one in found.bins] == [
        (0.8, 2, 0.5),
        (0.9, 2, 1.0),
    ]
    assert found.ece == pytest.approx((2 * 0.35 + 2 * 0.025) / 4)
    assert found.to_json()["bins"][0]["score"] == pytest.approx(0.85)


def test_boxes_are_judged_by_place_and_labels_where_the_place_is_right():
    answered = [
        detected(0, ("cat", PLACE, 0.9, 0.8), ("dog", FAR, 0.3, 0.6)),
        detected(1, ("dog", PLACE, 0.7, 0.4)),
        detected(2),
    ]
    box, label = calibrations(answered)
    assert (box.kind, box.number, label.kind, label.number) == ("box", 3, "label", 2)
    assert box.ece == pytest.approx((0.1 + 0.3 + 0.3) / 3)
    assert label.ece == pytest.approx((0.2 + 0.4) / 2)


def test_answers_to_questions_are_judged_by_full_marks():
    task = get_task("vqa")
    answered = []
    for number, (text, score) in enumerate((("yes", 0.9), ("no", 0.2))):
        scores = AnswerScores(text=score)
        prediction = Prediction(
            answer=TextAnswer(task=task.token, text=text),
            raw=text,
            mean_log_prob=0.0,
            scores=scores,
        )
        example = Example(task=task, text_input="is it?", text="yes", references=("yes",))
        answered.append(
            Answered(
                index=number,
                record_id=f"{number}",
                size=(9, 9),
                example=example,
                prediction=prediction,
            )
        )
    (found,) = calibrations(answered)
    assert found.kind == "text" and found.ece == pytest.approx(0.15)


def test_scores_that_know_beat_constant_ones():
    # A wrong box is written before the right one; its scores say so.
    answered = [detected(k, ("cat", FAR, 0.2, 0.9), ("cat", PLACE, 0.8, 0.9)) for k in range(12)]
    ranking = ranked_by(answered, num_resamples=50)
    assert ranking["ap"]["box"]["ap50"] == pytest.approx(1.0)
    assert ranking["ap"]["box x label"] == ranking["ap"]["box"]
    assert ranking["ap"]["constant"] == ranking["ap"]["label"]
    assert ranking["ap"]["constant"]["ap50"] < 0.6
    gain = ranking["gain"]["ap50"]
    assert gain["difference"] == pytest.approx(1.0 - ranking["ap"]["constant"]["ap50"])
    assert gain["interval"][0] > 0.4
    assert ranked_by(answered, num_resamples=0)["gain"]["ap50"]["interval"] is None


def test_labels_of_no_category_are_listed_with_the_nearest():
    boxes = (("cats", PLACE, 0.9, 0.8), ("cat", FAR, 0.3, 0.6), ("qq", FAR, 0.1, 1.0))
    assert unknown_labels([detected(0, *boxes)]) == [
        {"label": "cats", "number": 1, "nearest": ["cat"]},
        {"label": "qq", "number": 1, "nearest": []},
    ]
