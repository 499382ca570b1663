# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax goodput`: where a run's time went, over all its starts."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2_jax.cli.main import leaf

if TYPE_CHECKING:
    from florence2_jax.training.goodput import Attempt, Goodput

_EXAMPLES = """examples:
  florence2-jax goodput runs/large
  florence2-jax goodput runs/large --json goodput.json

goodput is the share of all time, from the first start to the last line of the books, that went into
steps that were kept. lost: steps that a restart had to do again. down: between two starts, and what
a killed start did not tell. other: what nobody booked. data_wait is the host's: the devices may
still be busy with the step before.
"""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax goodput",
        description="Where a run's time went: seconds and shares of each kind, per start.",
        epilog=_EXAMPLES,
    )
    command.add_argument("workdir", type=Path, metavar="DIR", help="the --workdir of a run")
    leaf(command, _run)
    return command


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.training.goodput import read_goodput

    goodput = read_goodput(args.workdir)
    _show(goodput)
    return goodput.report()


def _show(goodput: "Goodput") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    total_s = max(sum(goodput.seconds.values()), 1e-9)
    # What would be shown as 0.0 % is in the JSON.
    seconds = {k: value for k, value in goodput.seconds.items() if value / total_s >= 0.0005}
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("start", "steps", "lost", *seconds, "end"):
        is_text = name in ("start", "end")
        # Headings break at spaces, so that a row fits into 80 columns.
        table.add_column(
            name.replace("_", " "),
            justify="left" if is_text else "right",
            min_width={
                "start": 11,
                "steps": max(map(len, map(_steps, goodput.attempts)), default=0),
            }.get(name),
        )
    for one in goodput.attempts:
        cells = (_number(one.seconds[kind]) for kind in seconds)
        table.add_row(_when(one), _steps(one), str(one.lost_steps), *cells, one.end or "(killed)")
    lost_steps = str(sum(one.lost_steps for one in goodput.attempts))
    table.add_row("all, seconds", "", lost_steps, *map(_number, seconds.values()), "")
    table.add_row("share", "", "", *(f"{x / total_s:.1%}" for x in seconds.values()), "")
    console.print(table)
    console.print(
        f"goodput [bold]{goodput.goodput:.1%}[/] of {total_s:.0f} s, "
        f"{len(goodput.attempts)} start(s)",
        highlight=False,
    )
    if goodput.num_damaged:
        console.print(f"{goodput.num_damaged} line(s) could not be read and were left out")


def _when(one: "Attempt") -> str:
    return time.strftime("%m-%d %H:%M", time.gmtime(one.start_time))


def _steps(one: "Attempt") -> str:
    return "-" if one.first_step is None else f"{one.first_step}-{one.last_step}"


def _number(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.1f}"
