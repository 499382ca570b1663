# SPDX-License-Identifier: Apache-2.0
"""YOLO folders: a text file of rows per image, numbers in shares of the image's sides.

Read: `data.yaml` (or the only other `.yaml` with `names`), whose `train`, `val` and `test` are
folders of images, `.txt` lists of images, or several of them, relative to its `path`. Ways that
lead out of the source (those of another machine, the `../` of some exports) are followed as far as
their endings exist within it, and no further. Without a `.yaml` the names are the lines of
`classes.txt`, `obj.names` or the only `*.names`, every image within the source is read, and the
split is the word train, val or test of a folder's name, train where there is none.

The labels of an image in `images/` are in `labels/` (the last folder of that name), those of others
are beside them; an image without such a file has no objects. Rows:

- `class x y width height`: a box by its centre;
- `class x y x y x y ...`: the outline of an object, of three points or more;
- `class x y width height` and keypoints, if `kpt_shape` says so: the box, keypoints noted.

Rows of six numbers are predictions with a confidence; they are set aside, as are numbers beyond the
image by more than a hundredth of its side. An image of two splits belongs to the first of test, val
and train; a split of the very folders of train is left out, and noted. Ids are names of the images
within the source. Source: docs.ultralytics.com/datasets, detect and segment.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import yaml

from florence2_jax.records.importers.annotated import AnnotatedImage, RawRegion, make_record
from florence2_jax.records.importers.json_files import as_id, field, read_file, shown
from florence2_jax.records.importers.places import (
    HELD_OUT_FIRST,
    AnnotationError,
    entries,
    exists,
    files_within,
    first_bytes,
    is_image,
    listing_digest,
    name_within,
    read_annotation,
    split_named,
)
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

MAX_YAML_BYTES = 2**20
_NAME_FILES = ("classes.txt", "obj.names")
_HAS_NAMES = re.compile(rb"^names[ \t]*:", re.MULTILINE)
_NULLS = ("", "~", "null", "Null", "NULL", "None")
_MARGIN = 0.01  # How far beyond the image a share may be; the box is clipped then.

Names: TypeAlias = Mapping[int | str | None, str]
"""Of classes, by their numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class YoloImage:
    """An image, its id, and the file of its labels if there is one."""

    id: str
    image: Path
    labels: Path | None


def detect(source: Path) -> bool:
    """Whether there is a `.yaml` with names of classes, or a list of names beside labels."""
    inside = entries(source)
    if any(_HAS_NAMES.search(first_bytes(path, 2**16)) for path in inside if _is_yaml(path)):
        return True
    return bool(_names_file(inside)) and (
        (source / "labels").is_dir()
        or any(path.suffix == ".txt" and _is_beside_image(path) for path in inside)
    )


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


def _is_beside_image(path: Path) -> bool:
    return any(path.with_suffix(suffix).is_file() for suffix in (".jpg", ".png", ".jpeg"))


def _names_file(inside: list[Path]) -> Path | None:
    named = [path for name in _NAME_FILES for path in inside if path.name == name]
    others = [path for path in inside if path.suffix == ".names"]
    return named[0] if named else others[0] if len(others) == 1 else None


def plan(source: Path) -> Plan:
    """Lists the images of all splits.

    Raises:
        UserError: if there are no names of classes, or the `.yaml` or what it names cannot be read.
    """
    if not source.is_dir():
        raise UserError(f"{source}: is no folder; give the folder that holds data.yaml")
    ledger = Ledger()
    files = files_within(source, ledger)
    present = set(files)
    images = [path for path in files if is_image(path)]
    config, names, digest = _config(source)
    by_split = _split_images(config, source, images, ledger)
    units: dict[str, list[YoloImage]] = {}
    used: set[Path] = set()
    for split, paths in by_split.items():
        for path in paths:
            labels = _labels_of(path, source)
            used.add(labels)
            unit = YoloImage(
                id=name_within(path, source),
                image=path,
                labels=labels if labels in present else None,
            )
            units.setdefault(split, []).append(unit)
    if not units:
        raise UserError(f"{source}: no images in it; they are looked for where data.yaml says")
    _note_the_rest(files, used, {u.image for some in units.values() for u in some}, ledger)
    listed = "".join(f"{split} {u.id}\n" for split, some in units.items() for u in some)
    digest = hashlib.sha256(f"{digest} {listed}".encode()).hexdigest()
    sizes = listing_digest(sorted(used & present), source)
    job = {"format": "yolo", "sha256": digest, "labels_sha256": sizes}
    make = functools.partial(make_image, names=names, num_keypoints=_num_keypoints(config))
    return Plan(units=units, make=make, job=job, ledger=ledger)


