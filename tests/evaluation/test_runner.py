# SPDX-License-Identifier: Apache-2.0
"""Every question of a store is asked once, on any devices, and again after an interruption."""

import dataclasses
import json
from collections import Counter

import jax
import pytest
from tiny_model import random_predictor

from florence2_jax.data.examples import examples_of
from florence2_jax.evaluation.answer_log import AnswerLog, from_lines
from florence2_jax.evaluation.answering import Row, batches_of, prompts_per_image, rows_of
from florence2_jax.evaluation.questions import Asking, check_not_trained_on, open_held_out
from florence2_jax.evaluation.runner import evaluate
from florence2_jax.inference.predictor import Predictor
from florence2_jax.parallel.gathering import block_of
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import Plan, write_store
from florence2_jax.tasks.registry import get_task
from florence2_jax.typing import UserError

TASKS = tuple(map(get_task, ("od", "caption", "vqa")))


@pytest.fixture(scope="module")
def store(scenes) -> RecordStore:
    return RecordStore(scenes, "validation")


@pytest.fixture(scope="module")
def predictor(scenes) -> Predictor:
    return random_predictor(scenes)


def ask(predictor, store, **options):
    options = dict(with_blind=False, batch_size=3, num_resamples=0) | options
    asking = options.pop("asking", Asking(tasks=TASKS, per_record=2))
    result = evaluate(predictor, store, asking, **options)
    assert result is not None
    return result


def said(result):
    return [(one.record_id, one.example.prompt, one.prediction) for one in result.answered]


@pytest.fixture(scope="module")
def plain(predictor, store):
    return ask(predictor, store)


def test_every_question_is_answered_once_and_padding_never(plain, store):
    # 8 records in batches of 3: the last one is padded.
    expected = Counter()
    for record in store:
        for task in TASKS:
            distinct = {dataclasses.replace(e, text="") for e in examples_of(record, task)}
            expected[task.name] += min(2, len(distinct))
    assert {one.task.name: one.num_examples for one in plain.results} == dict(expected)
    assert len(plain.answered) == expected.total() == len({said[:2] for said in said(plain)})
    assert plain.num_records == 8 and not plain.set_aside
    assert len({raw.raw for *_, raw in said(plain)}) > 8  # They do not all say the same.
    questions = sum(len(record.questions) for record in store)
    beyond = {one.task.name: one.left_out for one in plain.results}
    assert beyond == {"od": 0, "caption": 0, "vqa": questions - expected["vqa"]}


def test_blocks_and_rows_cover_everything_once():
    counts = (0, 5, 1, 11, 3)
    assert prompts_per_image(counts, 8) == 6  # Eleven questions in two rows.
    rows = [row for p in range(3) for row in rows_of(counts, block_of(len(counts), p, 3), 6)]
    assert rows == [Row(1, 0, 5), Row(2, 0, 1), Row(3, 0, 6), Row(3, 6, 11), Row(4, 0, 3)]
    assert [len(batch) for batch in batches_of(rows, 2)] == [2, 2, 1]
    blocks = [block_of(10, p, 4) for p in range(4)]
    assert [k for block in blocks for k in block] == list(range(10))
    assert {len(block) for block in blocks} <= {2, 3}


def test_two_devices_give_the_answers_of_one(predictor, store, plain):
    both = ask(predictor, store, devices=jax.local_devices()[:2])
    assert said(both) == said(plain)


