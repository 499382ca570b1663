# SPDX-License-Identifier: Apache-2.0
"""labelme: one JSON file with shapes per image.

Read: every `*.json` in the source and the folders within it. The image is the one inside the file
(`imageData`, base64) if there is one, else the file `imagePath`, as long as that lies within the
source, else the file of that name beside. Ids are names of the JSON files, without their ending.
The split is the word train, val or test of a folder's name, and train where there is none.

Shapes become regions with their label as category and, if they have one, their description:

- rectangle: a box; polygon: an outline and its hull; circle: an outline of 64 corners on it;
- mask: its outline along pixel edges, from its first point on, holes filled;
- shapes of one label and `group_id` are one region of several outlines (masks stand alone);
- lines, points and strips enclose nothing, `_background_` is no object: noted, not read;
- `__ignore__` becomes a crowd, without a category.

Flags of an image (its class) have no place in a record and are noted.
Source: github.com/wkentaro/labelme, the examples and the writer of version 5.
"""

import base64
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from florence2_jax.records.checks import open_image, to_rgb
from florence2_jax.records.importers.annotated import (
    AnnotatedImage,
    ImageFile,
    Patch,
    RawRegion,
    make_record,
)
from florence2_jax.records.importers.archives import Base64
from florence2_jax.records.importers.json_files import as_id, field, parse_json, shown
from florence2_jax.records.importers.places import (
    AnnotationError,
    entries,
    files_within,
    first_bytes,
    is_image,
    listing_digest,
    name_within,
    named_image,
    read_annotation,
    split_named,
)
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import LabelKind, Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

CIRCLE_CORNERS = 64
"""Of the polygon that a circle becomes: it has 99.8 % of the circle's area, and its box."""

MAX_JSON_BYTES = 2**27  # The image may be inside.
IGNORED, BACKGROUND = "__ignore__", "_background_"
_OPEN_SHAPES = ("line", "linestrip", "point", "points")
_SHAPES = ("rectangle", "polygon", "circle", "mask", *_OPEN_SHAPES)
_NUM_LOOKED_AT = 3  # Files of a folder that `detect` opens.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelmeFile:
    """One JSON file; `root` is the source it was found in."""

    path: Path
    root: Path

    @property
    def id(self) -> str:
        return name_within(self.path.with_suffix(""), self.root)


def detect(source: Path) -> bool:
    """Whether one of the first JSON files of a folder, or of one in it, holds shapes."""
    inside = entries(source)
    for folder in (inside, *(entries(path) for path in inside if path.is_dir())):
        files = [path for path in folder if path.suffix == ".json"][:_NUM_LOOKED_AT]
        if any(_is_labelme(first_bytes(path)) for path in files):
            return True
    return False


def _is_labelme(head: bytes) -> bool:
    return b'"shapes"' in head and (b'"version"' in head or b'"flags"' in head)


def plan(source: Path) -> Plan:
    """Lists the JSON files. Raises UserError if there are none."""
    ledger = Ledger()
    files = files_within(source, ledger)
    paths = [path for path in files if path.suffix == ".json"]
    if not paths:
        raise UserError(f"{source}: no .json in it, nor in folders within it")
    units: dict[str, list[LabelmeFile]] = {}
    for path in paths:
        split = split_named(*path.relative_to(source).parts[:-1]) or "train"
        units.setdefault(split, []).append(LabelmeFile(path=path, root=source))
    annotated = {path.with_suffix("") for path in paths}
    bare = sum(is_image(path) and path.with_suffix("") not in annotated for path in files)
    if bare:
        ledger.note("image", "images without a .json of their name beside", bare)
    job = {"format": "labelme", "sha256": listing_digest(paths, source)}
    return Plan(units=units, make=make_image, job=job, ledger=ledger)


def make_image(unit: LabelmeFile, ledger: Ledger) -> Record | None:
    """The record of one JSON file."""
    where = f"{unit.id}.json"
    try:
        content = _parse(unit.path)
    except AnnotationError as error:
        ledger.read("image")
        ledger.set_aside("image", f"annotation file {error}", where=where)
        return None
    image = _image(content, unit)
    if image is None:
        ledger.read("image")
        value = shown(content.get("imagePath"))
        ledger.set_aside("image", "no image in it, nor the name of one", where=where, value=value)
        return None
    flags = content.get("flags")
    if isinstance(flags, dict) and any(value is True for value in flags.values()):
        ledger.note("image", "flags of the whole image not read")
    annotated = AnnotatedImage(
        id=unit.id,
        image=image,
        where=where,
        stated_size=(content.get("imageWidth"), content.get("imageHeight")),
        regions=_regions(content["shapes"], where, ledger),
    )
    return make_record(annotated, ledger)


