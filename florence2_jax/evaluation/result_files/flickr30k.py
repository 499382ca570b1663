# SPDX-License-Identifier: Apache-2.0
"""Flickr30k Entities: boxes for the phrases of a sentence, as MDETR writes them.

Truth: the folder with `Sentences/ID.txt`, `Annotations/ID.xml` and the lists `train.txt`,
`val.txt`, `test.txt`, of which the split names one; without lists every sentence counts.

Predictions: JSON or JSON lines of `{"image_id", "sentence_id", "boxes": [[[x0, y0, x1, y1], ...],
...]}`: sentences are numbered from 0, and "boxes" has a list, best first, for each phrase that the
annotations have a box for, in order of the sentence. A phrase may have an empty list: a miss. Every
sentence with such a phrase needs an entry, as in the official code; boxes are those of the files,
which count pixels from 1, and nothing is taken off, as there.
Source: github.com/BryanPlummer/flickr30k_entities, MDETR's evaluator (arXiv:2104.12763).
"""

from pathlib import Path

from florence2_jax.evaluation.grounding import Boxes
from florence2_jax.evaluation.result_files.entries import (
    Entry,
    check_complete,
    check_known,
    corner_boxes,
    read_entries,
)
from florence2_jax.records.importers.flickr30k import read_sentence
from florence2_jax.records.importers.json_files import Id, read_file, shown
from florence2_jax.records.importers.places import AnnotationError
from florence2_jax.records.importers.xml_files import read_xml
from florence2_jax.typing import Box, UserError

_MAX_BYTES = 2**24
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_phrases(
    truth: Path, predictions: Path, split: str = ""
) -> tuple[list[tuple[Boxes, Boxes]], int]:
    """The boxes found and the true ones of every phrase, and the number of sentences.

    Raises:
        UserError: if a file is no such file, sentences are missing, unknown or there twice, or have
            another number of phrases.
    """
    true = _truth(truth, split)
    found: dict[tuple[Id, Id], list[list[Box]]] = {}
    for entry in read_entries(predictions):
        key = entry.id("image_id"), entry.id("sentence_id")
        if key in found:
            entry.refuse(f"sentence {key[1]} of image {key[0]} again; keep one of them")
        found[key] = _boxes(entry)
        if key in true and len(found[key]) != len(true[key]):
            wanted = len(true[key])
            entry.refuse(f"{len(found[key])} lists of boxes for {wanted} phrases; give one of each")
    # A sentence without a phrase to find may be answered by nothing.
    check_known([key for key, boxes in found.items() if boxes], true, "sentences", predictions)
    check_complete(found, true, "sentences", predictions)
    pairs = [
        (corner_boxes(boxes), corner_boxes(own))
        for key, phrases in true.items()
        for boxes, own in zip(found[key], phrases, strict=True)
    ]
    return pairs, len(true)


def _boxes(entry: Entry) -> list[list[Box]]:
    value = entry.get("boxes")
    if not (isinstance(value, list) and all(isinstance(boxes, list) for boxes in value)):
        entry.refuse(f"boxes is no list of lists ({shown(value)}); give a list for each phrase")
    return [[entry.corners("a box", box) for box in boxes] for boxes in value]


def _truth(folder: Path, split: str) -> dict[tuple[Id, Id], list[list[Box]]]:
    sentences = sorted((folder / "Sentences").glob("*.txt"))
    if not sentences:
        raise UserError(f"{folder}: no Sentences/*.txt in it; is it Flickr30k Entities?")
    names = {path.stem: path for path in sentences}
    lists = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    lists = {name: path for name, path in lists.items() if name in ("train", "val", "test")}
    if split or lists:
        if split not in lists:
            raise UserError(f"{folder}: no list {split!r}; --split is one of {', '.join(lists)}")
        listed = read_file(lists[split], _MAX_BYTES).decode("utf-8", "replace").split()
        check_known(listed, names, "images without sentences", lists[split])
        names = {name: names[name] for name in listed}
    truth = {}
    for name, path in names.items():
        image = Entry(str(path), {"image_id": name}).id("image_id")
        boxes = _annotated(folder / "Annotations" / f"{name}.xml")
        lines = read_file(path, _MAX_BYTES).decode("utf-8", "replace").split("\n")
        for number, line in enumerate(line for line in lines if line.strip()):
            sentence = read_sentence(line.strip())
            if sentence is None:
                raise UserError(f"{path}: line {number + 1}: damaged markup; fetch it again")
            phrases = [boxes[entity] for _, _, entity in sentence[1] if entity in boxes]
            if phrases:
                truth[image, number] = phrases
    return truth


def _annotated(path: Path) -> dict[str, list[Box]]:
    """The boxes of each number that has some."""
    boxes: dict[str, list[Box]] = {}
    try:
        root = read_xml(path)
    except AnnotationError as error:
        raise UserError(f"{path}: {error}; fetch it again") from error
    for i, element in enumerate(root.findall("object")):
        for box in element.findall("bndbox"):
            entry = Entry(f"{path}: object {i}", None)
            try:
                values = [float(box.findtext(corner) or "") for corner in _CORNERS]
            except ValueError:
                entry.refuse("has no box of four numbers; fetch it again")
            corners = entry.corners("bndbox", values)
            for name in element.findall("name"):
                boxes.setdefault((name.text or "").strip(), []).append(corners)
    return boxes
