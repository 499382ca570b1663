# SPDX-License-Identifier: Apache-2.0
"""The labels of `data_engine.py` and what its models say, against the truth."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from florence2_jax.engine import audit
from florence2_jax.engine.claims import boxes_of
from florence2_jax.engine.filter import FilterConfig, filter_record
from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import Record, Region
from florence2_jax.records.store import RecordStore

UNSEEN = "star"  # The class that no specialist sees.
SAME, NOTHING = 0.5, 0.3  # IoU with an object that a box finds, and with all where nothing is.

MEASURES = {
    "precision": "precision",
    "recall": "recall",
    "missed_recall": "recall of missed",
    "imagined_per_100": "imagined /100",
    "unseen_recall": f"recall of {UNSEEN}",
    "model_precision": "model precision",
    "model_recall": "model recall",
    "model_missed_recall": "model recall of missed",
    "model_imagined_per_100": "model imagined /100",
    "model_unseen_recall": f"model recall of {UNSEEN}",
}
_ONCE = FilterConfig.create(
    {"filters": ("regions",), "regions": {"min_score": 0.0, "nms_iou": 0.5}}
)
"""Boxes that are said twice, whatever their scores; the same for the models of all variants."""


def measure(truth: Path, workdir: Path, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each round the labels against the truth, and the model that learnt from them."""
    true = {record.id: record for record in RecordStore(truth, "train")}
    annotated = RecordStore(workdir / "round-0" / "annotated", "train")
    loose = [record for record in annotated if not _is_human(record)]
    missed = {record.id: _missed(true[record.id], record) for record in loose}
    judged = {one["round"]: one.get("guard", {}).get("reasons", []) for one in report["rounds"]}
    frozen = {
        record.id: _missed(true[record.id], record)
        for record in RecordStore(workdir / "round-0" / "audited", audit.SPLIT)
    }
    measured = []
    for number in sorted(judged):
        row: dict[str, Any] = {"round": number}
        labels: list[Record] = []
        store = workdir / f"round-{number}" / "filtered"
        is_last = bool(report["stopped"]) and number == max(judged)  # Its labels are the copy's.
        if store.is_dir() and not is_last:
            labels = [record.kept() for record in RecordStore(store, "train")]
            row |= measure_labels(true, [r for r in labels if r.id in missed], missed)
        if number + 1 in judged:  # Trained on these labels.
            place = workdir / f"round-{number + 1}"
            said = RecordStore(place / "audited", audit.SPLIT)
            once = [filter_record(record, _ONCE).kept() for record in said]
            by_model = measure_labels(true, once, frozen)
            row |= {f"model_{name}": value for name, value in by_model.items()}
            row["guard_of_model"] = judged[number + 1]
            if (predicted := place / "predicted").is_dir():
                row["echo"] = echo(true, labels, RecordStore(predicted, "train"))
        if len(row) > 1:
            measured.append(row)
    return measured


def echo(
    true: Mapping[str, Record], labels: Sequence[Record], predicted: Sequence[Record]
) -> float | None:
    """The share of boxes where there is nothing that a model repeats, having learnt from them."""
    said = {record.id: record for record in predicted}
    counts: Counter[str] = Counter()
    for record in labels:
        found, again = _objects(record), _objects(said[record.id])
        nothing = _overlaps(_objects(true[record.id]), found).max(axis=0, initial=0) < NOTHING
        overlaps = _overlaps(found, again)
        for j in np.flatnonzero(nothing):
            counts["imagined"] += 1
            counts["repeated"] += bool(_same(found[j], again, overlaps[j]))
    return _ratio(counts["repeated"], counts["imagined"])


def measure_labels(
    true: Mapping[str, Record], labels: Sequence[Record], missed: Mapping[str, set[int]]
) -> dict[str, Any]:
    """The measures of the module's first lines; `missed` are objects that no specialist named."""
    judged = audit.judge_round([true[record.id] for record in labels], labels)
    counts: Counter[str] = Counter()
    for record in labels:
        objects, found = _objects(true[record.id]), _objects(record)
        overlaps = _overlaps(objects, found)
        for i, thing in enumerate(objects):
            if i not in missed[record.id] or thing.label("category") == UNSEEN:
                continue
            counts["missed"] += 1
            counts["missed found"] += bool(_same(thing, found, overlaps[i]))
        for j in range(len(found)):
            counts["imagined"] += bool(overlaps[:, j].max(initial=0) < NOTHING)
    boxes = judged.kinds.get("boxes", audit.Counts())
    unseen = judged.classes.get(UNSEEN, audit.Counts())
    return {
        "precision": boxes.precision,
        "recall": boxes.recall,
        "missed_recall": _ratio(counts["missed found"], counts["missed"]),
        "imagined_per_100": 100 * counts["imagined"] / len(labels),
        "unseen_recall": unseen.recall,
        "unseen_precision": unseen.precision,
        "num_images": len(labels),
        "num_missed": counts["missed"],
    }


def _is_human(record: Record) -> bool:
    return any(region.provenance.kind == "human" for region in record.regions)


def _missed(true: Record, said: Record) -> set[int]:
    objects, found = _objects(true), _objects(said)
    overlaps = _overlaps(objects, found)
    return {i for i, thing in enumerate(objects) if not _same(thing, found, overlaps[i])}


def _objects(record: Record) -> list[Region]:
    return [region for region in record.regions if region.label("category")]


def _overlaps(objects: Sequence[Region], found: Sequence[Region]) -> np.ndarray:
    return box_iou(boxes_of(objects), boxes_of(found))


def _same(thing: Region, found: Sequence[Region], overlaps: np.ndarray) -> list[int]:
    name = thing.label("category")
    return [j for j, r in enumerate(found) if r.label("category") == name and overlaps[j] >= SAME]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
