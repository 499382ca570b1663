# SPDX-License-Identifier: Apache-2.0
"""`records import` and `records scenes`: what writes a store from elsewhere."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.cli.records.terminal import Progress, add_workers, positive, print_books

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


def add_import(commands: Any) -> None:
    """The parser of `records import`."""
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
    add_workers(command)
    leaf(command, _import)


def add_scenes(commands: Any) -> None:
    """The parser of `records scenes`."""
    command = commands.add_parser(
        "scenes",
        help="draw scenes with exact labels",
        description="Draws scenes with exact labels, to learn from and to test with.",
        epilog=_SCENES_EXAMPLES,
    )
    command.add_argument("number", metavar="N", type=positive, help="of scenes, in all splits")
    command.add_argument("directory", metavar="DIR", type=Path, help="the store, a new directory")
    command.add_argument("--seed", metavar="S", type=int, default=0, help="of the set (0)")
    command.add_argument(
        "--level",
        choices=("easy", "standard"),
        default="standard",
        help="easy: one or two large objects of few kinds at 64 px (standard)",
    )
    command.add_argument(
        "--size-px", metavar="P", type=positive, help="side of an image (that of the level)"
    )
    command.add_argument(
        "--validation",
        metavar="V",
        type=int,
        help="hold out the first V of the N scenes (about a tenth of them, by hash)",
    )
    add_workers(command)
    leaf(command, _scenes)


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

    with Progress("records") as progress:
        report = write_store(
            args.directory, plan, name=name, num_workers=args.workers, on_progress=progress
        )
    print_books(args.directory, report)
    return {"directory": str(args.directory)} | report
