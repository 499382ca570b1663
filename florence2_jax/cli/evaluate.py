# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax evaluate`: metrics of a model on held-out records, and `evaluate compare`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2_jax.cli.hosts import add_hosts, place
from florence2_jax.cli.main import leaf
from florence2_jax.typing import UserError

if TYPE_CHECKING:
    from florence2_jax.evaluation.recipes import Recipe
    from florence2_jax.inference.predictor import Predictor
    from florence2_jax.records.store import RecordStore

_EXAMPLES = """examples:
  florence2-jax evaluate --model runs/scenes --records runs/scenes-records --out runs/scenes-eval
  florence2-jax evaluate --model runs/scenes --records /data/coco --split val \\
      --tasks od caption --max-records 500 --json metrics.json --html report.html
  florence2-jax evaluate --config configs/evaluate_zero_shot.py:coco_detection \\
      --model microsoft/Florence-2-base --records /data/coco --out runs/coco-detection
  florence2-jax evaluate compare before.json after.json

The blind column is the same model and prompts with the image of another record: what it knows
without looking. The column 95 % is an interval over resampled records. With --out, run the same
command again after an interruption: it goes on where it was. On several hosts start it on each.
"""

_COMPARE_EXAMPLES = """examples:
  florence2-jax evaluate compare before/report.json after/report.json

Both reports must be of the same questions. A difference is called real where its 95 % interval
over resampled records leaves out 0.
"""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax evaluate",
        usage="florence2-jax evaluate --model M --records DIR [options]\n"
        "       florence2-jax evaluate compare FIRST.json SECOND.json [options]",
        description="Scores a model's answers to every question a store can ask.",
        epilog=_EXAMPLES,
    )
    add = command.add_argument
    add("--model", required=True, help="workdir, folder of transformers, hub name, or scenes-tiny")
    add("--records", required=True, metavar="DIR", help="a store of records")
    add("--split", help="(the store's held-out one)")
    add("--config", metavar="FILE:ROW", help="a row of the paper's tables, configs/evaluate_*.py")
    add("--tasks", nargs="+", metavar="TASK", help="od caption ... (all that the store feeds)")
    add("--max-records", type=int, metavar="N", help="only the first N records")
    add(
        "--per-record",
        type=int,
        metavar="N",
        help="questions per task and record, 0 for all (4; with --config all)",
    )
    add("--batch-size", type=int, default=16, metavar="N", help="images at a time (16)")
    add("--beams", type=int, metavar="N", help="of the search (1)")
    add(
        "--ngram",
        type=int,
        metavar="N",
        help="no sequence of N tokens twice in an answer; 3 in released models, 0 for no rule (0)",
    )
    add("--max-new-tokens", type=int, metavar="N", help="of an answer (the model's own)")
    add("--no-blind", action="store_true", help="leave out the baseline: half the time")
    add("--resamples", type=int, metavar="N", help="for intervals, 0 for none (500)")
    add("--allow-training", action="store_true", help="score training data, knowingly")
    add("--out", type=Path, metavar="DIR", help="answers, report.json and report.html")
    add("--html", type=Path, metavar="FILE", help="metrics, plots, best and worst answers")
    add("--cases", type=int, default=4, metavar="N", help="best and worst answers a task (4)")
    add("--gallery", type=Path, metavar="FILE", help="a page with truth beside prediction")
    add("--gallery-records", type=int, default=24, metavar="N", help="records on the page (24)")
    add_hosts(command)
    leaf(command, _run)
    return command


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line, of `evaluate` or of `evaluate compare`."""
    if arguments[:1] == ["compare"]:
        return _compare_parser().parse_args(arguments[1:])
    return parser().parse_args(arguments)


def _compare_parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="florence2-jax evaluate compare",
        description="Says which differences between two evaluations are real.",
        epilog=_COMPARE_EXAMPLES,
    )
    command.add_argument("first", type=Path, metavar="FIRST.json", help="a report of evaluate")
    command.add_argument("second", type=Path, metavar="SECOND.json", help="another one")
    leaf(command, _compare)
    return command


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.parallel import processes
    from florence2_jax.parallel.processes import HostsConfig

    hosts = HostsConfig(**place(args))
    processes.start(hosts)
    with processes.departure():
        return _evaluate(args, hosts.barrier_timeout_s)


def _evaluate(args: argparse.Namespace, timeout_s: float) -> dict[str, Any]:
    import jax
    from rich.console import Console
    from rich.progress import Progress

    from florence2_jax.cli import evaluation_report as reports
    from florence2_jax.evaluation.bootstrap import NUM_RESAMPLES
    from florence2_jax.evaluation.runner import evaluate
    from florence2_jax.viewing.evaluation_page import write_evaluation_page

    recipe = _recipe(args)
    asking = _asking(args, recipe)
    store = _store(args, recipe)
    predictor = _predictor(args, recipe)
    job = _job(args, predictor, store, asking)
    # A table that goes into a file is as wide as it needs.
    width = None if sys.stdout.isatty() else 120
    console = Console(quiet=jax.process_index() != 0, width=width)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("evaluating")
        result = evaluate(
            predictor,
            store,
            asking,
            max_records=args.max_records,
            with_blind=not args.no_blind,
            batch_size=args.batch_size,
            num_resamples=NUM_RESAMPLES if args.resamples is None else args.resamples,
            folder=args.out,
            job=job,
            timeout_s=timeout_s,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if result is None:
        sys.exit(0)  # Process 0 tells and writes.
    report = job | reports.report(result, store, recipe, args.max_records, args.resamples)
    report["warnings"] = reports.warnings(report)
    reports.show(console, report)
    pages = [args.html] if args.html else []
    if args.out:
        pages.append(args.out / "report.html")
        path = args.out / "report.json"
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        console.print(f"report: {path}", highlight=False, soft_wrap=True)
    for page in pages:
        write_evaluation_page(report, reports.cases(result, store, args.cases), page)
        console.print(f"page: {page}", highlight=False, soft_wrap=True)
    if args.gallery:
        reports.write_gallery(result, store, report, args.gallery, args.gallery_records)
        console.print(f"gallery: {args.gallery}", highlight=False, soft_wrap=True)
    return report


def _recipe(args: argparse.Namespace) -> "Recipe | None":
    if not args.config:
        return None
    from florence2_jax.cli.train import load_config
    from florence2_jax.evaluation.recipes import Recipe

    if args.tasks:
        raise UserError("--config says the task: leave out --tasks")
    try:
        return Recipe.create(load_config(args.config, []))
    except UserError as error:
        message = str(error)
        place = "" if message.startswith("--config") else f"--config {args.config}: "
        raise UserError(f"{place}{message}") from error


def _asking(args: argparse.Namespace, recipe: "Recipe | None") -> Any:
    from florence2_jax.evaluation.questions import ALL_TASKS, Asking
    from florence2_jax.tasks.registry import get_task

    for name in ("max_records", "batch_size", "beams", "max_new_tokens"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    for name in ("per_record", "ngram", "resamples", "cases"):
        if (value := getattr(args, name)) is not None and value < 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: must not be negative")
    if recipe is not None:
        per_record = args.per_record or 0
        return Asking(tasks=(recipe.scored,), per_record=per_record, asked_as=recipe.asking())
    tasks = tuple(dict.fromkeys(get_task(name) for name in args.tasks or ())) or ALL_TASKS
    return Asking(tasks=tasks, per_record=4 if args.per_record is None else args.per_record)


def _store(args: argparse.Namespace, recipe: "Recipe | None") -> "RecordStore":
    from florence2_jax.conversion.load import find, is_workdir
    from florence2_jax.evaluation.questions import check_not_trained_on, open_held_out
    from florence2_jax.training.workdir import CONFIG, load_config

    split = args.split or (recipe.split if recipe else None)
    store = open_held_out(args.records, split, allow_training=args.allow_training)
    folder = find(args.model)
    if not args.allow_training and is_workdir(folder) and (folder / CONFIG).is_file():
        check_not_trained_on(store, load_config(folder), str(args.model))
    return store


def _predictor(args: argparse.Namespace, recipe: "Recipe | None") -> "Predictor":
    from florence2_jax.inference.predictor import Predictor

    options: dict[str, Any] = {"num_beams": 1, "no_repeat_ngram_size": 0}
    if recipe is not None:
        options |= dict(recipe.decoding)
    given = {
        "num_beams": args.beams,
        "no_repeat_ngram_size": args.ngram,
        "max_new_tokens": args.max_new_tokens,
    }
    options |= {name: value for name, value in given.items() if value is not None}
    return Predictor.load(args.model, task_ngram_sizes={}, **options)


def _job(
    args: argparse.Namespace, predictor: "Predictor", store: "RecordStore", asking: Any
) -> dict[str, Any]:
    """What an evaluation is told from another one by."""
    from florence2_jax.evaluation.results import fingerprint

    return {
        "model": str(args.model),
        "parameters": fingerprint(predictor.params),
        "records": str(args.records),
        "split": store.split,
        "store": [[path.name, path.stat().st_size] for path in store.shards],
        "config": args.config or "",
        "tasks_asked": [task.name for task in asking.tasks],
        "per_record": asking.per_record,
        "max_records": args.max_records,
        "batch_size": args.batch_size,
        "with_blind": not args.no_blind,
        "image_size": list(predictor.config.image_size),
        "dtype": predictor.config.dtype,
        "generation": dataclasses.asdict(predictor.generation),
    }


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from florence2_jax.cli.evaluation_report import differences_table
    from florence2_jax.evaluation.comparison import compare

    reports = []
    for path in (args.first, args.second):
        try:
            reports.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: no report of evaluate can be read ({error})") from error
    differences = compare(reports[0], reports[1], places=(str(args.first), str(args.second)))
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(differences_table(differences, str(args.first), str(args.second)))
    return {
        "first": str(args.first),
        "second": str(args.second),
        "differences": [one.to_json() for one in differences],
    }
