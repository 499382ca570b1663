# SPDX-License-Identifier: Apache-2.0
"""Rows of the JSON that COCO, LVIS and Objects365 share: images, categories, annotations.

An image id or a file name stands for one image; a row that says otherwise is set aside, as is one
that repeats another word by word. Two rows that share an annotation id and differ are both kept. A
category id that is given two names has none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from florence2_jax.records.importers.annotated import AnnotatedImage, Outline, RawRegion, corners
from florence2_jax.records.importers.json_files import (
    Id,
    as_id,
    collector_paused,
    field,
    is_set,
    shown,
)
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import LabelKind

Unit = TypeVar("Unit", bound=AnnotatedImage)

Labels: TypeAlias = dict[Id, tuple[tuple[str | None, LabelKind], ...]]
"""Of each category id the labels of a `RawRegion`."""

A_COCO_FILE = "a COCO annotation file"


def add_images(
    entries: Iterable[Any],
    as_unit: Callable[[dict[str, Any]], Unit | None],
    units: dict[Id, Unit],
    ledger: Ledger,
    file: str,
) -> None:
    """Adds the images of one file; one that another file listed too is the same image.

    Args:
        as_unit: the unit of a row; None if the row has no file name that is safe.
        units: the images of all files so far, by their ids.
    """
    known = {unit.id: key for key, unit in units.items()}
    here: set[Id] = set()
    for entry in entries:
        key = as_id(field(entry, "id"))
        unit = as_unit(entry) if key is not None and isinstance(entry, dict) else None
        if key is None or unit is None:
            why = "no id, or no file name within the image folder"
        elif key in here:
            why = "image id listed twice"
        elif known.get(unit.id, key) != key:
            why = "file listed with two image ids"
        elif key in units and units[key].id != unit.id:
            why = "image id of two files"
        else:
            here.add(key)
            known[unit.id] = key
            units.setdefault(key, unit)
            continue
        ledger.read("image")
        ledger.set_aside("image", why, where=file, value=shown(entry))


def stated_size(entry: Mapping[str, Any]) -> tuple[Any, Any]:
    """`(width, height)` of an image as its row gives them."""
    return entry.get("width"), entry.get("height")


def category_labels(
    content: Any, ledger: Ledger, readable: Callable[[str], str] = lambda name: name
) -> Labels:
    """Labels by category id; `readable` makes words of a name as the file writes it."""
    listed = field(content, "categories")
    labels: Labels = {}
    for row in listed if isinstance(listed, list) else ():
        key, name = as_id(field(row, "id")), field(row, "name")
        if key is None:
            continue
        text = readable(name) if isinstance(name, str) else None
        if key in labels and labels[key][0][0] != text:
            ledger.note("category", "ids with two names, taken for nameless")
            text = None
        labels[key] = ((text, "category"),)
    return labels


def by_image(
    annotations: Iterable[Any], units: Mapping[Id, Unit], ledger: Ledger, file: str, kind: str
) -> Iterable[tuple[Unit, dict[str, Any]]]:
    """Yields the image of each annotation with its row; settles the rows that have none."""
    seen: dict[Id, dict[str, Any]] = {}
    for row in annotations:
        image_id = as_id(field(row, "image_id"))
        if image_id is None or image_id not in units:
            ledger.read(kind)
            ledger.set_aside(kind, "its image is not listed", where=file, value=shown(row))
            continue
        key = as_id(row.get("id"))
        if key is not None and (first := seen.setdefault(key, row)) is not row:
            if first == row:
                ledger.read(kind)
                ledger.set_aside(kind, "listed twice", where=file, value=shown(row))
                continue
            ledger.note(kind, "annotation ids given twice")
        yield units[image_id], row


def add_regions(
    annotations: Iterable[Any],
    labels: Labels,
    units: Mapping[Id, Unit],
    ledger: Ledger,
    file: str,
    flags: Mapping[str, str] = {},
) -> None:
    """Adds boxes with their outlines; `flags` are fields to note where they are 1, as what."""
    with collector_paused():
        for unit, row in by_image(annotations, units, ledger, file, "region"):
            unit.regions.append(
                RawRegion(
                    place=place("instance", row),
                    box=corners(row.get("bbox")),
                    labels=labels_of(row, labels),
                    outline=_outline(row.get("segmentation")),
                    is_crowd=is_set(row.get("iscrowd")),
                )
            )
            for name, what in flags.items():
                if is_set(row.get(name)):
                    ledger.note("region", what)


def place(what: str, row: Mapping[str, Any]) -> str:
    """Where an annotation stands, for the books."""
    id_ = row.get("id")
    return f"{what} {id_ if isinstance(id_, int) else shown(id_)}"


def labels_of(row: Mapping[str, Any], labels: Labels) -> Sequence[tuple[Any, LabelKind]]:
    """The labels of a row's category; where it has no name, one that mending sets aside."""
    key = as_id(row.get("category_id"))
    if key is None or key not in labels:
        return (({"category_id": row.get("category_id")}, "category"),)
    return labels[key]


def _outline(given: Any) -> Outline:
    if isinstance(given, list) and given and not any(isinstance(ring, list) for ring in given):
        return [given]  # A single ring without the list around it.
    return given if given is None or isinstance(given, list | dict) else [given]
