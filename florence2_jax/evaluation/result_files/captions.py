# SPDX-License-Identifier: Apache-2.0
"""COCO captions and caption results; texts of regions in the same shape.

Truth, either: `{"annotations": [{"image_id", "caption"}, ...]}`, several of an image (or, for
regions, "region_id" in place of "image_id"); or `{"ID": ["caption", ...], ...}`, as pycocoevalcap
takes it.

Predictions, either: `[{"image_id", "caption"}]`, one of each image; or `{"ID": ["caption"]}`. Both
may be JSON lines. Every image of the truth needs one, which may be empty: the official code scores
the images that were answered, so that leaving out the hard ones helps.
Source: cocodataset.org/#format-results.
"""

from pathlib import Path

from florence2_jax.evaluation.result_files.entries import (
    Entry,
    by_id,
    entries_of,
    joined,
    read_entries,
)
from florence2_jax.records.importers.json_files import Id, parse_json, read_file
from florence2_jax.typing import UserError

_IDS = ("image_id", "region_id")


def read_captions(truth: Path, predictions: Path) -> list[tuple[str, list[str]]]:
    """The caption and the references of each image.

    Raises:
        UserError: if a file is no such file, or images are missing, unknown or answered twice.
    """
    references: dict[Id, list[str]] = {}
    for entry in _rows(truth):
        # A list stands under "caption" where the file is a mapping.
        references.setdefault(entry.id(*_IDS), []).extend(entry.texts("caption"))
    found = {}
    for id_, entry in by_id(_rows(predictions), *_IDS).items():
        texts = entry.texts("caption")
        if len(texts) != 1:
            entry.refuse(f"has {len(texts)} captions; give one of each image")
        found[id_] = texts[0]
    pairs = joined(references, found, "images", predictions)
    return [(caption, texts) for texts, caption in pairs]


def _rows(path: Path) -> list[Entry]:
    if path.suffix == ".jsonl":
        return read_entries(path)
    content = parse_json(read_file(path), str(path))
    if isinstance(content, list):
        return [Entry(f"{path}: entry {i}", row) for i, row in enumerate(content)]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no captions; is it the right file?")
    if "annotations" in content:
        return entries_of(content, "annotations", path)
    return [
        Entry(f"{path}: key {key!r}", {"image_id": key, "caption": value})
        for key, value in content.items()
    ]
