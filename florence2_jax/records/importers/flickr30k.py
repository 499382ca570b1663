# SPDX-License-Identifier: Apache-2.0
"""Flickr30k Entities: five sentences per photo, with their phrases tied to boxes.

Read: `Sentences/ID.txt`, a sentence per line with its phrases in the markup
`[/EN#283585/people An older man]`, and `Annotations/ID.xml`, boxes by the same numbers. Images are
`ID.jpg` anywhere in the folder, or in the option `images`; ids are "flickr30k/ID.jpg".

Each sentence is a brief text, and a grounding in which each phrase that has boxes is a span; the
sentence is the file's without the markup, blanks and all. A number stands for a thing, which
several phrases may mean and several boxes show: each phrase gets all of them. Phrases without a box
are noted: number 0 (not visual), scenes, and things that were not drawn. A sentence without any box
is set aside as a grounding and stays a text. Boxes count pixels from 1: all four numbers lose 1, as
in the code that was released with the data.

The split is that of `train.txt`, `val.txt` or `test.txt`; without these lists everything is in
train. Source: Flickr30k Entities (arXiv:1505.04870), github.com/BryanPlummer/flickr30k_entities.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from florence2_jax.records.importers import annotated
from florence2_jax.records.importers.annotated import AnnotatedImage, RawGrounding
from florence2_jax.records.importers.image_files import find_images
from florence2_jax.records.importers.json_files import read_file
from florence2_jax.records.importers.layout import note_unmentioned
from florence2_jax.records.importers.places import AnnotationError, first_bytes
from florence2_jax.records.importers.xml_files import read_xml
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

MAX_FILE_BYTES = 2**24
_ENTITY = re.compile(r"\[/EN#(\d+)(?:/[^\s/\[\]]*)* ([^\[\]]*)\]")
_MARK = "[/EN#"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SPLITS = ("test", "val", "train")  # Most guarded first.

Phrase: TypeAlias = tuple[int, int, str]
"""Characters `[start, end)` of a plain sentence, and the number of the thing they mean."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FlickrUnit:
    """The three files of a photo."""

    id: str
    image: Path
    sentences: Path
    boxes: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Boxes:
    """Boxes of each number, numbers that are the whole scene, and the size they were drawn at."""

    of: dict[str, list[list[Any]]]
    scenes: frozenset[str]
    stated_size: tuple[Any, Any]