def _config(source: Path) -> tuple[dict[str, Any], Names, str]:
    """The content of the `.yaml`, the names of classes by number, and a digest of both."""
    inside = entries(source)
    yamls = [path for path in inside if path.name in ("data.yaml", "data.yml")]
    yamls = yamls or [p for p in inside if _is_yaml(p) and _HAS_NAMES.search(first_bytes(p, 2**16))]
    if len(yamls) > 1:
        raise UserError(f"{source}: {len(yamls)} .yaml files have names; call one data.yaml")
    path = yamls[0] if yamls else _names_file(inside)
    if path is None:
        raise UserError(
            f"{source}: no names of classes; looked for data.yaml, {', '.join(_NAME_FILES)} and "
            "*.names"
        )
    data = read_file(path, MAX_YAML_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if not _is_yaml(path):
        lines = data.decode("utf-8-sig", "replace").splitlines()
        return {}, dict(enumerate(line.strip() for line in lines)), digest
    try:
        # All scalars as texts: a class may be called "no", which YAML else takes for a boolean.
        content = yaml.load(data.decode("utf-8-sig", "replace"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{path}: not YAML ({why}); mend it by hand") from error
    names = field(content, "names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        raise UserError(f"{path}: no names of classes in it; write names: [cat, dog]")
    texts = {as_id(key): name for key, name in names.items() if isinstance(name, str)}
    return content, texts, digest


def _num_keypoints(config: dict[str, Any]) -> int:
    """How many numbers of a row are keypoints."""
    shape = config.get("kpt_shape")
    sides = [as_id(side) for side in shape] if isinstance(shape, list) else []
    numbers = [side for side in sides if isinstance(side, int) and 0 < side < 10_000]
    if len(numbers) == len(sides) == 2:
        return numbers[0] * numbers[1]
    return 0


def _split_images(
    config: dict[str, Any], source: Path, images: list[Path], ledger: Ledger
) -> dict[str, list[Path]]:
    """The images of each split; none is in two."""
    if not any(config.get(split) not in (None, *_NULLS) for split in HELD_OUT_FIRST):
        by_split: dict[str, list[Path]] = {}
        for path in images:
            split = split_named(*path.relative_to(source).parts[:-1]) or "train"
            by_split.setdefault(split, []).append(path)
        return by_split
    places = {split: _places(config, split, source) for split in HELD_OUT_FIRST}
    splits: dict[Path, str] = {}
    for split in HELD_OUT_FIRST:
        if split != "train" and places[split] and places[split] == places["train"]:
            ledger.note("image", f"{split} is the same as train, and left out")
            continue
        for path in _images_at(places[split], source, images, ledger):
            first = splits.setdefault(path, split)
            if first != split:
                ledger.repair("image", f"listed in {first} and {split}, is in {first}")
    return {
        split: [path for path, own in splits.items() if own == split]
        for split in reversed(HELD_OUT_FIRST)
        if split in splits.values()
    }


def _places(config: dict[str, Any], split: str, source: Path) -> list[Path]:
    """Folders and lists of a split, as far as they are within the source."""
    given = config.get(split)
    given = given if isinstance(given, list) else [given]
    root = config.get("path")
    places = []
    for way in given:
        if way is None or way in _NULLS:
            continue
        if not isinstance(way, str):
            raise UserError(f"{source}: {split} in the .yaml is no text; write a folder of images")
        ways = [f"{root}/{way}", way] if isinstance(root, str) else [way]
        place = next((p for w in ways if (p := _within(w, source)) is not None), None)
        if place is None:
            raise UserError(f"{source}: {split}: {shown(way)} in the .yaml is not in this folder")
        places.append(place)
    return places


def _within(way: str, source: Path) -> Path | None:
    """The longest ending of a way that exists within the source."""
    parts = [
        part for part in PurePosixPath(way.replace("\\", "/")).parts if part not in ("/", "..")
    ]
    for start in range(min(len(parts), 64)):
        place = source.joinpath(*parts[start:])
        if exists(place):
            return place
    return source if parts in ([], ["."]) else None


def _images_at(places: list[Path], source: Path, images: list[Path], ledger: Ledger) -> list[Path]:
    """The images in folders and on lists; what a list names and is not there is set aside."""
    known, found = set(images), []
    for place in places:
        if place.is_dir():
            prefix = "" if place == source else f"{place}{os.sep}"
            found += [path for path in images if str(path).startswith(prefix)]
            continue
        for line in read_file(place).decode("utf-8", "surrogateescape").splitlines():
            if not (way := line.strip()):
                continue
            path = _within(way, source)
            if path in known:
                found.append(path)
                continue
            ledger.read("image")
            ledger.set_aside("image", "listed, but not there", where=place.name, value=shown(way))
    return found


def _labels_of(image: Path, source: Path) -> Path:
    """Where the labels of an image would be."""
    parts = list(image.relative_to(source).parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return source.joinpath(*parts).with_suffix(".txt")


def _note_the_rest(files: list[Path], used: set[Path], images: set[Path], ledger: Ledger) -> None:
    labels = sum(p.suffix == ".txt" and "labels" in p.parts and p not in used for p in files)
    if labels:
        ledger.note("file", "labels without an image, not read", labels)
    if bare := sum(is_image(path) and path not in images for path in files):
        ledger.note("image", "images of no split, not read", bare)


def make_image(
    unit: YoloImage, ledger: Ledger, *, names: Names, num_keypoints: int
) -> Record | None:
    """The record of one image."""
    annotated = AnnotatedImage(id=unit.id, image=unit.image, is_relative=True)
    try:
        data = read_annotation(unit.labels) if unit.labels else b""
    except AnnotationError as error:
        ledger.read("image")
        ledger.set_aside("image", f"label file {error}", where=unit.id)
        return None
    for i, line in enumerate(data.decode("utf-8-sig", "replace").splitlines()):
        if not line.strip():
            continue
        region = _region(line, f"row {i}", names, num_keypoints)
        if isinstance(region, RawRegion):
            annotated.regions.append(region)
            if num_keypoints:
                ledger.note("region", "keypoints not read")
            continue
        ledger.read("region")
        ledger.set_aside("region", region, where=f"{unit.id} row {i}", value=line[:200])
    return make_record(annotated, ledger)


def _region(line: str, place: str, names: Names, num_keypoints: int) -> RawRegion | str:
    """The region of a row, or why there is none."""
    try:
        number, *shares = (float(word) for word in line.split())
    except ValueError:
        return "not a row of numbers"
    name = names.get(as_id(number))
    if name is None:
        return "class number without a name"
    if num_keypoints and len(shares) == 4 + num_keypoints:
        shares = shares[:4]
    is_outline = len(shares) >= 6 and len(shares) % 2 == 0
    if len(shares) != 4 and not is_outline:
        return "neither a box nor an outline"
    if not all(-_MARGIN <= share <= 1 + _MARGIN for share in shares):
        return "numbers are no shares of the image's sides"
    region = RawRegion(place=place, labels=((name, "category"),))
    if is_outline:
        region.outline = [shares]
    else:
        x, y, width, height = shares
        # Half a width taken off and added again leaves dust behind.
        edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        region.box = [round(edge, 9) for edge in edges]
    return region
