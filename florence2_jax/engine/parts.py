# SPDX-License-Identifier: Apache-2.0
"""Parts of phase 1: what one specialist said about one range of images, a file each.

    FOLDER/train-000000000-000000256.jsonl    a line per image, then a line that sums them up

A part is written under a temporary name and gets its own only when it is whole and on disk, and
only if no other part has that name: where two workers made the same one, the first stays. So what
later specialists have seen never changes. The last line holds counts, the time it took and the
digest of the lines before it.

Ranges need not fit each other: reading takes each image from the first part that has it. So ranges
may be halved, and a run may go on with ranges of another length.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import types
import typing
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.engine.specialists.base import Annotations, Failure, Outcome
from florence2_jax.records.journal import locked, sync
from florence2_jax.records.schema import RecordError
from florence2_jax.typing import UserError

Row = tuple[str, Outcome]
"""Id of a record, and what was said about it."""

_hints = functools.cache(typing.get_type_hints)
_NAME = re.compile(r"(\w+)-(\d{9,})-(\d{9,})\.jsonl")


@dataclasses.dataclass(frozen=True, order=True)
class Range:
    """Records `[start, stop)` of a split."""

    split: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def halves(self) -> "tuple[Range, Range]":
        """The two parts of a range of two records or more."""
        middle = (self.start + self.stop) // 2
        return Range(self.split, self.start, middle), Range(self.split, middle, self.stop)

    def cut(self, length: int) -> "Iterator[Range]":
        """Pieces that end at multiples of a length."""
        at = self.start
        while at < self.stop:
            end = min(at - at % length + length, self.stop)
            yield Range(self.split, at, end)
            at = end

    def path(self, folder: Path) -> Path:
        """Where its part is."""
        return folder / f"{self.split}-{self.start:09d}-{self.stop:09d}.jsonl"


@dataclasses.dataclass
class Summary:
    """What parts hold and what they cost; summaries add up.

    `seconds` are those of a worker, reading included; `money` is what a paid service took, in the
    currency of its prices, None of a specialist that counts none.
    """

    images: int = 0
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    made: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: float = 0.0
    money: float | None = None

    def add(self, other: "Summary") -> None:
        """Adds another one to this."""
        self.images += other.images
        self.failures += other.failures
        self.made += other.made
        self.seconds += other.seconds
        if other.money is not None:
            self.money = (self.money or 0.0) + other.money


def row_json(row: Row) -> str:
    """A line of a part. Raises TypeError or ValueError if the answer holds what JSON cannot."""
    id_, outcome = row
    key = "failure" if isinstance(outcome, Failure) else "annotations"
    value = {"id": id_, key: _plain(outcome)}
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def summarise(rows: Sequence[Row], seconds: float, money: float | None) -> Summary:
    """Counts of outcomes, and of annotations by the field that holds them."""
    told = Summary(len(rows), seconds=seconds, money=money)
    for _, outcome in rows:
        if isinstance(outcome, Failure):
            told.failures[outcome.reason] += 1
            continue
        for field in dataclasses.fields(outcome):
            if num := len(getattr(outcome, field.name)):
                told.made[field.name] += num
    return told


def write_part(folder: Path, place: Range, rows: Sequence[Row], summary: Summary) -> None:
    """Commits a part, unless there is one already."""
    body = "".join(f"{row_json(row)}\n" for row in rows).encode("utf-8", "backslashreplace")
    last = vars(summary) | {"sha256": hashlib.sha256(body).hexdigest()}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{place.path(folder).name}.tmp{uuid.uuid4().hex}"
    try:
        temporary.write_bytes(body + json.dumps(last).encode() + b"\n")
        sync(temporary)
        _give_name(temporary, place.path(folder))
    except OSError as error:
        if place.path(folder).exists():
            return  # Another worker was first, and whoever cleans up took the temporary file.
        raise UserError(f"{folder}: cannot write a part: {error}; make room") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync(folder)


def _give_name(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # Unlike a renaming it never replaces.
    except FileExistsError:
        return
    except OSError:  # A file system without links.
        if not path.exists():
            temporary.replace(path)


def read_part(path: Path) -> tuple[list[Row], Summary]:
    """The rows of a part and their summary. Raises UserError if the file is damaged."""
    try:
        body, _, end = path.read_bytes().removesuffix(b"\n").rpartition(b"\n")
        body += b"\n" if body else b""
        last = json.loads(end)
        if hashlib.sha256(body).hexdigest() != last.pop("sha256"):
            raise ValueError("its digest does not fit")
        rows = [_row(json.loads(line)) for line in body.splitlines()]
        last |= {key: Counter(last[key]) for key in ("failures", "made")}
        return rows, Summary(**last)
    except (OSError, ValueError, KeyError, TypeError, RecordError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it, it is then made again") from error


def read_summary(path: Path) -> Summary:
    """The last line of a part alone. Raises UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            last = json.loads(file.read().splitlines()[-1])
        del last["sha256"]
        last |= {key: Counter(last[key]) for key in ("failures", "made")}
        return Summary(**last)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it, it is then made again") from error


