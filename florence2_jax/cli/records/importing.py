# SPDX-License-Identifier: Apache-2.0
"""`records import` and `records scenes`: what writes a store from elsewhere."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.cli.records.terminal import add_workers, write
from florence2_jax.cli.terminal import positive, say

_IMPORT_EXAMPLES = """examples:
  florence2-jax records import ~/coco ~/records/coco
  florence2-jax records import --from voc ~/VOC2012 ~/records/voc --option one_based=true
  florence2-jax records import ~/shards /mnt/records/web --shorter-side 768 --ray auto

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

    command = commands.add_parser(
        "import",
        help="write a store from a dataset in another format",
        description=f"Writes a store of records from a dataset.\n\nformats:\n{_formats(IMPORTERS)}",
        epilog=_IMPORT_EXAMPLES,
    )
    command.add_argument(
        "--from", dest="format", metavar="FORMAT", choices=IMPORTERS, help="of SRC (told by SRC)"
    )
    command.add_argument("source", metavar="SRC", type=Path, help="folder of the dataset")
    command.add_argument("directory", metavar="DST", type=Path, help="the store, a new directory")
    command.add_argument(
        "--option",
        dest="options",
        metavar="NAME=VALUE",
        type=_option,
        action="append",
        default=[],
        help="of the format, as listed above; may be repeated",
    )
    command.add_argument(
        "--shorter-side",
        metavar="PX",
        type=positive,
        help="shrink images whose shorter side is longer, and all coordinates with them",
    )
    command.add_argument(
        "--verify-pixels",
        action="store_true",
        help="decode every image, to set aside those with damaged pixels too (slower)",
    )
    add_workers(command)
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="local",
        help="work on a Ray cluster (auto, HOST:PORT), or in a Ray of W cores here; all machines "
        "must see SRC and DST under the same paths",
    )
    leaf(command, _import)


def _formats(importers: Mapping[str, Any]) -> str:
    """A line per format, and one per option of it."""
    width = max(map(len, importers))
    lines = []
    for name, row in importers.items():
        lines.append(f"  {name:{width}}  {row.looks_like}")
        for option, type_ in row.options.items():
            value = "true|false" if type_ is bool else "FOLDER" if type_ is Path else "TEXT"
            lines.append(f"  {'':{width}}  --option {option}={value}")
    return "\n".join(lines)


def _option(text: str) -> tuple[str, str]:
    """`NAME=VALUE`, for argparse."""
    name, is_pair, value = text.partition("=")
    if not name or not is_pair:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


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
    from florence2_jax.records.importers import detect, plan_import
    from florence2_jax.records.reworking import rework

    # Machines of a cluster do not work in this directory.
    source = args.source.absolute() if args.ray else args.source
    format_ = args.format or detect(source)
    if args.format is None:
        say(f"{source}: format {format_}")
    plan = plan_import(format_, source, dict(args.options))
    plan = rework(plan, shorter_side_px=args.shorter_side, verify_pixels=args.verify_pixels)
    return {"format": format_} | write(args, plan, format_, ray=args.ray)


def _scenes(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.records.importers.drawn import plan_scenes
    from florence2_jax.records.scene_config import LEVELS

    config = LEVELS[args.level]
    if args.size_px:
        config = dataclasses.replace(config, size_px=args.size_px)
    plan = plan_scenes(args.number, config, seed=args.seed, num_validation=args.validation)
    return write(args, plan, "scenes")
