# SPDX-License-Identifier: Apache-2.0
"""What specialists say about an image -> the record with their annotations.

People are believed first. Where a person has drawn a box, a specialist's box of the same class that
overlaps it enough is not added; a region that a person has named or outlined gets no second
category, text or mask. What one maker says twice is kept once. What is not added is set aside in
the ledger, with its reason.

Nothing is decided between specialists: boxes that two of them see stay both, for the filters of
phase 2 to weigh. Source: Florence-2 §5.1, "merged with existing human annotations"; the rule of
overlap and its threshold are ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from florence2_jax.engine.specialists.base import Annotations
from florence2_jax.geometry import box_iou
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Label, Provenance, Record, RecordError, Region
from florence2_jax.typing import Polygon, UserError

_FIELDS = {"caption": "texts", "grounding": "groundings", "question": "questions"}
"""Kinds in the books, and the fields that just grow."""

_ONE_TRUTH = ("category", "text")
"""Kinds of labels of which a region has one; of phrases and descriptions it may have many."""

SAID = "said by the same maker before"
HUMAN_BOX = "a person has drawn this box"
HUMAN_LABEL = "a person has labelled this region"
HUMAN_MASK = "a person has outlined this region"
ONE_MASK = "the region has a mask"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombineConfig:
    """When a specialist's box is one that a person has drawn: IoU from `human_iou` on."""

    human_iou: float = 0.5

    def __post_init__(self):
        if not 0 < self.human_iou <= 1:
            raise UserError(f"human_iou {self.human_iou}: not in (0, 1]")


def combine(
    record: Record,
    answers: Mapping[str, Annotations],
    round: int,
    *,
    config: CombineConfig = CombineConfig(),
    ledger: Ledger | None = None,
) -> Record:
    """Adds what specialists of one stage say, who all saw this record.

    Regions are appended only, so that indices into `record.regions` stay true for later stages.

    Args:
        answers: by name of the specialist, in the order of trust; people's answers go first
            whatever their place.
        round: written into the provenance of everything that is added.
        ledger: books of what was added and what was not; None for none.

    Raises:
        RecordError: if a box leaves the image, or a label of a region does not say who made it.
        IndexError: if a label or mask is of a region that the record has not.
    """
    books = _Books(record.id, Ledger() if ledger is None else ledger)
    ordered = sorted(answers.values(), key=lambda answer: not _is_human(answer))
    stamped = [_stamped(answer, round) for answer in ordered]
    fields: dict[str, Any] = {}
    for kind, field in _FIELDS.items():
        known = list(getattr(record, field))
        for answer in stamped:
            known = _without_repeats(known, getattr(answer, field), kind, books)
        fields[field] = tuple(known)
    regions = list(record.regions)
    for answer in stamped:
        for index, label in answer.labels:
            _at(record, index)
            regions[index] = _labelled(regions[index], label, books)
        for index, polygons, maker in answer.masks:
            _at(record, index)
            regions[index] = _masked(regions[index], polygons, maker, books)
    for answer in stamped:
        regions = _with_regions(regions, answer.regions, config, books)
    return dataclasses.replace(record, regions=tuple(regions), **fields)


@dataclasses.dataclass
class _Books:
    where: str
    ledger: Ledger

    def count(self, kind: str, value: Any, why: str = "") -> None:
        """Counts something that was said, and why it was not added if it was not."""
        self.ledger.read(kind)
        if why:
            self.ledger.set_aside(kind, why, where=self.where, value=value)
        else:
            self.ledger.keep(kind)


def _is_human(answer: Annotations) -> bool:
    things = (*answer.regions, *answer.texts, *answer.groundings, *answer.questions)
    makers = [thing.provenance for thing in things]
    makers += [label.provenance for _, label in answer.labels]
    makers += [maker for *_, maker in answer.masks]
    return any(maker is not None and maker.kind == "human" for maker in makers)


def _stamped(answer: Annotations, round: int) -> Annotations:
    """The answer with the round in every provenance."""

    def maker(provenance: Provenance | None) -> Provenance | None:
        return None if provenance is None else dataclasses.replace(provenance, round=round)

    def stamp(thing: Any) -> Any:
        return dataclasses.replace(thing, provenance=maker(thing.provenance))

    def stamp_label(label: Label) -> Label:
        if label.provenance is None:  # It would pass for one by the maker of the region.
            raise RecordError(f"label {label.text!r} of a region does not say who made it")
        return stamp(label)

    def stamp_region(region: Region) -> Region:
        labels, mask_maker = tuple(map(stamp, region.labels)), maker(region.mask_provenance)
        return dataclasses.replace(stamp(region), labels=labels, mask_provenance=mask_maker)

    return Annotations(
        texts=tuple(map(stamp, answer.texts)),
        regions=tuple(map(stamp_region, answer.regions)),
        groundings=tuple(map(stamp, answer.groundings)),
        questions=tuple(map(stamp, answer.questions)),
        labels=tuple((index, stamp_label(label)) for index, label in answer.labels),
        masks=tuple(
            (index, polygons, dataclasses.replace(by, round=round))
            for index, polygons, by in answer.masks
        ),
    )


