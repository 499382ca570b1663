# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC: one XML file per image, boxes with class names.

Read: `Annotations/*.xml`, images in `JPEGImages/`, `ImageSets/Main/{train,val,test}.txt`. The split
is that of the list a file is in; files in none are set aside. `trainval.txt` counts only where
neither train nor val is given, the lists of single classes never. Without lists the split is drawn
by hash: nine parts train, one part val.

Boxes of VOC proper are 1-based with the last pixel included; most tools that write the format since
count from 0, so values are kept as they are unless `one_based` is asked for: then xmin and ymin
lose 1. "Difficult" objects are kept out of training and scoring as VOC asks, by marking them as
crowds. Source: the VOC2012 development kit.
"""

import dataclasses
import functools
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from florence2_jax.records.checks import MendedImage, mend_box, mend_text, read_image
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Label, Record, Region
from florence2_jax.records.writing import Plan, split_by_hash
from florence2_jax.typing import UserError

FRACTIONS = {"train": 0.9, "val": 0.1}
MAX_XML_BYTES = 2**24
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _XmlError(ValueError):
    """An annotation file that is not read, and why."""


class _NoDoctype(ElementTree.TreeBuilder):
    """A tree builder that refuses document types: they define entities, and those may be bombs."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _XmlError("holds a document type")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocUnit:
    """An annotation file and the image it is about, if there is one of its name."""

    xml: Path
    image: Path | None
    images: Path


def plan(source: Path, *, one_based: bool = False) -> Plan:
    """Lists a VOC folder, or the only one within. Raises UserError if there is none."""
    root = _root(source)
    ledger, digest = Ledger(), hashlib.sha256()
    xmls = {path.stem: path for path in sorted((root / "Annotations").glob("*.xml"))}
    images = {path.stem: path for path in sorted((root / "JPEGImages").iterdir())}
    splits = _splits(root, list(xmls), ledger)
    units: dict[str, list[VocUnit]] = {}
    for stem, xml in xmls.items():
        digest.update(
            f"{stem} {xml.stat().st_size} {splits.get(stem)}\n".encode("utf-8", "replace")
        )
        if stem in splits:
            unit = VocUnit(xml=xml, image=images.get(stem), images=root / "JPEGImages")
            units.setdefault(splits[stem], []).append(unit)
            continue
        ledger.read("image")
        ledger.set_aside("image", "in no list of ImageSets/Main", where=xml.name)
    if bare := len(images.keys() - xmls.keys()):
        ledger.note("image", "images without an annotation file, not read", bare)
    job = {"format": "voc", "one_based": one_based, "sha256": digest.hexdigest()}
    make = functools.partial(make_record, one_based=one_based)
    return Plan(units=units, make=make, job=job, ledger=ledger)


def make_record(unit: VocUnit, ledger: Ledger, *, one_based: bool) -> Record | None:
    """The record of one annotation file."""
    ledger.read("image")
    stem = unit.xml.stem
    try:
        root = _parse(unit.xml)
    except _XmlError as error:
        ledger.set_aside("image", f"annotation file {error}", where=unit.xml.name)
        return None
    objects = root.findall("object")
    ledger.read("region", len(objects))
    # The name of the annotation file is that of the image; the name within may be out of date.
    within = Path((root.findtext("filename") or "").strip().replace("\\", "/")).name
    path = unit.image or unit.images / (within or stem)
    stated_size = (root.findtext("size/width"), root.findtext("size/height"))
    image = read_image(path, ledger, unit.xml.name, stated_size=stated_size)
    if image is None:
        ledger.withdraw("its image was set aside", where=unit.xml.name)
        return None
    made = (
        _region(element, f"{unit.xml.name} object {i}", image, ledger, one_based)
        for i, element in enumerate(objects)
    )
    regions = tuple(region for region in made if region is not None)
    ledger.keep("image")
    ledger.keep("region", len(regions))
    return Record(
        id=stem,
        image=image.data,
        width=image.size[0],
        height=image.size[1],
        origin=f"{unit.images.parent.name}/{path.name}",
        split_key=stem,
        regions=regions,
    )


def _region(
    element: ElementTree.Element, where: str, image: MendedImage, ledger: Ledger, one_based: bool
) -> Region | None:
    values = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    if not image.is_as_annotated:
        why = "annotated at another size of the image"
        ledger.set_aside("region", why, where=where, value=values)
        return None
    label = mend_text(element.findtext("name") or "", ledger, f"{where} name", "region")
    if label is None:
        return None
    box = mend_box(_shifted(values) if one_based else values, image.size, ledger, where)
    if box is None:
        return None
    is_difficult = (element.findtext("difficult") or "").strip() == "1"
    if is_difficult:
        ledger.note("region", "difficult, marked as crowd: out of training and scoring")
    if (element.findtext("truncated") or "").strip() == "1":
        ledger.note("region", "truncated, a flag that records do not hold")
    if element.find("part") is not None:
        ledger.note("region", "its parts not read")
    return Region(box=box, labels=(Label(text=label),), is_crowd=is_difficult)


def _shifted(values: list[str | None]) -> list[str | float | None]:
    """Pixels counted from 1, the last included -> edges counted from 0."""
    try:
        x0, y0, x1, y1 = (float(value or "") for value in values)
    except ValueError:
        return list(values)  # For `mend_box` to tell.
    return [x0 - 1, y0 - 1, x1, y1]


def _parse(path: Path) -> ElementTree.Element:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _XmlError("cannot be read") from error
    if len(data) > MAX_XML_BYTES:
        raise _XmlError("is too long")
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        if isinstance(error, _XmlError):
            raise
        raise _XmlError("is not XML") from error
    if root.tag != "annotation":
        raise _XmlError("has no <annotation>")
    return root


def _root(source: Path) -> Path:
    def is_voc(folder: Path) -> bool:
        return all((folder / name).is_dir() for name in ("Annotations", "JPEGImages"))

    if is_voc(source):
        return source
    found = sorted(folder for folder in source.iterdir() if folder.is_dir() and is_voc(folder))
    if len(found) == 1:
        return found[0]
    if found:
        names = [folder.name for folder in found]
        raise UserError(f"{source}: holds more than one dataset, {names}; give one of them")
    raise UserError(f"{source}: no folders Annotations and JPEGImages in it; is it Pascal VOC?")


def _splits(root: Path, stems: list[str], ledger: Ledger) -> dict[str, str]:
    """The split of each annotation file that has one."""
    folder = root / "ImageSets" / "Main"
    lists = {name: folder / f"{name}.txt" for name in ("test", "val", "train")}
    if not lists["val"].exists() and not lists["train"].exists():
        lists["train"] = folder / "trainval.txt"
    present = {name: path for name, path in lists.items() if path.is_file()}
    if not present:
        return {stem: split_by_hash(stem, FRACTIONS) for stem in stems}
    known, splits = set(stems), {}
    # Test first: what two lists hold stays out of training.
    for name, path in present.items():
        for line in path.read_text("utf-8", "surrogateescape").splitlines():
            stem = re.split(r"\s", line.strip())[0]
            if not stem:
                continue
            if stem not in known:
                ledger.read("image")
                ledger.set_aside(
                    "image", "listed, but has no annotation file", where=path.name, value=stem
                )
            elif stem in splits:
                ledger.repair("image", f"listed in {splits[stem]} and {name}, is in {splits[stem]}")
            else:
                splits[stem] = name
    return splits
