# SPDX-License-Identifier: Apache-2.0
"""Dense captions: Visual Genome's regions, and results in COCO's manner.

Truth: `region_descriptions.json`, `[{"id", "regions": [{"phrase", "x", "y", "width", "height"}]}]`,
cut to the split that is scored. Predictions: `[{"image_id", "bbox": [x, y, w, h], "caption",
"score"}]`, JSON or JSON lines. An image without predictions is empty; one that the truth lacks is
refused. The score orders the regions: without one, average precision says little.
Source: homes.cs.washington.edu/~ranjay/visualgenome.
"""

from pathlib import Path

from florence2_jax.evaluation.dense_captions import DenseCaptions
from florence2_jax.evaluation.result_files.entries import (
    Entry,
    by_id,
    check_known,
    corner_boxes,
    empty_note,
    read_entries,
)
from florence2_jax.records.importers.json_files import Id


def read_dense_captions(
    truth: Path, predictions: Path
) -> tuple[dict[str, DenseCaptions], dict[str, DenseCaptions], tuple[str, ...]]:
    """Regions found and true ones by image, and notes.

    Raises:
        UserError: if a file is no such file, or images are unknown or there twice.
    """
    true = {str(id_): _truth(e) for id_, e in by_id(read_entries(truth), "id", "image_id").items()}
    rows: dict[Id, list[Entry]] = {}
    for entry in read_entries(predictions):
        rows.setdefault(entry.id("image_id"), []).append(entry)
    found = {
        str(id_): DenseCaptions(
            boxes=corner_boxes([entry.xywh() for entry in some]),
            texts=[entry.text("caption") for entry in some],
            scores=[entry.number("score") for entry in some],
        )
        for id_, some in rows.items()
    }
    check_known(found, true, "images", predictions)
    return found, true, empty_note(found, true, "images")


def _truth(entry: Entry) -> DenseCaptions:
    regions = entry.get("regions")
    if not isinstance(regions, list):
        entry.refuse("no list 'regions' in it; is it Visual Genome's region_descriptions.json?")
    boxes, texts = [], []
    for i, row in enumerate(regions):
        region = Entry(f"{entry.where} region {i}", row)
        sides = [region.get(key) for key in ("x", "y", "width", "height")]
        boxes.append(Entry(region.where, {"bbox": sides}).xywh())
        texts.append(region.text("phrase"))
    return DenseCaptions(boxes=corner_boxes(boxes), texts=texts)
