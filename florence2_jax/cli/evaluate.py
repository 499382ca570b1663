# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax evaluate`: metrics of a model on a split, beside an image-blind baseline."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2_jax.cli.main import leaf

if TYPE_CHECKING:
    from florence2_jax.evaluation.runner import Evaluation

_EXAMPLES = """examples:
  florence2-jax evaluate --model runs/scenes --records runs/scenes-records --split validation
  florence2-jax evaluate --model runs/scenes --records /data/coco --split val \\
      --tasks od caption --max-records 500 --json metrics.json --gallery gallery.html

The blind column is the same model and prompts with the image of another record: what it knows
without looking.
"""

_ALSO_SHOWN = ("object_color_f1", "f1")
"""Shown beside the headline metric of a task; the JSON report holds all."""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax evaluate",
        description="Scores a model's answers to every question a store can ask.",
        epilog=_EXAMPLES,
    )
    command.add_argument(
        "--model", required=True, help="workdir of a `train`, folder of transformers, or hub name"
    )
    command.add_argument("--records", required=True, metavar="DIR", help="a store of records")
    command.add_argument("--split", default="validation", help="(validation)")
    command.add_argument("--tasks", nargs="+", metavar="TASK", help="od caption ... (all)")
    command.add_argument("--max-records", type=int, metavar="N", help="only the first N records")
    command.add_argument(
        "--per-record", type=int, default=4, metavar="N", help="questions per task and record (4)"
    )
    command.add_argument("--batch-size", type=int, default=16, metavar="N", help="images (16)")
    command.add_argument("--beams", type=int, default=1, metavar="N", help="of the search (1)")
    command.add_argument(
        "--ngram",
        type=int,
        default=0,
        metavar="N",
        help="no sequence of N tokens twice in an answer; 3 in released models, 0 for no rule (0)",
    )
    command.add_argument(
        "--no-blind", action="store_true", help="leave out the baseline: half the time"
    )
    command.add_argument(
        "--gallery", type=Path, metavar="FILE", help="a page with truth beside prediction"
    )
    command.add_argument(
        "--gallery-records", type=int, default=24, metavar="N", help="records on the page (24)"
    )
    leaf(command, _run)
    return command


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import Progress

    from florence2_jax.evaluation.runner import evaluate
    from florence2_jax.inference.predictor import Predictor
    from florence2_jax.records.store import RecordStore
    from florence2_jax.tasks.registry import TASKS, get_task

    tasks = [get_task(name) for name in args.tasks] if args.tasks else list(TASKS.values())
    store = RecordStore(args.records, args.split)
    predictor = Predictor.load(
        args.model, num_beams=args.beams, no_repeat_ngram_size=args.ngram, task_ngram_sizes={}
    )
    console = Console()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("evaluating")
        result = evaluate(
            predictor,
            store,
            tasks,
            max_records=args.max_records,
            per_record=args.per_record,
            with_blind=not args.no_blind,
            batch_size=args.batch_size,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print(_table(result, f"{args.model} on {args.records} ({args.split})"))
    for index, reason in result.set_aside:
        console.print(f"[yellow]record {index} was set aside: {reason}[/]", highlight=False)
    if args.gallery:
        _write_gallery(result, args.gallery, args.gallery_records)
        console.print(f"gallery: {args.gallery}", highlight=False)
    return {
        "model": str(args.model),
        "records": str(args.records),
        "split": args.split,
        "num_records": result.num_records,
        "tasks": [one.to_json() for one in result.results],
        "set_aside": [{"index": i, "reason": reason} for i, reason in result.set_aside],
    }


def _table(result: "Evaluation", title: str) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("model", "blind", "questions"):
        table.add_column(name, justify="right")
    for task, metric, value, blind, number in _rows(result):
        table.add_row(task, metric, _number(value), _number(blind), str(number))
    return table


def _rows(result: "Evaluation") -> list[tuple[str, str, float, float | None, int]]:
    """(task, metric, model, blind, questions): the headline of each task, and what goes with it."""
    rows = []
    for one in result.results:
        headline = next(iter(one.metrics))
        for metric in (headline, *(name for name in _ALSO_SHOWN if name in one.metrics)):
            blind = one.blind.get(metric)
            rows.append((one.task.name, metric, one.metrics[metric], blind, one.num_examples))
    return rows


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def _write_gallery(result: "Evaluation", path: Path, num_records: int) -> None:
    from florence2_jax.evaluation.families import per_example_score
    from florence2_jax.viewing.gallery import MetricRow, PredictionRow, write_predictions_page

    shown = {one.record.id: None for one in result.answered}
    shown = set(list(shown)[:num_records])
    rows = [
        PredictionRow(
            id=one.record.id,
            image=one.record.image,
            size=one.record.size,
            example=one.example,
            answer=one.prediction.answer,
            raw=one.prediction.raw,
            score=per_example_score(one.scored),
        )
        for one in result.answered
        if one.record.id in shown
    ]
    summary = [
        MetricRow(task=task, metric=metric, value=value, blind=blind, num_examples=number)
        for task, metric, value, blind, number in _rows(result)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions_page(rows, path, "Truth beside prediction", summary)
