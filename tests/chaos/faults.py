# SPDX-License-Identifier: Apache-2.0
"""The chaos matrix: what is done to a run, and what must have become of it.

A `Life` is one run with many starts on the same number of processes. Every start meets a fault of
the table `FAULTS`; the last one does not, and what it leaves must be, to the last bit, what a run
leaves that nothing happened to.
"""

import dataclasses
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cluster

EVERY_STEPS = 8  # A save interval.
STEP_S = 0.1


@dataclasses.dataclass
class Event:
    """One start that met a fault."""

    fault: str
    processes: int
    at_step: int  # The newest step that had begun when it happened; 0 before the first.
    statuses: list[int]  # Of all processes; negative: ended by a signal.
    end_s: float  # From the fault to the end of the last process.
    saved_step: int = 0  # The newest finished checkpoint afterwards.
    lost_steps: int = -1  # Steps that the next start that came to a step did again.
    next_step_s: float = -1.0  # From the next start to its first step.
    is_as_told: bool = True  # What the fault's row says besides: statuses, words, files.
    note: str = ""


class Life:
    """A run that is started again and again, with a fault each time."""

    def __init__(self, run: cluster.Run, shape: tuple[int, int], steps: int, rng: random.Random):
        self.run, self.shape, self.steps, self.rng = run, shape, steps, rng
        self.events: list[Event] = []

    def start(self, *, faults: Mapping[int, Mapping[str, Any]] | None = None, workers: int = 0):
        """The next start; fills in what the event before it has cost."""
        overrides = [
            f"config.total_steps={self.steps}",
            f"config.checkpoint.every_steps={EVERY_STEPS}",
            f"config.input.num_workers={workers}",
        ]
        return self.run.start(*self.shape, overrides=overrides, faults=faults, step_s=STEP_S)

    def soon(self) -> int:
        """A step to strike at: some way behind the newest checkpoint, before the end."""
        saved = max(self.run.checkpoints(), default=0)
        return min(saved + self.rng.randint(1, 2 * EVERY_STEPS), self.steps - 4)

    def victim(self, attempt: cluster.Attempt) -> cluster.Process:
        """One of the processes."""
        return self.rng.choice(attempt.processes)

    def note(
        self, fault: str, attempt: cluster.Attempt, struck: float, is_as_told: bool, note: str = ""
    ) -> Event:
        """Keeps an event once all processes have ended."""
        statuses = attempt.wait()
        ended = max(process.ended_at for process in attempt.processes)
        event = Event(fault, self.shape[0], attempt.step(), statuses, ended - struck)
        event.saved_step = max(self.run.checkpoints(), default=0)
        event.is_as_told, event.note = is_as_told, note
        self._settle(attempt)
        self.events.append(event)
        return event

    def finish(self) -> cluster.Attempt:
        """The start without a fault, to the last step."""
        attempt = self.start()
        attempt.wait()
        self._settle(attempt)
        return attempt

    def _settle(self, attempt: cluster.Attempt) -> None:
        """What the events before this start have cost, if it came to a step."""
        rows = cluster.read_notes(attempt.notes[0])
        open_events = [event for event in self.events if event.lost_steps < 0]
        if max(self.run.checkpoints(), default=0) == self.steps and not rows:
            for event in open_events:  # The run was done already.
                event.lost_steps, event.next_step_s = 0, 0.0
        if not rows or not open_events:
            return
        reached = max(event.at_step for event in open_events)
        for event in open_events:
            event.lost_steps = max(0, reached + 1 - rows[0]["step"])
            event.next_step_s = rows[0]["time"] - attempt.started
            reached = 0  # Starts that reached no step have lost none.


Fault = Callable[[Life], Event]


def sigterm(life: Life) -> Event:
    """SIGTERM to one host: all stop at the same step, saved, status 75."""
    attempt = life.start()
    attempt.until_step(life.soon())
    struck = time.time()
    life.victim(attempt).send(signal.SIGTERM)
    event = life.note("SIGTERM to one host", attempt, struck, True)
    last = {cluster.read_notes(notes)[-1]["step"] for notes in attempt.notes}
    # It may come with the last step under way: then the run is done.
    status = 0 if event.saved_step == life.steps else cluster.SAVED
    event.is_as_told = set(event.statuses) == {status} and last == {event.saved_step}
    return event


def sigkill(life: Life) -> Event:
    """SIGKILL to one host at any moment: the others end by themselves."""
    attempt = life.start()
    is_early = life.rng.random() < 0.2
    if is_early:  # Before the first step, anywhere in the start.
        time.sleep(life.rng.uniform(0, 8))
    else:
        attempt.until_step(life.soon())
        time.sleep(life.rng.uniform(0, 2 * STEP_S))
    struck = time.time()
    victim = life.victim(attempt)
    victim.send(signal.SIGKILL)
    event = life.note("SIGKILL to one host", attempt, struck, True, "early" if is_early else "")
    others = [p.status for p in attempt.processes if p is not victim]
    event.is_as_told = all(status in (cluster.SAVED, -signal.SIGABRT) for status in others)
    return event


def kill_in_save(life: Life) -> Event:
    """SIGKILL to all hosts while a checkpoint is half-written."""
    attempt = life.start()
    folder = life.run.workdir / "checkpoints"
    after = max(life.run.checkpoints(), default=0)

    def is_saving() -> bool:
        is_there = folder.is_dir() and attempt.step() > after
        return is_there and any("tmp" in path.name for path in folder.iterdir())

    attempt.until(is_saving)
    struck = time.time()
    for process in attempt.processes:
        process.send(signal.SIGKILL)
    return life.note("SIGKILL in mid-save", attempt, struck, True)


