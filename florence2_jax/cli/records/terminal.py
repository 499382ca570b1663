# SPDX-License-Identifier: Apache-2.0
"""What the commands of `records` share: arguments, and a store with its books."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2_jax.cli.terminal import Progress, positive, print_table, say


def add_directory(command: argparse.ArgumentParser) -> None:
    """The store a command reads."""
    command.add_argument("directory", metavar="DIR", type=Path, help="a store of records")


def add_workers(command: argparse.ArgumentParser) -> None:
    """How many processes do the work."""
    most = min(8, os.cpu_count() or 1)
    command.add_argument(
        "--workers", metavar="W", type=positive, default=most, help=f"processes ({most})"
    )


def write(args: argparse.Namespace, plan: Any, name: str, ray: str | None = None) -> dict[str, Any]:
    """Writes `args.directory` by `args.workers` processes and shows its books; the report."""
    from florence2_jax.records.store import write_store

    with Progress("records") as progress:
        report = write_store(
            args.directory,
            plan,
            name=name,
            num_workers=args.workers,
            ray=ray,
            on_progress=progress,
        )
    print_books(args.directory, report)
    return {"directory": str(args.directory)} | report


def print_books(directory: Path, report: Mapping[str, Any]) -> None:
    """What was read, kept, repaired and set aside, per kind."""

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
    print_table("what was read", ("kind", "read", "kept", "repaired", "set aside"), rows)
    for kind, row in report["counts"].items():
        for what, num in row["noted"].items():
            say(f"note: {kind}: {what} ({num:,})")
    splits = ", ".join(f"{num:,} {split}" for split, num in report["splits"].items())
    say(f"{directory}: {splits}")
    if any(row["set_aside"] for row in report["counts"].values()):
        say(f"What was set aside, one by one: {directory / 'set_aside.jsonl'}")
