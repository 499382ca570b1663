# SPDX-License-Identifier: Apache-2.0
"""COCO: captions, instances and panoptic segments of the same photos become one record each.

Read: `captions_NAME.json`, `instances_NAME.json` and `panoptic_NAME.json` in `annotations/` or in
the folder itself, images in `NAME/`, `images/NAME/` or `images/`; with the option `images` in
`NAME/` there, or there. The split is the beginning of NAME where it is train, val or test
("train2017" -> "train"), else NAME itself. Ids are "NAME/file name". Keypoints have no place in a
record, stuff files repeat what panoptic ones say: both are noted, not read.

Outlines given as run lengths become polygons along pixel edges, with their holes filled. Crowds are
kept and marked. The segments of a panoptic file lie as colours in PNG files, in the folder named
like it. Segments of things are regions like instances. Segments of stuff (sky, grass), which have a
place but no number, are kept and marked as crowds: so they are drawn, and out of detection targets.
Of a photo that an instances file lists, panoptic segments are noted, not read: its things would all
come twice.

Source: format of the COCO data sets, cocodataset.org/#format-data.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from florence2_jax.records.checks import (
    ImageError,
    is_safe_name,
    open_image,
    read_regular,
    to_rgb,
)
from florence2_jax.records.importers import annotated
from florence2_jax.records.importers.annotated import (
    AnnotatedImage,
    Outline,
    Patch,
    RawRegion,
    corners,
)
from florence2_jax.records.importers.coco_rows import (
    A_COCO_FILE,
    Labels,
    add_images,
    add_regions,
    by_image,
    category_labels,
    labels_of,
    place,
    stated_size,
)
from florence2_jax.records.importers.json_files import (
    Id,
    as_id,
    as_text,
    field,
    is_set,
    read_json,
    rows,
    shown,
)
from florence2_jax.records.importers.layout import named_files, note_unmentioned
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

_READ = re.compile(r"(captions|instances|panoptic)_(.+)\.json")
_KEYPOINTS = re.compile(r"person_keypoints_.+\.json")
_JSON = re.compile(r".+\.json")
_MAX_PATCH_PIXELS = 2**28  # Of all masks of an image together, a byte each.


@dataclasses.dataclass(kw_only=True, slots=True)
class CocoImage(AnnotatedImage):
    """A photo; `segment_ids` are the colours of its regions in the segment map, if it has one."""

    segment_map: Path | None = None
    segment_ids: list[Id | None] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(kw_only=True)
class _Subset:
    """The photos of one NAME, and which of them an instances file lists."""

    units: dict[Id, CocoImage] = dataclasses.field(default_factory=dict)
    with_instances: set[Id] = dataclasses.field(default_factory=set)


def detect(source: Path) -> bool:
    """Whether there is a file with the name of a COCO annotation file."""
    return bool(named_files(source, _READ))


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Lists a COCO folder. Raises UserError if it is not one."""
    folder = source / "annotations"
    folder = folder if folder.is_dir() else source
    ledger, digest = Ledger(), hashlib.sha256()
    subsets: dict[str, _Subset] = {}
    for path, _ in named_files(folder, _JSON, (".",)):
        match = _READ.fullmatch(path.name)
        if match is None:
            _note_file(path, ledger)
            continue
        kind, name = match.groups()
        content = read_json(path, digest=digest)
        entries = rows(content, "images", path, A_COCO_FILE)
        annotations = rows(content, "annotations", path, A_COCO_FILE)
        if kind == "panoptic" and not any(field(row, "segments_info") for row in annotations):
            ledger.note("file", f"{path.name} not read: no segments_info in it")
            continue
        subset = subsets.setdefault(name, _Subset())
        as_unit = functools.partial(_unit, name, _image_folder(source, name, images))
        add_images(entries, as_unit, subset.units, ledger, path.name)
        if kind == "captions":
            for unit, row in by_image(annotations, subset.units, ledger, path.name, "caption"):
                unit.texts.append((row.get("caption"), "brief"))
            continue
        labels = category_labels(content, ledger)
        if kind == "instances":
            ids = (as_id(field(row, "id")) for row in entries)
            subset.with_instances.update(id_ for id_ in ids if id_ is not None)
            add_regions(annotations, labels, subset.units, ledger, path.name)
        else:
            _add_segments(content, path, labels, subset, ledger)
    if not subsets:
        raise UserError(_nothing_in(source, folder))
    by_split: dict[str, list[CocoImage]] = {}
    for name, subset in subsets.items():
        by_split.setdefault(_split(name), []).extend(subset.units.values())
    note_unmentioned((unit.image for units in by_split.values() for unit in units), ledger)
    job = {"format": "coco", "sha256": digest.hexdigest()}
    return Plan(units=by_split, make=make_record, job=job, ledger=ledger)