def _parse(path: Path) -> dict[str, Any]:
    data = read_annotation(path, MAX_JSON_BYTES)
    try:
        content = parse_json(data, path.name)
    except UserError as error:
        raise AnnotationError("is not JSON") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise AnnotationError("has no list of shapes")
    return content


def _image(content: dict[str, Any], unit: LabelmeFile) -> ImageFile | None:
    data = content.get("imageData")
    if isinstance(data, str) and data:
        return Base64(text=data, name=unit.path.name)
    return named_image(content.get("imagePath"), unit.path.parent, unit.root)


def _regions(shapes: Sequence[Any], where: str, ledger: Ledger) -> list[RawRegion]:
    """Regions of the shapes that enclose something, in the order of their first shapes."""
    regions: list[RawRegion] = []
    groups: dict[tuple[Any, Any], RawRegion] = {}
    for i, shape in enumerate(shapes):
        label = field(shape, "label")
        kind = field(shape, "shape_type") or "polygon"  # The first versions had nothing else.
        if kind in _OPEN_SHAPES or label == BACKGROUND:
            what = "_background_" if label == BACKGROUND else kind
            ledger.note("shape", f"{what} not read")
            continue
        place = f"shape {i}"
        if not isinstance(shape, dict) or kind not in _SHAPES:
            ledger.read("region")
            why, value = "a shape of no known type", shown(shape)
            ledger.set_aside("region", why, where=f"{where} {place}", value=value)
            continue
        region = _region(shape, kind, place)
        group = as_id(field(shape, "group_id"))
        if group is None or kind == "mask" or not isinstance(label, str):
            regions.append(region)
            continue
        first = groups.setdefault((label, group), region)
        if first is region:
            regions.append(region)
        else:
            first.outline = [*_rings(first), *_rings(region)]
            first.box = None
            ledger.note("shape", "joined with others of its group")
    return regions


def _region(shape: dict[str, Any], kind: str, place: str) -> RawRegion:
    """The region of a rectangle, polygon, circle or mask."""
    label, description = shape.get("label"), shape.get("description")
    labels: list[tuple[Any, LabelKind]] = [(label, "category")]
    if isinstance(description, str) and description.strip():
        labels.append((description, "brief"))
    if label == IGNORED:
        labels = []
    region = RawRegion(place=place, labels=labels, is_crowd=label == IGNORED)
    points = _points(shape.get("points"))
    if points is None:
        region.box = [shown(shape.get("points"))]  # For mending to refuse.
    elif kind == "rectangle":
        xs, ys = zip(*points, strict=True)
        region.box = [min(xs), min(ys), max(xs), max(ys)]
    elif kind == "circle":
        region.outline = [_circle(points)]
    elif kind == "mask":
        region.outline = _mask(shape.get("mask"), points)
    else:
        region.outline = [[v for point in points for v in point]]
    return region


def _points(given: Any) -> list[tuple[float, float]] | None:
    """Points as numbers, at least one; None if they are none."""
    try:
        points = [(float(x), float(y)) for x, y in given]
    except (TypeError, ValueError, OverflowError):
        return None
    is_finite = all(math.isfinite(x) and math.isfinite(y) for x, y in points)
    return points if points and is_finite else None


def _circle(points: Sequence[tuple[float, float]]) -> list[float]:
    """Corners of the circle around the first point, through the second."""
    (x, y), (rim_x, rim_y) = points[0], points[-1]
    radius = math.hypot(rim_x - x, rim_y - y)
    angles = [2 * math.pi * i / CIRCLE_CORNERS for i in range(CIRCLE_CORNERS)]
    return [v for a in angles for v in (x + radius * math.cos(a), y + radius * math.sin(a))]


def _mask(given: Any, points: Sequence[tuple[float, float]]) -> Any:
    """The mask of a PNG in base64; what is none, mending refuses."""
    if not isinstance(given, str):
        return shown(given)
    try:
        image = to_rgb(open_image(base64.b64decode(given, validate=True)))
    except ValueError:  # No base64, or no image.
        return shown(given)
    left, top = (int(max(-1e6, min(v, 1e6))) for v in points[0])  # labelme rounds down, too.
    return Patch(np.array(image.convert("L")) > 0, left, top)


def _rings(region: RawRegion) -> list[Any]:
    if region.outline is not None:
        assert isinstance(region.outline, list)
        return region.outline
    if len(region.box) != 4:
        return [region.box]
    x0, y0, x1, y1 = region.box
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]
