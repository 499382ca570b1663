# SPDX-License-Identifier: Apache-2.0
"""`records merge`, `split` and `overlap`: what makes stores of stores and compares them."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.cli.records.terminal import add_workers, write
from florence2_jax.cli.terminal import Progress, print_table, say

_MERGE_EXAMPLES = """examples:
  florence2-jax records merge runs/coco runs/refcoco runs/merged --key name
  florence2-jax records merge runs/a runs/b runs/c runs/merged --key hash

The first store's image, size and id count. Where sources disagree, both annotations stay, each
with its store as provenance; what two say alike is kept once."""

_SPLIT_EXAMPLES = """examples:
  florence2-jax records split runs/all runs/parted --shares train=0.98,val=0.02
  florence2-jax records split runs/all runs/parted --list splits.tsv

By shares, a record stays in its split when others come or go, and records that share a split key
are never parted."""

_OVERLAP_EXAMPLES = """examples:
  florence2-jax records overlap runs/train runs/coco-val runs/refcoco-val --out overlap.jsonl
  florence2-jax train ... --config.input.exclude=overlap.jsonl

The run then leaves these records out. With --config.input.on_excluded=refuse it does not start
while the list names any."""


def add_combining(commands: Any) -> None:
    """The parsers of the commands that make stores of stores and compare them."""
    merge = commands.add_parser(
        "merge",
        help="make one record per image from several stores",
        description="Writes a store of what several stores say about the same images.",
        epilog=_MERGE_EXAMPLES,
    )
    merge.add_argument("stores", metavar="DIR", type=Path, nargs="+", help="two stores or more")
    merge.add_argument("directory", metavar="DST", type=Path, help="the store, a new directory")
    merge.add_argument(
        "--key",
        choices=("id", "name", "hash"),
        default="id",
        help="what says that images are the same: the record's id, the name of its file without "
        "folders and ending, or its bytes (id)",
    )
    add_workers(merge)
    leaf(merge, _merge)
    split = commands.add_parser(
        "split",
        help="write a store in other splits",
        description="Writes a store in other splits, by hash or by list.",
        epilog=_SPLIT_EXAMPLES,
    )
    split.add_argument("store", metavar="SRC", type=Path, help="a store of records")
    split.add_argument("directory", metavar="DST", type=Path, help="the store, a new directory")
    how = split.add_mutually_exclusive_group(required=True)
    how.add_argument("--shares", metavar="NAME=SHARE,...", help="by the hash of the split key")
    how.add_argument("--list", metavar="FILE", type=Path, help="lines of an id, a tab, a split")
    add_workers(split)
    leaf(split, _split)
    overlap = commands.add_parser(
        "overlap",
        help="find images of evaluation stores in a training store",
        description="Lists images of split train that are in other stores, or in another split of "
        "their own, with the same bytes or nearly: recompressed, scaled, mirrored, cropped.",
        epilog=_OVERLAP_EXAMPLES,
    )
    overlap.add_argument("training", metavar="DIR", type=Path, help="a store with split train")
    overlap.add_argument("stores", metavar="EVAL", type=Path, nargs="*", help="evaluation stores")
    overlap.add_argument("--out", metavar="FILE.jsonl", type=Path, help="write the list here")
    add_workers(overlap)
    leaf(overlap, _overlap)


def _merge(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.merging import plan_merge

    with Progress("records read") as progress:
        plan = plan_merge(args.stores, args.key, on_progress=progress)
    return write(args, plan, "merged")


def _split(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.splitting import parse_shares, plan_split

    by = args.list or parse_shares(args.shares)
    with Progress("records read") as progress:
        plan = plan_split(args.store, by, on_progress=progress)
    return write(args, plan, "records")


def _overlap(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.overlap import find_overlap, write_list

    with Progress("images") as progress:
        matches = find_overlap(
            args.training, args.stores, num_workers=args.workers, on_progress=progress
        )
    counts = Counter((m.evaluation, m.evaluation_split, m.how) for m in matches)
    rows = [(*key, f"{num:,}") for key, num in sorted(counts.items())]
    if rows:
        columns = ("evaluation store", "split", "how", "pairs")
        print_table(f"images of {args.training}, split train, found in", columns, rows)
    ids = {match.id for match in matches}
    say(f"{len(ids):,} training images are in evaluation data, in {len(matches):,} pairs")
    if args.out:
        write_list(matches, args.out)
        say(f"The list, for --config.input.exclude: {args.out}")
    return {
        "training": str(args.training),
        "images": len(ids),
        "pairs": [match.__dict__ for match in matches],
    }
