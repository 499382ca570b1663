# SPDX-License-Identifier: Apache-2.0
"""COCO: captions and instances of the same photos become one record each.

Read: `captions_NAME.json` and `instances_NAME.json` in `annotations/`, images in `NAME/`,
`images/NAME/` or `images/`. The split is the beginning of NAME where it is train, val or test
("train2017" -> "train"), else NAME itself. Ids are "NAME/file name". Keypoints, panoptic and stuff
files have no place in a record and are noted, not read.

Outlines given as run lengths become polygons along pixel edges, with their holes filled. Crowds are
kept and marked. Source: format of the COCO data sets, cocodataset.org/#format-data.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from florence2_jax.records.checks import (
    MendedImage,
    is_safe_name,
    mend_box,
    mend_polygon,
    mend_text,
    read_image,
)
from florence2_jax.records.importers.masks import MaskError, decode_rle, trace_mask
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Label, Record, Region, Text
from florence2_jax.records.writing import Plan
from florence2_jax.typing import Polygon, UserError

_READ = re.compile(r"(captions|instances)_(.+)\.json")


@dataclasses.dataclass(kw_only=True)
class CocoUnit:
    """One image and the annotations about it, as the JSON files have them."""

    id: str
    path: Path
    stated_size: tuple[Any, Any]
    origin: str
    captions: list[dict] = dataclasses.field(default_factory=list)
    instances: list[dict] = dataclasses.field(default_factory=list)


def plan(source: Path) -> Plan:
    """Lists a COCO folder. Raises UserError if it is not one."""
    folder = source / "annotations"
    if not folder.is_dir():
        raise UserError(
            f"{source}: no folder annotations in it; give the folder that holds annotations/ and "
            "the image folders, such as train2017/"
        )
    ledger, digest = Ledger(), hashlib.sha256()
    subsets: dict[str, dict[Any, CocoUnit]] = {}
    for path in sorted(folder.glob("*.json")):
        match = _READ.fullmatch(path.name)
        if match is None:
            ledger.note("file", f"{path.name} not read: no captions_ or instances_ file")
            continue
        data = path.read_bytes()
        digest.update(path.name.encode() + data)
        kind, subset = match.groups()
        images = _image_folder(source, subset)
        content = _parse(path, data)
        units = subsets.setdefault(subset, {})
        _list_images(content["images"], subset, images, units, ledger, path.name)
        _add_annotations(content, kind, units, ledger, path.name)
    if not subsets:
        raise UserError(f"{folder}: no captions_NAME.json or instances_NAME.json in it")
    by_split: dict[str, list[CocoUnit]] = {}
    for subset, units in subsets.items():
        by_split.setdefault(_split(subset), []).extend(units.values())
    job = {"format": "coco", "sha256": digest.hexdigest()}
    return Plan(units=by_split, make=make_record, job=job, ledger=ledger)


def make_record(unit: CocoUnit, ledger: Ledger) -> Record | None:
    """The record of one image."""
    ledger.read("image")
    ledger.read("caption", len(unit.captions))
    ledger.read("region", len(unit.instances))
    image = read_image(unit.path, ledger, unit.id, stated_size=unit.stated_size)
    if image is None:
        ledger.withdraw("its image was set aside", where=unit.id)
        return None
    texts = (
        mend_text(a.get("caption"), ledger, f"{unit.id} caption {a.get('id')}")
        for a in unit.captions
    )
    regions = (_region(annotation, unit, image, ledger) for annotation in unit.instances)
    record = Record(
        id=unit.id,
        image=image.data,
        width=image.size[0],
        height=image.size[1],
        origin=unit.origin,
        split_key=unit.id,
        texts=tuple(Text(text=text) for text in texts if text is not None),
        regions=tuple(region for region in regions if region is not None),
    )
    ledger.keep("image")
    ledger.keep("caption", len(record.texts))
    ledger.keep("region", len(record.regions))
    return record


def _region(annotation: dict, unit: CocoUnit, image: MendedImage, ledger: Ledger) -> Region | None:
    where = f"{unit.id} instance {annotation.get('id')}"
    if not image.is_as_annotated:
        stated = f"{unit.stated_size}, the file is {image.size}"
        why = "annotated at another size of the image"
        ledger.set_aside("region", why, where=where, value=stated)
        return None
    if annotation["category"] is None:
        why = "category without a name"
        ledger.set_aside("region", why, where=where, value=repr(annotation.get("category_id")))
        return None
    given = annotation.get("bbox")
    box = _corners(given) if isinstance(given, list) and len(given) == 4 else given
    box = mend_box(box if isinstance(box, list) else [box], image.size, ledger, where)
    if box is None:
        return None
    return Region(
        box=box,
        labels=(Label(text=annotation["category"]),),
        polygons=_polygons(annotation.get("segmentation"), image, ledger, where),
        is_crowd=bool(annotation.get("iscrowd")),
    )


def _corners(box: list[Any]) -> list[Any]:
    """`x, y, width, height` -> `x0, y0, x1, y1`; what is no number `mend_box` will tell."""
    x, y, width, height = box
    try:
        return [x, y, x + width, y + height]
    except TypeError:
        return [*box[:3], None]


def _polygons(outline: Any, image: MendedImage, ledger: Ledger, where: str) -> tuple[Polygon, ...]:
    if isinstance(outline, list):
        rings = [ring if isinstance(ring, list) else [ring] for ring in outline]
        mended = (mend_polygon(ring, image.size, ledger, where) for ring in rings)
        return tuple(polygon for polygon in mended if polygon is not None)
    if outline is None:
        return ()
    ledger.read("mask")
    try:
        if not isinstance(outline, dict):
            raise MaskError("neither polygons nor a run-length mask")
        mask = decode_rle(outline)
        if mask.shape != image.size[::-1]:
            raise MaskError("mask of another size than the image")
    except MaskError as error:
        ledger.set_aside("mask", str(error), where=where, value=repr(outline)[:200])
        return ()
    polygons, num_holes = trace_mask(mask)
    ledger.keep("mask")
    ledger.note("mask", "traced to polygons", len(polygons))
    if num_holes:
        ledger.note("mask", "holes filled", num_holes)
    return tuple(polygons)


def _split(subset: str) -> str:
    if match := re.match("train|val|test", subset):
        return match[0]
    name = re.sub(r"[^0-9a-zA-Z_]", "_", subset)
    return name if name[0].isalpha() else f"part_{name}"


def _image_folder(source: Path, subset: str) -> Path:
    candidates = (source / subset, source / "images" / subset, source / "images")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UserError(
        f"{source}: no image folder for {subset}; looked for {subset}/, images/{subset}/, images/"
    )


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch or export it again") from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: no list {key!r} in it; is it a COCO annotation file?")
    return content


def _list_images(
    entries: list[Any],
    subset: str,
    folder: Path,
    units: dict[Any, CocoUnit],
    ledger: Ledger,
    file: str,
) -> None:
    """Adds the images of one file; one that another file listed too is the same image."""
    known = {unit.id: id_ for id_, unit in units.items()}
    here: set[Any] = set()
    for entry in entries:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        key = entry.get("id") if isinstance(entry, dict) else None
        why = None
        if not isinstance(key, int | str) or not is_safe_name(name):
            why = "no id, or no file name within the image folder"
        elif key in here:
            why = "image id listed twice"
        elif known.get(f"{subset}/{name}", key) != key:
            why = "file listed with two image ids"
        elif key in units and units[key].id != f"{subset}/{name}":
            why = "image id of two files"
        if why is not None:
            ledger.read("image")
            ledger.set_aside("image", why, where=file, value=repr(entry)[:200])
            continue
        assert isinstance(key, int | str)
        here.add(key)
        known[f"{subset}/{name}"] = key
        units.setdefault(
            key,
            CocoUnit(
                id=f"{subset}/{name}",
                path=folder / str(name),
                stated_size=(entry.get("width"), entry.get("height")),
                origin=str(entry.get("coco_url") or entry.get("flickr_url") or f"{subset}/{name}"),
            ),
        )


def _add_annotations(
    content: dict[str, Any], kind: str, units: dict[Any, CocoUnit], ledger: Ledger, file: str
) -> None:
    listed = content.get("categories")
    entries = listed if isinstance(listed, list) else []
    names = {c.get("id"): c.get("name") for c in entries if isinstance(c, dict)}
    one = "caption" if kind == "captions" else "region"
    for annotation in content["annotations"]:
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(key, int | str) or key not in units:
            ledger.read(one)
            why = "its image is not listed"
            ledger.set_aside(one, why, where=file, value=repr(annotation)[:200])
        elif kind == "captions":
            units[key].captions.append(annotation)
        else:
            name = names.get(annotation.get("category_id"))
            name = name.strip() if isinstance(name, str) else None
            units[key].instances.append(annotation | {"category": name or None})
