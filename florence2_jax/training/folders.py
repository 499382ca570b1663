# SPDX-License-Identifier: Apache-2.0
"""A run's records where its run file names a dataset in another format: imported once.

DIR/records/NAME is the store, NAME being that of the dataset's folder, DIR the workdir. It is
written before the first step and read at every later start, for which the dataset is no longer
needed. What could not be used is in its `set_aside.jsonl`. Large datasets are better imported by
`florence2-jax records import`, with many processes: this is one.
"""

from pathlib import Path

import jax

from florence2_jax.parallel import processes
from florence2_jax.records.importers import detect, plan_import
from florence2_jax.records.journal import UNFINISHED
from florence2_jax.records.store import RecordStore, write_store
from florence2_jax.records.writing import INFO
from florence2_jax.training import workdir as workdir_lib


def open_records(
    directory: str, split: str, workdir: Path | None, *, timeout_s: float
) -> RecordStore:
    """The records of a run.

    Args:
        directory: a store, or a dataset in a format that `records import` knows.
        split: of the store, or of the dataset.
        workdir: of the run; None where only stores are read.
        timeout_s: how long other hosts wait for process 0, which imports.

    Raises:
        UserError: if there is neither, or the split is not there.
    """
    store = directory if workdir is None else store_of(directory, workdir, timeout_s=timeout_s)
    return RecordStore(store, split)


def own_store(directory: str, workdir: Path) -> Path:
    """Where a run keeps what it has imported from a folder."""
    return workdir / workdir_lib.RECORDS / Path(directory).absolute().name


def store_of(directory: str, workdir: Path, *, timeout_s: float) -> str | Path:
    """The folder itself if it is a store, else the run's own, imported now if it is not there."""
    source = Path(directory)
    if (source / INFO).is_file() or (source / UNFINISHED).is_dir():
        return directory
    own = own_store(directory, workdir)
    if jax.process_index() == 0 and not (own / INFO).is_file() and _has_files(source):
        format_name = detect(source)
        own.parent.mkdir(parents=True, exist_ok=True)
        write_store(own, plan_import(format_name, source), name=format_name)
    processes.barrier(f"records of {own.name}", timeout_s)
    # Where there is nothing to import, the error of a store says what is missing.
    return own if (own / INFO).is_file() else directory


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