def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(predictor, store, plain, tmp_path):
    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    job = {"model": "random"}
    with pytest.raises(KeyboardInterrupt):
        ask(predictor, store, folder=tmp_path / "a", job=job, on_progress=interrupt)
    path = tmp_path / "a" / "answers-00000-of-00001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert 0 < len(lines) < len(plain.answered)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # Killed in the middle of a line.
    asked = []
    again = ask(
        predictor, store, folder=tmp_path / "a", job=job, on_progress=lambda *n: asked.append(n)
    )
    assert said(again) == said(plain)
    assert [one.to_json() for one in again.results] == [one.to_json() for one in plain.results]
    assert asked[0] == (2, 3)  # The first batch is not asked again, the torn one is.
    for line in path.read_text().splitlines():
        json.loads(line)
    asked.clear()
    ask(predictor, store, folder=tmp_path / "a", job=job, on_progress=lambda *n: asked.append(n))
    assert not asked
    with pytest.raises(UserError, match=r'another evaluation \(model: "random" there, "x" asked'):
        ask(predictor, store, folder=tmp_path / "a", job={"model": "x"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not empty and holds no evaluation"):
        ask(predictor, store, folder=tmp_path / "b", job=job)


def test_answers_of_other_numbers_of_hosts_are_taken_up(predictor, store, plain, tmp_path):
    ask(predictor, store, folder=tmp_path / "a", job={})
    whole = (tmp_path / "a" / "answers-00000-of-00001.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for process in range(2):
        log = AnswerLog(tmp_path / "b", process_index=process, process_count=2)
        log.add(from_lines(b"".join(lines[process::2])))
    log = AnswerLog(tmp_path / "b", process_index=0, process_count=1)
    assert {line.key for line in log.lines(range(8))} == {one.key for one in from_lines(whole)}


def test_the_blind_model_sees_another_image(predictor, store, plain):
    result = ask(predictor, store, with_blind=True)
    assert said(result) == said(plain)
    assert all(one.blind.keys() == one.metrics.keys() for one in result.results)


def test_damaged_images_are_set_aside_and_counted(predictor, store, plain, tmp_path):
    records = list(store)
    records[2] = dataclasses.replace(records[2], image=records[2].image[:40])

    def plan_of(unit, ledger):
        return unit

    write_store(tmp_path / "s", Plan(units={"val": records}, make=plan_of, job={"test": 1}))
    broken = RecordStore(tmp_path / "s", "val")
    index = next(i for i, record in enumerate(broken) if record.id == records[2].id)
    result = ask(predictor, broken, with_blind=True)
    assert [i for i, _ in result.set_aside] == [index]
    assert records[2].id in result.set_aside[0][1]
    for one, whole in zip(result.results, plain.results, strict=True):
        assert one.lost > 0
        assert one.num_examples + one.lost == whole.num_examples


def test_an_expression_can_be_asked_as_another_task(predictor, store):
    rec = get_task("referring_expression_comprehension")
    asked_as = {rec.token: "<CAPTION_TO_PHRASE_GROUNDING>"}
    asking = Asking(tasks=(rec,), per_record=1, asked_as=asked_as)
    questions, left = asking.questions(store[0])
    assert questions[0].prompt == (
        f"Locate the phrases in the caption: {questions[0].example.text_input}"
    )
    assert left[rec.token] == len(examples_of(store[0], rec)) - 1
    result = ask(predictor, store, asking=asking, max_records=2)
    assert [one.task for one in result.results] == [rec]
    assert {one.prediction.answer.task for one in result.answered} == set(asked_as.values())


def test_a_split_must_be_held_out(scenes, tmp_path, store):
    assert open_held_out(scenes, None).split == "validation"
    assert open_held_out(scenes, "train", allow_training=True).split == "train"

    def plan_of(unit, ledger):
        return unit

    def holding(name, splits):
        units = {split: [store[k]] for k, split in enumerate(splits)}
        write_store(tmp_path / name, Plan(units=units, make=plan_of, job={"name": name}))
        return tmp_path / name

    only = holding("only", ["train2017"])
    several = holding("several", ["train", "testA", "testB"])
    for directory, split, message in (
        (scenes, "train", "'train' is training data, a score on it is no evaluation"),
        (scenes, "test", r"no split 'test'; there are train \(40\), validation \(8\)"),
        (only, None, r"no split is held out, there is train2017 \(1\); part it"),
        (several, None, r"choose one of its splits with --split: testA \(1\), testB"),
    ):
        with pytest.raises(UserError, match=message):
            open_held_out(directory, split)
    run = {"input": {"mixture": {"a": {"records": str(scenes), "split": "validation"}}}}
    with pytest.raises(UserError, match="runs/x was trained on split 'validation'"):
        check_not_trained_on(store, run, "runs/x")
    check_not_trained_on(store, {"input": {"records": str(scenes)}}, "runs/x")
    # A run that imported a folder has its own store of it.
    (tmp_path / "run" / "records").mkdir(parents=True)
    (own := tmp_path / "run" / "records" / "photos").symlink_to(scenes)
    run = {"input": {"records": "/data/photos", "split": "validation"}}
    with pytest.raises(UserError, match="was trained on split 'validation'"):
        check_not_trained_on(RecordStore(own, "validation"), run, str(tmp_path / "run"))


def test_tasks_that_the_store_cannot_feed_are_named(predictor, store, tmp_path):
    bare = [dataclasses.replace(record, questions=(), groundings=()) for record in store[:2]]

    def plan_of(unit, ledger):
        return unit

    write_store(tmp_path / "s", Plan(units={"val": bare}, make=plan_of, job={"test": 2}))
    with pytest.raises(UserError, match="feeds vqa; of the tasks asked for it feeds caption, od"):
        ask(predictor, RecordStore(tmp_path / "s", "val"))
    with pytest.raises(UserError, match="no record feeds vqa"):
        ask(predictor, RecordStore(tmp_path / "s", "val"), asking=Asking(tasks=TASKS[2:]))
