# SPDX-License-Identifier: Apache-2.0
"""Draws are what evaluating the drawn records anew gives; differences are judged by pairs."""

import dataclasses
import json
import math

import numpy as np
import pytest

from florence2_jax.data.examples import examples_of, target_of
from florence2_jax.evaluation import bootstrap
from florence2_jax.evaluation.bootstrap import Draws, Resampled, percentiles, resample
from florence2_jax.evaluation.captions import content_vocabulary
from florence2_jax.evaluation.comparison import compare
from florence2_jax.evaluation.families import FAMILIES, score_task
from florence2_jax.evaluation.results import TaskResult
from florence2_jax.evaluation.scored import Scored, distinct
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.answers import RegionsAnswer, parse_answer
from florence2_jax.tasks.registry import TASKS, get_task
from florence2_jax.typing import UserError


@pytest.fixture(scope="module")
def records(scenes):
    return list(RecordStore(scenes, "validation"))


def mixed_answers(records, task):
    """Right answers, but every third one is that of the question before it. No two regions have the
    same score: the order of equal ones is not what draws keep."""
    questions = [(r, e) for r in records for e in examples_of(r, task)]
    texts = [target_of(example, record.size).text for record, example in questions]
    scored = []
    for k, (record, example) in enumerate(questions):
        answer = parse_answer(task, texts[k - 1] if k % 3 == 1 else texts[k], record.size)
        if isinstance(answer, RegionsAnswer):
            regions = tuple(
                dataclasses.replace(region, score=(50 * k + i + 1) * 7919 % 100_003 / 100_003)
                for i, region in enumerate(answer.regions)
            )
            answer = dataclasses.replace(answer, regions=regions)
        scored.append(Scored(example=example, answer=answer, size=record.size, image_id=record.id))
    return distinct(scored)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_draw_is_what_evaluating_the_drawn_records_gives(task, records):
    scored = mixed_answers(records, task)
    words = content_vocabulary(["star", "box"])
    metrics = score_task(task, scored, content_words=words)
    headline = next(iter(metrics))
    assert metrics[headline] > 0 and metrics[headline] != 1
    resampled = resample(FAMILIES[task.token], scored, metrics, content_words=words, num=4)
    assert not resampled.missing and resampled.values.keys() == metrics.keys()
    draws = Draws.of(scored, 4)
    assert (draws.weights[0] == 1).all()
    assert (draws.weights.sum(axis=1) == draws.weights.shape[1]).all()
    for number in range(4):
        drawn = [
            one
            for one, record in zip(scored, draws.record_of, strict=True)
            for _ in range(int(draws.weights[1 + number, record]))
        ]
        anew = FAMILIES[task.token].corpus(drawn)
        for name, value in anew.items():
            if name != "cider":  # Its document frequencies are those of all records.
                assert resampled.values[name][number] == pytest.approx(
                    value, rel=1e-6, abs=1e-9, nan_ok=True
                ), name


def test_an_interval_is_as_wide_as_it_should_be(ask):
    scored = [
        ask("<REGION_TO_CATEGORY>", ["cat"], "cat" if k % 2 else "dog", image_id=f"{k}")
        for k in range(100)
    ]
    task = get_task("region_to_category")
    metrics = score_task(task, scored)
    low, high = resample(FAMILIES[task.token], scored, metrics).intervals()["accuracy"]
    # Half of 100 right: a deviation of 0.05, so 95 % within 0.098 of 0.5.
    assert low == pytest.approx(0.402, abs=0.021) and high == pytest.approx(0.598, abs=0.021)


def test_questions_about_one_record_are_drawn_together(ask):
    task = get_task("region_to_category")

    def width(per_record):
        scored = [
            ask(
                "<REGION_TO_CATEGORY>",
                ["cat"],
                "cat" if k // per_record % 2 else "dog",
                image_id=f"{k // per_record}",
                text_input=f"{k}",
            )
            for k in range(120)
        ]
        low, high = resample(FAMILIES[task.token], scored, score_task(task, scored)).intervals()[
            "accuracy"
        ]
        return high - low

    assert width(10) > 2 * width(1)


