# SPDX-License-Identifier: Apache-2.0
"""Looks at a run while it runs: what every thread does when nothing moves, profiles of a few steps.

What a loop does with it, on every host:

    path = workdir / "stalls" / f"host{jax.process_index()}.txt"
    with StallWatch(seconds, path) as watch, Profiler(workdir / "profile", ...) as profiler:
        for number in ...:
            profiler.before(number)  # Before the step is dispatched.
            ...
            watch.beat()  # Once a step; also between the phases of a start, if they are slow.
"""

import contextlib
import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class StallWatch:
    """Writes the stacks of all threads if there is no beat for a time; it never ends a run.

    Use as a context manager. The dump is written by a thread of the interpreter's own (CPython's
    `faulthandler`), which needs no lock of Python: it works while the main thread hangs in C++ code
    that holds the interpreter. It goes to `path`, and from there to stderr by a thread that
    does need the lock, so perhaps later. One dump for each stall; the next beat arms it anew.

    There is one such alarm in a process: what else uses `faulthandler.dump_traceback_later`, such
    as pytest's time-out, is switched off meanwhile.
    """

    def __init__(self, seconds: float, path: Path):
        """Starts on entry.

        Args:
            seconds: a stall; 0 switches the watch off. It is noticed up to a tenth later.
            path: file to append to, made with its folder at the first need.
        """
        self._seconds = seconds
        self._path = Path(path)
        self._slack_s = seconds / 10
        self._armed_s = float("inf")
        self._over = threading.Event()

    def __enter__(self) -> "StallWatch":
        if self._seconds > 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab+", buffering=0)
            self._shown = self._file.seek(0, 2)
            self._thread = threading.Thread(target=self._show_dumps, daemon=True)
            self._thread.start()
            self._arm(time.monotonic())
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds > 0:
            faulthandler.cancel_dump_traceback_later()
            self._armed_s = float("inf")
            self._over.set()
            self._thread.join()
            self._file.close()
            if not self._path.stat().st_size:
                self._path.unlink()
                with contextlib.suppress(OSError):
                    self._path.parent.rmdir()  # Nothing stalled on any host.

    def beat(self) -> None:
        """Says that the run moves. Nearly always a look at the clock."""
        now = time.monotonic()
        if now - self._armed_s > self._slack_s:
            self._arm(now)

    def _arm(self, now: float) -> None:
        # To arm is to start a thread in C; beats within a tenth of the time share one.
        faulthandler.dump_traceback_later(self._seconds + self._slack_s, file=self._file)
        self._armed_s = now

    def _show_dumps(self) -> None:
        while not self._over.wait(min(1.0, self._slack_s)):
            self._show()
        self._show()

    def _show(self) -> None:
        size = self._path.stat().st_size
        if size <= self._shown:
            return
        with self._path.open("rb") as file:
            file.seek(self._shown)
            text = file.read().decode(errors="replace")
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        note = f"{when}: no step for {self._seconds:g} s, all threads above\n\n"
        self._shown = size + self._file.write(note.encode())
        sys.stderr.write(f"{text}{note}")
        sys.stderr.flush()


class Profiler:
    """Profiles windows of steps into a folder that TensorBoard and XProf open.

    A window is asked for by its first step and its length, or with a signal (`kill -USR1 PID`),
    which opens one at the next step. Use as a context manager.

    Steps run behind the host, so a window may begin and end within a step.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int = 0,
        num_steps: int = 0,
        num_steps_on_signal: int = 5,
        say: Callable[[str], None] = lambda text: None,
    ):
        """Opens nothing yet.

        Args:
            first_step: first step of the window, from 1; 0 for no window.
            num_steps: its length.
            num_steps_on_signal: length of a window after a signal; 0 leaves the signal alone.
            say: is told where a profile lies.
        """
        self._folder, self._say = Path(folder), say
        self._first_step, self._num_steps = first_step, num_steps
        self._num_steps_on_signal = num_steps_on_signal
        self._was_asked = False
        self._last_step: int | None = None  # Of the window that is open.
        self._previous: Any = None

    def __enter__(self) -> "Profiler":
        is_main = threading.current_thread() is threading.main_thread()
        if self._num_steps_on_signal and is_main:
            self._previous = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)

    def before(self, step: int) -> None:
        """Opens or closes a window, if one begins or ended before this step."""
        if self._last_step is not None and step > self._last_step:
            self._close()
        if self._last_step is None:
            if self._was_asked:
                self._was_asked = False
                self._open(step, self._num_steps_on_signal)
            elif self._num_steps and step == self._first_step:
                self._open(step, self._num_steps)

    def _ask(self, *_: object) -> None:
        self._was_asked = True

    def _open(self, step: int, num_steps: int) -> None:
        self._last_step = step + num_steps - 1
        jax.profiler.start_trace(self._folder)
        self._say(f"profiling steps {step} to {self._last_step}")

    def _close(self) -> None:
        if self._last_step is not None:
            self._last_step = None
            jax.profiler.stop_trace()
            self._say(f"the profile is in {self._folder}")
