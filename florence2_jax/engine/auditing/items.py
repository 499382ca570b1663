# SPDX-License-Identifier: Apache-2.0
"""What people judge: one statement about an image at a time, and what their verdicts make of it.

A statement is a text, a region with one of its labels, a phrase with its boxes, or a question with
an answer. Its key is a hash of what it says, so that the same statement has the same key in every
round, whoever makes it and however surely.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import (
    HUMAN,
    Grounding,
    Label,
    Provenance,
    Question,
    Record,
    Region,
    Span,
    Text,
)
from florence2_jax.typing import Box, Polygon

ItemKind: TypeAlias = Literal["text", "region", "phrase", "question"]
Ruling: TypeAlias = Literal["accept", "reject", "correct"]
RULINGS: tuple[Ruling, ...] = get_args(Ruling)

SAME_IOU = 0.5
"""Two regions of one label that overlap so much are one object."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A statement about the image of record `id`.

    `text` is what is said: the text, the label, the phrase, the answer. `what` says of which sort
    it is: a granularity, the kind of a label, the whole text that a phrase is in, the question.
    `rings` are outlines to draw; they are no part of the key.
    """

    id: str
    kind: ItemKind
    what: str
    text: str
    boxes: tuple[Box, ...] = ()
    start: int = 0  # Of a phrase in its text.
    rings: tuple[Polygon, ...] = ()
    maker: Provenance = HUMAN

    @functools.cached_property
    def key(self) -> str:
        """Names the statement within its record."""
        boxes = [[round(float(v), 2) for v in box] for box in self.boxes]
        said = json.dumps([self.kind, self.what, self.text, boxes, self.start])
        return f"{self.kind}-{hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return values | {"maker": dataclasses.asdict(self.maker)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Item":
        """The item that `to_json` wrote. Raises KeyError, TypeError or ValueError if it is none."""
        given = dict(values)
        for name in ("boxes", "rings"):
            given[name] = tuple(map(tuple, values[name]))
        given["maker"] = Provenance(**values["maker"])
        return cls(**given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a person says of an item. `text` and `box` are what it should be, where corrected."""

    item: Item
    ruling: Ruling
    who: str
    when: str
    text: str | None = None
    box: Box | None = None

    def __post_init__(self):
        if self.ruling not in RULINGS:
            raise ValueError(f"ruling {self.ruling!r} is not one of {RULINGS}")
        if not self.who.strip():
            raise ValueError("a verdict needs a name")
        is_changed = self.text is not None or self.box is not None
        if is_changed != (self.ruling == "correct"):
            raise ValueError("a correction, and nothing else, has a new text or box")
        if self.box is not None and len(self.item.boxes) != 1:
            raise ValueError("only an item of one box can have its box corrected")
        if self.text is not None and self.item.kind == "phrase":
            raise ValueError("the words of a phrase are part of their text; correct its box")


def items_of(record: Record) -> list[Item]:
    """Everything a record says, dropped annotations left out, each statement once."""
    return list({item.key: item for item in _items(record.kept())}.values())


def _items(record: Record) -> Iterator[Item]:
    for text in record.texts:
        yield _text_item(record.id, text)
    for region in record.regions:
        yield from _region_items(record.id, region)
    for grounding in record.groundings:
        for span in grounding.spans:
            yield _phrase_item(record.id, grounding, span)
    for question in record.questions:
        yield _question_item(record.id, question)


def _text_item(id_: str, text: Text) -> Item:
    return Item(id=id_, kind="text", what=text.granularity, text=text.text, maker=text.provenance)


def _region_items(id_: str, region: Region) -> list[Item]:
    """One per label; a region without labels is one, too."""
    rings = region.polygons or ((region.quad,) if region.quad else ())
    return [
        Item(
            id=id_,
            kind="region",
            what=label.kind,
            text=label.text,
            boxes=(region.box,),
            rings=rings,
            maker=label.provenance or region.provenance,
        )
        for label in region.labels or (Label(text=""),)
    ]


def _phrase_item(id_: str, grounding: Grounding, span: Span) -> Item:
    scores = [score for score in (span.phrase_score, *span.box_scores) if score is not None]
    maker = grounding.provenance
    if scores:
        maker = dataclasses.replace(maker, score=min(scores))
    return Item(
        id=id_,
        kind="phrase",
        what=grounding.text,
        text=grounding.phrase(span),
        boxes=span.boxes,
        start=span.start,
        maker=maker,
    )


def _question_item(id_: str, question: Question) -> Item:
    return Item(
        id=id_,
        kind="question",
        what=question.question,
        text=question.answers[0],
        maker=question.provenance,
    )


