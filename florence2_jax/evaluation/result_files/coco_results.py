# SPDX-License-Identifier: Apache-2.0
"""COCO instances and COCO results: boxes, masks and proposals.

Truth: `{"images": [{"id", "width", "height"}], "categories": [{"id", "name"}], "annotations":
[{"image_id", "category_id", "bbox": [x, y, w, h], "area", "iscrowd", "segmentation"}]}`. Without
"area" the box's is taken, without "iscrowd" it is 0.

Predictions: `[{"image_id", "category_id", "bbox" or "segmentation", "score"}]`; in place of
"category_id" there may be "category", a name of the truth's categories, letter by letter. An image
without predictions is empty, as in the official code; one that the truth does not have is refused,
as is a category that it does not have, which the official code would drop.
Source: cocodataset.org/#format-data, #format-results.
"""

from pathlib import Path
from typing import Any, Literal

from florence2_jax.evaluation.result_files.entries import (
    Entry,
    by_id,
    check_known,
    check_names,
    empty_note,
    entries_of,
    read_entries,
)
from florence2_jax.evaluation.result_files.run_lengths import read_mask
from florence2_jax.records.importers.json_files import Id, parse_json, read_file, shown
from florence2_jax.typing import Size, UserError


def read_coco(
    truth: Path,
    predictions: Path,
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
    with_categories: bool = True,
) -> tuple[dict[str, Any], list[dict[str, Any]], int, tuple[str, ...]]:
    """Truth and detections for `coco_scores`, the number of images, and notes.

    Args:
        with_categories: False for proposals, whose categories are not looked at.

    Raises:
        UserError: on anything of the above that is not so.
    """
    content = parse_json(read_file(truth), str(truth))
    images = by_id(entries_of(content, "images", truth), "id")
    sizes = {id_: _size(entry) if iou_type == "segm" else (0, 0) for id_, entry in images.items()}
    names = {
        id_: entry.text("name")
        for id_, entry in by_id(entries_of(content, "categories", truth), "id").items()
    }
    annotations = []
    for number, entry in enumerate(entries_of(content, "annotations", truth), 1):
        one = _placed(entry, iou_type, sizes)
        category = entry.id("category_id")
        if category not in names:
            entry.refuse(f"category_id {shown(category)} is not in 'categories'; add it there")
        x0, y0, x1, y1 = entry.xywh()
        area = (x1 - x0) * (y1 - y0) if entry.get("area") is None else entry.number("area")
        one |= {"id": number, "category_id": category, "area": area}
        annotations.append(one | {"iscrowd": int(entry.get("iscrowd") in (1, True))})
    found = read_entries(predictions)
    detections = [
        _placed(entry, iou_type, sizes) | {"score": entry.number("score")} for entry in found
    ]
    if with_categories:
        categories = _categories(found, names, predictions)
    else:
        categories = [next(iter(names), 1)] * len(found)
    for one, category in zip(detections, categories, strict=True):
        one["category_id"] = category
    dataset = {
        "images": [{"id": id_, "width": w, "height": h} for id_, (w, h) in sizes.items()],
        "categories": [{"id": id_, "name": name} for id_, name in names.items()],
        "annotations": annotations,
    }
    shown_images = {one["image_id"] for one in detections}
    return dataset, detections, len(images), empty_note(shown_images, images, "images")


def _placed(entry: Entry, iou_type: str, sizes: dict[Id, Size]) -> dict[str, Any]:
    """The image and the box or mask of a row, checked."""
    image = entry.id("image_id")
    if image not in sizes:
        entry.refuse(f"image_id {shown(image)} is not among the truth's images; give its split")
    if iou_type == "segm":
        mask = read_mask(entry, sizes[image])
        return {"image_id": image, "segmentation": mask}
    entry.xywh()  # Checks it. Kept as written: corners and back again would round.
    return {"image_id": image, "bbox": entry.numbers("bbox", entry.get("bbox"), 4)}


def _categories(found: list[Entry], names: dict[Id, str], path: Path) -> list[Id]:
    by_name = {name: id_ for id_, name in names.items()}
    if len(by_name) < len(names) and any(entry.get("category") is not None for entry in found):
        raise UserError(f"{path}: the truth has two categories of one name; use category_id")
    ids, labels = [], {}
    for entry in found:
        if entry.get("category_id") is None and entry.get("category") is not None:
            label = entry.text("category")
            labels.setdefault(label, entry.where)
            ids.append(by_name.get(label))
        else:
            ids.append(entry.id("category_id"))
    check_names(labels, by_name, path)
    check_known(ids, names, "category ids", path)
    return ids


def _size(entry: Entry) -> Size:
    width, height = entry.number("width"), entry.number("height")
    if not (width.is_integer() and height.is_integer() and min(width, height) > 0):
        entry.refuse(f"width and height are no pixels ({width}, {height}); mend them")
    return int(width), int(height)
