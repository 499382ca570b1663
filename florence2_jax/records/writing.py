# SPDX-License-Identifier: Apache-2.0
"""Writing a store of records, in parallel and again after a kill.

Shard i of a split is a pure function of the job and i. It is written under a temporary name,
renamed into `unfinished/` when it is whole and on disk, and followed by its report. The same job
run again skips the shards that have a report; at the end they get the names TFDS expects, and
`dataset_info.json`, written last, says that the store is whole.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import dataset_info, naming, splits

from florence2_jax.records.columns import FEATURES, serialize
from florence2_jax.records.journal import (
    UNFINISHED,
    difference,
    journal,
    remove_journal,
    sync,
    write_file,
)
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.running import run_in_processes, run_on_ray
from florence2_jax.records.schema import Record, RecordError
from florence2_jax.typing import UserError

INFO = "dataset_info.json"
COLUMNS_FILE = "features.json"
STORE = "store.json"
QUARANTINE = "set_aside.jsonl"
LAYOUT_VERSION = "1.2.0"
"""1.1.0 added the size of an image before it was shrunk, 1.2.0 what the data engine notes."""

_SHARD_OPTIONS = "group_size:1,snappy"  # Images do not shrink further; zstd takes four times long.
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def split_by_hash(key: str, fractions: Mapping[str, float]) -> str:
    """The split of a key: its hash, a fraction in [0, 1), falls into one of the given shares.

    The fraction is the first 8 bytes of BLAKE2b of the key in UTF-8, big endian, over 2**64, and
    the shares are laid side by side in the order given. So a key stays in its split when others
    come or go, on any machine, and equal keys are never parted.

    Raises:
        ValueError: if the fractions are negative or do not add up to 1.
    """
    if min(fractions.values()) < 0 or not math.isclose(sum(fractions.values()), 1):
        raise ValueError(f"fractions of splits must add up to 1, got {dict(fractions)}")
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    ends = itertools.accumulate(fractions.values())
    named = (name for name, end in zip(fractions, ends, strict=True) if place < end)
    return next(named, next(reversed(list(fractions))))


def shard_name(name: str, split: str, index: int, total: int) -> str:
    """File name of a shard, as TFDS expects it."""
    return f"{name}-{split}.array_record-{index:05d}-of-{total:05d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a store is written from.

    `units` holds per split what the records are made of, in order; `make` turns a unit into its
    record, or into None after setting it aside in the ledger given. `make` is pickled and, shard by
    shard, so are the units; it must be pure: run twice, it gives the same record. `job` is JSON
    that differs when the records would (format, options, digest of the source, seed). `ledger`
    holds what listing the source already settled.

    With `images`, another store, the records take their images from it: then every unit is
    `(split, index)` of the record there that has the image, in a split of the same name.
    """

    units: Mapping[str, Sequence[Any]]
    make: Callable[[Any, Ledger], Record | None]
    job: Mapping[str, Any]
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    images: Path | None = None


