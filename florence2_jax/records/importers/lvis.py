# SPDX-License-Identifier: Apache-2.0
"""LVIS v1: instances of 1,203 categories in the photos of COCO.

Read: `lvis_v1_train.json` and `lvis_v1_val.json`, in the folder or in `annotations/`. Images lie as
in COCO, in `train2017/` and `val2017/`, there, in `images/`, or in the folder that the option
`images` gives; the last two parts of a photo's `coco_url` say which it is in. Ids are those of COCO
("train2017/000000391895.jpg"), so that records of both merge. The split is that of the file: val of
LVIS holds photos of train2017.

Names of categories are words: `_` becomes a blank. What stands in brackets stays ("bow (weapon)",
"bow (decorative ribbons)"), for it tells categories of one word apart. Noted, not read, are
synonyms, `neg_category_ids` (names known to be absent) and `not_exhaustive_category_ids` (names of
which some may not be marked): records hold what is there. Source: lvisdataset.org.
"""

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Any

from florence2_jax.records.checks import is_safe_name
from florence2_jax.records.importers.annotated import AnnotatedImage, make_record
from florence2_jax.records.importers.coco_rows import (
    add_images,
    add_regions,
    category_labels,
    stated_size,
)
from florence2_jax.records.importers.json_files import Id, as_id, as_text, field, read_json, rows
from florence2_jax.records.importers.layout import ImageFolders, named_files, note_unmentioned
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

_READ = re.compile(r"lvis_v1_(train|val)\.json")
_JSON = re.compile(r"lvis_.*\.json")
_AN_LVIS_FILE = "an LVIS v1 annotation file"
_NOT_READ = {
    "neg_category_ids": "names known to be absent from an image, not read",
    "not_exhaustive_category_ids": "names of which not all are marked in an image, not read",
}


def detect(source: Path) -> bool:
    """Whether there is a file with the name of an LVIS v1 annotation file."""
    return bool(named_files(source, _READ))


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Lists an LVIS folder. Raises UserError if it is not one."""
    ledger, digest = Ledger(), hashlib.sha256()
    files = named_files(source, _READ)
    if not files:
        raise UserError(f"{source}: no lvis_v1_train.json or lvis_v1_val.json in it")
    for path, _ in named_files(source, _JSON):
        if not _READ.fullmatch(path.name):
            ledger.note("file", f"{path.name} not read: neither lvis_v1_train nor lvis_v1_val")
    folders = ImageFolders(source, images, ("{folder}", "images/{folder}"))
    units: dict[Id, AnnotatedImage] = {}
    by_split: dict[str, list[AnnotatedImage]] = {}
    # What is evaluated on must not be trained on: an image in both files is in val, so val first.
    for path, match in sorted(files, key=lambda file: file[1][1] == "train"):
        content = read_json(path, digest=digest)
        known = set(units)
        _add_images(content, path, folders, units, ledger)
        new = [unit for key, unit in units.items() if key not in known]
        by_split.setdefault(match[1], []).extend(new)
        annotations = rows(content, "annotations", path, _AN_LVIS_FILE)
        labels = category_labels(content, ledger, readable)
        add_regions(annotations, labels, units, ledger, path.name)
    folders.check()
    note_unmentioned((unit.image for unit in units.values()), ledger)
    job = {"format": "lvis", "sha256": digest.hexdigest()}
    return Plan(units=by_split, make=make_record, job=job, ledger=ledger)


def readable(name: str) -> str:
    """`"bow_(weapon)"` -> `"bow (weapon)"`."""
    return name.replace("_", " ")


def _add_images(
    content: Any,
    path: Path,
    folders: ImageFolders,
    units: dict[Id, AnnotatedImage],
    ledger: Ledger,
) -> None:
    def as_unit(entry: dict[str, Any]) -> AnnotatedImage | None:
        url = entry.get("coco_url")
        id_ = "/".join(url.split("/")[-2:]) if isinstance(url, str) else None
        if not is_safe_name(id_) or len((place := PurePosixPath(str(id_))).parts) != 2:
            return None
        image = folders.find(folder=place.parts[0]) / place.name
        origin, size = as_text(url), stated_size(entry)
        return AnnotatedImage(id=str(id_), image=image, origin=origin, stated_size=size)

    entries = rows(content, "images", path, _AN_LVIS_FILE)
    ids = {as_id(field(entry, "id")) for entry in entries}
    if num := len(ids & units.keys()):
        ledger.repair("image", "listed in val and train, is in val", num)
    add_images(entries, as_unit, units, ledger, path.name)
    for entry in entries:
        for name, what in _NOT_READ.items():
            found = field(entry, name)
            if isinstance(found, list) and found:
                ledger.note("category", what, len(found))
    categories = content.get("categories")
    for category in categories if isinstance(categories, list) else ():
        if isinstance(found := field(category, "synonyms"), list):
            ledger.note("category", "synonyms, not read", len(found))