def detect(source: Path) -> bool:
    """Whether the first file of Sentences/ has the markup, and there is a folder Annotations."""
    try:
        if not (source / "Annotations").is_dir():
            return False
        first = next(iter(sorted((source / "Sentences").glob("*.txt"))), None)
        if first is None:
            return False
        return _MARK.encode() in first_bytes(first, 2**16)
    except OSError:
        return False


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Lists a folder of Flickr30k Entities. Raises UserError if it is none."""
    for name in ("Sentences", "Annotations"):
        if not (source / name).is_dir():
            raise UserError(f"{source}: no folder {name} in it; is it Flickr30k Entities?")
    ledger, digest = Ledger(), hashlib.sha256()
    sentences = {path.stem: path for path in sorted((source / "Sentences").glob("*.txt"))}
    boxes = {path.stem: path for path in sorted((source / "Annotations").glob("*.xml"))}
    if num := len(boxes.keys() - sentences.keys()):
        ledger.note("file", "Annotations/*.xml without sentences, not read", num)
    splits = _splits(source, sentences, ledger)
    files = find_images(source, images)
    units: dict[str, list[FlickrUnit]] = {}
    for stem, path in sentences.items():
        own_boxes = boxes.get(stem, source / "Annotations" / f"{stem}.xml")
        sizes = [p.stat().st_size if p.exists() else None for p in (path, own_boxes)]
        digest.update(f"{stem} {sizes} {splits.get(stem)}\n".encode("utf-8", "surrogateescape"))
        if stem not in splits:
            ledger.read("image")
            ledger.set_aside("image", "in none of the lists of the splits", where=path.name)
            continue
        name = f"{stem}.jpg"
        id_ = f"flickr30k/{name}".encode("utf-8", "surrogateescape").decode(
            "utf-8", "backslashreplace"
        )
        unit = FlickrUnit(id=id_, image=files[name], sentences=path, boxes=own_boxes)
        units.setdefault(splits[stem], []).append(unit)
    note_unmentioned((unit.image for some in units.values() for unit in some), ledger)
    job = {"format": "flickr30k", "sha256": digest.hexdigest()}
    return Plan(units=units, make=make_record, job=job, ledger=ledger)


def _splits(source: Path, stems: dict[str, Path], ledger: Ledger) -> dict[str, str]:
    """The split of each photo that has one."""
    paths = [(split, source / f"{split}.txt") for split in _SPLITS]
    paths = [(split, path) for split, path in paths if path.is_file()]
    if not paths:
        ledger.note("file", "no train.txt, val.txt, test.txt: all photos are in train")
        return dict.fromkeys(stems, "train")
    splits: dict[str, str] = {}
    for split, path in paths:
        text = read_file(path, MAX_FILE_BYTES).decode("utf-8", "surrogateescape")
        for stem in dict.fromkeys(line.strip().removesuffix(".jpg") for line in text.splitlines()):
            if not stem:
                continue
            if stem not in stems:
                why = "listed, but has no sentences"
                ledger.read("image")
                ledger.set_aside("image", why, where=path.name, value=ascii(stem)[:200])
            elif stem in splits:
                where = splits[stem]
                ledger.repair("image", f"listed in {where} and {split}, is in {where}")
            else:
                splits[stem] = split
    return splits


def make_record(unit: FlickrUnit, ledger: Ledger) -> Record | None:
    """The record of one photo."""
    raw = AnnotatedImage(id=unit.id, image=unit.image)
    try:
        lines = read_file(unit.sentences, MAX_FILE_BYTES).decode("utf-8", "replace").split("\n")
    except UserError:
        ledger.note("image", "its sentences cannot be read")
        lines = []
    try:
        boxes, why = _read_boxes(unit.boxes), ""
        raw.stated_size = boxes.stated_size
    except AnnotationError as error:
        boxes, why = None, f"annotation file {error}"
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{unit.sentences.name} line {number}"
        sentence = read_sentence(line.strip())
        if sentence is None:
            for kind in ("caption", "grounding"):
                _set_aside(kind, "its markup is damaged", where, line, ledger)
            continue
        text, phrases = sentence
        raw.texts.append((text, "brief"))
        if boxes is None:
            _set_aside("grounding", why, where, line, ledger)
            continue
        spans = _spans(phrases, boxes, ledger)
        raw.groundings.append(RawGrounding(place=f"line {number}", text=text, spans=spans))
    return annotated.make_record(raw, ledger)


def _set_aside(kind: str, why: str, where: str, line: str, ledger: Ledger) -> None:
    ledger.read(kind)
    ledger.set_aside(kind, why, where=where, value=ascii(line)[:200])


def read_sentence(line: str) -> tuple[str, list[Phrase]] | None:
    """A sentence without its markup, and its phrases; None if the markup is damaged."""
    pieces: list[str] = []
    phrases: list[Phrase] = []
    length = end = 0
    for match in _ENTITY.finditer(line):
        before, phrase = line[end : match.start()], match[2]
        pieces += (before, phrase)
        length += len(before)
        phrases.append((length, length + len(phrase), match[1]))
        length += len(phrase)
        end = match.end()
    text = "".join((*pieces, line[end:]))
    return None if _MARK in text else (text, phrases)


def _spans(
    phrases: Sequence[Phrase], boxes: _Boxes, ledger: Ledger
) -> list[tuple[int, int, Sequence[Any]]]:
    """The phrases that have boxes, with all boxes of what they mean."""
    spans = []
    for start, end, number in phrases:
        if number in boxes.of:
            spans.append((start, end, boxes.of[number]))
        elif not int(number):
            ledger.note("phrase", "not visual (number 0), no box")
        elif number in boxes.scenes:
            ledger.note("phrase", "the whole scene, no box")
        else:
            ledger.note("phrase", "nobody drew a box for it")
    return spans


def _read_boxes(path: Path) -> _Boxes:
    root = read_xml(path)
    boxes: dict[str, list[list[Any]]] = {}
    scenes = set()
    for element in root.findall("object"):
        numbers = {(name.text or "").strip() for name in element.findall("name")}
        for box in element.findall("bndbox"):
            corners = _from_zero([box.findtext(corner) for corner in _CORNERS])
            for number in numbers:
                boxes.setdefault(number, []).append(corners)
        if (element.findtext("scene") or "").strip() == "1":
            scenes |= numbers
    size = (root.findtext("size/width"), root.findtext("size/height"))
    return _Boxes(of=boxes, scenes=frozenset(scenes), stated_size=size)


def _from_zero(values: list[str | None]) -> list[Any]:
    try:
        return [float(value or "") - 1 for value in values]
    except ValueError:
        return list(values)  # For mending to tell.