def write_store(
    directory: str | os.PathLike[str],
    plan: Plan,
    *,
    name: str = "records",
    examples_per_shard: int = 512,
    num_workers: int = 1,
    ray: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes a store, or goes on with one that was interrupted.

    The bytes depend neither on `num_workers` nor on `ray`. With more than one worker, work runs in
    spawned processes, so a script that calls this must guard its top level with
    `if __name__ == "__main__"`.

    Args:
        directory: new, empty, or left behind by the same job.
        plan: what to write. A split of which nothing is kept does not appear in the store.
        name: name of the dataset for TFDS: letters, digits and `_`.
        examples_per_shard: units per shard at most; the last command's value must be given again.
        num_workers: processes.
        ray: address of a Ray cluster that runs the shards as its tasks, or "local" for a Ray of
            `num_workers` cores here. All its machines must see the directory and the source under
            the same absolute paths.
        on_progress: called with (units done, units in all), now and then.

    Returns:
        `{"name", "splits": {split: records}, "counts": the ledger's}`.

    Raises:
        UserError: if the directory holds something else, another process writes it, the source has
            nothing to keep, two records share an id, or Ray cannot be used.
    """
    directory = Path(directory).absolute() if ray else Path(directory)
    _check_names(name, plan)
    job = {
        "layout": LAYOUT_VERSION,
        "name": name,
        "examples_per_shard": examples_per_shard,
        "units": {split: len(units) for split, units in plan.units.items()},
        "job": dict(plan.job),
    }
    job = json.loads(json.dumps(job))  # As it will be read back.
    shards = _cut_into_shards(directory / UNFINISHED, plan, examples_per_shard)
    if (report := _finished(directory, job)) is not None:
        return report
    if not shards:
        raise UserError(f"{directory}: nothing to write: the source lists no images")
    with journal(directory, job):
        _write_shards(shards, plan, num_workers, ray, on_progress)
        return _finish(directory, job, shards, plan)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Units `[start, stop)` of a split, and the files they become before they get their names."""

    split: str
    start: int
    stop: int
    data: Path
    report: Path


def _check_names(name: str, plan: Plan) -> None:
    if not re.fullmatch(r"[a-zA-Z]\w*", name, re.ASCII):
        raise UserError(f"name of a store {name!r}: use letters, digits and _, a letter first")
    for split in plan.units:
        if not re.fullmatch(r"[a-zA-Z]\w*", split, re.ASCII) or split == "all":
            raise UserError(f"name of a split {split!r}: use letters, digits and _, a letter first")


def _cut_into_shards(folder: Path, plan: Plan, examples_per_shard: int) -> list[_Shard]:
    shards = []
    for split, units in plan.units.items():
        num_shards = math.ceil(len(units) / examples_per_shard)
        for i in range(num_shards):
            stem = f"{split}-{i:05d}"
            start, stop = (len(units) * j // num_shards for j in (i, i + 1))
            data, report = (folder / f"{stem}.{kind}" for kind in ("array_record", "json"))
            shards.append(_Shard(split, start, stop, data, report))
    return shards


def _finished(directory: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of a store that is already there, None if there is none yet."""
    if not (directory / INFO).exists():
        return None
    advice = "give another directory, or remove this one first"
    if not (directory / STORE).is_file():
        raise UserError(f"{directory}: holds a dataset that records did not write; {advice}")
    written = json.loads((directory / STORE).read_text("utf-8"))
    if written["job"] != job:
        raise UserError(
            f"{directory}: holds the store of another job ({difference(written['job'], job)}); "
            f"{advice}"
        )
    remove_journal(directory)  # A run that was killed in its last moment left it.
    return written["report"]


def _write_shards(
    shards: Sequence[_Shard],
    plan: Plan,
    num_workers: int,
    ray: str | None,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    total = sum(shard.stop - shard.start for shard in shards)
    missing = [shard for shard in shards if not shard.report.exists()]
    done = total - sum(shard.stop - shard.start for shard in missing)
    report = on_progress or (lambda done, total: None)
    report(done, total)
    if not missing:
        return
    if ray is None and num_workers <= 1:
        for shard in missing:
            units, refers = plan.units[shard.split], plan.images is not None
            for num in _write_shard(shard, units, shard.start, plan.make, refers):
                report(done + num, total)
            done += shard.stop - shard.start
        return
    calls = (
        (
            shard,
            list(plan.units[shard.split][shard.start : shard.stop]),
            plan.make,
            plan.images is not None,
        )
        for shard in missing
    )
    if ray is None:
        num_workers = min(num_workers, len(missing))
        ended = run_in_processes(_write_whole_shard, calls, num_workers=num_workers)
    else:
        ended = run_on_ray(_write_whole_shard, calls, num_workers=num_workers, address=ray)
    with contextlib.closing(ended):
        for shard, *_ in ended:
            if not shard.report.exists():
                raise UserError(
                    f"{shard.report}: written by a machine of the Ray cluster, and not to be seen "
                    "here; give a directory that all of them share"
                )
            done += shard.stop - shard.start
            report(done, total)


def _write_whole_shard(shard: _Shard, units: Sequence[Any], make: Callable, refers: bool) -> None:
    for _ in _write_shard(shard, units, 0, make, refers):
        pass


def _write_shard(
    shard: _Shard, units: Sequence[Any], start: int, make: Callable, refers: bool
) -> Iterator[int]:
    """Writes one shard and its report; yields the number of units done after each."""
    ledger, ids, num_bytes = Ledger(), [], 0
    temporary = shard.data.with_suffix(f".tmp{uuid.uuid4().hex}")  # Two may write at once on Ray.
    writer = ArrayRecordWriter(str(temporary), _SHARD_OPTIONS)
    try:
        for done in range(shard.stop - shard.start):
            where = f"unit {shard.start + done} of {shard.split}"
            unit = units[start + done]
            image_at = unit[1] if refers else -1
            if (made := _make_one(unit, where, make, ledger, image_at)) is not None:
                _to_disk(temporary, writer.write, made[1])
                ids.append(made[0])
                num_bytes += len(made[1])
            yield done + 1
        _to_disk(temporary, writer.close)
    finally:
        with contextlib.suppress(RuntimeError):  # After an error that is on its way already.
            writer.close()
    sync(temporary)
    reader = ArrayRecordReader(str(temporary))
    written = reader.num_records()
    reader.close()
    assert written == len(ids), f"{written} of {len(ids)} records in {temporary}"
    temporary.replace(shard.data)
    report = {"ids": ids, "num_bytes": num_bytes, "ledger": ledger.to_json()}
    write_file(shard.report, json.dumps(report, ensure_ascii=False))


def _to_disk(path: Path, call: Callable, *args: bytes) -> None:
    try:
        call(*args)
    except RuntimeError as error:  # What the writer makes of an error of the file system.
        reason = str(error).partition(";")[0]
        raise UserError(
            f"{path.parent.parent}: cannot write a shard: {reason}; make room"
        ) from error


def _make_one(
    unit: Any, where: str, make: Callable, ledger: Ledger, image_at: int
) -> tuple[str, bytes] | None:
    """Id and bytes of a unit's record; what makes no valid record is set aside, not fatal."""
    own, made = Ledger(), None
    try:
        if (record := make(unit, own)) is not None:
            made = record.id, serialize(record, image_at)
    except RecordError as error:
        own.withdraw("its record is not valid", where=where, value=str(error))
    ledger.merge(own)
    return made


def _finish(
    directory: Path, job: Mapping[str, Any], shards: Sequence[_Shard], plan: Plan
) -> dict[str, Any]:
    """Names the shards, writes books and metadata. May be repeated when it was interrupted."""
    ledger = Ledger()
    ledger.merge(plan.ledger)
    kept: dict[str, list[tuple[_Shard, dict]]] = {}
    for shard in shards:
        report = json.loads(shard.report.read_text("utf-8"))
        ledger.merge(Ledger.from_json(report["ledger"]))
        if report["ids"]:
            kept.setdefault(shard.split, []).append((shard, report))
    lines = "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in ledger.entries)
    if left := ledger.unaccounted():
        raise RuntimeError(f"the importer neither kept nor set aside (read minus settled): {left}")
    if not kept:
        write_file(directory / QUARANTINE, lines)
        raise UserError(
            f"{directory}: no record is left to write; {QUARANTINE} there says why each image was "
            f"set aside, first: {lines.partition(chr(10))[0]}"
        )
    ids = Counter(i for parts in kept.values() for _, report in parts for i in report["ids"])
    if (twice := ids.most_common(1)[0])[1] > 1:
        raise UserError(f"{directory}: {twice[1]} records have the id {twice[0]!r}; rename them")
    for split, parts in kept.items():
        for i, (shard, _) in enumerate(parts):
            if shard.data.exists():  # Else an interrupted run has moved it.
                shard.data.replace(directory / shard_name(job["name"], split, i, len(parts)))
    counts = {split: [len(report["ids"]) for _, report in parts] for split, parts in kept.items()}
    num_bytes = {split: sum(r["num_bytes"] for _, r in parts) for split, parts in kept.items()}
    report = {
        "name": job["name"],
        "splits": {split: sum(lengths) for split, lengths in counts.items()},
        "counts": ledger.counts(),
    }
    write_file(directory / QUARANTINE, lines)
    books = {"job": job, "report": report}
    if plan.images is not None:  # Relative, so that the two may move together.
        books["images"] = os.path.relpath(plan.images, directory)
    write_file(directory / STORE, json.dumps(books, indent=1))
    _write_metadata(directory, job["name"], counts, num_bytes)
    return report


def _write_metadata(
    directory: Path, name: str, counts: Mapping[str, list[int]], num_bytes: Mapping[str, int]
) -> None:
    template = naming.ShardedFileTemplate(
        data_dir=epath.Path(directory),
        template=_TEMPLATE,
        dataset_name=name,
        filetype_suffix="array_record",
    )
    info = dataset_info.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=name,
            version=tfds.core.Version(LAYOUT_VERSION),
            data_dir=str(directory),
            module_name="",
        ),
        features=FEATURES,
        description="Images with their FLD annotations, in pixels of the original image.",
    )
    info.set_file_format("array_record")
    parts = [
        splits.SplitInfo(
            name=split,
            shard_lengths=lengths,
            num_bytes=num_bytes[split],
            filename_template=template,
        )
        for split, lengths in counts.items()
    ]
    info.set_splits(splits.SplitDict(parts))
    staging = directory / UNFINISHED / "metadata"
    staging.mkdir(exist_ok=True)
    info.write_to_directory(staging)
    # Last of all the file that says that the store is whole.
    for path in sorted(staging.iterdir(), key=lambda path: path.name == INFO):
        sync(path)
        path.replace(directory / path.name)
    sync(directory)
