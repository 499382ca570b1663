# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax records`: make, import, check, count and look at FLD records."""

import argparse
import dataclasses
import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.typing import UserError

_IMPORT_EXAMPLES = """examples:
  florence2-jax records import --from coco ~/coco ~/records/coco
  florence2-jax records import --from voc ~/VOCdevkit/VOC2012 ~/records/voc --one-based

SRC is only read. If the command is interrupted, run it again: it goes on where it was.
What cannot be used is set aside, with the reason, in DST/set_aside.jsonl."""

_SCENES_EXAMPLES = """examples:
  florence2-jax records scenes 2000 /tmp/scenes
  florence2-jax records scenes 6500 /tmp/scenes --validation 500 --size-px 128 --seed 1

Scenes have exact texts, boxes, outlines, words and answers. The same command draws the same
bytes on any machine; if it is interrupted, run it again: it goes on where it was."""


def parser() -> argparse.ArgumentParser:
    """The parser of `records` and of the commands below it."""
    top = argparse.ArgumentParser(
        prog="florence2-jax records",
        description="Makes, imports, checks, counts and shows FLD records.",
        epilog="example:\n  florence2-jax records scenes 2000 /tmp/scenes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _import_parser(commands)
    _scenes_parser(commands)
    check = commands.add_parser(
        "check",
        help="read a whole store again and tell what is wrong",
        description="Reads every record and decodes every image; status 2 if anything is wrong.",
        epilog="example:\n  florence2-jax records check /tmp/scenes",
    )
    _directory(check)
    _workers(check)
    leaf(check, _check)
    stats = commands.add_parser(
        "stats",
        help="count what a store holds, in the shape of the FLD-5B table",
        epilog="example:\n  florence2-jax records stats /tmp/scenes --split train",
    )
    _directory(stats)
    stats.add_argument("--split", metavar="S", help="count only this one (all)")
    leaf(stats, _stats)
    view = commands.add_parser(
        "view",
        help="write a page that shows records",
        epilog="example:\n  florence2-jax records view /tmp/scenes --number 20 --out page.html",
    )
    _directory(view)
    view.add_argument("--split", metavar="S", help="show records of this one (the first)")
    view.add_argument("--number", metavar="N", type=_positive, default=50, help="of records (50)")
    view.add_argument("--out", metavar="FILE.html", type=Path, required=True, help="the page")
    leaf(view, _view)
    return top


def _import_parser(commands: Any) -> None:
    from florence2_jax.records.importers import IMPORTERS

    formats = "\n".join(f"  {name:5} {row.looks_like}" for name, row in IMPORTERS.items())
    command = commands.add_parser(
        "import",
        help="write a store from a dataset in another format",
        description=f"Writes a store of records from a dataset.\n\nformats:\n{formats}",
        epilog=_IMPORT_EXAMPLES,
    )
    command.add_argument(
        "--from", dest="format", metavar="FORMAT", choices=IMPORTERS, required=True, help="of SRC"
    )
    command.add_argument("source", metavar="SRC", type=Path, help="folder of the dataset")
    command.add_argument("directory", metavar="DST", type=Path, help="the store, a new directory")
    command.add_argument(
        "--one-based",
        action="store_true",
        help="voc: pixels are counted from 1, as in VOC proper (kept as they are)",
    )
    _workers(command)
    leaf(command, _import)


def _scenes_parser(commands: Any) -> None:
    command = commands.add_parser(
        "scenes",
        help="draw scenes with exact labels",
        description="Draws scenes with exact labels, to learn from and to test with.",
        epilog=_SCENES_EXAMPLES,
    )
    command.add_argument("number", metavar="N", type=_positive, help="of scenes, in all splits")
    command.add_argument("directory", metavar="DIR", type=Path, help="the store, a new directory")
    command.add_argument("--seed", metavar="S", type=int, default=0, help="of the set (0)")
    command.add_argument(
        "--level",
        choices=("easy", "standard"),
        default="standard",
        help="easy: one or two large objects of few kinds at 64 px (standard)",
    )
    command.add_argument(
        "--size-px", metavar="P", type=_positive, help="side of an image (that of the level)"
    )
    command.add_argument(
        "--validation",
        metavar="V",
        type=int,
        help="hold out the first V of the N scenes (about a tenth of them, by hash)",
    )
    _workers(command)
    leaf(command, _scenes)


def _directory(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", metavar="DIR", type=Path, help="a store of records")


def _workers(command: argparse.ArgumentParser) -> None:
    most = min(8, os.cpu_count() or 1)
    command.add_argument(
        "--workers", metavar="W", type=_positive, default=most, help=f"processes ({most})"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _import(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.importers import plan_import

    options = {"one_based": True} if args.one_based else {}
    plan = plan_import(args.format, args.source, **options)
    return _write(args, plan, args.format)


def _scenes(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.importers.drawn import plan_scenes
    from florence2_jax.records.scene_config import LEVELS

    config = LEVELS[args.level]
    if args.size_px:
        config = dataclasses.replace(config, size_px=args.size_px)
    plan = plan_scenes(args.number, config, seed=args.seed, num_validation=args.validation)
    return _write(args, plan, "scenes")


def _write(args: argparse.Namespace, plan: Any, name: str) -> dict[str, Any]:
    from florence2_jax.records.store import write_store

    with _Progress("records") as progress:
        report = write_store(
            args.directory, plan, name=name, num_workers=args.workers, on_progress=progress
        )
    _print_books(args.directory, report)
    return {"directory": str(args.directory)} | report


def _check(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.inspection import check_store

    with _Progress("records") as progress:
        report = check_store(args.directory, num_workers=args.workers, on_progress=progress)
    rows = [(split, f"{num:,}") for split, num in report["splits"].items()]
    _print_table(f"{args.directory}: read again", ("split", "records"), rows)
    if not report["num_problems"]:
        _print("No problems: every record is valid, every image decodes, no id occurs twice.")
        return report
    shown = report["problems"][:20]
    _print_table("problems", ("where", "what"), [(p["where"], p["what"]) for p in shown])
    if args.json is not None:  # The error below takes the place of the report.
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    raise UserError(
        f"{args.directory}: {report['num_problems']} problems, first in {shown[0]['where']}: "
        f"{shown[0]['what']}; copy or write the store again"
    )


def _stats(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.inspection import statistics
    from florence2_jax.records.store import RecordStore, splits_of

    splits = [args.split] if args.split else list(splits_of(args.directory))
    stores = [RecordStore(args.directory, split) for split in splits]
    total = sum(map(len, stores))
    with _Progress("records") as progress:
        report = statistics(progress.over(itertools.chain.from_iterable(stores), total))
    names = ("num_texts", "avg_tokens", "num_regions", "avg_regions", "avg_region_tokens")
    rows = [
        (row["type"], row["text"], *(_number(row[name]) for name in names))
        for row in report["rows"]
        if row["num_texts"] or row["num_regions"]
    ]
    columns = ("type", "text", "texts", "tokens each", "regions", "each", "tokens each")
    _print_table(f"{args.directory}: {', '.join(splits)}", columns, rows)
    _print(", ".join(f"{_number(num)} {name}" for name, num in report["totals"].items()))
    return {"directory": str(args.directory), "splits": splits} | report


def _view(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.store import RecordStore, splits_of
    from florence2_jax.viewing.gallery import write_records_page

    split = args.split or next(iter(splits_of(args.directory)))
    store = RecordStore(args.directory, split)
    num = min(args.number, len(store))
    title = f"{args.directory.name}: {num} of {len(store)} records, split {split}"
    write_records_page((store[i] for i in range(num)), args.out, title)
    _print(f"{num} records of {split} are shown in {args.out}")
    return {"directory": str(args.directory), "split": split, "records": num, "out": str(args.out)}


class _Progress:
    """A bar on the terminal for work that takes longer than two seconds."""

    def __init__(self, what: str):
        self._what, self._start = what, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        if self._bar is None:
            console = Console(stderr=True)
            if time.monotonic() - self._start < 2 or not console.is_terminal:
                return
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._bar.add_task(self._what)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def over(self, things: Iterator[Any], total: int) -> Iterator[Any]:
        """The things, counted as they pass."""
        for done, thing in enumerate(things):
            if done % 256 == 0:
                self(done, total)
            yield thing


def _print_books(directory: Path, report: Mapping[str, Any]) -> None:
    def told(counts: Mapping[str, int]) -> str:
        return "\n".join(f"{num:,} {what}" for what, num in counts.items())

    rows = [
        (
            kind,
            f"{row['read']:,}",
            f"{row['kept']:,}",
            *map(told, (row["repaired"], row["set_aside"])),
        )
        for kind, row in report["counts"].items()
        if row["read"]
    ]
    _print_table("what was read", ("kind", "read", "kept", "repaired", "set aside"), rows)
    for kind, row in report["counts"].items():
        for what, num in row["noted"].items():
            _print(f"note: {kind}: {what} ({num:,})")
    splits = ", ".join(f"{num:,} {split}" for split, num in report["splits"].items())
    _print(f"{directory}: {splits}")
    if any(row["set_aside"] for row in report["counts"].values()):
        _print(f"What was set aside, one by one: {directory / 'set_aside.jsonl'}")


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for i, column in enumerate(columns):
        is_number = all(re.fullmatch(r"[\d,.]+|-", row[i]) for row in rows)
        table.add_column(
            column,
            justify="right" if is_number else "left",
            no_wrap=i < min(2, len(columns) - 1),  # What things are called stays in one piece.
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(escape, row))
    _print(table)


def _print(what: Any) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=isinstance(what, str)).print(
        what, markup=not isinstance(what, str)
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
