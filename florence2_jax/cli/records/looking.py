# SPDX-License-Identifier: Apache-2.0
"""`records check`, `stats` and `view`: what looks at a store."""

import argparse
import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.cli.records.terminal import add_directory, add_workers
from florence2_jax.cli.terminal import Progress, number, positive, print_table, say
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
        description="Counts texts, regions and labels, their lengths, sizes and places.",
        epilog="example:\n  florence2-jax records stats /tmp/scenes --plots stats.html",
    )
    add_directory(stats)
    stats.add_argument("--split", metavar="S", help="count only this one (all)")
    stats.add_argument(
        "--sample", metavar="N", type=positive, help="count only N records, evenly spaced (all)"
    )
    stats.add_argument(
        "--plots", metavar="FILE.html", type=Path, help="also draw them, beside FLD-5B, on a page"
    )
    leaf(stats, _stats)
    view = commands.add_parser(
        "view",
        help="write a page that shows records",
        description="One page that needs no network, quick with 1,000 records.",
        epilog="example:\n  florence2-jax records view /tmp/scenes --number 20 --out page.html",
    )
    add_directory(view)
    view.add_argument("--split", metavar="S", help="show records of this one (the first)")
    view.add_argument("--number", metavar="N", type=positive, default=50, help="of records (50)")
    view.add_argument(
        "--image-px", metavar="P", type=positive, default=640, help="longest side of images (640)"
    )
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
    num = min(args.sample or total, total)
    with Progress("records") as progress:
        report = statistics(progress.over(_even_sample(stores, num), num))
    part = "" if num == total else f", an even sample of {num:,} of {total:,} records"
    title = f"{args.directory}: {', '.join(splits)}{part}"
    columns = ("type", "text", *_STATISTICS.values())
    print_table(title, columns, list(_table_rows(report["rows"])))
    say(", ".join(f"{number(num)} {name}" for name, num in report["totals"].items()))
    for kind, labels in report["distributions"]["labels"].items():
        if labels["num_dropped"]:
            say(
                f"labels of kind {kind}: rare ones said {labels['num_dropped']:,} times were "
                f"forgotten to save memory; counts are short by {labels['max_error']:,} at most"
            )
    head = {"directory": str(args.directory), "splits": splits, "records": total, "counted": num}
    if args.plots is not None:
        from florence2_jax.viewing.statistics_page import write_statistics_page

        heading = f"{args.directory.name}: {', '.join(splits)}{part}"
        write_statistics_page(report, args.plots, heading)
        say(f"drawn in {args.plots}")
        head["plots"] = str(args.plots)
    return head | report


_STATISTICS = {
    "num_texts": "texts",
    "avg_tokens": "words each",
    "num_regions": "boxes",
    "avg_regions": "each",
    "avg_region_tokens": "words each",
}


def _table_rows(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Rows that hold anything, each above that of FLD-5B."""
    for row in rows:
        if row["num_texts"] or row["num_regions"]:
            yield row["type"], row["text"], *(number(row[name]) for name in _STATISTICS)
            if fld := row["fld5b"]:
                yield "", "in FLD-5B", *(_millions(fld.get(name)) for name in _STATISTICS)


def _millions(value: float | None) -> str:
    return f"{value / 1e6:,.0f} M" if value and value > 1e6 else number(value)


def _even_sample(stores: Sequence[Sequence[Any]], num: int) -> Iterator[Any]:
    """That many things of all the stores together, as evenly spaced as can be, in order."""
    ends = list(itertools.accumulate(map(len, stores)))
    for i in range(num):
        at = i * ends[-1] // num
        which = bisect.bisect_right(ends, at)
        yield stores[which][at - ends[which] + len(stores[which])]


def _view(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.store import RecordStore, splits_of
    from florence2_jax.viewing.gallery import write_records_page
    from florence2_jax.viewing.page import small_images

    split = args.split or next(iter(splits_of(args.directory)))
    store = RecordStore(args.directory, split)
    num = min(args.number, len(store))
    title = f"{args.directory.name}: {num} of {len(store)} records, split {split}"
    with Progress("records") as progress:
        records = progress.over((store[i] for i in range(num)), num)
        write_records_page(records, args.out, title, bounds=small_images(args.image_px))
    size = args.out.stat().st_size
    say(f"{num} records of {split} are shown in {args.out} ({size / 1e6:.1f} MB)")
    report = {"directory": str(args.directory), "split": split, "records": num}
    return report | {"out": str(args.out), "bytes": size}
