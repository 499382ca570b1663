# SPDX-License-Identifier: Apache-2.0
"""Several stores about the same images -> one record per image, with everything they say.

Images are the same if their keys are equal: the id of the record, the name of the file at the end
of it, or the hash of the encoded bytes. Nothing is decided between sources that disagree: both
annotations stay, each with the name of its store as its provenance where it had none. Only what two
stores say word for word alike is kept once, as the first one said it.

The image, its size and its id come from the first store that has it. Where another store has the
image in another size, its coordinates would lie in wrong places: its regions and groundings are set
aside, its texts and questions stay. Where splits disagree, the image goes to the one that is
furthest from training: test, then val, then train.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.splitting import KINDS, open_store
from florence2_jax.records.store import RecordStore, splits_of
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

Key: TypeAlias = Literal["id", "name", "hash"]
Place: TypeAlias = tuple[int, str, int]
"""Number of a store, split, index of a record."""

_PLACED = ("region", "grounding")
_Annotation = TypeVar("_Annotation")


def plan_merge(
    directories: Sequence[Path],
    key: Key,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Finds out which records of the stores are about one image; every record is read once.

    Raises:
        UserError: if there are fewer than two stores, one cannot be read, the key is unknown, or
            two records of one store have the same key.
    """
    if len(directories) < 2:
        raise UserError("merge: give two stores or more")
    if key not in get_args(Key):
        raise UserError(f"key {key!r}: not one of {', '.join(get_args(Key))}")
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise UserError(f"merge: a store is given twice: {', '.join(map(str, directories))}")
    names = _names(directories)
    stores = {
        (i, split): RecordStore(directory, split)
        for i, directory in enumerate(directories)
        for split in splits_of(directory)
    }
    ledger, units, taken = Ledger(), {}, set()
    for id_, group in _places(stores, key, on_progress).values():
        if id_ in taken:  # Of another image, in another store.
            ledger.note("image", "renamed: its id is that of another image in another store")
            id_ = f"{names[group[0][0]]}/{id_}"
        taken.add(id_)
        splits = {split for _, split, _ in group}
        split = max(splits, key=_distance_from_training)
        if len(splits) > 1:
            ledger.note("image", f"in splits {', '.join(sorted(splits))}: goes to {split}")
        units.setdefault(split, []).append((id_, tuple(group)))
    job = {"format": "merge", "key": key, "stores": [_identity(d) for d in directories]}
    make = functools.partial(_merge, directories=tuple(directories), names=names)
    return Plan(units=units, make=make, job=job, ledger=ledger)


def key_of(record: Record, key: Key) -> str:
    """What makes two records be about one image."""
    if key == "id":
        return record.id
    if key == "hash":
        return hashlib.sha256(record.image).hexdigest()
    return PurePosixPath(record.id).stem


def _places(
    stores: dict[tuple[int, str], RecordStore], key: Key, on_progress
) -> dict[str, tuple[str, list[Place]]]:
    """By key the id of the first record, and where all of them are."""
    places: dict[str, tuple[str, list[Place]]] = {}
    total, done = sum(map(len, stores.values())), 0
    for (number, split), store in stores.items():
        for index in range(len(store)):
            record = store[index]
            _, group = places.setdefault(key_of(record, key), (record.id, []))
            if group and group[-1][0] == number:
                raise UserError(
                    f"{store.directory}: two records have the {key} of {record.id!r}; choose "
                    "another --key"
                )
            group.append((number, split, index))
            done += 1
            if on_progress and done % 256 == 0:
                on_progress(done, total)
    return places


def _merge(
    unit: tuple[str, Sequence[Place]],
    ledger: Ledger,
    *,
    directories: Sequence[Path],
    names: Sequence[str],
) -> Record:
    id_, places = unit
    records = []
    for number, split, index in places:
        record = open_store(directories[number], split)[index]
        records.append(_signed(record, names[number]))
    first, *others = records
    ledger.read("image", len(records))
    ledger.keep("image")
    for _ in others:
        ledger.set_aside("image", "same image as in a store before", where=first.id)
    if any(other.image != first.image for other in others):
        ledger.note("image", "encoded differently in two stores: the first one's bytes are kept")
    merged = {}
    for kind, field in KINDS.items():
        things: list[Any] = []
        for record in records:
            things += _fitting(getattr(record, field), kind, record, first, ledger)
        kept = _without_repeats(things)
        ledger.keep(kind, len(kept))
        if repeats := len(things) - len(kept):
            why = "said alike by a store before"
            ledger.set_aside(kind, why, where=first.id, num=repeats)
        merged[field] = tuple(kept)
    return dataclasses.replace(first, id=id_, **merged)


def _fitting(things: Sequence[Any], kind: str, record: Record, first: Record, ledger: Ledger):
    ledger.read(kind, len(things))
    if record.size == first.size or kind not in _PLACED:
        return list(things)
    value = f"{record.size}, the first store has {first.size}"
    why = "of another size of the image"
    ledger.set_aside(kind, why, where=record.id, value=value, num=len(things))
    return []


def _without_repeats(things: Sequence[_Annotation]) -> list[_Annotation]:
    seen: dict[Any, _Annotation] = {}
    for thing in things:
        fields = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}  # pyright: ignore[reportArgumentType]
        seen.setdefault(tuple(v for name, v in fields.items() if name != "provenance"), thing)
    return list(seen.values())


def _signed(record: Record, name: str) -> Record:
    """The record with the store's name as provenance of what does not say who made it."""

    def sign(thing: Any) -> Any:
        if thing.provenance.name:
            return thing
        provenance = dataclasses.replace(thing.provenance, name=name)
        return dataclasses.replace(thing, provenance=provenance)

    fields = {field: tuple(map(sign, getattr(record, field))) for field in KINDS.values()}
    return dataclasses.replace(record, **fields)


def _names(directories: Sequence[Path]) -> tuple[str, ...]:
    """Names of the folders; whole paths where two are alike."""
    short = [directory.resolve().name for directory in directories]
    alike = len(set(short)) < len(short)
    return tuple(map(str, directories) if alike else short)


def _distance_from_training(split: str) -> tuple[int, str]:
    ranks = {"train": 0, "val": 2, "validation": 2, "test": 3}
    return ranks.get(split, 1), split


def _identity(directory: Path) -> dict[str, Any]:
    """What of a store the merged one depends on: its job, which tells sources and options."""
    text = (directory / "store.json").read_text("utf-8")
    return {"directory": str(directory), "sha256": hashlib.sha256(text.encode()).hexdigest()}
