# SPDX-License-Identifier: Apache-2.0
"""Prompts and answers of maestro and Roboflow (`annotations.jsonl`), turned back into annotations.

Read: `annotations.jsonl` in the source or in folders `train/`, `valid/` and `test/` of it, else all
`*.jsonl` there whose lines have the keys `image`, `prefix` and `suffix`. The split is in the name
of the folder, or of the file. Images are beside the file, in `images/` there, or in `images` if it
is given; all lines about one image become one record. Its id is its name, with the split's folder.

`prefix` is a task with its input, `suffix` what a model is to answer. How they become annotations
is told in `answers_read.py`. Lines that cannot be read are set aside.
"""

import dataclasses
import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

from florence2_jax.records.checks import is_safe_name
from florence2_jax.records.importers.annotated import AnnotatedImage, make_record
from florence2_jax.records.importers.answers_read import AnswerReader, UnreadError
from florence2_jax.records.importers.json_files import field, parse_json, read_file, shown
from florence2_jax.records.importers.places import (
    HELD_OUT_FIRST,
    entries,
    exists,
    first_bytes,
    is_image,
    split_named,
)
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

NAME = "annotations.jsonl"
_KEYS = ("image", "prefix", "suffix")


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a file: which, and the prompt and answer on it."""

    number: int
    prefix: str
    suffix: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnsweredImage:
    """An image and all lines about it."""

    id: str
    image: Path
    file: str
    lines: list[Line] = dataclasses.field(default_factory=list)


def detect(source: Path) -> bool:
    """Whether there is a file of prompts and answers."""
    return bool(_files(source))


def _files(source: Path) -> list[Path]:
    """The files, those of held out splits first."""
    inside = entries(source)
    folders = [path for path in inside if path.is_dir() and split_named(path.name)]
    inside += [path for folder in folders for path in entries(folder)]
    files = [path for path in inside if path.suffix == ".jsonl" and _has_keys(path)]
    named = [path for path in files if path.name == NAME]
    return sorted(named or files, key=lambda path: HELD_OUT_FIRST.index(_split(path, source)))


def _has_keys(path: Path) -> bool:
    head = first_bytes(path, 2**16)
    return all(f'"{key}"'.encode() in head for key in _KEYS)


def _split(path: Path, source: Path) -> str:
    return split_named(*path.relative_to(source).with_suffix("").parts) or "train"


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Gathers the lines about each image. Raises UserError if there is no file of them."""
    ledger, digest = Ledger(), hashlib.sha256()
    files = _files(source)
    if not files:
        raise UserError(
            f"{source}: no {NAME} in it, nor in train/, valid/ or test/ (JSON lines with "
            f"{', '.join(_KEYS)})"
        )
    units: dict[str, dict[str, AnsweredImage]] = {}
    split_of: dict[str, str] = {}
    for path in files:
        split = _split(path, source)
        place = path.parent.relative_to(source).as_posix()
        data = read_file(path)
        digest.update(f"{place}/{path.name}".encode("utf-8", "surrogateescape") + data)
        for number, text in enumerate(data.splitlines(), 1):
            if not text.strip():
                continue
            row = _parsed(text)
            name = PurePosixPath(str(field(row, "image")).replace("\\", "/")).as_posix()
            id_ = name if place == "." else f"{place}/{name}"
            why = _fault(row)
            if not why and split_of.setdefault(id_, split) != split:
                why = f"its image is in {split_of[id_]}"
            if why:
                ledger.read("line")
                where = f"{path.name} line {number}"
                ledger.set_aside("line", why, where=where, value=shown(row or text))
                continue
            if id_ not in (known := units.setdefault(split, {})):
                image = _image(images or path.parent, name)
                file = path.relative_to(source).as_posix()
                known[id_] = AnsweredImage(id=id_, image=image, file=file)
            known[id_].lines.append(Line(number, row["prefix"], row["suffix"]))
    _note_bare(units, ledger)
    return Plan(
        units={split: list(known.values()) for split, known in units.items()},
        make=make_image,
        job={"format": "jsonl", "sha256": digest.hexdigest()},
        ledger=ledger,
    )


def _parsed(text: bytes) -> Any:
    try:
        return parse_json(text, "")
    except UserError:
        return None


def _fault(row: Any) -> str:
    """Why a line is set aside before it is read; empty if it is not."""
    if not isinstance(row, dict):
        return "no JSON object"
    if not is_safe_name(row.get("image")):
        return "no file name within the image folder"
    if not isinstance(row.get("prefix"), str) or not isinstance(row.get("suffix"), str):
        return "prefix or suffix is no text"
    return ""


def _image(folder: Path, name: str) -> Path:
    places = [folder / name, folder / "images" / name]
    return next((place for place in places if exists(place)), places[0])


def _note_bare(units: dict[str, dict[str, AnsweredImage]], ledger: Ledger) -> None:
    named = {unit.image for known in units.values() for unit in known.values()}
    beside = {path for folder in {path.parent for path in named} for path in entries(folder)}
    if bare := sum(is_image(path) for path in beside - named):
        ledger.note("image", "images that no line mentions, not read", bare)


def make_image(unit: AnsweredImage, ledger: Ledger) -> Record | None:
    """The record of one image."""
    annotated = AnnotatedImage(id=unit.id, image=unit.image, where=unit.file, is_relative=True)
    reader = AnswerReader(annotated, ledger)
    for line in unit.lines:
        ledger.read("line")
        try:
            reader.read(f"line {line.number}", line.prefix, line.suffix)
        except UnreadError as error:
            value = {"prefix": line.prefix[:500], "suffix": line.suffix[:500]}
            where = f"{unit.file} line {line.number}"
            ledger.set_aside("line", str(error), where=where, value=value)
        else:
            ledger.keep("line")
    return make_record(annotated, ledger)
