# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC: one XML file per image, boxes with class names.

Read: `Annotations/*.xml`, images in `JPEGImages/`, `ImageSets/Main/{train,val,test}.txt`. The split
is that of the list a file is in; files in none are set aside. `trainval.txt` counts only where
neither train nor val is given, the lists of single classes never. Without lists the split is drawn
by hash: nine parts train, one part val.

Tools that write the format since put `*.xml` beside their images, in one folder or in `train/`,
`valid/` and `test/`, which are the splits then. Where images are elsewhere, `images` says so.

Boxes of VOC proper are 1-based with the last pixel included; most tools that write the format since
count from 0, so values are kept as they are unless `one_based` is asked for: then xmin and ymin
lose 1. "Difficult" objects are kept out of training and scoring as VOC asks, by marking them as
crowds. Masks (`SegmentationObject/`) are not read. Source: the VOC2012 development kit.
"""

import dataclasses
import functools
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

from florence2_jax.records.importers.annotated import AnnotatedImage, RawRegion, make_record
from florence2_jax.records.importers.json_files import read_file
from florence2_jax.records.importers.places import (
    AnnotationError,
    entries,
    first_bytes,
    is_image,
    name_within,
    size_of,
    split_named,
)
from florence2_jax.records.importers.xml_files import read_xml
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan, split_by_hash
from florence2_jax.typing import UserError

FRACTIONS = {"train": 0.9, "val": 0.1}
MAX_LIST_BYTES = 2**28
"""Of a list of ImageSets/Main, which has some ten bytes per image."""

_FOLDERS = ("Annotations", "JPEGImages")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocUnit:
    """An annotation file and the image it is about, if there is one of its name.

    `images` is where the image would be, `folder` what the origin of the image begins with.
    """

    id: str
    xml: Path
    image: Path | None
    images: Path
    folder: str


def detect(source: Path) -> bool:
    """Whether there are folders Annotations and JPEGImages, or annotation files beside images."""
    if _datasets(source):
        return True
    files = (path for folder in _flat_folders(source) for path in entries(folder))
    xmls = [path for path in files if path.suffix == ".xml"]
    return any(b"<annotation" in first_bytes(path) for path in xmls[:3])


def plan(source: Path, *, one_based: bool = False, images: Path | None = None) -> Plan:
    """Lists a VOC folder, or the only one within. Raises UserError if there is none."""
    if not source.is_dir():
        raise UserError(f"{source}: is no folder; give the one that holds Annotations/")
    ledger, digest = Ledger(), hashlib.sha256()
    units: dict[str, list[VocUnit]] = {}
    beside: dict[Path, dict[str, Path]] = {}
    stems: set[tuple[Path, str]] = set()
    for unit, split in _listed(source, images, beside, ledger):
        digest.update(f"{unit.id} {size_of(unit.xml)} {split}\n".encode("utf-8", "replace"))
        stems.add((unit.images, unit.xml.stem))
        if split is not None:
            units.setdefault(split, []).append(unit)
            continue
        ledger.read("image")
        ledger.set_aside("image", "in no list of ImageSets/Main", where=unit.xml.name)
    if bare := sum((place, stem) not in stems for place, found in beside.items() for stem in found):
        ledger.note("image", "images without an annotation file, not read", bare)
    job = {"format": "voc", "one_based": one_based, "sha256": digest.hexdigest()}
    make = functools.partial(make_image, one_based=one_based)
    return Plan(units=units, make=make, job=job, ledger=ledger)


def make_image(unit: VocUnit, ledger: Ledger, *, one_based: bool) -> Record | None:
    """The record of one annotation file."""
    where = unit.xml.name
    try:
        root = read_xml(unit.xml)
    except AnnotationError as error:
        ledger.read("image")
        ledger.set_aside("image", f"annotation file {error}", where=where)
        return None
    # The name of the annotation file is that of the image; the name within may be out of date.
    within = Path((root.findtext("filename") or "").strip().replace("\\", "/")).name
    image = unit.image or unit.images / (within or unit.xml.stem)
    annotated = AnnotatedImage(
        id=unit.id,
        image=image,
        where=where,
        origin=f"{unit.folder}/{image.name}",
        stated_size=(root.findtext("size/width"), root.findtext("size/height")),
    )
    for i, element in enumerate(root.findall("object")):
        if (element.findtext("name") or "").strip():
            annotated.regions.append(_region(element, f"object {i}", one_based, ledger))
            continue
        ledger.read("region")
        ledger.set_aside("region", "empty", where=f"{where} object {i} name", value="")
    return make_record(annotated, ledger)


def _region(element: ElementTree.Element, place: str, one_based: bool, ledger: Ledger) -> RawRegion:
    values = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    is_difficult = (element.findtext("difficult") or "").strip() == "1"
    if is_difficult:
        ledger.note("region", "difficult, marked as crowd: out of training and scoring")
    if (element.findtext("truncated") or "").strip() == "1":
        ledger.note("region", "truncated, a flag that records do not hold")
    if element.find("part") is not None:
        ledger.note("region", "its parts not read")
    return RawRegion(
        place=place,
        box=_shifted(values) if one_based else values,
        labels=((element.findtext("name"), "category"),),
        is_crowd=is_difficult,
    )


def _shifted(values: list[str | None]) -> list[str | float | None]:
    """Pixels counted from 1, the last included -> edges counted from 0."""
    try:
        x0, y0, x1, y1 = (float(value or "") for value in values)
    except ValueError:
        return list(values)  # For mending to tell.
    return [x0 - 1, y0 - 1, x1, y1]


def _listed(
    source: Path, images: Path | None, beside: dict[Path, dict[str, Path]], ledger: Ledger
) -> Iterator[tuple[VocUnit, str | None]]:
    """The annotation files with their splits; fills in the images by folder and stem."""

    def images_in(folder: Path) -> dict[str, Path]:
        if folder not in beside:
            beside[folder] = {path.stem: path for path in entries(folder) if is_image(path)}
        return beside[folder]

    datasets = _datasets(source, ("Annotations",) if images else _FOLDERS)
    if len(datasets) > 1:
        names = [folder.name for folder in datasets]
        raise UserError(f"{source}: holds more than one dataset, {names}; give one of them")
    if datasets:
        root = datasets[0]
        place = images or root / "JPEGImages"
        xmls = {path.stem: path for path in sorted((root / "Annotations").glob("*.xml"))}
        splits = _splits(root, list(xmls), ledger)
        _note_masks(root, ledger)
        for stem, xml in xmls.items():
            image = images_in(place).get(stem)
            unit = VocUnit(id=stem, xml=xml, image=image, images=place, folder=root.name)
            yield unit, splits.get(stem)
        return
    folders = [folder for folder in _flat_folders(source) if any(folder.glob("*.xml"))]
    if not folders:
        raise UserError(f"{source}: no folders Annotations and JPEGImages in it; is it Pascal VOC?")
    for folder in folders:
        place = images or folder
        for xml in sorted(folder.glob("*.xml")):
            id_ = name_within(xml.with_suffix(""), source)
            image = images_in(place).get(xml.stem)
            split = split_named(folder.name) if folder != source else None
            unit = VocUnit(id=id_, xml=xml, image=image, images=place, folder=place.name)
            yield unit, split or split_by_hash(id_, FRACTIONS)


def _datasets(source: Path, inside: Sequence[str] = _FOLDERS) -> list[Path]:
    """The folder itself if it has some folders inside, else all those in it that have them."""

    def has_them(folder: Path) -> bool:
        return all((folder / name).is_dir() for name in inside)

    return [source] if has_them(source) else [path for path in entries(source) if has_them(path)]


def _flat_folders(source: Path) -> list[Path]:
    """Where annotation files may be beside their images."""
    named = (path for path in entries(source) if split_named(path.name))
    return [source, *(path for path in named if path.is_dir())]


def _note_masks(root: Path, ledger: Ledger) -> None:
    if masks := sum(is_image(path) for path in entries(root / "SegmentationObject")):
        ledger.note("file", "masks (SegmentationObject), not read", masks)


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
        data = read_file(path, MAX_LIST_BYTES)
        for line in data.decode("utf-8", "surrogateescape").splitlines():
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
