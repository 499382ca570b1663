# SPDX-License-Identifier: Apache-2.0
"""What `evaluate` tells: the report, its tables on the terminal, and the answers for its pages."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from florence2_jax.evaluation.bootstrap import NUM_RESAMPLES
from florence2_jax.evaluation.calibration import calibrations, ranked_by
from florence2_jax.evaluation.families import per_example_score
from florence2_jax.evaluation.unknown_labels import unknown_labels
from florence2_jax.viewing.evaluation_page import Cases
from florence2_jax.viewing.gallery import MetricRow, PredictionRow, write_predictions_page

if TYPE_CHECKING:
    from rich.console import Console

    from florence2_jax.evaluation.comparison import Difference
    from florence2_jax.evaluation.recipes import Recipe
    from florence2_jax.evaluation.results import Answered, Evaluation
    from florence2_jax.records.store import RecordStore

ALSO_SHOWN = ("object_color_f1", "f1", "ap", "oiou", "r1_merged", "cer", "mean_iou")
"""Shown beside the headline metric of a task; the report holds all."""

_FEW_RECORDS = 30


def report(
    result: "Evaluation",
    store: "RecordStore",
    recipe: "Recipe | None",
    max_records: int | None,
    num_resamples: int | None,
) -> dict[str, Any]:
    """Everything as JSON."""
    num = NUM_RESAMPLES if num_resamples is None else num_resamples
    by_task = {one.task.name: one for one in result.results}
    detected = [one for one in result.answered if one.example.task.token == "<OD>"]
    notes = [] if recipe is None else recipe.notes(store.split, result.num_records, max_records)
    few = min((one.num_records for one in result.results), default=0)
    if num and few < _FEW_RECORDS:
        notes.append(f"intervals from {few} records are rough: give {_FEW_RECORDS} or more")
    return {
        "num_records": result.num_records,
        "set_aside": [{"index": i, "reason": reason} for i, reason in result.set_aside],
        "store_set_aside": _set_aside_by_import(store.directory),
        "tasks": [one.to_json() for one in result.results],
        "paper": [] if recipe is None else recipe.rows(by_task[recipe.scored.name]),
        "notes": notes,
        "calibration": [one.to_json() for one in calibrations(result.answered)],
        "ranking": ranked_by(detected, num_resamples=num) if detected else {},
        "unknown_labels": unknown_labels(detected),
    }


def _set_aside_by_import(directory: Path) -> dict[str, dict[str, int]]:
    """Images and questions that the store's source had and the store has not, by reason."""
    path = directory / "set_aside.jsonl"
    found: dict[str, Counter[str]] = {}
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                if entry["kind"] in ("image", "record", "question", "grounding", "text"):
                    counts = found.setdefault(entry["kind"], Counter())
                    counts[entry["why"]] += entry.get("count", 1)
    return {kind: dict(counts) for kind, counts in found.items()}


def show(console: "Console", told: Mapping[str, Any]) -> None:
    """Tables and notes on the terminal."""
    console.print(_metrics_table(told))
    if told["paper"]:
        console.print(_paper_table(told["paper"]))
    if told["ranking"]:
        console.print(_ranking_table(told["ranking"]))
    if told["calibration"]:
        console.print(_calibration_table(told["calibration"]))
    for line in told["warnings"]:
        console.print(f"[yellow]{escape(line)}[/]", highlight=False, soft_wrap=True)


def warnings(told: Mapping[str, Any]) -> list[str]:
    """What makes a denominator smaller, and what else a reader must know."""
    lines = [f"record {one['index']} was set aside: {one['reason']}" for one in told["set_aside"]]
    for task in told["tasks"]:
        if task["lost"]:
            lines.append(f"{task['task']}: {task['lost']} questions went with records set aside")
    left_out = {task["task"]: task["left_out"] for task in told["tasks"] if task["left_out"]}
    if left_out:
        names = ", ".join(f"{name} {number:,}" for name, number in left_out.items())
        lines.append(
            f"beyond {told['per_record']} questions a record and task, not asked: {names} "
            "(--per-record 0 asks all)"
        )
    for kind, reasons in told["store_set_aside"].items():
        why = "; ".join(f"{reason}: {number:,}" for reason, number in reasons.items())
        lines.append(
            f"the import of this store set aside {sum(reasons.values()):,} of kind {kind}, over "
            f"all its splits ({why}); see set_aside.jsonl there"
        )
    for one in told["unknown_labels"]:
        near = f", near {', '.join(one['nearest'])}" if one["nearest"] else ""
        lines.append(f"od: {one['number']} boxes are labelled {one['label']!r}, no category{near}")
    for task in told["tasks"]:
        for metric, why in task["no_interval"].items():
            lines.append(f"{task['task']}: no interval of {metric}: {why}")
    return [*lines, *told["notes"]]


