# SPDX-License-Identifier: Apache-2.0
"""A store in other splits: by the hash of each record's split key, or by a list.

A list is a text file, a record a line: its id, a tab or comma, and its split. Records that are not
in it are set aside.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore, splits_of
from florence2_jax.records.writing import Plan, split_by_hash
from florence2_jax.typing import UserError

KINDS = {"caption": "texts", "region": "regions", "grounding": "groundings"}
KINDS |= {"question": "questions"}
"""Kinds of annotations in the books, and the fields of a record that hold them."""


def plan_split(
    directory: Path,
    by: Mapping[str, float] | Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Finds the new split of every record; each is read once.

    Args:
        by: shares of splits, which add up to 1 (see `split_by_hash`), or a list.

    Raises:
        UserError: if the store or list cannot be read, the list names records that are not there,
            or the shares do not add up to 1.
    """
    listed: dict[str, str] = {}
    shares: Mapping[str, float] = {}
    if isinstance(by, Path):
        listed = read_list(by)
        how: dict[str, Any] = {"sha256": hashlib.sha256(by.read_bytes()).hexdigest()}
    else:
        _check_shares(by)
        shares = how = dict(by)
    ledger, units = Ledger(), {}
    stores = {split: RecordStore(directory, split) for split in splits_of(directory)}
    total, done, met = sum(map(len, stores.values())), 0, 0
    for old, store in stores.items():
        for index in range(len(store)):
            record = store[index]
            if shares:
                split = split_by_hash(record.split_key or record.id, shares)
            elif record.id in listed:
                split, met = listed[record.id], met + 1
            else:
                ledger.read("image")
                ledger.set_aside("image", "not in the list of splits", where=record.id)
                continue
            units.setdefault(split, []).append((old, index))
            done += 1
            if on_progress and done % 256 == 0:
                on_progress(done, total)
    if met < len(listed):
        raise UserError(
            f"{by}: {len(listed) - met} of its {len(listed)} records are not in {directory}; "
            "is it the list of another store?"
        )
    job = {"format": "split", "store": str(directory), "by": how}
    make = functools.partial(copy_record, directory=directory)
    return Plan(units=units, make=make, job=job, ledger=ledger)


def parse_shares(text: str) -> dict[str, float]:
    """`train=0.9,val=0.1` as it is written on a command line. Raises UserError if it is not so."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        shares = {name.strip(): float(share) for name, share in pairs}
    except ValueError as error:
        raise UserError(f"shares {text!r}: write them as train=0.9,val=0.1") from error
    _check_shares(shares)
    return shares


def read_list(path: Path) -> dict[str, str]:
    """Splits by id of record. Raises UserError naming the line that says none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    splits: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        # Ids may hold commas: the split is behind the last one.
        id_, mark, split = line.rpartition("\t" if "\t" in line else ",")
        if not mark or not split.strip().isidentifier():
            raise UserError(f"{path}: line {number} is no id and split: {line[:80]!r}")
        if splits.setdefault(id_.strip(), split.strip()) != split.strip():
            raise UserError(f"{path}: line {number} gives {id_.strip()!r} another split")
    return splits


def _check_shares(shares: Mapping[str, float]) -> None:
    try:
        split_by_hash("", shares)
    except ValueError as error:
        raise UserError(f"{error}; write them as train=0.9,val=0.1") from error


def copy_record(place: tuple[str, int], ledger: Ledger, *, directory: Path) -> Record:
    """The record at `(split, index)` of a store; it and all it holds is counted as kept."""
    split, index = place
    record: Any = open_store(directory, split)[index]
    ledger.read("image")
    ledger.keep("image")
    for kind, field in KINDS.items():
        if num := len(getattr(record, field)):
            ledger.read(kind, num)
            ledger.keep(kind, num)
    return record


@functools.lru_cache(maxsize=64)
def open_store(directory: Path, split: str) -> RecordStore:
    """The store, opened once in a process."""
    return RecordStore(directory, split)
