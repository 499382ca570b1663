# SPDX-License-Identifier: Apache-2.0
"""Objects365 v2: boxes of 365 categories, in the form of COCO.

Read: `zhiyuan_objv2_train.json` and `zhiyuan_objv2_val.json`, in the folder, in `annotations/`, or
in `train/` and `val/`. A file name such as "images/v1/patch8/objects365_v1_00420917.jpg" names
version, patch and file; as archives are unpacked in different places, patches are looked for in
`SPLIT/images/VERSION/PATCH/`, `SPLIT/VERSION/PATCH/`, `SPLIT/PATCH/`, the same with `images/` in
front, and without patches in `images/SPLIT/`, `SPLIT/` and `images/`. Ids are
"SPLIT/PATCH/file name".

Names of categories are as the file has them ("Cabinet/shelf"). Boxes of pictures of a thing
(`isfake`) and of mirror images (`isreflected`) are kept and noted. Source: objects365.org.
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
from florence2_jax.records.importers.json_files import Id, as_text, read_json, rows
from florence2_jax.records.importers.layout import ImageFolders, named_files, note_unmentioned
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

_READ = re.compile(r"zhiyuan_objv2_(train|val)\.json")
_FOLDERS = ("annotations", ".", "train", "val")
_AN_OBJECTS365_FILE = "an Objects365 annotation file"
_LAYOUTS = (
    "{split}/images/{version}/{patch}",
    "{split}/{version}/{patch}",
    "{split}/{patch}",
    "images/{split}/{version}/{patch}",
    "images/{split}/{patch}",
    "images/{version}/{patch}",
    "images/{patch}",
    "{version}/{patch}",
    "{patch}",
    "images/{split}",
    "{split}",
    "images",
)
_FLAGS = {
    "isfake": "pictures of the thing (isfake), kept like others",
    "isreflected": "mirror images (isreflected), kept like others",
}


def detect(source: Path) -> bool:
    """Whether there is a file with the name of an Objects365 v2 annotation file."""
    return bool(named_files(source, _READ, _FOLDERS))


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Lists an Objects365 folder. Raises UserError if it is not one."""
    ledger, digest = Ledger(), hashlib.sha256()
    folders = ImageFolders(source, images, _LAYOUTS)
    by_split: dict[str, list[AnnotatedImage]] = {}
    for path, match in named_files(source, _READ, _FOLDERS):
        split = match[1]
        if split in by_split:
            raise UserError(f"{path}: the second {path.name} in {source}; remove one of them")
        content = read_json(path, digest=digest)
        units: dict[Id, AnnotatedImage] = {}

        def as_unit(entry: dict[str, Any], split: str = split) -> AnnotatedImage | None:
            return _unit(entry, split, folders)

        entries = rows(content, "images", path, _AN_OBJECTS365_FILE)
        add_images(entries, as_unit, units, ledger, path.name)
        annotations = rows(content, "annotations", path, _AN_OBJECTS365_FILE)
        labels = category_labels(content, ledger)
        add_regions(annotations, labels, units, ledger, path.name, _FLAGS)
        by_split[split] = list(units.values())
    if not by_split:
        raise UserError(f"{source}: no zhiyuan_objv2_train.json or zhiyuan_objv2_val.json in it")
    folders.check()
    note_unmentioned((unit.image for units in by_split.values() for unit in units), ledger)
    job = {"format": "objects365", "sha256": digest.hexdigest()}
    return Plan(units=by_split, make=make_record, job=job, ledger=ledger)


def _unit(entry: dict[str, Any], split: str, folders: ImageFolders) -> AnnotatedImage | None:
    file = entry.get("file_name")
    if not is_safe_name(file):
        return None
    path = PurePosixPath(str(file))
    version, patch = ("", "", *path.parts[:-1])[-2:]
    folder = folders.find(split=split, version=version, patch=patch)
    id_ = "/".join(part for part in (split, patch, path.name) if part)
    url = as_text(entry.get("url"), id_)
    return AnnotatedImage(
        id=id_, image=folder / path.name, origin=url, stated_size=stated_size(entry)
    )
