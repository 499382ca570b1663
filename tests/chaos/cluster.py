# SPDX-License-Identifier: Apache-2.0
"""Runs of several real processes on this machine, and what became of them.

`Nursery` starts processes quickly, `Run` is one workdir with its attempts (starts), `Attempt` the
processes of one start. `Run.account` reads what every attempt noted and says what was lost.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUN_FILE = HERE / "tiny_run.py"
SAVED, USER_ERROR = 75, 2


class Process:
    """One process of an attempt; `status` is negative if a signal killed it."""

    def __init__(self, pid: int, log: Path):
        self.pid, self.log = pid, log
        self.status: int | None = None
        self.ended = threading.Event()
        self.ended_at = 0.0

    def send(self, number: int) -> None:
        """A signal, if it still lives."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


class Nursery:
    """Forks training processes off one that has imported everything. Use as a context manager."""

    def __init__(self, cache: Path, *, package_root: Path | None = None):
        """Starts at once.

        Args:
            cache: folder of compiled programs, which the processes share.
            package_root: where `florence2_jax` is imported from; None: as in this process.
        """
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        environment |= {
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        environment.pop("XLA_FLAGS", None)
        if package_root is not None:
            environment["PYTHONPATH"] = str(package_root)
        self._children: dict[int, Process] = {}
        self._lock = threading.Lock()
        self._answers: list[dict[str, Any]] = []
        self._answered = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._next_answer(120)

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self._children.values()):
            process.send(signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._listener.join(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def spawn(
        self, command: Sequence[str], *, env: Mapping[str, str], log: Path, faults: dict[str, Any]
    ) -> Process:
        """Starts a `florence2-jax` command."""
        order = {"command": list(command), "env": dict(env), "log": str(log), "faults": faults}
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            pid = self._next_answer(30)["pid"]
            return self._children.setdefault(pid, Process(pid, log))

    def _next_answer(self, timeout_s: float) -> dict[str, Any]:
        with self._answered:
            if not self._answered.wait_for(lambda: self._answers, timeout_s):
                raise TimeoutError("the nursery does not answer")
            return self._answers.pop(0)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "status" in answer:
                process = self._children.pop(answer["pid"])
                process.status, process.ended_at = answer["status"], time.time()
                process.ended.set()
                continue
            with self._answered:
                if "pid" in answer:
                    self._children[answer["pid"]] = Process(answer["pid"], Path())
                self._answers.append(answer)
                self._answered.notify()


@dataclasses.dataclass
class Attempt:
    """One start of a run on some processes."""

    processes: list[Process]
    notes: list[Path]
    started: float

    def step(self) -> int:
        """The newest step that process 0 has begun in this attempt; 0 before the first."""
        rows = read_notes(self.notes[0])
        return rows[-1]["step"] if rows else 0

    def until(self, is_so: Callable[[], Any], timeout_s: float = 600.0) -> bool:
        """Waits for something, or the end of all processes. Returns whether it came."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if is_so():
                return True
            if all(process.ended.is_set() for process in self.processes):
                return bool(is_so())
            time.sleep(0.01)
        raise TimeoutError(f"not within {timeout_s} s: {[p.text()[-800:] for p in self.processes]}")

    def until_step(self, step: int, timeout_s: float = 600.0) -> bool:
        """Waits until a step has begun."""
        return self.until(lambda: self.step() >= step, timeout_s)

    def until_text(self, text: str, timeout_s: float) -> bool:
        """Whether a process prints something, or has."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.text() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return text in self.text()

    def wait(self, timeout_s: float = 600.0) -> list[int]:
        """Waits for the end of all processes. Returns their statuses."""
        deadline_s = time.monotonic() + timeout_s
        for process in self.processes:
            if not process.ended.wait(max(0.0, deadline_s - time.monotonic())):
                texts = "\n".join(process.text()[-2000:] for process in self.processes)
                for other in self.processes:
                    other.send(signal.SIGKILL)
                raise TimeoutError(f"process {process.pid} did not end in {timeout_s} s:\n{texts}")
        return [int(process.status or 0) for process in self.processes]

    def first_step_s(self) -> float | None:
        """Seconds from the start to the moment when the first step began."""
        rows = read_notes(self.notes[0])
        return rows[0]["time"] - self.started if rows else None

    def text(self) -> str:
        """What all processes printed."""
        return "\n".join(process.text() for process in self.processes)


@dataclasses.dataclass(frozen=True)
class Account:
    """What the attempts of a run come to."""

    lost_steps: list[int]  # Steps that each restart had to do again.
    ids: dict[int, list[int]]  # Step -> records of the global batch that the final state has seen.
    is_whole: bool  # Whether every step from 1 to the last was trained exactly once.


class Run:
    """A workdir and the attempts on it."""

    def __init__(self, nursery: Nursery, folder: Path, records: Path):
        self.nursery, self.folder, self.records = nursery, folder, records
        self.workdir = folder / "run"
        self.attempts: list[Attempt] = []
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        num_processes: int = 1,
        devices_each: int = 2,
        *,
        overrides: Sequence[str] = (),
        faults: Mapping[int, Mapping[str, Any]] | None = None,
        step_s: float = 0.0,
        command: Sequence[str] = (),
    ) -> Attempt:
        """Starts all processes of an attempt.

        Args:
            overrides: `config.KEY=VALUE` for the run file.
            faults: what `nursery.Faults` takes, by process.
            command: further flags of `train`.
        """
        number, port = len(self.attempts), free_port()
        attempt = Attempt([], [], time.time())
        flags = f"--xla_force_host_platform_device_count={devices_each}"
        # Programs that run for milliseconds need no optimising compiler.
        flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        env = {"XLA_FLAGS": flags}
        for index in range(num_processes):
            words = ["train", "--config", f"{RUN_FILE}:{self.records}"]
            words += ["--workdir", str(self.workdir), *(f"--{text}" for text in overrides)]
            if num_processes > 1:
                words += ["--coordinator", f"localhost:{port}", "--process-id", str(index)]
            words += ["--num-processes", str(num_processes), *command]
            stem = f"attempt{number}-process{index}"
            notes = self.folder / f"{stem}.jsonl"
            own = {"step_s": step_s, **(faults or {}).get(index, {}), "notes": str(notes)}
            log = self.folder / f"{stem}.log"
            attempt.processes.append(self.nursery.spawn(words, env=env, log=log, faults=own))
            attempt.processes[-1].log = log
            attempt.notes.append(notes)
        self.attempts.append(attempt)
        return attempt

    def finish(self, *args: Any, **kwargs: Any) -> Attempt:
        """Starts an attempt and waits for its end."""
        attempt = self.start(*args, **kwargs)
        attempt.wait()
        return attempt

    def checkpoints(self) -> list[int]:
        """Steps that have a finished checkpoint."""
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())

    def losses(self) -> dict[int, float]:
        """Step -> loss, the last one written for each."""
        rows = read_notes(self.workdir / "metrics.jsonl")
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    def account(self) -> Account:
        """Follows the steps through all attempts."""
        chain: dict[int, list[int]] = {}
        lost, done, is_whole = [], 0, True
        for attempt in self.attempts:
            rows = [read_notes(path) for path in attempt.notes]
            if not rows[0]:
                continue  # It ended before its first step.
            first = rows[0][0]["step"]
            is_whole &= first <= done + 1
            lost.append(done + 1 - first)
            chain = {step: ids for step, ids in chain.items() if step < first}
            for row in rows[0]:
                chain[row["step"]] = row["ids"]
            for other in rows[1:]:
                for row in other:
                    if row["step"] in chain:
                        chain[row["step"]] = chain[row["step"]] + row["ids"]
            done = rows[0][-1]["step"]
        is_whole &= sorted(chain) == list(range(1, len(chain) + 1))
        return Account(lost[1:], chain, is_whole)


def children(pid: int) -> list[int]:
    """Processes that a process has started, with those that these have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            found.append((parent, int(path.parent.name)))
    own = [child for parent, child in found if parent == pid]
    return own + [further for child in own for further in children(child)]


def read_notes(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file; none if it is not there."""
    return list(_rows(path))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # A kill tore it.
                yield json.loads(line)


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]