def shown_metrics(task: Mapping[str, Any]) -> list[str]:
    """The headline of a task, and what goes with it."""
    names = list(task["metrics"])
    return names[:1] + [name for name in ALSO_SHOWN if name in names[1:]]


def _metrics_table(told: Mapping[str, Any]) -> Table:
    title = f"{told['model']} on {told['records']} ({told['split']})"
    table = _table(title, ("task", "metric"), ("model", "95 %", "blind", "questions"))
    for task in told["tasks"]:
        for name in shown_metrics(task):
            table.add_row(
                task["task"],
                name,
                _number(task["metrics"][name]),
                _interval(task["intervals"].get(name)),
                _number(task["blind"].get(name)),
                f"{task['num_examples']:,}",
            )
    return table


def _paper_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    variants = list(dict.fromkeys(name for row in rows for name in row["paper"]))
    numbers = (*(f"paper {name}" for name in variants), "measured", "95 %")
    table = _table("beside the paper", ("task", "metric"), numbers)
    for row in rows:
        printed = [_number(row["paper"].get(name), 1) for name in variants]
        table.add_row(
            row["task"],
            row["metric"],
            *printed,
            _number(row["measured"], 1),
            _interval(row["interval"], 1),
        )
    return table


def _ranking_table(ranking: Mapping[str, Any]) -> Table:
    metrics = list(next(iter(ranking["ap"].values())))
    table = _table("od: boxes ranked by", ("score",), metrics)
    for name, values in ranking["ap"].items():
        table.add_row(name, *(_number(values[metric]) for metric in metrics))
    gains = [ranking["gain"][metric] for metric in metrics]
    table.add_row(
        "box - constant",
        *(f"{_number(one['difference'])} {_interval(one['interval'])}" for one in gains),
    )
    return table


def _calibration_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("calibration", ("task", "score of"), ("expected calibration error", "scores"))
    for row in rows:
        table.add_row(row["task"], row["kind"], _number(row["ece"]), f"{row['number']:,}")
    return table


def differences_table(differences: Sequence["Difference"], first: str, second: str) -> Table:
    """A row per metric."""
    table = _table(
        f"{second} - {first}",
        ("task", "metric"),
        ("first", "second", "difference", "95 %", "is"),
    )
    words = {True: "[bold]real[/]", False: "noise", None: "no interval"}
    for one in differences:
        table.add_row(
            one.task,
            one.metric,
            _number(one.first),
            _number(one.second),
            f"{one.value:+.3f}",
            _interval(one.interval),
            words[one.is_real],
        )
    return table


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=escape(title))
    for name in names:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(interval: Sequence[float] | None, digits: int = 3) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"{low:.{digits}f}..{high:.{digits}f}"


def cases(result: "Evaluation", store: "RecordStore", number: int) -> list[Cases]:
    """The worst and the best answers of each task, with their images."""
    found = []
    for one in result.results:
        own = [a for a in result.answered if a.example.task is one.task]
        rated = [(score, a) for a in own if (score := per_example_score(a.scored)) is not None]
        rated.sort(key=lambda pair: pair[0])
        worst, best = rated[:number], rated[max(number, len(rated) - number) :][::-1]
        for which, some in (("worst", worst), ("best", best)):
            rows = [_row(a, store, score) for score, a in some]
            if rows:
                found.append(Cases(task=one.task, which=which, rows=rows, num_all=len(own)))
    return found


def _row(one: "Answered", store: "RecordStore", score: float | None) -> PredictionRow:
    return PredictionRow(
        id=one.record_id,
        image=store[one.index].image,
        size=one.size,
        example=one.example,
        answer=one.prediction.answer,
        raw=one.prediction.raw,
        score=score,
    )


def write_gallery(
    result: "Evaluation", store: "RecordStore", told: Mapping[str, Any], path: Path, number: int
) -> None:
    """All answers about the first records."""
    indices = set(list(dict.fromkeys(one.index for one in result.answered))[:number])
    rows = [
        _row(one, store, per_example_score(one.scored))
        for one in result.answered
        if one.index in indices
    ]
    summary = [
        MetricRow(
            task=task["task"],
            metric=name,
            value=float("nan") if task["metrics"][name] is None else task["metrics"][name],
            blind=task["blind"].get(name),
            num_examples=task["num_examples"],
        )
        for task in told["tasks"]
        for name in shown_metrics(task)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions_page(rows, path, "Truth beside prediction", summary)