def _without_repeats(known: list[Any], new: Sequence[Any], kind: str, books: _Books) -> list[Any]:
    said = {_said(thing) for thing in known}
    for thing in new:
        is_new = _said(thing) not in said
        books.count(kind, repr(thing), "" if is_new else SAID)
        if is_new:
            said.add(_said(thing))
            known = [*known, thing]
    return known


def _said(thing: Any) -> Any:
    """What is said and by whom, without scores, rounds and marks: equal if said twice."""
    maker: Provenance = thing.provenance
    fields = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
    if "spans" in fields:
        spans = [(s.start, s.end, *map(_rounded, s.boxes)) for s in thing.spans]
        fields["spans"] = tuple(spans)
    if isinstance(thing, Region):
        fields["box"] = _rounded(thing.box)
        fields["quad"] = _rounded(thing.quad or ())
        fields["polygons"] = tuple(map(_rounded, thing.polygons))
        fields["labels"] = tuple((label.text, label.kind) for label in thing.labels)
        del fields["mask_provenance"]
    del fields["provenance"]
    return maker.kind, maker.name, *fields.values()


def _rounded(numbers: Sequence[float]) -> bytes:
    return np.asarray(numbers, np.float32).tobytes()  # As they come back from a store.


def _at(record: Record, index: int) -> None:
    if not 0 <= index < len(record.regions):
        raise IndexError(f"record {record.id}: no region {index} of {len(record.regions)}")


def _maker(region: Region, label: Label) -> Provenance:
    return label.provenance or region.provenance


def _labelled(region: Region, label: Label, books: _Books) -> Region:
    by = label.provenance
    assert by is not None  # `_stamped` has seen to it.
    others = [one for one in region.labels if one.kind == label.kind]
    if any(one.text == label.text and _is_same(_maker(region, one), by) for one in others):
        why = SAID
    elif (
        label.kind in _ONE_TRUTH
        and by.kind != "human"
        and any(_maker(region, one).kind == "human" for one in others)
    ):
        why = HUMAN_LABEL
    else:
        why = ""
    books.count("label", [region.box, label.kind, label.text], why)
    return region if why else dataclasses.replace(region, labels=(*region.labels, label))


def _is_same(a: Provenance, b: Provenance) -> bool:
    return (a.kind, a.name) == (b.kind, b.name)


def _masked(region: Region, polygons: tuple[Polygon, ...], by: Provenance, books: _Books) -> Region:
    why = ""
    if region.polygons:
        owner = region.mask_provenance or region.provenance
        why = HUMAN_MASK if owner.kind == "human" else ONE_MASK
        if by.kind == "human" and owner.kind != "human":
            why = ""
    books.count("mask", [region.box, by.name], why)
    if why:
        return region
    return dataclasses.replace(region, polygons=polygons, mask_provenance=by)


def _with_regions(
    known: list[Region], new: Sequence[Region], config: CombineConfig, books: _Books
) -> list[Region]:
    said = {_said(region) for region in known}
    people = [region for region in known if region.provenance.kind == "human"]
    ious = box_iou(_boxes(new), _boxes(people))
    added = []
    for region, row in zip(new, ious, strict=True):
        near = [one for one, iou in zip(people, row, strict=True) if iou >= config.human_iou]
        why = ""
        if _said(region) in said:
            why = SAID
        elif region.provenance.kind != "human" and any(_is_class(region, one) for one in near):
            why = HUMAN_BOX
        books.count("region", [region.box, *(label.text for label in region.labels)], why)
        if not why:
            said.add(_said(region))
            added.append(region)
    return known + added


def _boxes(regions: Sequence[Region]) -> np.ndarray:
    return np.array([region.box for region in regions], np.float64).reshape(-1, 4)


def _is_class(region: Region, human: Region) -> bool:
    """Whether a box is of the class that a person gave; one without a class is of any."""
    classes = _classes(region)
    return not classes or bool(classes & _classes(human))


def _classes(region: Region) -> set[str]:
    names = {label.text.casefold() for label in region.labels if label.kind == "category"}
    return names | {"\0text" for label in region.labels if label.kind == "text"}
