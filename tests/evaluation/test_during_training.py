# SPDX-License-Identifier: Apache-2.0
"""A run is evaluated as it goes, by a hook."""

import io
import json

import pytest
from rich.console import Console

from florence2_jax.evaluation.during_training import EvaluationHook
from florence2_jax.training import loop
from florence2_jax.training.config import RunConfig
from florence2_jax.training.evaluating import EvaluationConfig
from florence2_jax.training.saved_step import saved_steps
from florence2_jax.typing import UserError


def hook_of(values, small_run, workdir):
    return EvaluationHook(EvaluationConfig(**values), RunConfig.create(small_run), workdir)


def test_scalars_of_held_out_records_are_reported_as_the_run_goes(small_run, tmp_path):
    values = dict(every_steps=4, tasks="caption od", max_records=4, max_new_tokens=12)
    hook = hook_of(values, small_run, tmp_path / "run")
    best = dict(keep_best=1, best_metric="eval/caption/cider", higher_is_better=True)
    small_run["checkpoint"] = dict(every_steps=2, keep=2) | best
    console = Console(file=io.StringIO(), width=200)
    loop.run(small_run, tmp_path / "run", hooks=[hook], console=console)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    told = {row["step"]: row for row in map(json.loads, lines) if "eval/records" in row}
    assert told.keys() == {4, 6}  # Every fourth step, and the last.
    for row in told.values():
        assert row["eval/records"] == 4 and row["eval/seconds"] > 0
        assert 0 <= row["eval/od/ap50"] <= 1 and row["eval/caption/cider"] >= 0
    assert "step 4: 4 records of validation in" in console.file.getvalue()
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    saved = {step.number: step.manifest() for step in saved_steps(tmp_path / "run" / "checkpoints")}
    assert saved.keys() == {4, 6}  # Step 2 was not evaluated, and so is not ranked.
    assert saved[4]["metrics"]["eval/caption/cider"] == told[4]["eval/caption/cider"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(every_steps=1, split="train"), "'train' is training data"),
        (dict(every_steps=1, split="test"), "no split 'test'; there are train"),
        (dict(every_steps=1, tasks="odd"), "unknown task 'odd'"),
        (dict(every_steps=1, records="nowhere"), "nowhere: no such directory"),
        (dict(every_steps=-1), r"evaluation\.every_steps: -1 must be at least 0"),
        (dict(max_records=0), r"evaluation\.max_records: 0 must be at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_run(small_run, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        hook_of(values, small_run, tmp_path)


def test_a_run_of_several_stores_must_name_one(small_run, tmp_path):
    records = small_run["input"].pop("records")
    small_run["input"]["mixture"] = dict(a=dict(records=records))
    with pytest.raises(UserError, match=r"evaluation\.records: the run has several stores"):
        hook_of(dict(every_steps=1), small_run, tmp_path)
