# SPDX-License-Identifier: Apache-2.0
"""Visual Genome: described regions, named objects and questions of the same images.

Read: `region_descriptions.json`, `objects.json` and `question_answers.json`, whichever are there (a
version such as `_v1_2` may follow the name), and `image_data.json`, without which images have no
stated size and are those that the others speak of. Images are `ID.jpg` in `VG_100K/`, `VG_100K_2/`
or anywhere else in the folder, or in the option `images`. Ids are "visual_genome/ID.jpg".

A described region has its phrase as a brief label, from which dense captions are learnt; an object
has the first of its names as its category. Where an object is and what is said of the same place
are two regions, as people drew them. There are no splits: everything is in train. Attributes,
relationships, synsets and graphs have no place in a record. Source: visualgenome.org, 1.0 to 1.4.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from florence2_jax.records.importers.annotated import (
    AnnotatedImage,
    RawRegion,
    corners,
    make_record,
)
from florence2_jax.records.importers.coco_rows import stated_size
from florence2_jax.records.importers.image_files import ImageFiles, find_images
from florence2_jax.records.importers.json_files import Id, as_id, as_text, field, read_json, shown
from florence2_jax.records.importers.layout import note_unmentioned
from florence2_jax.records.importers.places import first_bytes
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

_NAME = re.compile(
    r"(image_data|region_descriptions|objects|question_answers)(?:_v\d+(?:[._]\d+)*)?\.json"
)
_IMAGES = "image_data"


def detect(source: Path) -> bool:
    """Whether there is a file with the name of one of Visual Genome that begins with a list."""
    try:
        return any(_begins_with_list(path) for path in source.glob("*") if _kind(path))
    except OSError:
        return False


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Lists a folder of Visual Genome. Raises UserError if it is none."""
    ledger, digest = Ledger(), hashlib.sha256()
    paths = _annotation_files(source, ledger)
    is_closed = _IMAGES in paths
    listing = _Listing(ledger=ledger, images=find_images(source, images), is_closed=is_closed)
    if is_closed:
        listing.add_images(_entries(paths[_IMAGES], digest), paths[_IMAGES].name)
    for kind, row in _KINDS.items():
        if kind in paths:
            listing.add_annotations(_entries(paths[kind], digest), row, paths[kind].name)
    units = list(listing.units.values())
    note_unmentioned((Path(str(unit.image)) for unit in units), ledger)
    job = {"format": "visual_genome", "sha256": digest.hexdigest()}
    return Plan(units={"train": units}, make=make_record, job=job, ledger=ledger)


def _kind(path: Path) -> str:
    match = _NAME.fullmatch(path.name)
    return match[1] if match else ""


