# SPDX-License-Identifier: Apache-2.0
"""Boxes that several makers drew of one thing become one: their average, weighted by score.

Those that went into it stay, marked. Boxes that a person drew are left as they are.

Source: the idea of weighted boxes fusion (Solovyev, Wang, Gabruseva; arXiv:1910.13302). There, the
score shrinks where some makers are silent; here it is the mean, for a maker may not know the class.
"""

import dataclasses

import numpy as np

from florence2_jax.engine.claims import name_of
from florence2_jax.engine.filters.marking import MERGED, Drop, is_human, maker_of, marked, score_of
from florence2_jax.engine.filters.regions import RegionConfig, boxes_of, class_of, objects_of
from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import Label, Provenance, Record, Region

_UNSCORED = 0.5  # The weight of a box without a score.


def merge_boxes(record: Record, config: RegionConfig) -> Record:
    """The record with merged boxes behind its own, and their parts marked."""
    if not config.merge_iou:
        return record
    merged, drops = [], []
    for members in _clusters(record, config.merge_iou):
        makers = {maker_of(record.regions[i].provenance) for i in members}
        if len(makers) < 2:
            continue
        merged.append(_merge([record.regions[i] for i in members]))
        reason = f"merged into one box: of {', '.join(sorted(makers))}"
        drops += [Drop("region", (i,), reason) for i in members]
    record = marked(record, drops)
    return dataclasses.replace(record, regions=(*record.regions, *merged))


def _clusters(record: Record, least: float) -> list[list[int]]:
    """Boxes of one class that overlap the average of those before, one of each maker at most."""
    live = [i for i in objects_of(record) if not is_human(record.regions[i])]
    clusters: list[list[int]] = []
    for i in sorted(live, key=lambda i: -_weight(record.regions[i])):
        region, best, best_iou = record.regions[i], None, least
        for members in clusters:
            others = [record.regions[k] for k in members]
            if class_of(others[0]) != class_of(region) or any(
                maker_of(other.provenance) == maker_of(region.provenance) for other in others
            ):
                continue
            iou = float(box_iou(np.array([_average(others)]), boxes_of([region]))[0, 0])
            if iou >= best_iou:
                best, best_iou = members, iou
        if best is None:
            clusters.append([i])
        else:
            best.append(i)
    return clusters


def _merge(parts: list[Region]) -> Region:
    """Box and score are averages; the mask is that of the surest part, labels are of all.

    The name is what all of them say, so it has no maker of its own.
    """
    labels: dict[tuple[str, str], Label] = {}
    kind, _ = name_of(parts[0])
    for part in parts:
        for label in part.labels:
            maker = label.provenance or dataclasses.replace(part.provenance, dropped="")
            signed = dataclasses.replace(label, provenance=None if label.kind == kind else maker)
            labels.setdefault((label.kind, label.text), signed)
    first = next((part for part in parts if part.polygons), parts[0])
    scores = [score for part in parts if (score := score_of(part)) is not None]
    return Region(
        box=_average(parts),
        labels=tuple(labels.values()),
        polygons=first.polygons,
        mask_provenance=(first.mask_provenance or first.provenance) if first.polygons else None,
        provenance=Provenance(
            kind="specialist",
            name=MERGED,
            round=max(part.provenance.round for part in parts),
            score=float(np.mean(scores)) if scores else None,
        ),
    )


def _average(parts: list[Region]) -> tuple[float, float, float, float]:
    weights = [max(_weight(part), 1e-6) for part in parts]
    x0, y0, x1, y1 = np.average(boxes_of(parts), axis=0, weights=weights).tolist()
    return x0, y0, x1, y1


def _weight(region: Region) -> float:
    score = score_of(region)
    return _UNSCORED if score is None else score