def make_record(unit: CocoImage, ledger: Ledger) -> Record | None:
    """The record of one image."""
    if unit.segment_map is None:
        return annotated.make_record(unit, ledger)
    outlines = _outlines(unit, unit.segment_map, ledger)
    regions = [
        dataclasses.replace(region, outline=outline)
        for region, outline in zip(unit.regions, outlines, strict=True)
    ]
    return annotated.make_record(dataclasses.replace(unit, regions=regions), ledger)


def _nothing_in(source: Path, folder: Path) -> str:
    if folder == source:
        return (
            f"{source}: no folder annotations in it; give the folder that holds annotations/ and "
            "the image folders, such as train2017/"
        )
    return f"{folder}: no captions_NAME.json, instances_NAME.json or panoptic_NAME.json in it"


def _note_file(path: Path, ledger: Ledger) -> None:
    if not _KEYPOINTS.fullmatch(path.name):
        why = "no captions_, instances_ or panoptic_ file"
        ledger.note("file", f"{path.name} not read: {why}")
        return
    ledger.note("file", f"{path.name} not read: records hold no keypoints")
    try:
        num = len(rows(read_json(path), "annotations", path, A_COCO_FILE))
    except UserError:
        num = 0  # It is not read anyway.
    ledger.note("keypoints", "annotations of people, not read", num)


def _split(subset: str) -> str:
    if match := re.match("train|val|test", subset):
        return match[0]
    name = re.sub(r"[^0-9a-zA-Z_]", "_", subset)
    return name if name[0].isalpha() else f"part_{name}"


def _image_folder(source: Path, subset: str, images: Path | None) -> Path:
    if images is not None:
        for folder in (images / subset, images):
            if folder.is_dir():
                return folder
        raise UserError(f"{images}: no such folder; give the folder of the images, or of {subset}/")
    candidates = (source / subset, source / "images" / subset, source / "images")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UserError(
        f"{source}: no image folder for {subset}; looked for {subset}/, images/{subset}/, images/"
    )


def _unit(subset: str, folder: Path, entry: dict[str, Any]) -> CocoImage | None:
    name = entry.get("file_name")
    if not is_safe_name(name):
        return None
    id_ = f"{subset}/{name}"
    url = as_text(entry.get("coco_url")) or as_text(entry.get("flickr_url"), id_)
    return CocoImage(id=id_, image=folder / str(name), origin=url, stated_size=stated_size(entry))


# Panoptic segments.


