# SPDX-License-Identifier: Apache-2.0
"""Reads the books of a run (`ledger.py`): what share of its time went into steps that were kept.

Everything that is known only later is worked out here: the time between two starts is `down`, what
nobody booked is `other`, and steps that a later start did again are `lost`: they count neither as
`step` nor as kept.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2_jax.training.ledger import FILE, KINDS
from florence2_jax.typing import UserError

COLUMNS = (*KINDS, "lost", "other", "down")
"""Kinds of time in a report; together they are the run's whole time."""


@dataclasses.dataclass
class Attempt:
    """One start of a run; times in seconds, `down` being what passed before the next start."""

    name: str
    start_time: float  # Unix time.
    end_time: float
    first_step: int | None = None  # The step of the state it started from; None: it never got one.
    last_step: int | None = None
    committed_step: int | None = None
    end: str = ""  # "done", the name of an exception, or "" where it was killed or still runs.
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(COLUMNS, 0.0)
    )
    lost_steps: int = 0
    step_lines: list[tuple[int, int, float]] = dataclasses.field(default_factory=list)
    """After step a, up to step b, seconds of steps."""

    @property
    def wall_s(self) -> float:
        """From its start to its last line, without what follows until the next start."""
        return self.end_time - self.start_time


@dataclasses.dataclass(frozen=True)
class Goodput:
    """The attempts of a run in their order, and what they come to."""

    attempts: list[Attempt]
    num_damaged: int  # Lines that could not be read: torn by a kill.

    @property
    def seconds(self) -> dict[str, float]:
        """Sums per kind over all attempts."""
        return {kind: sum(one.seconds[kind] for one in self.attempts) for kind in COLUMNS}

    @property
    def goodput(self) -> float:
        """Share of the time from the first start to the last line spent in steps that were kept."""
        seconds = self.seconds
        return seconds["step"] / max(sum(seconds.values()), 1e-9)

    def report(self) -> dict[str, Any]:
        """Everything as JSON."""
        seconds = self.seconds
        total_s = sum(seconds.values())
        return {
            "goodput": self.goodput,
            "wall_s": total_s,
            "seconds": seconds,
            "shares": {kind: value / max(total_s, 1e-9) for kind, value in seconds.items()},
            "lost_steps": sum(one.lost_steps for one in self.attempts),
            "damaged_lines": self.num_damaged,
            "attempts": [
                {
                    "attempt": one.name,
                    "start_time": one.start_time,
                    "wall_s": one.wall_s,
                    "first_step": one.first_step,
                    "last_step": one.last_step,
                    "committed_step": one.committed_step,
                    "lost_steps": one.lost_steps,
                    "end": one.end,
                    "seconds": one.seconds,
                }
                for one in self.attempts
            ],
        }


def read_goodput(workdir: Path) -> Goodput:
    """The books of a run.

    Raises:
        UserError: if the directory holds none.
    """
    path = Path(workdir) / FILE
    if not path.is_file():
        raise UserError(
            f"{workdir} holds no books ({FILE} is missing): give the --workdir of a `train`"
        )
    attempts: dict[str, Attempt] = {}
    num_damaged = 0
    for text in path.read_bytes().splitlines():
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            one = attempts.setdefault(
                line["attempt"], Attempt(line["attempt"], line["time"], line["time"])
            )
            _add(one, line)
        except (ValueError, LookupError, TypeError):
            num_damaged += 1
    ordered = sorted(attempts.values(), key=lambda one: one.start_time)
    if not ordered:
        raise UserError(f"{path} holds no line that can be read: it is damaged")
    _lose_what_was_done_again(ordered)
    for one in ordered:
        booked = sum(one.seconds[kind] for kind in (*KINDS, "lost"))
        one.seconds["other"] = max(0.0, one.wall_s - booked)
    for one, after in itertools.pairwise(ordered):
        one.seconds["down"] = max(0.0, after.start_time - one.end_time)
    return Goodput(ordered, num_damaged)


def _add(one: Attempt, line: Mapping[str, Any]) -> None:
    """Enters a line; nothing of it if it lacks something."""
    event, time = line["event"], float(line["time"])
    if event == "time":
        start, stop = (int(step) for step in line["steps"])
        seconds = {kind: float(value) for kind, value in line["seconds"].items()}
        if not seconds.keys() <= one.seconds.keys():
            raise ValueError(f"unknown kinds of time: {sorted(seconds)}")
        for kind, value in seconds.items():
            one.seconds[kind] += value
        if stop > start:
            one.step_lines.append((start, stop, seconds.get("step", 0.0)))
            one.last_step = stop
    elif event == "resume":
        one.first_step = one.last_step = int(line["step"])
    elif event == "commit":
        one.committed_step = int(line["step"])
    elif event == "end":
        one.end = str(line["reason"])
    one.end_time = max(one.end_time, time)


def _lose_what_was_done_again(attempts: list[Attempt]) -> None:
    """Moves the time of steps after the state that a later attempt went on from to `lost`.

    A line tells the time of several steps; of one that spans the border, each has the same share.
    """
    kept_up_to = float("inf")
    for one in reversed(attempts):
        for start, stop, seconds in one.step_lines:
            lost = stop - max(start, kept_up_to)
            if lost > 0:
                lost_s = seconds * lost / (stop - start)
                one.seconds["lost"] += lost_s
                one.seconds["step"] -= lost_s
                one.lost_steps += int(lost)
        if one.first_step is not None:
            kept_up_to = min(kept_up_to, one.first_step)
