# SPDX-License-Identifier: Apache-2.0
"""Where a run's time goes: lines in `goodput.jsonl`, over all its starts, read by `goodput.py`.

What a loop does with it (process 0 writes; elsewhere every call is free and writes nothing):

    with Ledger(workdir, is_active=jax.process_index() == 0, started_s=started_s) as ledger:
        with ledger.span("restore"):
            state = checkpoints.restore(...)
        ledger.begin_steps(int(state.step))  # Time that nobody books is `init` up to here.
        for number in range(int(state.step) + 1, last_step + 1):
            with ledger.span("data_wait"):
                batch = next(batches)
            with ledger.span("compile"):  # Where it does.
                ...
            ...
            with ledger.span("save"):  # What a save blocks; also `eval`.
                checkpoints.save(...)
            # Time since the last one that nobody booked is `step`; returned with its data wait.
            seconds = ledger.step_done(number)
            if ...:  # At each report, and when a save was seen to be committed.
                ledger.write()
        ...
        ledger.committed(step)

A run that is killed tells nothing, so lines are written as it goes, at the latest after
`write_every_s`; what the last of them does not tell counts as `down`. A line that was torn by the
kill is skipped by the reader, and the next start begins a line of its own.
"""

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FILE = "goodput.jsonl"

KINDS = ("init", "restore", "compile", "data_wait", "step", "save", "eval")
"""What a start books. The reader adds `lost` (steps done again later), `other` and `down`."""


class Ledger:
    """The books of one start (attempt) of a run. Use as a context manager; not thread-safe.

    Sums are kept in memory: a span or a step costs a few microseconds, a line tens of them.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        is_active: bool = True,
        started_s: float | None = None,
        write_every_s: float = 10.0,
    ):
        """Opens the books.

        Args:
            workdir: the run's directory, which exists.
            is_active: whether this process writes; one of them does.
            started_s: `time.perf_counter()` when this start of the run began; None: now.
            write_every_s: how much a kill can leave untold.
        """
        now = time.perf_counter()
        self._file = _open(Path(workdir) / FILE) if is_active else None
        self._is_torn = False  # The line before was cut off by a full disk.
        self._write_every_s = write_every_s
        self._start_s = now if started_s is None else started_s
        self._start_time = time.time() - (now - self._start_s)
        # A clock alone does not tell starts apart where a machine wakes up with a wrong one.
        self._attempt = f"{int(self._start_time)}-{os.getpid()}"
        self._seconds: dict[str, float] = {}
        self._rest = "init"  # What time is that nobody books.
        self._mark_s = self._start_s  # Up to here the rest is booked.
        self._booked_s = 0.0  # By others since then,
        self._waited_s = 0.0  # and of that for data.
        self._open_spans: list[_Span] = []
        self._step = self._written_step = 0
        self._written_s = self._start_s
        self._line({"event": "start"}, at_s=self._start_s)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close("done" if kind is None else kind.__name__)

    def span(self, kind: str) -> "_Span":
        """Books the time of a `with` block; a span within it books for itself."""
        return _Span(self, kind)

    def book(self, kind: str, seconds: float) -> None:
        """Books time that has just passed as one of `KINDS`."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not one of {', '.join(KINDS)}")
        self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds
        if kind == "data_wait":
            self._waited_s += seconds
        if self._open_spans:
            self._open_spans[-1].inner_s += seconds
        else:
            self._booked_s += seconds

    def begin_steps(self, step: int) -> None:
        """Says which state the steps start from: what an earlier start did after it is lost."""
        self._settle()
        self._rest = "step"
        self._step = self._written_step = step
        self.write()
        self._line({"event": "resume", "step": step})

    def step_done(self, step: int) -> float:
        """Ends a step. Returns its seconds, the wait for its data included."""
        self._step = step
        seconds = self._settle() + self._waited_s
        self._waited_s = 0.0
        if self._mark_s - self._written_s > self._write_every_s:
            self.write()
        return seconds

    def committed(self, step: int) -> None:
        """Says that the checkpoint of `step` is on the disk to its end."""
        self.write()
        self._line({"event": "commit", "step": step})

    def write(self) -> None:
        """Writes what was booked since the last line."""
        if self._seconds:
            seconds = {kind: round(value, 6) for kind, value in self._seconds.items()}
            steps = [self._written_step, self._step]
            self._line({"event": "time", "steps": steps, "seconds": seconds})
        self._seconds = {}
        self._written_step = self._step
        self._written_s = time.perf_counter()

    def close(self, reason: str = "done") -> None:
        """Ends the books; `reason` is an exception's name if the run did not end by itself."""
        if self._rest == "init":
            self._settle()
        self.write()
        self._line({"event": "end", "reason": reason})
        if self._file is not None:
            self._file.close()
            self._file = None

    def _settle(self) -> float:
        """Books the rest of the time up to now, and returns it."""
        now = time.perf_counter()
        rest_s = max(0.0, now - self._mark_s - self._booked_s)
        self._seconds[self._rest] = self._seconds.get(self._rest, 0.0) + rest_s
        self._mark_s, self._booked_s = now, 0.0
        return rest_s

    def _line(self, values: dict[str, Any], *, at_s: float | None = None) -> None:
        if self._file is None:
            return
        # Within an attempt by the clock that is never set back.
        elapsed_s = (time.perf_counter() if at_s is None else at_s) - self._start_s
        place = {"attempt": self._attempt, "time": round(self._start_time + elapsed_s, 6)}
        line = (json.dumps(place | values) + "\n").encode()
        try:
            written = self._file.write(b"\n" + line if self._is_torn else line)
        except OSError:
            return  # A full disk stops the run by the name of its checkpoints, not of its books.
        self._is_torn = written < len(line)


class _Span:
    """Time of a `with` block, without that of spans within it."""

    def __init__(self, ledger: Ledger, kind: str):
        self._ledger, self._kind, self.inner_s = ledger, kind, 0.0

    def __enter__(self) -> "_Span":
        self._ledger._open_spans.append(self)
        self._start_s = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        elapsed_s = time.perf_counter() - self._start_s
        self._ledger._open_spans.pop()
        self._ledger.book(self._kind, elapsed_s - self.inner_s)
        if self._ledger._open_spans:  # The one around it must not count this one's inner ones.
            self._ledger._open_spans[-1].inner_s += self.inner_s
        else:
            self._ledger._booked_s += self.inner_s


def _open(path: Path):
    """The file to append to, at the start of a line; unbuffered, so that a kill loses no line."""
    file = path.open("ab+", buffering=0)
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")  # The last start was killed in the middle of a line.
    return file