def _add_segments(
    content: Any, path: Path, labels: Labels, subset: _Subset, ledger: Ledger
) -> None:
    """Adds the segments of each image; their outlines are read with the image."""
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; unpack the archive of PNG files that came with {path.name}"
        )
    categories = rows(content, "categories", path, A_COCO_FILE)
    things = {as_id(field(row, "id")) for row in categories if is_set(field(row, "isthing"))}
    for row in content["annotations"]:
        segments = field(row, "segments_info")
        segments = segments if isinstance(segments, list) else []
        key = as_id(field(row, "image_id"))
        name = field(row, "file_name")
        if key in subset.with_instances:
            what = "panoptic segments not read: the image has instances"
            ledger.note("region", what, len(segments))
            continue
        unit = subset.units.get(key) if key is not None else None
        why = None
        if unit is None:
            why = "its image is not listed"
        elif unit.segment_map is not None:
            why = "second segment map of an image"
        elif not is_safe_name(name):
            why = "no file name within the folder of segment maps"
        elif not segments:
            why = "no segments"
        if why is not None or unit is None:
            ledger.read("segment map")
            ledger.set_aside("segment map", str(why), where=path.name, value=shown(row))
            ledger.read("region", len(segments))
            ledger.set_aside("region", str(why), where=path.name, num=len(segments))
            continue
        unit.segment_map = folder / str(name)
        _add_regions(unit, segments, labels, things, ledger, path.name)


def _add_regions(
    unit: CocoImage,
    segments: Sequence[Any],
    labels: Labels,
    things: set[Id | None],
    ledger: Ledger,
    file: str,
) -> None:
    for segment in segments:
        if not isinstance(segment, dict):
            ledger.read("region")
            ledger.set_aside("region", "no segment", where=file, value=shown(segment))
            continue
        is_stuff = as_id(segment.get("category_id")) not in things
        if is_stuff:
            ledger.note("region", "stuff, marked as crowd: out of targets")
        region = RawRegion(
            place=place("segment", segment),
            box=corners(segment.get("bbox")),
            labels=labels_of(segment, labels),
            is_crowd=is_stuff or is_set(segment.get("iscrowd")),
        )
        unit.regions.append(region)
        unit.segment_ids.append(as_id(segment.get("id")))


def _outlines(unit: CocoImage, path: Path, ledger: Ledger) -> list[Outline]:
    """Masks of the regions; all None after setting the segment map aside."""
    ledger.read("segment map")
    try:
        patches = _patches(_colours(path, unit.stated_size), {i for i in unit.segment_ids if i})
    except (ImageError, OSError) as error:
        unread = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        why = str(error) if isinstance(error, ImageError) else f"its file {unread}"
        ledger.set_aside("segment map", f"{why}: boxes only", where=unit.id, value=path.name)
        return [None] * len(unit.regions)
    ledger.keep("segment map")
    if absent := sum(id_ not in patches for id_ in unit.segment_ids):
        ledger.note("segment map", "segments without a pixel: boxes only", absent)
    return [patches.get(id_) for id_ in unit.segment_ids]


def _colours(path: Path, stated: tuple[Any, Any] | None) -> Int[NDArray, "Y X"]:
    """Segment ids int32: `R + 256 G + 65536 B`, 0 where no segment is.

    Raises:
        ImageError: if the file is no PNG of colours, or of another size than its image.
        OSError: if it cannot be read.
    """
    image = open_image(read_regular(path))
    if image.format != "PNG" or image.mode != "RGB":
        raise ImageError("no PNG of RGB colours")
    if image.size != stated:
        raise ImageError("of another size than its image")
    return np.asarray(to_rgb(image)).astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def _patches(colours: Int[NDArray, "Y X"], wanted: set[Id]) -> dict[Id | None, Patch]:
    """The mask of each segment, by its id. Raises ImageError where they would fill the memory."""
    flat = colours.reshape(-1)
    order = flat.argsort(kind="stable")
    ids, starts = np.unique(flat[order], return_index=True)
    patches, num_pixels = {}, 0
    for id_, places in zip(ids.tolist(), np.split(order, starts[1:]), strict=True):
        if id_ not in wanted:
            continue
        y, x = np.divmod(places, colours.shape[1])
        top, left = int(y.min()), int(x.min())
        mask = np.zeros((y.max() + 1 - top, x.max() + 1 - left), bool)
        mask[y - top, x - left] = True
        patches[id_] = Patch(mask, left, top)
        num_pixels += mask.size
        if num_pixels > _MAX_PATCH_PIXELS:
            raise ImageError("segments too large and scattered")
    return patches
