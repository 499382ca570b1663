# SPDX-License-Identifier: Apache-2.0
"""RefCOCO, RefCOCO+ and RefCOCOg: what people call an object of a COCO photo.

Read: `refs(BY).p`, a pickle of plain data (see `safe_pickle.py`), and `instances.json` beside it,
as COCO writes it; BY is unc, google or umd, chosen by the option `by` where several are there.
Images are found by name in the folder or in the option `images`; ids are "train2014/file name", as
the COCO importer gives them. The name of a file in the refs has the id of the object added, so that
it is no file at all; the photo is the one that `instances.json` names.

Every instance of a photo is a region with its box, polygons and category, so that detection learns
of all objects; those that are spoken of have each sentence as a phrase, in the cleaned spelling
("sent"), once. A photo without a sentence is noted, not read.

The split is train, val, testA, testB or test. The google splits part objects rather than photos: a
photo may have some in train and some in val. It goes where the most guarded of its objects belongs
(test before val before train), with the sentences of that split only; those of the other splits are
set aside. So no photo is in two splits, train never shows one that is held out, and the test
sentences are all there, as are those of val where there is no test (RefCOCOg).
Source: the REFER data sets, github.com/lichengunc/refer.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from florence2_jax.records.checks import is_safe_name
from florence2_jax.records.importers import annotated
from florence2_jax.records.importers.annotated import AnnotatedImage, RawRegion
from florence2_jax.records.importers.coco_rows import (
    A_COCO_FILE,
    add_images,
    add_regions,
    by_image,
    category_labels,
    stated_size,
)
from florence2_jax.records.importers.image_files import find_images
from florence2_jax.records.importers.json_files import (
    Id,
    as_id,
    as_text,
    field,
    read_json,
    rows,
    shown,
)
from florence2_jax.records.importers.layout import note_unmentioned
from florence2_jax.records.importers.safe_pickle import read_pickle
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

INSTANCES = "instances.json"
SPLITS = ("test", "testA", "testB", "val", "train")
"""Most guarded first."""

_REFS = re.compile(r"refs\((\w+)\)\.p")
_SUBSET = re.compile(r"COCO_([0-9a-zA-Z]+)_\d+\.\w+")


def detect(source: Path) -> bool:
    """Whether there is a file named refs(BY).p."""
    try:
        return bool(_refs_files(source))
    except OSError:
        return False


def plan(source: Path, *, images: Path | None = None, by: str = "") -> Plan:
    """Lists a folder of RefCOCO. Raises UserError if it is none, or BY is not told."""
    ledger, digest = Ledger(), hashlib.sha256()
    by, path = _chosen(source, by, ledger)
    photos = _Photos(ledger)
    photos.add_instances(source, images, digest)
    refs = read_pickle(path)
    digest.update(path.name.encode() + path.read_bytes())
    if not isinstance(refs, list):
        raise UserError(f"{path}: no list in it; is it a file of RefCOCO?")
    photos.add_refs(refs, path.name)
    units = photos.by_split()
    spoken_of = [unit for some in units.values() for unit in some]
    if num := len(photos.units) - len(spoken_of):
        ledger.note("image", "listed without a sentence that is kept, not read", num)
    note_unmentioned((Path(str(u.image)) for u in photos.units.values()), ledger)
    job = {"format": "refcoco", "by": by, "sha256": digest.hexdigest()}
    return Plan(units=units, make=make_record, job=job, ledger=ledger)


def make_record(unit: AnnotatedImage, ledger: Ledger) -> Record | None:
    """The record of one photo; beside its regions, the phrases said of them are counted."""
    num = sum(kind == "phrase" for region in unit.regions for _, kind in region.labels)
    ledger.read("phrase", num)
    record = annotated.make_record(unit, ledger)
    if record is not None:
        kept = sum(label.kind == "phrase" for r in record.regions for label in r.labels)
        ledger.keep("phrase", kept)
        why = "its region was set aside, or it is no text"
        ledger.set_aside("phrase", why, where=unit.id, num=num - kept)
    return record


def _refs_files(source: Path) -> dict[str, Path]:
    matches = ((_REFS.fullmatch(path.name), path) for path in sorted(source.glob("*")))
    return {match[1]: path for match, path in matches if match}


def _chosen(source: Path, by: str, ledger: Ledger) -> tuple[str, Path]:
    paths = _refs_files(source)
    if not paths:
        raise UserError(
            f"{source}: no refs(BY).p in it; give the folder that holds it and {INSTANCES}, such "
            "as refcoco/"
        )
    if not by and len(paths) > 1:
        raise UserError(f"{source}: holds refs of {', '.join(paths)}; choose one: by=NAME")
    by = by or next(iter(paths))
    if by not in paths:
        raise UserError(f"{source}: no refs({by}).p in it; by may be {' or '.join(paths)}")
    for name, path in paths.items():
        if name != by:
            ledger.note("file", f"{path.name} not read: by={by} was chosen")
    return by, paths[by]


@dataclasses.dataclass(frozen=True)
class _Ref:
    """What is said of one region, and the split that it is said for."""

    split: str
    region: RawRegion
    sentences: list[Any]


@dataclasses.dataclass
class _Photos:
    """Photos by id, their splits, their regions by annotation id, and what is said of them."""

    ledger: Ledger
    units: dict[Id, AnnotatedImage] = dataclasses.field(default_factory=dict)
    regions: dict[Id, tuple[Id, RawRegion]] = dataclasses.field(default_factory=dict)
    refs: dict[Id, list[_Ref]] = dataclasses.field(default_factory=dict)
    splits: dict[Id, str] = dataclasses.field(default_factory=dict)

    def add_instances(self, source: Path, images: Path | None, digest: Any) -> None:
        path = source / INSTANCES
        content = read_json(path, digest=digest)
        files = find_images(source, images)

        def as_unit(entry: dict[str, Any]) -> AnnotatedImage | None:
            name = entry.get("file_name")
            if not isinstance(name, str) or not is_safe_name(name):
                return None
            subset = _SUBSET.fullmatch(name)
            id_ = f"{subset[1]}/{name}" if subset else name
            url = as_text(entry.get("coco_url")) or as_text(entry.get("flickr_url"), id_)
            size = stated_size(entry)
            return AnnotatedImage(id=id_, image=files[name], origin=url, stated_size=size)

        add_images(
            rows(content, "images", path, A_COCO_FILE), as_unit, self.units, self.ledger, path.name
        )
        labels = category_labels(content, self.ledger)
        ids = {unit.id: key for key, unit in self.units.items()}
        annotations = rows(content, "annotations", path, A_COCO_FILE)
        for unit, row in by_image(annotations, self.units, self.ledger, path.name, "region"):
            image_id = ids[unit.id]
            add_regions((row,), labels, {image_id: unit}, self.ledger, path.name)
            key = as_id(row.get("id"))
            if key is not None:
                self.regions.setdefault(key, (image_id, unit.regions[-1]))

    def add_refs(self, refs: Iterable[Any], file: str) -> None:
        first: dict[Id, Any] = {}
        for ref in refs:
            ref_id, sentences = as_id(field(ref, "ref_id")), field(ref, "sentences")
            self._guard(as_id(field(ref, "image_id")), field(ref, "split"))
            why = self._why_not(ref, first)
            if why:
                num = len(sentences) if isinstance(sentences, list) else 1
                self._set_aside(num, why, file, shown(ref))
                continue
            if ref_id is not None:
                first.setdefault(ref_id, ref)
            image_id, region = self.regions[as_id(ref["ann_id"]) or 0]
            self.refs.setdefault(image_id, []).append(_Ref(ref["split"], region, sentences))

    def _guard(self, image_id: Id | None, split: Any) -> None:
        # Even a row that cannot be used holds its photo out.
        if image_id in self.units and split in SPLITS:
            splits = (split, self.splits.get(image_id, split))
            self.splits[image_id] = min(splits, key=SPLITS.index)

    def _why_not(self, ref: Any, first: dict[Id, Any]) -> str:
        """Why a row of a refs file cannot be used; empty if it can."""
        image_id, ann_id, ref_id = (as_id(field(ref, k)) for k in ("image_id", "ann_id", "ref_id"))
        if not isinstance(field(ref, "sentences"), list):
            return "no list of sentences"
        if ref_id in first and first[ref_id] == ref:
            return "listed twice"
        if image_id not in self.units:
            return "its image is not listed"
        if ann_id not in self.regions or self.regions[ann_id][0] != image_id:
            return "its instance is not listed, or on another image"
        return "" if ref.get("split") in SPLITS else "of a split that is not known"

    def by_split(self) -> dict[str, list[AnnotatedImage]]:
        """The photos of each split, their regions now with what is said of them there."""
        units: dict[str, list[AnnotatedImage]] = {}
        for key, refs in self.refs.items():
            unit, split = self.units[key], self.splits[key]
            for ref in refs:
                if ref.split == split:
                    self._add_phrases(ref, unit)
                else:
                    why = f"of {ref.split}, but its photo is held out for {split}"
                    self._set_aside(len(ref.sentences), why, unit.id)
            if any(ref.split == split for ref in refs):
                units.setdefault(split, []).append(unit)
        return {split: units[split] for split in reversed(SPLITS) if split in units}

    def _add_phrases(self, ref: _Ref, unit: AnnotatedImage) -> None:
        known = {text for text, kind in ref.region.labels if kind == "phrase"}
        for sentence in ref.sentences:
            text = field(sentence, "sent") or field(sentence, "raw")
            if not isinstance(text, str):
                self._set_aside(1, "not a text", f"{unit.id} {ref.region.place}", shown(sentence))
            elif text.strip() in known:
                why = "said of its region before"
                self._set_aside(1, why, f"{unit.id} {ref.region.place}", shown(text))
            else:
                known.add(text.strip())
                ref.region.labels = (*ref.region.labels, (text, "phrase"))

    def _set_aside(self, num: int, why: str, where: str, value: Any = None) -> None:
        self.ledger.read("phrase", num)
        self.ledger.set_aside("phrase", why, where=where, value=value, num=num)
