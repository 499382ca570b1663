# SPDX-License-Identifier: Apache-2.0
"""What filters say of a record, and how it is written into the record: marks, never removals.

A filter is a function from a record to its drops. A mark is a reason that counts ("score under
0.30"), then perhaps ": " and a detail that does not. Marks of an earlier run are cleared first, so
that any threshold may be changed; what a person made is never marked.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

from florence2_jax.engine.claims import claim
from florence2_jax.engine.evidence import is_set_aside
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Provenance,
    Record,
    Region,
    Span,
    is_dropped,
)

Kind: TypeAlias = Literal["text", "region", "label", "mask", "phrase box", "grounding", "question"]

MERGED = "merged boxes"
"""Name of the maker of regions that the filter made of several; they go when marks are cleared."""

NO_PHRASE = "no phrase is left"


@dataclasses.dataclass(frozen=True)
class Drop:
    """One annotation that a filter takes out.

    `at` is its place in the record: `(text,)`, `(region,)`, `(region, label)`, `(region,)` for the
    mask, `(grounding, span, box)`, `(grounding,)`, `(question,)`.
    """

    kind: Kind
    at: tuple[int, ...]
    reason: str


def reason_key(dropped: str) -> str:
    """The part of a mark that marks are counted by."""
    return dropped.partition(": ")[0]


def provenance_of(annotation: Any) -> Provenance:
    """Who says a text, grounding or question, or what a region is."""
    return claim(annotation) if isinstance(annotation, Region) else annotation.provenance


def score_of(annotation: Any) -> float | None:
    """The score of what an annotation says."""
    return provenance_of(annotation).score


def is_human(annotation: Any) -> bool:
    """Whether a person made it; a region that a person has labelled counts as theirs."""
    if isinstance(annotation, Region):
        labels = (label.provenance for label in annotation.labels)
        return any(p is not None and p.kind == "human" for p in (annotation.provenance, *labels))
    return annotation.provenance is not None and annotation.provenance.kind == "human"


def maker_of(provenance: Provenance) -> str:
    """Who made it, as reports name and count makers: the rounds of one maker are one."""
    if provenance.kind == "human":
        return f"human {provenance.name}".strip()
    return provenance.name or provenance.kind


def cleared(record: Record) -> Record:
    """The record without any marks, and without the regions that a filter had made."""
    regions = (r for r in record.regions if r.provenance.name != MERGED or is_human(r))
    return dataclasses.replace(
        record,
        texts=tuple(map(_unmarked, record.texts)),
        regions=tuple(map(_cleared_region, regions)),
        groundings=tuple(map(_cleared_grounding, record.groundings)),
        questions=tuple(map(_unmarked, record.questions)),
    )


def marked(record: Record, drops: Iterable[Drop]) -> Record:
    """The record with these drops marked; of several of one annotation the first counts.

    A span of which some boxes are dropped becomes one with those that stay, and one for each
    reason with those that do not.
    """
    by_kind: dict[str, dict[tuple[int, ...], str]] = defaultdict(dict)
    for drop in drops:
        by_kind[drop.kind].setdefault(drop.at, drop.reason)
    if not by_kind:
        return record
    boxes: dict[int, dict[tuple[int, ...], str]] = defaultdict(dict)
    for (g, *place), reason in by_kind["phrase box"].items():
        boxes[g][tuple(place)] = reason
    groundings = _marked_each(record.groundings, by_kind["grounding"])
    return dataclasses.replace(
        record,
        texts=_marked_each(record.texts, by_kind["text"]),
        questions=_marked_each(record.questions, by_kind["question"]),
        regions=tuple(
            _marked_region(region, i, by_kind) for i, region in enumerate(record.regions)
        ),
        groundings=tuple(
            _marked_grounding(grounding, boxes[g]) if g in boxes else grounding
            for g, grounding in enumerate(groundings)
        ),
    )


def counted(record: Record) -> Iterator[tuple[Kind, str, str, int]]:
    """`(kind, maker, reason or "", number)` of all annotations of a filtered record.

    Labels, masks and phrase boxes count where what they belong to is not marked itself. A grounding
    of which no phrase stays counts as dropped, for `Record.kept` leaves it out.
    """
    wholes: tuple[tuple[Kind, tuple[Any, ...]], ...] = (
        ("text", record.texts),
        ("question", record.questions),
    )
    for kind, annotations in wholes:
        for annotation in annotations:
            maker = annotation.provenance
            yield kind, maker_of(maker), reason_key(maker.dropped), 1
    for region in record.regions:
        own = region.provenance
        yield "region", maker_of(own), reason_key(own.dropped), 1
        if own.dropped:
            continue
        for label in region.labels:
            maker = label.provenance or own
            yield "label", maker_of(maker), reason_key(maker.dropped), 1
        if region.polygons:
            maker = region.mask_provenance or own
            yield "mask", maker_of(maker), reason_key(maker.dropped), 1
    for grounding in record.groundings:
        maker, dropped = maker_of(grounding.provenance), grounding.provenance.dropped
        is_empty = all(span.dropped for span in grounding.spans)
        yield "grounding", maker, reason_key(dropped) or (NO_PHRASE if is_empty else ""), 1
        for span in () if dropped else grounding.spans:
            yield "phrase box", maker, reason_key(span.dropped), len(span.boxes)


def _with_mark(annotation: Any, reason: str) -> Any:
    maker = annotation.provenance
    if maker.dropped == reason:
        return annotation
    return dataclasses.replace(annotation, provenance=dataclasses.replace(maker, dropped=reason))


def _unmarked(annotation: Any) -> Any:
    """Without the mark of a filter; what a round has set aside stays so."""
    return annotation if is_set_aside(annotation.provenance) else _with_mark(annotation, "")


def _marked_each(annotations: tuple[Any, ...], reasons: Mapping[tuple[int, ...], str]) -> Any:
    return tuple(
        _with_mark(annotation, reasons[i,])
        if (i,) in reasons and not is_human(annotation) and not is_dropped(annotation)
        else annotation
        for i, annotation in enumerate(annotations)
    )


# Regions: their labels and masks have a maker of their own, or that of the box.


def _cleared_region(region: Region) -> Region:
    own = _unmarked(region).provenance

    def clear(maker: Provenance | None) -> Provenance | None:
        # The maker was only written down to be marked where it is that of the box.
        if maker is None or not maker.dropped or is_set_aside(maker):
            return maker
        maker = dataclasses.replace(maker, dropped="")
        return None if maker == own else maker

    labels = tuple(
        dataclasses.replace(label, provenance=clear(label.provenance)) for label in region.labels
    )
    mask = clear(region.mask_provenance)
    return dataclasses.replace(region, provenance=own, labels=labels, mask_provenance=mask)


def _marked_region(region: Region, i: int, by_kind: Mapping[str, Mapping]) -> Region:
    own = region.provenance
    labels = tuple(
        _marked_label(label, own, by_kind["label"][i, j]) if (i, j) in by_kind["label"] else label
        for j, label in enumerate(region.labels)
    )
    if labels != region.labels:
        region = dataclasses.replace(region, labels=labels)
    mask = region.mask_provenance or own
    if (i,) in by_kind["mask"] and mask.kind != "human" and region.polygons and not mask.dropped:
        mask = dataclasses.replace(mask, dropped=by_kind["mask"][i,])
        region = dataclasses.replace(region, mask_provenance=mask)
    return _marked_each(
        (region,), {(0,): by_kind["region"][i,]} if (i,) in by_kind["region"] else {}
    )[0]


def _marked_label(label: Label, own: Provenance, reason: str) -> Label:
    maker = label.provenance or own
    if maker.kind == "human" or maker.dropped:
        return label
    return dataclasses.replace(label, provenance=dataclasses.replace(maker, dropped=reason))


# Groundings: the boxes of a span part ways.


def _cleared_grounding(grounding: Grounding) -> Grounding:
    grounding = _unmarked(grounding)
    if not any(span.dropped for span in grounding.spans):
        return grounding
    groups: dict[Any, list[Span]] = defaultdict(list)
    for k, span in enumerate(grounding.spans):
        is_piece = any(
            other.dropped and (other.start, other.end) == (span.start, span.end)
            for other in grounding.spans
        )
        groups[(span.start, span.end, span.phrase_score) if is_piece else k].append(span)
    return dataclasses.replace(grounding, spans=tuple(map(_joined, groups.values())))


def _joined(pieces: list[Span]) -> Span:
    return dataclasses.replace(
        pieces[0],
        boxes=tuple(box for span in pieces for box in span.boxes),
        box_scores=tuple(score for span in pieces for score in span.box_scores),
        dropped="",
    )


def _marked_grounding(grounding: Grounding, reasons: Mapping[tuple[int, ...], str]) -> Grounding:
    if is_human(grounding):
        return grounding
    spans = (
        piece
        for s, span in enumerate(grounding.spans)
        for piece in _pieces(span, {b: why for (at, b), why in reasons.items() if at == s})
    )
    return dataclasses.replace(grounding, spans=tuple(spans))


def _pieces(span: Span, reasons: Mapping[int, str]) -> Iterator[Span]:
    """The span of the boxes that stay, then one for each reason by which others go."""
    if span.dropped or not reasons:
        yield span
        return
    groups: dict[str, list[int]] = {"": []}
    for b in range(len(span.boxes)):
        groups.setdefault(reasons.get(b, ""), []).append(b)
    for reason, numbers in groups.items():
        if numbers:
            yield dataclasses.replace(
                span,
                boxes=tuple(span.boxes[b] for b in numbers),
                box_scores=tuple(span.box_scores[b] for b in numbers if span.box_scores),
                dropped=reason,
            )
