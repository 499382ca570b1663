# SPDX-License-Identifier: Apache-2.0
"""Open Images, V4 to V7: boxes of 600 classes, in CSV files.

Read: `*-annotations-bbox.csv` of train, validation and test, `*class-descriptions*.csv` (names of
labels) and, if there is one, `*hierarchy*.json`, in the folder or in `annotations/`; addresses of
images from `*-images-*.csv`. Images are in `SPLIT/`, `images/SPLIT/`, `images/`, or in folders
`SPLIT_X/`, where X is the first letter of the image id, as archives have them. Ids are
"SPLIT/ID.jpg"; the split is that of the file, validation being val.

A region has the label of its row and no other. Where the same place is boxed again with a label
above its own in the hierarchy (Person beside Woman, an overlap of more than 0.9), the upper one
says nothing new: it is noted, not read. Groups (`IsGroupOf`) are marked as crowds. Boxes of
confidence 0 say that a thing is not there, and are set aside. Other flags are noted.

The rows of an image are found in one pass over a file and read when its record is made, so that
listing holds images in memory, and no boxes. Source: storage.googleapis.com/openimages/web.
"""

import csv
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from florence2_jax.records.importers import annotated
from florence2_jax.records.importers.annotated import AnnotatedImage, RawRegion
from florence2_jax.records.importers.json_files import (
    Digest,
    as_text,
    field,
    is_set,
    read_file,
    read_json,
)
from florence2_jax.records.importers.layout import ImageFolders, named_files, note_unmentioned
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Provenance, Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

MIN_OVERLAP = 0.9
"""Intersection over union above which two boxes are one place."""

MAX_LINE_BYTES = 2**16
MAX_NAMES_BYTES = 2**26
"""Of a file of names of classes; the longest there is has 1 MB."""

_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_BOXES = re.compile(r"(?:oidv\d-)?(train|validation|test)-annotations-bbox\.csv")
_ADDRESSES = re.compile(r"(?:oidv\d-)?(train|validation|test)-images-.*\.csv")
_NAMES = re.compile(r".*class-descriptions.*\.csv")
_HIERARCHY = re.compile(r".*hierarchy.*\.json")
_CSV = re.compile(r".+\.csv")
_IMAGE_ID = re.compile(rb"[0-9A-Za-z_-]{1,64}")
_LAYOUTS = (
    "{split}_{first}",
    "images/{split}_{first}",
    "images/{split}",
    "{split}/data",
    "{split}",
    "images",
)
_CORNERS = ("XMin", "YMin", "XMax", "YMax")
_NEEDED = ("ImageID", "LabelName", "Confidence", *_CORNERS)
_FLAGS = {
    "IsOccluded": "hidden in part (IsOccluded), kept like others",
    "IsTruncated": "cut by the border (IsTruncated), kept like others",
    "IsDepiction": "pictures of the thing (IsDepiction), kept like others",
    "IsInside": "seen from within (IsInside), kept like others",
}


@dataclasses.dataclass(kw_only=True, slots=True)
class BoxedImage:
    """An image, and which bytes `[start, stop)` of a file are rows about it."""

    id: str
    image: Path
    file: Path
    runs: list[tuple[int, int]]
    origin: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """What rows mean: columns of each file, names of labels, and the labels above each."""

    columns: Mapping[Path, Sequence[str]]
    names: Mapping[str, str]
    above: Mapping[str, frozenset[str]]


def detect(source: Path) -> bool:
    """Whether there is a file with the name of a box file of Open Images."""
    return bool(named_files(source, _BOXES))


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Lists an Open Images folder. Raises UserError if it is not one."""
    files = named_files(source, _BOXES)
    if not files:
        raise UserError(f"{source}: no train-, validation- or test-annotations-bbox.csv in it")
    ledger, digest = Ledger(), hashlib.sha256()
    folders = ImageFolders(source, images, _LAYOUTS)
    columns: dict[Path, Sequence[str]] = {}
    by_split: dict[str, dict[bytes, BoxedImage]] = {}
    for path, match in files:
        if (part := match[1]) in by_split:
            raise UserError(f"{path}: a second file of boxes of {part}; remove one of them")
        columns[path], by_split[part] = _list_boxes(path, part, folders, ledger, digest)
    folders.check()
    names, above = _class_names(source, digest), _hierarchy(source, ledger, digest)
    for path, match in named_files(source, _ADDRESSES):
        _add_addresses(path, by_split.get(match[1], {}), digest)
    for path, _ in named_files(source, _CSV):
        if not any(known.fullmatch(path.name) for known in (_BOXES, _ADDRESSES, _NAMES)):
            ledger.note("file", f"{path.name} not read: holds no boxes")
    units = {_SPLITS[part]: list(listed.values()) for part, listed in by_split.items()}
    note_unmentioned((unit.image for listed in units.values() for unit in listed), ledger)
    tables = Tables(columns=columns, names=names, above=above)
    job = {"format": "openimages", "sha256": digest.hexdigest()}
    make = functools.partial(make_record, tables=tables)
    return Plan(units=units, make=make, job=job, ledger=ledger)


# Listing.


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file with their ends; too long a one comes in pieces, none of which is a row."""
    try:
        with path.open("rb") as file:
            yield from iter(functools.partial(file.readline, MAX_LINE_BYTES), b"")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error