def test_what_cannot_be_drawn_has_no_interval_and_says_why(ask, monkeypatch):
    task = get_task("vqa")
    one = [ask("<VQA>", ["yes"], "yes", image_id="a")]
    alone = resample(FAMILIES[task.token], one, score_task(task, one))
    assert alone.missing == {"accuracy": "one record cannot be drawn from"}
    assert alone.interval("accuracy") is None
    two = [*one, ask("<VQA>", ["no"], "yes", image_id="b")]
    unknown = dataclasses.replace(FAMILIES[task.token], resampled=lambda scored, draws: {})
    anew = resample(unknown, two, score_task(task, two), num=20)
    assert anew.interval("accuracy") == (0.0, 1.0)
    monkeypatch.setattr(bootstrap, "BUDGET_S", 0.0)
    assert "too long" in resample(unknown, two, score_task(task, two)).missing["accuracy"]
    wrong = resample(unknown, two, {"accuracy": 0.9}, num=2).missing
    assert wrong == {"accuracy": "a draw takes 0.0 s, 100 of them too long"}
    assert percentiles(np.array([1.0, math.nan, math.nan])) is None


def test_a_metric_whose_draws_do_not_agree_gets_none(ask):
    two = [ask("<VQA>", ["yes"], "yes", image_id=name) for name in "ab"]
    missing = resample(FAMILIES["<VQA>"], two, {"accuracy": 0.9}, num=3).missing
    assert missing == {"accuracy": "its draws do not agree with its value"}


def report(task, scored):
    metrics = score_task(task, scored)
    result = TaskResult(
        task=task,
        metrics=metrics,
        blind={},
        resampled=resample(FAMILIES[task.token], scored, metrics),
        num_examples=len(scored),
        num_records=len({one.image_id for one in scored}),
        left_out=0,
        lost=0,
        digest=f"{len(scored)}",
    )
    return json.loads(json.dumps({"tasks": [result.to_json()]}))


def test_paired_differences_are_real_where_single_intervals_overlap(ask):
    task = get_task("vqa")

    def answers(num_right):
        said = ["yes" if k < num_right else "no" for k in range(200)]
        return [ask("<VQA>", ["yes"], word, image_id=f"{k}") for k, word in enumerate(said)]

    worse, better = report(task, answers(100)), report(task, answers(110))
    (one,) = compare(worse, better, places=("a", "b"))
    assert one.value == pytest.approx(0.05) and one.is_real
    assert one.interval[0] == pytest.approx(0.02, abs=0.01)
    low, high = worse["tasks"][0]["intervals"]["accuracy"]
    assert low < better["tasks"][0]["metrics"]["accuracy"] < high
    (same,) = compare(worse, worse, places=("a", "a"))
    assert same.value == 0 and same.is_real is False
    nearly = answers(100)[:-1] + answers(200)[-1:]
    (noise,) = compare(worse, report(task, nearly), places=("a", "b"))
    assert noise.value == pytest.approx(0.005) and noise.is_real is False


def test_reports_that_do_not_compare_are_named(ask):
    task = get_task("vqa")
    some = [ask("<VQA>", ["yes"], "yes", image_id=f"{k}") for k in range(3)]
    one, other = report(task, some), report(task, some[:2])
    with pytest.raises(UserError, match="vqa: a has 3 questions about 3 records, b 2 about 2"):
        compare(one, other, places=("a", "b"))
    captions = report(
        get_task("caption"), [ask("<CAPTION>", ["a cat"], "a cat", image_id=x) for x in "ab"]
    )
    with pytest.raises(UserError, match="a has vqa, b has caption: no task is in both"):
        compare(one, captions, places=("a", "b"))
    with pytest.raises(UserError, match="b: no report of this version's florence2-jax evaluate"):
        compare(one, {"answers": []}, places=("a", "b"))
    assert Resampled().to_json() == {}
