# SPDX-License-Identifier: Apache-2.0
"""The regions of a record and those a model predicts, merged into one list.

What regions claim (`claims.py`) is held against each other. Per image:

1.  A region is found if a prediction of the same name overlaps it enough; the boxes that several
    specialists drew around one thing may all be found by one prediction. A prediction that finds
    none enters as a region of this round if it is sure enough and no region of its name is near,
    which it may be a poorer box of; else it is left out.
2.  What was found gains score, what was missed loses it (`evidence.py`). Humans' regions neither.
3.  Where the model names a place differently from a region that it missed, the two contradict each
    other. The higher score stays, the other is marked; against a human the model always loses.
    Both stay in the record.

A found region also takes over what it lacks: labels of other kinds, and outlines.
"""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from florence2_jax.engine.claims import alike, boxes_of, claim, name_of, with_claim
from florence2_jax.engine.evidence import Evidence, is_set_aside
from florence2_jax.engine.specialists.base import Kind
from florence2_jax.geometry import box_iou
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Label, LabelKind, Region

_ASKED_BY: dict[LabelKind | None, Kind] = {"text": "text_regions"}
"""Which kind of specialist finds regions named so; all others are found by `boxes`."""


def merge_regions(
    regions: Sequence[Region],
    predicted: Sequence[Region],
    evidence: Evidence,
    *,
    asked: Collection[Kind],
    ledger: Ledger,
) -> tuple[Region, ...]:
    """One list of regions, the old ones first and in their order; see above.

    Args:
        asked: the kinds that the model was asked for; regions of others lose nothing.
        ledger: is told how often what happened.
    """
    merged = list(regions)
    by_model = [region for region in predicted if not region.is_crowd]
    overlaps = alike(regions, by_model, evidence.config.new_iou)
    found = np.flatnonzero((overlaps >= evidence.config.iou).any(axis=1)).tolist()
    for i in found:
        merged[i] = _found(merged[i], by_model[int(overlaps[i].argmax())], evidence, ledger)
    others = [
        (region, nearest)
        for region, nearest in zip(by_model, overlaps.max(axis=0, initial=0), strict=True)
        if nearest < evidence.config.iou and claim(region).kind != "human"
    ]
    new = [region for region, nearest in others if not nearest]
    ledger.note("region", "predicted beside one of its name", len(others) - len(new))
    sure = [r for r in new if evidence.score(claim(r)) >= evidence.config.add_score]
    ledger.note("region", "predicted, but not sure enough to enter", len(new) - len(sure))
    missed = [i for i in range(len(regions)) if i not in found and _is_asked(regions[i], asked)]
    for i in missed:
        merged[i] = _missed(merged[i], evidence, ledger)
    merged += [_entering(region, evidence) for region in sure]
    ledger.note("region", "added", len(sure))
    claims = [*found, *range(len(regions), len(merged))]
    return tuple(_judged(merged, claims, missed, evidence, ledger))


def _is_asked(region: Region, asked: Collection[Kind]) -> bool:
    return not region.is_crowd and _ASKED_BY.get(name_of(region)[0], "boxes") in asked


def _found(region: Region, by_model: Region, evidence: Evidence, ledger: Ledger) -> Region:
    maker = claim(region)
    if maker.kind != "human" and claim(by_model).kind != "human":
        score = evidence.found(evidence.score(maker), name_of(region)[1])
        region = with_claim(region, dataclasses.replace(maker, score=score))
        ledger.note("region", "found again")
    region = _with_labels(region, by_model, evidence, ledger)
    maker = by_model.mask_provenance or by_model.provenance
    if by_model.polygons and not region.polygons and maker.kind != "human":
        mask_maker = evidence.entering(maker)
        ledger.note("region", "outlined")
        return dataclasses.replace(region, polygons=by_model.polygons, mask_provenance=mask_maker)
    return region


def _missed(region: Region, evidence: Evidence, ledger: Ledger) -> Region:
    maker = claim(region)
    if maker.kind == "human":
        return region
    ledger.note("region", "missed")
    score = evidence.missed(evidence.score(maker), name_of(region)[1])
    return with_claim(region, dataclasses.replace(maker, score=score))


def _entering(region: Region, evidence: Evidence) -> Region:
    """A prediction as a region of this round, all of its parts stamped."""
    mask = region.mask_provenance
    return dataclasses.replace(
        region,
        provenance=evidence.entering(region.provenance),
        mask_provenance=None if mask is None else evidence.entering(mask),
        labels=tuple(
            label
            if label.provenance is None
            else dataclasses.replace(label, provenance=evidence.entering(label.provenance))
            for label in region.labels
        ),
    )


def _with_labels(region: Region, by_model: Region, evidence: Evidence, ledger: Ledger) -> Region:
    """The region with what the model says of it beside its name, for its own earlier words."""
    named = name_of(region)[0]
    said = {(label.kind, label.text.strip().casefold()) for label in region.labels}
    new = []
    for label in by_model.labels:
        maker = label.provenance or by_model.provenance
        is_new = (label.kind, label.text.strip().casefold()) not in said
        is_sure = evidence.score(maker) >= evidence.config.add_score
        if label.kind != named and maker.kind != "human" and is_new and is_sure:
            new.append(dataclasses.replace(label, provenance=evidence.entering(maker)))
    if not new:
        return region
    ledger.note("label", "added", len(new))
    kinds = {label.kind for label in new}
    old = (_replaced(label, kinds, evidence) for label in region.labels)
    return dataclasses.replace(region, labels=(*old, *new))


def _replaced(label: Label, kinds: Collection[str], evidence: Evidence) -> Label:
    maker = label.provenance
    if maker is None or maker.kind != "checkpoint" or label.kind not in kinds:
        return label
    return dataclasses.replace(
        label, provenance=dataclasses.replace(maker, dropped=evidence.replaced)
    )


def _judged(
    regions: Sequence[Region],
    claims: Sequence[int],
    missed: Sequence[int],
    evidence: Evidence,
    ledger: Ledger,
) -> list[Region]:
    """The regions, with the weaker side of every contradiction marked.

    Args:
        claims: what the model says too.
        missed: what it does not say, though asked.
    """
    regions = list(regions)
    names = [name_of(region) for region in regions]
    overlaps = box_iou(boxes_of(regions), boxes_of(regions))
    losers: set[int] = set()
    for i in claims:
        for j in missed:
            alike = names[i][0] != names[j][0] or names[i] == names[j]
            if alike or overlaps[i, j] < evidence.config.iou:
                continue
            if _strength(regions[i], evidence) > _strength(regions[j], evidence):
                losers.add(j)
            elif claim(regions[i]).kind != "human":
                losers.add(i)
    ledger.note("region", "contradicted, set aside", len(losers))
    for i in {*claims, *losers}:
        maker = claim(regions[i])
        if i in losers:
            maker = dataclasses.replace(maker, dropped=evidence.contradicted)
        elif is_set_aside(maker):  # The model has come to agree, and nothing speaks against it.
            maker = dataclasses.replace(maker, dropped="")
        regions[i] = with_claim(regions[i], maker)
    return regions


def _strength(region: Region, evidence: Evidence) -> float:
    maker = claim(region)
    return 2.0 if maker.kind == "human" else evidence.score(maker)
