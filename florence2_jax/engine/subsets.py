# SPDX-License-Identifier: Apache-2.0
"""Stores made of stores: some of the records, or some of what they say. Images stay shared."""

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from florence2_jax.engine.claims import claim, name_of
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.splitting import KINDS, open_store
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import STORE, Plan, write_store
from florence2_jax.typing import UserError

Change = Callable[[Record], Record | None]


def write_changed(
    source: Path,
    directory: Path,
    change: Change,
    job: Mapping[str, Any],
    *,
    splits: Sequence[str] = ("train",),
) -> dict[str, Any]:
    """Writes a store of `change(record)` for all records, without those of which it makes None.

    Args:
        change: pure, and a function that pickles.
        job: what it does, as JSON.

    Raises:
        UserError: if nothing is left, or as `write_store` does.
    """
    units = {
        split: [(split, i) for i in range(len(RecordStore(source, split)))] for split in splits
    }
    make = functools.partial(_make, source=source, change=change)
    job = {"store": str(source), "sha256": digest_of(source), **job}
    return write_store(directory, Plan(units=units, make=make, job=job, images=source))


def write_spread(source: Path, directory: Path, split: str, number: int) -> int:
    """Writes a store of so many records, spread evenly, or of all if there are fewer.

    Returns the number of its records.
    """
    total = len(RecordStore(source, split))
    number = min(number, total)
    units = {split: [(split, i * total // number) for i in range(number)]}
    make = functools.partial(_make, source=source, change=_same)
    job = {"format": "spread", "store": str(source), "sha256": digest_of(source)}
    write_store(directory, Plan(units=units, make=make, job=job, images=source))
    return number


def _same(record: Record) -> Record:
    return record


def digest_of(directory: Path) -> str:
    """Of the books of a store, which differ where its records do."""
    return hashlib.sha256((directory / STORE).read_bytes()).hexdigest()


def bare(record: Record) -> Record:
    """The image alone."""
    return replace(record, **dict.fromkeys(KINDS.values(), ()))


def with_humans(record: Record, *, names: Collection[str] = ()) -> Record | None:
    """The record if a human has annotated it, or, given names, has found one of these classes."""
    if names:
        claims = (claim(r).kind for r in record.regions if name_of(r)[1] in names)
        return record if "human" in claims else None
    things = (thing for field in KINDS.values() for thing in getattr(record, field))
    return record if any(thing.provenance.kind == "human" for thing in things) else None


def joined(record: Record, *, others: Sequence[tuple[Path, tuple[str, ...]]], split: str) -> Record:
    """The record with what other stores of the same records say about it too.

    Args:
        others: stores, and of each the classes whose regions are taken, all for none.
    """
    for directory, names in others:
        other = _by_id(directory, split)[record.id]
        regions = tuple(r for r in other.regions if not names or name_of(r)[1] in names)
        said = {field: getattr(other, field) for field in KINDS.values()} | {"regions": regions}
        known = {field: getattr(record, field) for field in KINDS.values()}
        new = {
            field: known[field] + tuple(one for one in things if one not in known[field])
            for field, things in said.items()
        }
        record = replace(record, **new)
    return record


class _Places(Mapping[str, Record]):
    """Records of a store by their ids."""

    def __init__(self, store: RecordStore):
        self._store = store
        self._places = {store[i].id: i for i in range(len(store))}

    def __getitem__(self, id_: str) -> Record:
        if id_ not in self._places:
            raise UserError(f"{self._store.directory}: no record {id_!r}; predict on all images")
        return self._store[self._places[id_]]

    def __iter__(self):
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@functools.lru_cache(maxsize=4)
def _by_id(directory: Path, split: str) -> _Places:
    return _Places(open_store(directory, split))


def _make(unit: tuple[str, int], ledger: Ledger, *, source: Path, change: Change) -> Record | None:
    split, index = unit
    record = change(open_store(source, split)[index])
    if record is not None:
        ledger.read("image")
        ledger.keep("image")
    return record
