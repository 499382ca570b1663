# SPDX-License-Identifier: Apache-2.0
"""Whether annotations of an untrusted maker fit their record; the first part that does not is told.

The schema checks values when they are made. That is done once more here, for what was made past it,
along with what it leaves open: types, sizes, the image's borders, and who claims to have made it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from florence2_jax.engine.specialists.base import Annotations, Specialist
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Provenance,
    Question,
    Record,
    Region,
    Span,
    Text,
)
from florence2_jax.typing import Size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """More than this about one image is garbage."""

    text_chars: int = 10_000
    label_chars: int = 1_000
    annotations: int = 5_000  # Of any type.
    points: int = 20_000  # Of the polygons of one region.
    outside_px: float = 1.0  # How far a point of a quad or polygon may lie outside of its image.


class Garbage(ValueError):
    """A part of an answer that no record can hold. The message says which."""


def check_annotations(
    found: Annotations, record: Record, specialist: Specialist, limits: Limits
) -> None:
    """Raises Garbage, RecordError, or what an object that is not what it claims raises."""
    _Check(record, specialist, limits).annotations(found)


def shown(value: Any) -> str:
    """A small value for a message."""
    return repr(value)[:80] if isinstance(value, str | int | float | None) else type(value).__name__


class _Check:
    """Raises on the first part of an answer that its record could not hold."""

    def __init__(self, record: Record, specialist: Specialist, limits: Limits):
        self.record, self.specialist, self.limits = record, specialist, limits

    def annotations(self, found: Annotations) -> None:
        self._each(found.texts, Text, self._text)
        self._each(found.regions, Region, self._region)
        self._each(found.groundings, Grounding, self._grounding)
        self._each(found.questions, Question, self._question)
        self._each(found.labels, tuple, self._new_label)
        self._each(found.masks, tuple, self._mask)

    def _each(self, values: Any, kind: type, check: Callable[[Any], None]) -> None:
        if not isinstance(values, tuple):
            raise Garbage(f"a {type(values).__name__} where a tuple belongs")
        if len(values) > self.limits.annotations:
            raise Garbage(f"{len(values)} annotations of one type")
        for value in values:
            if type(value) is not kind:
                raise Garbage(f"a {type(value).__name__} where a {kind.__name__} belongs")
            check(value)

    def _string(self, value: Any, what: str, most: int) -> None:
        if type(value) is not str:
            raise Garbage(f"{what} is a {type(value).__name__}")
        if len(value) > most:
            raise Garbage(f"{what} has {len(value)} characters")

    def _numbers(self, values: Any, what: str) -> None:
        if type(values) is not tuple or len(values) > 2 * self.limits.points:
            raise Garbage(f"{what} is no short tuple of numbers")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise Garbage(f"{what} holds {shown(value)}")

    def _made(self, provenance: Any) -> None:
        """Only who may speak for people does, and nothing comes dropped."""
        if type(provenance) is not Provenance:
            raise Garbage(f"provenance is a {type(provenance).__name__}")
        if provenance.kind != self.specialist.maker_kind:
            raise Garbage(f"claims to be made by a {shown(provenance.kind)}")
        self._string(provenance.name, "the name of a maker", self.limits.label_chars)
        if provenance.dropped:
            raise Garbage("comes dropped")
        if provenance.score is not None:
            self._numbers((provenance.score,), "score")
        dataclasses.replace(provenance)  # Checks its values once more, as all below.

    def _text(self, text: Text) -> None:
        self._string(text.text, "text", self.limits.text_chars)
        self._made(text.provenance)
        dataclasses.replace(text)

    def _question(self, question: Question) -> None:
        if type(question.answers) is not tuple:
            raise Garbage("answers are no tuple")
        for text in (question.question, *question.answers):
            self._string(text, "question or answer", self.limits.text_chars)
        self._made(question.provenance)
        dataclasses.replace(question)

    def _label(self, label: Any) -> None:
        if type(label) is not Label:
            raise Garbage(f"a {type(label).__name__} where a Label belongs")
        self._string(label.text, "label", self.limits.label_chars)
        if label.provenance is not None:
            self._made(label.provenance)
        dataclasses.replace(label)

    def _box(self, box: Any) -> None:
        self._numbers(box, "box")
        width, height = self.record.size
        if len(box) == 4 and not (
            box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
        ):
            raise Garbage(f"box {box} leaves the {width} x {height} image")

    def _polygons(self, polygons: Any, size: Size) -> None:
        if type(polygons) is not tuple:
            raise Garbage("polygons are no tuple")
        for polygon in polygons:
            self._numbers(polygon, "polygon or quad")
            margin = self.limits.outside_px
            for values, side in ((polygon[::2], size[0]), (polygon[1::2], size[1])):
                inside = (math.isfinite(v) and -margin <= v <= side + margin for v in values)
                if not all(inside):
                    raise Garbage(f"a polygon or quad leaves the {size[0]} x {size[1]} image")
        if sum(map(len, polygons)) > 2 * self.limits.points:
            raise Garbage("too many points of one region")

    def _region(self, region: Region) -> None:
        self._box(region.box)
        self._polygons(region.polygons, self.record.size)
        self._polygons(() if region.quad is None else (region.quad,), self.record.size)
        self._each(region.labels, Label, self._label)
        self._made(region.provenance)
        if region.mask_provenance is not None:
            self._made(region.mask_provenance)
        dataclasses.replace(region)

    def _grounding(self, grounding: Grounding) -> None:
        self._string(grounding.text, "grounding", self.limits.text_chars)
        self._each(grounding.spans, Span, self._span)
        self._made(grounding.provenance)
        dataclasses.replace(grounding)

    def _span(self, span: Span) -> None:
        if type(span.start) is not int or type(span.end) is not int:
            raise Garbage("a span does not start and end at characters")
        if type(span.boxes) is not tuple or span.dropped:
            raise Garbage("a span has no boxes, or comes dropped")
        for box in span.boxes:
            self._box(box)
        self._numbers(span.box_scores, "scores of boxes")
        self._numbers((0 if span.phrase_score is None else span.phrase_score,), "score")
        dataclasses.replace(span)

    def _index(self, index: Any) -> None:
        if type(index) is not int or not 0 <= index < len(self.record.regions):
            raise Garbage(
                f"region {shown(index)} is none of the record's {len(self.record.regions)}"
            )

    def _new_label(self, pair: tuple) -> None:
        index, label = pair
        self._index(index)
        self._label(label)

    def _mask(self, triple: tuple) -> None:
        index, polygons, provenance = triple
        self._index(index)
        self._polygons(polygons, self.record.size)
        self._made(provenance)
        if not polygons:
            raise Garbage("a mask without polygons")
        # What the schema asks of polygons, it asks where they are of a region.
        Region(box=self.record.regions[index].box, polygons=polygons, provenance=provenance)
