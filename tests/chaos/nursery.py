# SPDX-License-Identifier: Apache-2.0
"""Processes of a run that start quickly: everything is imported once, each is a fork of that.

Reads one JSON object a line: `{"command": [...], "env": {...}, "log": FILE, "faults": {...}}`, and
answers `{"pid": ...}`; at its end a process gives `{"pid": ..., "status": ...}`, a negative status
being the signal that killed it. What a fork runs is `florence2-jax train ...`, whole and by itself;
JAX starts in it, not before. It ends with its input.
"""

import ctypes
import functools
import json
import os
import resource
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    """Serves until the input ends. Returns the exit status of the process it is then in."""
    _import_everything()
    _answer({"ready": True})
    children: set[int] = set()
    buffer = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.02)
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                children.discard(pid)
                _answer({"pid": pid, "status": os.waitstatus_to_exitcode(status)})
        if not readable:
            continue
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return 0
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if not (pid := os.fork()):
                return _child(order)  # Out of this function, to end as any process does.
            children.add(pid)
            _answer({"pid": pid})


def _answer(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _import_everything() -> None:
    from florence2_jax.cli import train  # noqa: F401
    from florence2_jax.training import loop  # noqa: F401


def _child(order: dict[str, Any]) -> int:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if order["faults"].get("file_limit"):  # It is not meant for the log.
        writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
        assert writer.stdin is not None
        log = writer.stdin.fileno()
        order["writer"] = writer  # Kept as long as the process lives.
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ |= order["env"]
    _cache_every_process()
    from florence2_jax.cli.main import main as command
    from florence2_jax.training import loop

    faults = Faults(**order["faults"])
    loop.run = functools.partial(loop.run, batch_hooks=[faults.on_batch])
    return command(order["command"])


def _cache_every_process() -> None:
    """Every process keeps what it compiled, not only the first: on CPU their programs differ."""
    from jax._src import compiler, distributed

    write = compiler._cache_write

    def as_first(*args: Any, **kwargs: Any) -> None:
        own = distributed.global_state.process_id
        distributed.global_state.process_id = 0
        try:
            write(*args, **kwargs)
        finally:
            distributed.global_state.process_id = own

    compiler._cache_write = as_first


class Faults:
    """What happens to a process from within; it also notes which records each step had."""

    def __init__(
        self,
        *,
        notes: str,
        step_s: float = 0.0,
        slow_step: int = 0,
        slow_s: float = 0.0,
        nan_step: int = 0,
        file_limit: int = 0,
        file_limit_step: int = 0,
        obeys_modes: bool = False,
    ):
        """See the attributes; a step of 0 never comes.

        Args:
            notes: a line for each step goes to this file.
            step_s: sleep before every step, in place of a large model.
            slow_step: sleep `slow_s` before this one.
            nan_step: the targets of this one make its loss no number.
            file_limit: no file may grow beyond this many bytes, from `file_limit_step` on.
            obeys_modes: the modes of files bind this process even if it is root's.
        """
        self._notes = Path(notes).open("a", encoding="utf-8")  # noqa: SIM115
        self._step_s, self._slow_step, self._slow_s = step_s, slow_step, slow_s
        self._nan_step = nan_step
        self._file_limit, self._file_limit_step = file_limit, file_limit_step
        if obeys_modes:
            _drop_capabilities()

    def on_batch(self, step: int, batch: dict[str, Any]) -> dict[str, Any]:
        """A hook of the loop."""
        time.sleep(self._step_s + (self._slow_s if step == self._slow_step else 0.0))
        if self._file_limit and step == self._file_limit_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._file_limit, self._file_limit))
        ids = [int(index) for index in batch["index"]]
        line = {"step": step, "ids": ids, "time": time.time(), "pid": os.getpid()}
        self._notes.write(json.dumps(line) + "\n")
        self._notes.flush()
        if step == self._nan_step:
            batch = batch | {"target_ids": batch["target_ids"].clip(1 << 20)}  # No such token.
        return batch


def _drop_capabilities() -> None:
    """Without them root is bound by modes as everybody is."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # Version 3, this process.
    nothing = (ctypes.c_uint32 * 6)()  # Effective, permitted, inheritable, in two words each.
    if libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    sys.exit(main())
