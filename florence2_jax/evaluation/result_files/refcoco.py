# SPDX-License-Identifier: Apache-2.0
"""Referring expressions: a box or a mask for each sentence about a COCO photo.

Truth, either: `refs(BY).p` as it is published, with `instances.json` beside it and a split (val,
testA, testB, test, train); or JSON or JSON lines of `{"sent_id", "bbox": [x, y, w, h]}`, for masks
`{"sent_id", "width", "height", "segmentation"}`.

Predictions: JSON or JSON lines of `{"sent_id", "bbox"}` or `{"sent_id", "segmentation"}` (polygons
or a COCO run-length code), null where the model gave none: a miss. "id" may stand for "sent_id".
Every sentence needs a prediction. Nobody published a format for these; this is the COCO results
format with a sentence in place of an image.
Source: github.com/lichengunc/refer for the truth.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2_jax.evaluation.result_files.entries import (
    Entry,
    by_id,
    corner_boxes,
    entries_of,
    joined,
    read_entries,
)
from florence2_jax.evaluation.result_files.run_lengths import read_mask
from florence2_jax.evaluation.segmentation import mask_overlap, rasterize
from florence2_jax.geometry import box_iou
from florence2_jax.records.importers.json_files import field, parse_json, read_file, shown
from florence2_jax.records.importers.safe_pickle import read_pickle
from florence2_jax.typing import Size, UserError

_IDS = ("sent_id", "id")


def read_referring_ious(truth: Path, predictions: Path, split: str = "") -> list[float]:
    """The IoU of the box of every sentence with the true one; 0 where there is no box.

    Raises:
        UserError: if a file is no such file, or sentences are missing, unknown or there twice.
    """
    ious = []
    for entry, answer in _pairs(truth, predictions, split, "bbox"):
        true = corner_boxes([entry.xywh()])
        found = [] if answer.get("bbox") is None else [answer.xywh()]
        ious.append(float(box_iou(corner_boxes(found), true).max(initial=0.0)))
    return ious


def read_mask_areas(truth: Path, predictions: Path, split: str = "") -> list[tuple[float, float]]:
    """Pixels in both masks of every sentence, and in either.

    Raises:
        UserError: as above, or if a mask is not of its image's size.
    """
    areas = []
    for entry, answer in _pairs(truth, predictions, split, "segmentation"):
        size = _size(entry)
        is_silent = answer.get("segmentation") in (None, [])
        found = rasterize([], size) if is_silent else read_mask(answer, size)
        areas.append(mask_overlap(found, read_mask(entry, size)))
    return areas


def _pairs(truth: Path, predictions: Path, split: str, key: str) -> list[tuple[Entry, Entry]]:
    true = _published(truth, split) if truth.suffix == ".p" else read_entries(truth)
    found = by_id(read_entries(predictions), *_IDS)
    for entry in found.values():
        if not (isinstance(entry.row, dict) and key in entry.row):
            entry.refuse(f"no {key} in it; write null where the model gave none")
    return joined(by_id(true, *_IDS), found, "sentences", predictions)


def _size(entry: Entry) -> Size:
    width, height = entry.number("width"), entry.number("height")
    if min(width, height) < 1 or not (width.is_integer() and height.is_integer()):
        entry.refuse(f"width and height are no pixels ({width}, {height}); mend them")
    return int(width), int(height)


def _published(path: Path, split: str) -> list[Entry]:
    """The sentences of a split, each with the box, mask and image size of what it speaks of."""
    refs = read_pickle(path)
    if not isinstance(refs, list):
        raise UserError(f"{path}: no list in it; is it a file of RefCOCO?")
    splits = sorted({str(field(ref, "split")) for ref in refs})
    if split not in splits:
        why = f"no split {split!r} in it" if split else "which split?"
        raise UserError(f"{path}: {why}; give --split, one of {', '.join(splits)}")
    place = path.with_name("instances.json")
    content = parse_json(read_file(place), str(place))
    things = by_id(entries_of(content, "annotations", place), "id")
    images = by_id(entries_of(content, "images", place), "id")
    chosen = [ref for ref in refs if field(ref, "split") == split]
    return [entry for ref in chosen for entry in _sentences(ref, things, images, path)]


def _sentences(ref: Any, things: dict, images: dict, path: Path) -> Iterator[Entry]:
    own = Entry(f"{path}: ref {shown(field(ref, 'ref_id'))}", ref)
    thing, image = things.get(own.id("ann_id")), images.get(own.id("image_id"))
    sentences = own.get("sentences")
    if thing is None or image is None or not isinstance(sentences, list):
        own.refuse("its object, image or sentences are missing; fetch instances.json again")
    row = {key: thing.get(key) for key in ("bbox", "segmentation")}
    row |= {key: image.get(key) for key in ("width", "height")}
    for sentence in sentences:
        yield Entry(own.where, row | {"sent_id": field(sentence, "sent_id")})
