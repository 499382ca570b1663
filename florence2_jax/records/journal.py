# SPDX-License-Identifier: Apache-2.0
"""The folder `unfinished/` in a store that is being written: one process, one job, whole files."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from florence2_jax.typing import UserError

UNFINISHED = "unfinished"


@contextlib.contextmanager
def journal(directory: Path, job: Mapping[str, Any]) -> Iterator[None]:
    """Holds `unfinished/` for this process and removes it when the block ends well.

    Raises:
        UserError: if the directory holds something else, or another process or job has it.
    """
    folder = directory / UNFINISHED
    is_used = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if is_used and not folder.is_dir():
        raise UserError(
            f"{directory}: is not empty and holds no store; give a new or empty directory"
        )
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{directory}: another process is writing this store; wait for it or stop it"
    with locked(folder / "lock", busy):
        if (folder / "job.json").is_file():
            started = json.loads((folder / "job.json").read_text("utf-8"))
            if started != job:
                raise UserError(
                    f"{directory}: holds an unfinished store of another job "
                    f"({difference(started, job)}); repeat that command, or remove the directory"
                )
        else:
            write_file(folder / "job.json", json.dumps(job, indent=1))
        for leftover in folder.glob("*.tmp*"):
            leftover.unlink()
        yield
        remove_journal(directory)


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Holds a lock of this name for one process, as long as it lives.

    Raises:
        UserError: with the text `busy`, if another process holds it.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


def difference(old: Any, new: Any, path: str = "") -> str:
    """Where two JSON values differ first, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return difference(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    return f"{path}: {json.dumps(old)} there, {json.dumps(new)} asked for"


def remove_journal(directory: Path) -> None:
    """Removes `unfinished/`, if it is there."""
    folder = directory / UNFINISHED
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def write_file(path: Path, text: str) -> None:
    """Writes JSON so that the file is there whole or not at all.

    Bytes of names that are no UTF-8 come as lone surrogates, and are written as JSON escapes.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    temporary.write_text(text, "utf-8", "backslashreplace")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file or the names in a directory are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
