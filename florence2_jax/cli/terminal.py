# SPDX-License-Identifier: Apache-2.0
"""What commands share: a kind of argument, a progress bar, tables and lines."""

import argparse
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


class Progress:
    """A bar with the time left, on the terminal, for work that takes longer than two seconds."""

    def __init__(self, what: str):
        self._what, self._start = what, time.monotonic()
        self._bar: Any = None
        self._is_hidden = not sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        if self._is_hidden or (self._bar is None and time.monotonic() - self._start < 2):
            return
        if self._bar is None:
            from rich import progress
            from rich.console import Console

            columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn())
            left = progress.TimeRemainingColumn()
            console = Console(stderr=True)
            self._bar = progress.Progress(*columns, left, console=console, transient=True)
            self._bar.add_task(self._what, total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def over(self, things: Iterable[Any], total: int) -> Iterator[Any]:
        """The things, counted as they pass."""
        told = self._start
        for done, thing in enumerate(things):
            if time.monotonic() - told >= 0.1:
                told = time.monotonic()
                self(done, total)
            yield thing


def print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table of texts; columns of numbers stand to the right."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for i, column in enumerate(columns):
        is_number = all(re.fullmatch(r"[\d,.]+( M)?|-?", row[i]) for row in rows)
        table.add_column(
            column,
            justify="right" if is_number else "left",
            no_wrap=i < min(2, len(columns) - 1),  # What things are called stays in one piece.
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(escape, row))
    say(table)


def say(what: Any) -> None:
    """A line, or a table, on the terminal."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=isinstance(what, str)).print(
        what, markup=not isinstance(what, str)
    )


def number(value: float | None) -> str:
    """A count or mean with thousands apart, `-` where there is none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
