# SPDX-License-Identifier: Apache-2.0
"""The frozen split: images that the loop neither annotates nor learns from, chosen before it runs.

    DIR/audit/frozen/         a store of its own, split "audit", with its images
    DIR/audit/training/       the rest of the source, which the loop may see; images stay there
    DIR/audit/exclude.jsonl   for `input.exclude` of a run: what training must not see
    DIR/audit/frozen.json     the settings; written last

An image is chosen by the hash of its split key (its id, where it has none), so that the choice
depends on no label, and crops of one photo are never parted. What looks like a frozen image, by its
bytes or its perceptual hash, is neither frozen nor trained on.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.records.checks import ImageError, open_image
from florence2_jax.records.excluded import image_hash, perceptual_hashes, read_excluded
from florence2_jax.records.journal import difference, write_file
from florence2_jax.records.overlap import (
    Match,
    find_overlap,
)
from florence2_jax.records.splitting import copy_record
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import Plan, split_by_hash, write_store
from florence2_jax.typing import UserError

SPLIT = "audit"
_FROZEN, _TRAINING, _EXCLUDE, _BOOKS = "frozen", "training", "exclude.jsonl", "frozen.json"

OnProgress = Callable[[int, int], None]


def audit_folder(directory: str | os.PathLike[str]) -> Path:
    """`DIR/audit` of an engine's workdir."""
    return Path(directory) / "audit"


def is_frozen(directory: str | os.PathLike[str]) -> bool:
    """Whether a split has been frozen here."""
    return (audit_folder(directory) / _BOOKS).is_file()


def frozen_store(directory: str | os.PathLike[str]) -> Path:
    """The store of the frozen split. Raises UserError if nothing was frozen."""
    _books(directory)
    return audit_folder(directory) / _FROZEN


def training_store(directory: str | os.PathLike[str]) -> Path:
    """The store of what the loop may see. Raises UserError if nothing was frozen."""
    _books(directory)
    return audit_folder(directory) / _TRAINING


def exclude_list(directory: str | os.PathLike[str]) -> Path:
    """The list for a run's `input.exclude`. Raises UserError if nothing was frozen."""
    _books(directory)
    return audit_folder(directory) / _EXCLUDE


def frozen_ids(directory: str | os.PathLike[str]) -> frozenset[str]:
    """Ids that training must not see: frozen records, and what looks like them.

    Raises UserError if nothing was frozen.
    """
    return read_excluded(exclude_list(directory)).ids