def parts_of(folder: Path) -> list[Range]:
    """The parts that are there, in order; of two that begin alike the longer one first."""
    if not folder.is_dir():
        return []
    found = filter(None, (_NAME.fullmatch(entry.name) for entry in os.scandir(folder)))
    ranges = [Range(m[1], int(m[2]), int(m[3])) for m in found]
    return sorted(ranges, key=lambda r: (r.split, r.start, -r.stop))


def missing(there: Sequence[Range], wanted: Range) -> list[Range]:
    """What of a range no part has."""
    holes, at = [], wanted.start
    for _, piece in pieces(there, wanted):
        if piece.start > at:
            holes.append(Range(wanted.split, at, piece.start))
        at = piece.stop
    return holes + ([Range(wanted.split, at, wanted.stop)] if at < wanted.stop else [])


def read_rows(folder: Path, wanted: Range) -> list[Row]:
    """What was said about a range. Raises UserError if a part of it is not there, or damaged."""
    path = wanted.path(folder)
    if path.exists():
        return read_part(path)[0]
    there = parts_of(folder)
    if holes := missing(there, wanted):
        raise UserError(f"{holes[0].path(folder)}: not there; run the same command again")
    rows: list[Row] = []
    for part, piece in pieces(there, wanted):
        rows += read_part(part.path(folder))[0][piece.start - part.start : piece.stop - part.start]
    return rows


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other runs out, and removes what killed workers left behind.

    Raises:
        UserError: if another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another process is annotating here; wait for it or stop it"
    with locked(folder / "lock", busy):
        for leftover in folder.glob("*/*.tmp*"):
            leftover.unlink(missing_ok=True)
        yield


def pieces(there: Sequence[Range], wanted: Range) -> Iterator[tuple[Range, Range]]:
    """Parts in the order of `parts_of`, and what each gives of a range that none before it gave."""
    at = wanted.start
    for part in there:
        start, stop = max(part.start, at), min(part.stop, wanted.stop)
        if part.split == wanted.split and start < stop:
            yield part, Range(wanted.split, start, stop)
            at = stop


def _row(value: dict[str, Any]) -> Row:
    if "failure" in value:
        return value["id"], Failure(**value["failure"])
    return value["id"], _built(Annotations, value["annotations"])


def _plain(thing: Any) -> Any:
    """Dataclasses as JSON, without the fields that have their defaults."""
    if isinstance(thing, tuple | list):
        return [_plain(one) for one in thing]
    if not dataclasses.is_dataclass(thing):
        return thing
    values = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    defaults = {field.name: field.default for field in dataclasses.fields(thing)}
    return {name: _plain(v) for name, v in values.items() if v != defaults[name]}


def _built(hint: Any, value: Any) -> Any:
    """The inverse of `_plain`, told the type."""
    if value is None:
        return None
    if dataclasses.is_dataclass(hint):
        hints = _hints(hint)
        return typing.cast(Any, hint)(**{name: _built(hints[name], v) for name, v in value.items()})
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _built(next(one for one in arguments if one is not types.NoneType), value)
    if typing.get_origin(hint) is not tuple:
        return value
    if arguments[-1] is ...:
        return tuple(_built(arguments[0], one) for one in value)
    return tuple(_built(one, v) for one, v in zip(arguments, value, strict=True))