def disk_full(life: Life) -> Event:
    """Files of process 0 cannot grow during a save: status 2 and a line, older saves stay."""
    step = life.soon()
    limit = dict(file_limit=100_000, file_limit_step=step)
    attempt = life.start(faults={0: limit})
    attempt.until_step(step)
    event = life.note("disk full in a save", attempt, time.time(), True)
    event.is_as_told = event.statuses[0] == cluster.USER_ERROR
    told = "could not be written to its end"
    event.is_as_told &= attempt.until_text(told, timeout_s=5)
    return event


def read_only(life: Life) -> Event:
    """The checkpoint directory refuses: status 2 before the first step."""
    folder = life.run.workdir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(life.run.workdir.glob("config.json")):
        folder.rmdir()
        life.run.workdir.rmdir()
        return sigterm(life)  # There is nothing yet to be read-only.
    folder.chmod(0o555)
    struck = time.time()
    try:
        everyone = {index: dict(obeys_modes=True) for index in range(life.shape[0])}
        attempt = life.start(faults=everyone)
        event = life.note("read-only checkpoint directory", attempt, struck, True)
    finally:
        folder.chmod(0o755)
    event.is_as_told = set(event.statuses) == {cluster.USER_ERROR} and event.at_step == 0
    return event


def flipped_bit(life: Life) -> Event:
    """A bit of an array file of the newest checkpoint is flipped after a SIGTERM."""
    return _damage(life, "flipped bit in an array file", _flip)


def deleted_shard(life: Life) -> Event:
    """An array file of the newest checkpoint is deleted after a SIGTERM."""
    return _damage(life, "deleted array file", lambda path, rng: path.unlink())


def slow_host(life: Life) -> Event:
    """One host sleeps for a while; nothing is lost. The run is then stopped by SIGTERM."""
    step = life.soon()
    slow = dict(slow_step=step, slow_s=3.0)
    attempt = life.start(faults={life.shape[0] - 1: slow})
    attempt.until_step(min(step + 1, life.steps - 1))
    struck = time.time()
    attempt.processes[0].send(signal.SIGTERM)
    event = life.note("slow host", attempt, struck, True)
    event.is_as_told = set(event.statuses) == {cluster.SAVED}
    return event


def data_worker_killed(life: Life) -> Event:
    """SIGKILL to a process that loads data: the run ends by itself, and not by a hang."""
    attempt = life.start(workers=1)
    attempt.until_step(life.soon())
    struck = time.time()
    workers = cluster.children(attempt.processes[-1].pid)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    return life.note("data worker killed", attempt, struck, bool(workers))


def nan_batch(life: Life) -> Event:
    """A batch whose loss is no number: status 2, a black box, nothing saved behind it."""
    step = life.soon()
    everyone = {index: dict(nan_step=step) for index in range(life.shape[0])}
    attempt = life.start(faults=everyone)
    attempt.until_step(step)
    event = life.note("NaN batch", attempt, time.time(), True)
    event.is_as_told = set(event.statuses) == {cluster.USER_ERROR} and event.saved_step < step
    event.is_as_told &= (life.run.workdir / "black_box" / f"step_{step}.json").is_file()
    return event


def _damage(life: Life, name: str, damage: Callable[[Path, random.Random], None]) -> Event:
    event = sigterm(life)
    event.fault = name
    if len(life.run.checkpoints()) < 2:
        event.note = "not damaged: there is no older one"
        return event
    folder = life.run.workdir / "checkpoints" / str(event.saved_step)
    # The largest: nearly all values are there, and some of the small ones are read by nobody.
    item = life.rng.choice(("params", "training"))
    files = [path for path in array_files(folder) if item in path.parts]
    damage(max(files, key=lambda path: path.stat().st_size), life.rng)
    return event


def array_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that hold values of arrays."""
    files = [path for item in ("params", "training") for path in (folder / item).rglob("*")]
    return sorted(path for path in files if path.is_file() and path.parent.name == "d")


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


FAULTS: dict[str, tuple[Fault, int]] = {
    "sigterm": (sigterm, 3),
    "sigkill": (sigkill, 6),
    "kill_in_save": (kill_in_save, 3),
    "disk_full": (disk_full, 1),
    "read_only": (read_only, 1),
    "flipped_bit": (flipped_bit, 2),
    "deleted_shard": (deleted_shard, 1),
    "slow_host": (slow_host, 1),
    "data_worker_killed": (data_worker_killed, 1),
    "nan_batch": (nan_batch, 1),
}
"""Name -> what is done, and how often it is drawn beside the others."""


def final_state(run: cluster.Run) -> dict[str, Any]:
    """What must be equal in two runs: arrays by their digests, position in the data, losses."""
    step = max(run.checkpoints())
    folder = run.workdir / "checkpoints" / str(step)
    manifest = json.loads((folder / "manifest" / "manifest.json").read_text())
    losses = json.dumps(sorted(run.losses().items()))
    return {
        "step": step,
        "arrays": manifest["arrays"],
        "data": manifest["data"],
        "losses": hashlib.sha256(losses.encode()).hexdigest(),
    }
