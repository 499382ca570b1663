# SPDX-License-Identifier: Apache-2.0
"""Folders of one file per image, as Pascal VOC results are kept by people who train on their own.

Truth: `NAME.txt` with rows `class x y width height`, or Pascal VOC's `NAME.xml`. Predictions:
`NAME.txt` with rows `class score x y width height`. Pixels, blanks between fields; a class has no
blanks in it, except in XML. The box ends at `x + width`, a pixel that belongs to it. An image
without a file of predictions is empty; one that the truth lacks is refused, as is a class.
Source: github.com/rafaelpadilla/review_object_detection_metrics ("class name, absolute, xywh"),
host.robots.ox.ac.uk/pascal/VOC.
"""

from collections import defaultdict
from pathlib import Path

from florence2_jax.evaluation.result_files.entries import (
    Entry,
    check_known,
    check_names,
    empty_note,
)
from florence2_jax.evaluation.voc import VocBox
from florence2_jax.records.importers.json_files import read_file
from florence2_jax.records.importers.places import AnnotationError
from florence2_jax.records.importers.xml_files import read_xml
from florence2_jax.typing import UserError

_MAX_BYTES = 2**26
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    truth: Path, predictions: Path
) -> tuple[dict[str, tuple[list[VocBox], list[VocBox]]], int, tuple[str, ...]]:
    """Boxes found and true ones by class, the number of images, and notes.

    Raises:
        UserError: if a folder or row is not as above, or images or classes are unknown.
    """
    true: dict[str, list[VocBox]] = defaultdict(list)
    images = _files(truth, (".txt", ".xml"))
    for name, path in images.items():
        for label, box in (_xml_boxes if path.suffix == ".xml" else _truth_boxes)(name, path):
            true[label].append(box)
    found: dict[str, list[VocBox]] = defaultdict(list)
    labels: dict[str, str] = {}
    shown = _files(predictions, (".txt",))
    check_known(shown, images, "images", predictions)
    for name, path in shown.items():
        for entry, (label, *fields) in _rows(path, 6):
            score, *box = fields
            labels.setdefault(label, entry.where)
            found[label].append(_box(entry, name, box, score))
    check_names(labels, true, predictions, "class")
    pairs = {label: (found[label], true[label]) for label in sorted(true)}
    return pairs, len(images), empty_note(shown, images, "images")


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of one file per image")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes:
            if path.stem in files:
                raise UserError(f"{path}: image {path.stem!r} again; keep one file of each image")
            files[path.stem] = path
    if not files:
        raise UserError(f"{folder}: no {' or '.join(suffixes)} file in it; is it the right folder?")
    return files


def _rows(path: Path, length: int):
    text = read_file(path, _MAX_BYTES).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if fields := line.split():
            entry = Entry(f"{path}: line {number}", None)
            if len(fields) != length:
                wanted = "class x y width height" if length == 5 else "class score x y width height"
                entry.refuse(f"{len(fields)} fields, not {length} ({wanted}); mend the row")
            yield entry, fields


def _truth_boxes(name: str, path: Path):
    for entry, (label, *box) in _rows(path, 5):
        yield label, _box(entry, name, box)


def _box(entry: Entry, image: str, fields: list[str], score: str = "1") -> VocBox:
    try:
        value, x, y, width, height = (float(field) for field in (score, *fields))
    except ValueError:
        entry.refuse(f"holds what is no number ({' '.join((score, *fields))[:60]}); mend the row")
    value, x, y, width, height = entry.numbers("score and box", [value, x, y, width, height])
    if width < 0 or height < 0:
        entry.refuse("a side is negative; rows end in x y width height")
    return VocBox(image_id=image, box=(x, y, x + width, y + height), score=value)


def _xml_boxes(name: str, path: Path):
    try:
        root = read_xml(path)
    except AnnotationError as error:
        raise UserError(f"{path}: {error}; fetch or export it again") from error
    for number, element in enumerate(root.iter("object"), 1):
        entry = Entry(f"{path}: object {number}", None)
        label = (element.findtext("name") or "").strip()
        try:
            values = [float(element.findtext(f"bndbox/{corner}") or "") for corner in _CORNERS]
        except ValueError:
            entry.refuse("has no box of four numbers; mend it")
        box = entry.corners("bndbox", values)
        is_difficult = (element.findtext("difficult") or "").strip() == "1"
        yield label, VocBox(image_id=name, box=box, is_difficult=is_difficult)
