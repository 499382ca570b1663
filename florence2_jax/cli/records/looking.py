# SPDX-License-Identifier: Apache-2.0
"""`records check`, `stats` and `view`: what looks at a store."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.cli.records.terminal import (
    Progress,
    add_directory,
    add_workers,
    number,
    positive,
    print_table,
    say,
)
from florence2_jax.typing import UserError


def add_looking(commands: Any) -> None:
    """The parsers of the commands that look at a store."""
    check = commands.add_parser(
        "check",
        help="read a whole store again and tell what is wrong",
        description="Reads every record and decodes every image; status 2 if anything is wrong.",
        epilog="example:\n  florence2-jax records check /tmp/scenes",
    )
    add_directory(check)
    add_workers(check)
    leaf(check, _check)
    stats = commands.add_parser(
        "stats",
        help="count what a store holds, in the shape of the FLD-5B table",
        epilog="example:\n  florence2-jax records stats /tmp/scenes --split train",
    )
    add_directory(stats)
    stats.add_argument("--split", metavar="S", help="count only this one (all)")
    leaf(stats, _stats)
    view = commands.add_parser(
        "view",
        help="write a page that shows records",
        epilog="example:\n  florence2-jax records view /tmp/scenes --number 20 --out page.html",
    )
    add_directory(view)
    view.add_argument("--split", metavar="S", help="show records of this one (the first)")
    view.add_argument("--number", metavar="N", type=positive, default=50, help="of records (50)")
    view.add_argument("--out", metavar="FILE.html", type=Path, required=True, help="the page")
    leaf(view, _view)


def _check(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.inspection import check_store

    with Progress("records") as progress:
        report = check_store(args.directory, num_workers=args.workers, on_progress=progress)
    rows = [(split, f"{num:,}") for split, num in report["splits"].items()]
    print_table(f"{args.directory}: read again", ("split", "records"), rows)
    if not report["num_problems"]:
        say("No problems: every record is valid, every image decodes, no id occurs twice.")
        return report
    shown = report["problems"][:20]
    print_table("problems", ("where", "what"), [(p["where"], p["what"]) for p in shown])
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
    with Progress("records") as progress:
        report = statistics(progress.over(itertools.chain.from_iterable(stores), total))
    names = ("num_texts", "avg_tokens", "num_regions", "avg_regions", "avg_region_tokens")
    rows = [
        (row["type"], row["text"], *(number(row[name]) for name in names))
        for row in report["rows"]
        if row["num_texts"] or row["num_regions"]
    ]
    columns = ("type", "text", "texts", "tokens each", "regions", "each", "tokens each")
    print_table(f"{args.directory}: {', '.join(splits)}", columns, rows)
    say(", ".join(f"{number(num)} {name}" for name, num in report["totals"].items()))
    return {"directory": str(args.directory), "splits": splits} | report


def _view(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.store import RecordStore, splits_of
    from florence2_jax.viewing.gallery import write_records_page

    split = args.split or next(iter(splits_of(args.directory)))
    store = RecordStore(args.directory, split)
    num = min(args.number, len(store))
    title = f"{args.directory.name}: {num} of {len(store)} records, split {split}"
    write_records_page((store[i] for i in range(num)), args.out, title)
    say(f"{num} records of {split} are shown in {args.out}")
    return {"directory": str(args.directory), "split": split, "records": num, "out": str(args.out)}