def _cells(line: bytes) -> list[str]:
    return line.decode("utf-8", "replace").strip("\ufeff\r\n").split(",")


def _list_boxes(
    path: Path, part: str, folders: ImageFolders, ledger: Ledger, digest: Digest
) -> tuple[list[str], dict[bytes, BoxedImage]]:
    """The columns of a file of boxes, and where the rows of each image are."""
    lines = _lines(path)
    header = next(lines, b"")
    columns = _cells(header)
    if missing := [name for name in _NEEDED if name not in columns]:
        raise UserError(f"{path}: no column {missing[0]}; fetch the file of boxes again")
    if columns[0] != "ImageID":
        raise UserError(f"{path}: its first column is not ImageID; fetch it again")
    digest.update(path.name.encode() + header)
    units: dict[bytes, BoxedImage] = {}
    offset = start = len(header)
    current = None
    for line in lines:
        digest.update(line)
        key, comma, _ = line.partition(b",")
        if key != current:
            if current is not None:
                units[current].runs.append((start, offset))
            start, current = offset, key if comma and _IMAGE_ID.fullmatch(key) else None
            if current is not None and current not in units:
                units[current] = _unit(current.decode(), path, part, folders)
        if current is None and line.strip():
            ledger.read("region")
            ledger.set_aside("region", "no image id", where=path.name, value=repr(line[:100]))
        offset += len(line)
    if current is not None:
        units[current].runs.append((start, offset))
    return columns, units


def _unit(id_: str, path: Path, part: str, folders: ImageFolders) -> BoxedImage:
    name = f"{id_}.jpg"
    image = folders.find(split=part, first=id_[0]) / name
    return BoxedImage(id=f"{part}/{name}", image=image, file=path, runs=[])


def _class_names(source: Path, digest: Digest) -> dict[str, str]:
    """Names by label (such as "/m/01g317"), from all the files there are; they agree."""
    files = named_files(source, _NAMES)
    if not files:
        raise UserError(
            f"{source}: no class-descriptions-boxable.csv in it; without it labels have no names"
        )
    names = {}
    for path, _ in files:
        for line in read_file(path, MAX_NAMES_BYTES).splitlines():
            digest.update(line)
            try:
                row = next(csv.reader([line.decode("utf-8-sig", "replace").rstrip("\r\n")]), [])
            except csv.Error:
                continue  # Boxes of that label will be set aside for want of a name.
            if len(row) == 2 and row[0].startswith("/"):  # Newer files have a header.
                names[row[0]] = row[1]
    return names


def _hierarchy(source: Path, ledger: Ledger, digest: Digest) -> dict[str, frozenset[str]]:
    """The labels above each label: kinds of which it is one, not wholes of which it is a part."""
    files = [path for path, _ in named_files(source, _HIERARCHY)]
    if not files:
        ledger.note("file", "no hierarchy of labels: boxes with upper labels are kept")
        return {}
    for path in files[1:]:
        ledger.note("file", f"{path.name} not read: the hierarchy is that of {files[0].name}")
    above: dict[str, frozenset[str]] = {}
    waiting: list[tuple[Any, frozenset[str]]] = [(read_json(files[0], digest=digest), frozenset())]
    while waiting:
        node, over = waiting.pop()
        label = as_text(field(node, "LabelName"))
        above[label] = above.get(label, frozenset()) | (over - {label})
        for key, inherited in (("Subcategory", over | {label}), ("Part", frozenset())):
            children = field(node, key)
            if isinstance(children, list):
                waiting += [(child, inherited) for child in children]
    return above