def corrected(record: Record, verdicts: Sequence[Verdict]) -> Record:
    """A record as people see it: of the verdicts on a statement the last one counts.

    What was rejected goes, what was corrected changes, and what the record does not say but was
    accepted or corrected is added, unless a region of that label is there already (`SAME_IOU`).
    A region whose box was corrected loses its outlines, which were drawn for the other box.
    """
    last = {verdict.item.key: verdict for verdict in verdicts}
    record = record.kept()
    known = {item.key for item in _items(record)}
    record = _with_rulings(record, last)
    for key, verdict in last.items():
        if key not in known and verdict.ruling != "reject":
            record = _with_added(record, verdict)
    return record


def _with_rulings(record: Record, last: Mapping[str, Verdict]) -> Record:
    def ruled(things: Sequence[Any], item_of: Any) -> tuple[Any, ...]:
        found = ((thing, last.get(item_of(record.id, thing).key)) for thing in things)
        new = (thing if v is None else _ruled(thing, v) for thing, v in found)
        return tuple(thing for thing in new if thing is not None)

    regions = (_ruled_region(record.id, region, last) for region in record.regions)
    groundings = (_ruled_grounding(record.id, grounding, last) for grounding in record.groundings)
    return dataclasses.replace(
        record,
        texts=ruled(record.texts, _text_item),
        regions=tuple(region for region in regions if region is not None),
        groundings=tuple(grounding for grounding in groundings if grounding is not None),
        questions=ruled(record.questions, _question_item),
    )


def _ruled(thing: Any, verdict: Verdict) -> Any:
    if verdict.ruling == "accept":
        return thing
    return None if verdict.ruling == "reject" else _made(verdict)


def _ruled_region(id_: str, region: Region, last: Mapping[str, Verdict]) -> Region | None:
    labels, box = [], region.box
    verdicts = [last.get(item.key) for item in _region_items(id_, region)]
    for label, verdict in zip(region.labels or (Label(text=""),), verdicts, strict=True):
        if verdict is not None and verdict.ruling == "reject":
            continue
        if verdict is not None and verdict.text is not None:
            label = dataclasses.replace(label, text=verdict.text, provenance=_person(verdict))
        if verdict is not None and verdict.box is not None:
            box = verdict.box
        labels.append(label)
    if not labels:
        return None
    if box != region.box:
        region = dataclasses.replace(region, box=box, quad=None, polygons=(), mask_provenance=None)
    return dataclasses.replace(region, labels=tuple(label for label in labels if label.text))


def _ruled_grounding(
    id_: str, grounding: Grounding, last: Mapping[str, Verdict]
) -> Grounding | None:
    spans = []
    for span in grounding.spans:
        verdict = last.get(_phrase_item(id_, grounding, span).key)
        if verdict is not None and verdict.ruling == "reject":
            continue
        if verdict is not None and verdict.box is not None:
            span = dataclasses.replace(span, boxes=(verdict.box,), box_scores=())
        spans.append(span)
    return dataclasses.replace(grounding, spans=tuple(spans)) if spans else None


def _with_added(record: Record, verdict: Verdict) -> Record:
    made = _made(verdict)
    if isinstance(made, Region):
        if any(_is_same(made, region) for region in record.regions):
            return record
        return dataclasses.replace(record, regions=(*record.regions, made))
    field = {Text: "texts", Grounding: "groundings", Question: "questions"}[type(made)]
    return dataclasses.replace(record, **{field: (*getattr(record, field), made)})


def _made(verdict: Verdict) -> Text | Region | Grounding | Question:
    """The annotation that an item, corrected where it was, speaks of."""
    item: Any = verdict.item
    text = item.text if verdict.text is None else verdict.text
    boxes = item.boxes if verdict.box is None else (verdict.box,)
    maker = _person(verdict)
    if item.kind == "text":
        return Text(text=text, granularity=item.what, provenance=maker)
    if item.kind == "question":
        return Question(question=item.what, answers=(text,), provenance=maker)
    if item.kind == "phrase":
        span = Span(start=item.start, end=item.start + len(text), boxes=boxes)
        return Grounding(text=item.what, spans=(span,), provenance=maker)
    labels = (Label(text=text, kind=item.what),) if text else ()
    return Region(box=boxes[0], labels=labels, provenance=maker)


def _person(verdict: Verdict) -> Provenance:
    return Provenance(kind="human", name=verdict.who)


def _is_same(a: Region, b: Region) -> bool:
    said = [{(label.text, label.kind) for label in region.labels} for region in (a, b)]
    overlap = box_iou(np.array([a.box], np.float64), np.array([b.box], np.float64))[0, 0]
    return bool(overlap >= SAME_IOU and said[0] & said[1])