def freeze(
    source: Path,
    directory: Path,
    *,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
    split: str = "train",
    near_copies: bool = True,
    keep: bool = False,
    num_workers: int = 1,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Chooses the frozen split of a source, and writes what the module says. Once for a workdir.

    Called again with the same settings it goes on where it was killed, or reports what is there.

    Args:
        source: store of records; their annotations are the first truth of the frozen images.
        directory: workdir of the engine.
        fraction: share of split keys to freeze; or
        count: records to freeze, a few more where the last ones share their split key.
        seed: of the choice.
        near_copies: also keep images out of training that look like a frozen one; without it,
            those of the same bytes only, which needs no ImageHash.
        keep: a split of this source that was frozen before will do, whatever its size and seed.
        num_workers: processes that look for near copies.
        on_progress: called with (images looked at, images in all).

    Returns:
        The settings, `num_records`, `num_frozen`, `num_copies`, and the three paths.

    Raises:
        UserError: if the workdir holds a round, or a split frozen with other settings; if nothing,
            or everything, would be frozen; or ImageHash is missing.
    """
    source = Path(source).absolute()
    settings = _settings(source, fraction, count, seed, split, near_copies)
    folder = audit_folder(directory)
    if (folder / _BOOKS).is_file():
        return _frozen_before(directory, settings, keep)
    _check_no_round(directory)
    if near_copies:
        image_hash("freezing with near_copies")
    store = RecordStore(source, split)
    chosen = _choose(store, settings)
    frozen = folder / _FROZEN
    make = functools.partial(copy_record, directory=source)
    job = {"format": "frozen"} | settings
    units = [(split, index) for index in chosen]
    write_store(frozen, Plan(units={SPLIT: units}, make=make, job=job), name="frozen")
    matches = _copies(source, split, frozen, near_copies, num_workers, on_progress)
    held_out = _write_list(folder / _EXCLUDE, store, chosen, matches)
    rest = [(split, index) for index in range(len(store)) if index not in held_out]
    if not rest:
        raise UserError(f"{source}: nothing is left to train on; freeze fewer images")
    plan = Plan(units={split: rest}, make=make, job=job | {"kept": len(rest)}, images=source)
    write_store(folder / _TRAINING, plan, name="training", num_workers=num_workers)
    books = {
        "settings": settings,
        "num_records": len(store),
        "num_frozen": len(chosen),
        "num_copies": len(held_out) - len(chosen),
        "frozen": str(frozen),
        "training": str(folder / _TRAINING),
        "exclude": str(folder / _EXCLUDE),
    }
    write_file(folder / _BOOKS, json.dumps(books, indent=1))
    return books


def overlap_with_frozen(
    directory: Path,
    training: Path,
    *,
    num_workers: int = 1,
    on_progress: OnProgress | None = None,
) -> list[Match]:
    """Images of any training store (split "train") that are frozen: by id, bytes or looks.

    `write_list` of `records.overlap` makes of them what a run reads as `input.exclude`.

    Raises:
        UserError: if nothing was frozen, the store cannot be read, or ImageHash is missing.
    """
    frozen = frozen_store(directory)
    found = find_overlap(training, [frozen], num_workers=num_workers, on_progress=on_progress)
    matches = [match for match in found if match.evaluation == str(frozen)]
    ids, met = frozen_ids(directory), {match.id for match in matches}
    store = RecordStore(training, "train")
    for index in range(len(store)):
        if (id_ := store[index].id) in ids and id_ not in met:
            matches.append(_match("train", id_, frozen, id_, "same id", 0.0))
    return matches


def _settings(source, fraction, count, seed, split, near_copies) -> dict[str, Any]:
    if (fraction is None) == (count is None):
        raise UserError("freeze: give either a fraction or a count of the images")
    if fraction is not None and not 0 < fraction < 1:
        raise UserError(f"freeze: a fraction of {fraction} must lie between 0 and 1")
    if count is not None and count < 1:
        raise UserError(f"freeze: a count of {count} must be at least 1")
    RecordStore(source, split)  # Says what is wrong with it.
    jobs = (source / "store.json").read_bytes()
    return {
        "source": str(source),
        "source_sha256": hashlib.sha256(jobs).hexdigest(),
        "split": split,
        "fraction": fraction,
        "count": count,
        "seed": seed,
        "near_copies": near_copies,
    }


def _frozen_before(directory: Path, settings: dict[str, Any], keep: bool) -> dict[str, Any]:
    """The books of the split that there is, if it is the one that is asked for."""
    books = _books(directory)
    known = books["settings"]
    if keep:
        settings = known | {key: settings[key] for key in ("source_sha256", "split")}
    if known != settings:
        raise UserError(
            f"{audit_folder(directory)}: frozen before with other settings "
            f"({difference(known, settings)}); a truth that changes measures "
            "nothing: repeat the first settings, or begin another workdir"
        )
    return books


def _check_no_round(directory: Path) -> None:
    rounds = sorted(path.name for path in Path(directory).glob("round-*"))
    if rounds:
        raise UserError(
            f"{directory}: has {rounds[0]} already, which may have learnt from any image; freeze "
            "in a new workdir, before the first round"
        )


def _choose(store: RecordStore, settings: dict[str, Any]) -> list[int]:
    """Indices of the records to freeze."""
    members: dict[str, list[int]] = {}
    for index in range(len(store)):
        record = store[index]
        members.setdefault(f"{settings['seed']}:{record.split_key or record.id}", []).append(index)
    if (fraction := settings["fraction"]) is not None:
        shares = {SPLIT: fraction, "train": 1 - fraction}
        keys = [key for key in members if split_by_hash(key, shares) == SPLIT]
    else:
        keys, num = [], 0
        for key in sorted(members, key=lambda key: hashlib.blake2b(key.encode()).digest()):
            if num >= settings["count"]:
                break
            keys.append(key)
            num += len(members[key])
    chosen = sorted(index for key in keys for index in members[key])
    if not 0 < len(chosen) < len(store):
        raise UserError(
            f"{store.directory}: would freeze {len(chosen)} of {len(store)} records; give another "
            "fraction (audit.fraction of the engine's run file) or count"
        )
    return chosen


def _copies(
    source: Path,
    split: str,
    frozen: Path,
    near_copies: bool,
    num_workers: int,
    on_progress: OnProgress | None,
) -> list[Match]:
    """Pairs of an image of the source and a frozen one that it is, or looks like."""
    if near_copies and split == "train":
        found = find_overlap(source, [frozen], num_workers=num_workers, on_progress=on_progress)
        return [match for match in found if match.evaluation == str(frozen)]
    if near_copies:
        raise UserError(f"freeze: near copies are looked for in split 'train', not {split!r}")
    theirs = RecordStore(frozen, SPLIT)
    digests = {_digest(theirs.image(i)): theirs[i].id for i in range(len(theirs))}
    ours = RecordStore(source, split)
    found = ((ours[i].id, digests.get(_digest(ours.image(i)))) for i in range(len(ours)))
    return [_match(split, id_, frozen, other, "same bytes", 1.0) for id_, other in found if other]


def _digest(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()


def _match(split: str, id_: str, frozen: Path, other: str, how: str, correlation: float) -> Match:
    return Match(
        split=split,
        id=id_,
        evaluation=str(frozen),
        evaluation_split=SPLIT,
        evaluation_id=other,
        how=how,
        correlation=correlation,
    )


def _write_list(
    path: Path, store: RecordStore, chosen: Sequence[int], matches: Sequence[Match]
) -> set[int]:
    """Writes the list and returns the indices of its records."""
    by_id: dict[str, list[Match]] = {}
    for match in matches:
        by_id.setdefault(match.id, []).append(match)
    lines, indices = [], set(chosen)
    for index in range(len(store)):
        record = store[index]
        if record.id in by_id:
            indices.add(index)
            print_ = {"phash": _phash(record.image)}
            lines += [dataclasses.asdict(match) | print_ for match in by_id[record.id]]
    write_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return indices


def _phash(image: bytes) -> str | None:
    """In hexadecimal digits; None without ImageHash, or for what is blank or cannot be decoded."""
    try:
        return next((f"{one:016x}" for one in perceptual_hashes(open_image(image))), None)
    except (ImageError, UserError):
        return None


def _books(directory: str | os.PathLike[str]) -> dict[str, Any]:
    if not is_frozen(directory):
        raise UserError(
            f"{directory}: no split is frozen here; run: florence2-jax audit freeze SRC {directory}"
        )
    return json.loads((audit_folder(directory) / _BOOKS).read_text("utf-8"))