def _add_addresses(path: Path, units: Mapping[bytes, BoxedImage], digest: Digest) -> None:
    """Gives images their addresses; the columns needed come before those with quotes."""
    lines = _lines(path)
    columns = _cells(next(lines, b""))
    if columns[:1] != ["ImageID"] or "OriginalURL" not in columns:
        return
    place = columns.index("OriginalURL")
    for line in lines:
        digest.update(line)
        cells = line.split(b",", place + 1)
        if len(cells) > place and (unit := units.get(cells[0])) is not None:
            unit.origin = as_text(cells[place].decode("utf-8", "replace"))


# Records.


def make_record(unit: BoxedImage, ledger: Ledger, *, tables: Tables) -> Record | None:
    """The record of one image, with the boxes of its rows."""
    rows = _without_repeats(_rows(unit, tables.columns[unit.file], ledger), tables.above, ledger)
    image = AnnotatedImage(id=unit.id, image=unit.image, origin=unit.origin, is_relative=True)
    for number, row in rows:
        label = row["LabelName"]
        image.regions.append(
            RawRegion(
                place=f"box {number}",
                box=[row[corner] for corner in _CORNERS],
                labels=((tables.names.get(label, {"LabelName": label}), "category"),),
                is_crowd=is_set(row.get("IsGroupOf")),
                provenance=_provenance(row.get("Source", "")),
            )
        )
        for name, what in _FLAGS.items():
            if is_set(row.get(name)):
                ledger.note("region", what)
    return annotated.make_record(image, ledger)


@functools.lru_cache
def _provenance(source: str) -> Provenance:
    """Boxes of "activemil" were made by a machine and confirmed by people; others people drew."""
    kind = "specialist" if source == "activemil" else "human"
    return Provenance(kind=kind, name=as_text(source))


def _rows(
    unit: BoxedImage, columns: Sequence[str], ledger: Ledger
) -> list[tuple[int, dict[str, str]]]:
    """Numbered rows of an image that say that something is there."""
    runs = []
    with unit.file.open("rb") as file:
        for start, stop in unit.runs:
            file.seek(start)
            runs.append(file.read(stop - start))
    found, seen = [], set()
    for number, line in enumerate(b"".join(runs).splitlines()):
        cells = _cells(line)
        row = dict(zip(columns, cells, strict=False))
        if len(cells) != len(columns):
            why = "another number of columns than the header"
        elif line in seen:
            why = "listed twice"
        elif not _is_confident(row["Confidence"]):
            why = "confidence 0 or none: it is not there"
        else:
            seen.add(line)
            found.append((number, row))
            continue
        ledger.read("region")
        where = f"{unit.id} box {number}"
        ledger.set_aside("region", why, where=where, value=as_text(",".join(cells))[:200])
    return found


def _is_confident(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def _without_repeats(
    rows: list[tuple[int, dict[str, str]]],
    above: Mapping[str, frozenset[str]],
    ledger: Ledger,
) -> list[tuple[int, dict[str, str]]]:
    """Leaves out rows whose place has a row with a label below theirs."""
    places: dict[tuple[str, bool], list[int]] = {}
    for i, (_, row) in enumerate(rows):
        places.setdefault((row["LabelName"], is_set(row.get("IsGroupOf"))), []).append(i)
    boxes = np.array([_numbers(row) for _, row in rows])
    kept = []
    for (label, is_group), own in places.items():
        below = [
            j
            for (other, is_other_group), theirs in places.items()
            if is_group == is_other_group and _is_above(label, other, above)
            for j in theirs
        ]
        for i in own:
            if below and (_overlaps(boxes[i], boxes[below]) > MIN_OVERLAP).any():
                ledger.note("region", "box repeated with an upper label, not read")
            else:
                kept.append(i)
    return [rows[i] for i in sorted(kept)]


def _is_above(label: str, other: str, above: Mapping[str, frozenset[str]]) -> bool:
    # A damaged hierarchy may have two labels above each other: then neither box is dropped.
    return label in above.get(other, ()) and other not in above.get(label, ())


def _numbers(row: Mapping[str, str]) -> list[float]:
    try:
        return [float(row[corner]) for corner in _CORNERS]
    except ValueError:
        return [np.nan] * 4


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box float[4] with others float[R, 4]; NaN without area."""
    with np.errstate(all="ignore"):
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        shared = sides.clip(0).prod(axis=1)
        area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1)
        return shared / (area - shared)