def _begins_with_list(path: Path) -> bool:
    return first_bytes(path, 64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _annotation_files(source: Path, ledger: Ledger) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in sorted(source.glob("*.json")):
        kind = _kind(path)
        if not kind:
            ledger.note("file", f"{path.name} not read: records have no place for it")
        elif kind in paths:
            raise UserError(f"{source}: holds {paths[kind].name} and {path.name}; keep one of them")
        else:
            paths[kind] = path
    if not paths.keys() - {_IMAGES}:
        names = ", ".join(f"{kind}.json" for kind in _KINDS)
        raise UserError(f"{source}: none of {names} in it; is it Visual Genome?")
    return paths


def _entries(path: Path, digest: Any) -> list[Any]:
    content = read_json(path, digest=digest)
    if not isinstance(content, list):
        raise UserError(f"{path}: no list in it; is it a file of Visual Genome?")
    return content


def _add_region(row: dict[str, Any], unit: AnnotatedImage, ledger: Ledger) -> None:
    box = [row.get(key) for key in ("x", "y", "width", "height")]
    label = (row.get("phrase"), "brief")
    place = f"region {shown(_id_of(row, 'region_id'))}"
    unit.regions.append(RawRegion(place=place, box=corners(box), labels=(label,)))


def _add_object(row: dict[str, Any], unit: AnnotatedImage, ledger: Ledger) -> None:
    box = [row.get(key) for key in ("x", "y", "w", "h")]
    given = row.get("names")
    names = given if isinstance(given, list) else [given]
    label = (next((name for name in names if as_text(name)), given), "category")
    if len({name for name in names if isinstance(name, str)}) > 1:
        ledger.note("region", "objects with more than one name, the first is read")
    place = f"object {shown(_id_of(row, 'object_id'))}"
    unit.regions.append(RawRegion(place=place, box=corners(box), labels=(label,)))


def _add_question(row: dict[str, Any], unit: AnnotatedImage, ledger: Ledger) -> None:
    unit.questions.append((row.get("question"), [row.get("answer")]))


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A file's annotations: the key of each image's list, the key of their ids, their kind."""

    key: str
    id_key: str
    counted_as: str
    add: Callable[[dict[str, Any], AnnotatedImage, Ledger], None]


_KINDS = {
    "region_descriptions": _Kind("regions", "region_id", "region", _add_region),
    "objects": _Kind("objects", "object_id", "region", _add_object),
    "question_answers": _Kind("qas", "qa_id", "question", _add_question),
}


@dataclasses.dataclass(kw_only=True)
class _Listing:
    """Images by their ids; closed once `image_data` has told them all."""

    ledger: Ledger
    images: ImageFiles
    is_closed: bool = False
    units: dict[Id, AnnotatedImage] = dataclasses.field(default_factory=dict)

    def add_images(self, entries: list[Any], file: str) -> None:
        for entry in entries:
            key = _image_id(entry)
            if key is None or key in self.units:
                why = "no image id" if key is None else "image id listed twice"
                self.ledger.read("image")
                self.ledger.set_aside("image", why, where=file, value=shown(entry))
                continue
            unit = self.units[key] = self._unit(key)
            unit.stated_size = stated_size(entry)
            unit.origin = as_text(entry.get("url"))
            if as_id(entry.get("coco_id")) is not None:
                self.ledger.note("image", "also a photo of COCO: mind what that holds out")

    def add_annotations(self, entries: list[Any], kind: _Kind, file: str) -> None:
        first: dict[Id, list[Any]] = {}
        for entry in entries:
            rows, key = field(entry, kind.key), _image_id(entry)
            if not isinstance(rows, list):
                self._set_aside(1, kind, f"no list {kind.key!r}", file, entry)
            elif key is None:
                self._set_aside(len(rows), kind, "no image id", file, entry)
            elif self.is_closed and key not in self.units:
                self._set_aside(len(rows), kind, "its image is not listed", file, key)
            elif first.setdefault(key, rows) is not rows and first[key] == rows:
                self._set_aside(len(rows), kind, "listed twice", file, key)
            else:
                unit = self.units.get(key) or self.units.setdefault(key, self._unit(key))
                self._add_rows(rows, kind, unit, file)

    def _add_rows(self, rows: list[Any], kind: _Kind, unit: AnnotatedImage, file: str) -> None:
        first: dict[Id, Any] = {}
        for row in rows:
            if not isinstance(row, dict):
                self._set_aside(1, kind, "not an object", f"{file} {unit.id}", row)
                continue
            key = as_id(_id_of(row, kind.id_key))
            if key is not None and first.setdefault(key, row) is not row and first[key] == row:
                self._set_aside(1, kind, "listed twice", f"{file} {unit.id}", row)
            else:
                kind.add(row, unit, self.ledger)

    def _set_aside(self, num: int, kind: _Kind, why: str, where: str, value: Any) -> None:
        self.ledger.read(kind.counted_as, num)
        self.ledger.set_aside(kind.counted_as, why, where=where, value=shown(value), num=num)

    def _unit(self, key: int) -> AnnotatedImage:
        return AnnotatedImage(id=f"visual_genome/{key}.jpg", image=self.images[f"{key}.jpg"])


def _image_id(entry: Any) -> int | None:
    """The number of an image; version 1.0 calls it "id"."""
    key = as_id(field(entry, "image_id"))
    key = as_id(field(entry, "id")) if key is None else key
    return key if isinstance(key, int) and key >= 0 else None


def _id_of(row: dict[str, Any], key: str) -> Any:
    return row.get(key, row.get("id"))  # Version 1.0 says "id" for all of them.
