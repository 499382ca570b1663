# SPDX-License-Identifier: Apache-2.0
"""The FLD record: one image and everything that is said about it.

A record is validated when it is made: a `Record` that exists is a record that can be drawn, stored
and turned into targets. What a dataset got wrong is mended or set aside before, in `checks.py`.

All coordinates are float pixels of the original image. Source: Florence-2 §4 (FLD-5B: texts,
region-text pairs, text-phrase-region triplets); questions are ours.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from florence2_jax.typing import Box, Polygon, Quad, Size

Granularity: TypeAlias = Literal["brief", "detailed", "more_detailed"]
LabelKind: TypeAlias = Literal["category", "phrase", "brief", "text"]
MakerKind: TypeAlias = Literal["human", "specialist", "checkpoint"]

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
MAKER_KINDS: tuple[MakerKind, ...] = get_args(MakerKind)


class RecordError(ValueError):
    """A value that no record may hold. The message names the field and shows the value."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecordError(message)


_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""Control characters but tab and newline, and halves of surrogate pairs (not valid UTF-8)."""


def _check_text(text: str, what: str) -> None:
    if not text.isprintable() and (bad := _UNWRITABLE.search(text)):
        raise RecordError(f"{what} {text!r} holds the control character {bad.group()!r}")


def _check_box(box: Box, what: str) -> None:
    # No `_require` where every box and label comes by: messages cost more than all else here.
    if len(box) != 4:
        raise RecordError(f"{what} must have 4 numbers, got {len(box)}")
    if not all(map(math.isfinite, box)):
        raise RecordError(f"{what} {box} is not finite")
    if not (box[0] < box[2] and box[1] < box[3]):
        raise RecordError(f"{what} {box} is empty or turned inside out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Who made an annotation, in which round of the data engine, how surely, and if it counts.

    `name` is a person's tag, a specialist with its version, or a checkpoint. `score` is in [0, 1],
    None where the maker gave none. `dropped` says why a filter took the annotation out; it stays
    in its record, marked, so that a threshold can be changed without annotating again.
    """

    kind: MakerKind = "human"
    name: str = ""
    round: int = 0
    score: float | None = None
    dropped: str = ""

    def __post_init__(self):
        _require(self.kind in MAKER_KINDS, f"maker {self.kind!r} is not one of {MAKER_KINDS}")
        _require(self.round >= 0, f"round {self.round} is negative")
        _require(self.score is None or 0 <= self.score <= 1, f"score {self.score} not in [0, 1]")


HUMAN = Provenance()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A description of the whole image."""

    text: str
    granularity: Granularity = "brief"
    provenance: Provenance = HUMAN

    def __post_init__(self):
        _require(bool(self.text.strip()), "a text is empty")
        _check_text(self.text, "text")
        _require(self.granularity in GRANULARITIES, f"granularity {self.granularity!r} is unknown")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """What one region is.

    `category` is a class name; `phrase` an expression that refers to the region within its image
    ("the left red cup"); `brief` a description of it; `text` the words written in it. A label may
    be empty (an illegible word). `provenance` is None where the region's maker made it too.
    """

    text: str
    kind: LabelKind = "category"
    provenance: Provenance | None = None

    def __post_init__(self):
        _check_text(self.text, "label")
        if self.kind not in LABEL_KINDS:
            raise RecordError(f"label kind {self.kind!r} is not one of {LABEL_KINDS}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """A place in the image with its labels; a crowd is kept, and kept out of targets.

    `mask_provenance` is of the polygons, None where the maker of the box made them too.
    """

    box: Box
    labels: tuple[Label, ...] = ()
    quad: Quad | None = None
    polygons: tuple[Polygon, ...] = ()
    is_crowd: bool = False
    provenance: Provenance = HUMAN
    mask_provenance: Provenance | None = None

    def __post_init__(self):
        _check_box(self.box, "box")
        if self.quad is not None:
            _require(len(self.quad) == 8, f"quad must have 8 numbers, got {len(self.quad)}")
            _require(all(map(math.isfinite, self.quad)), f"quad {self.quad} is not finite")
        for polygon in self.polygons:
            if len(polygon) < 6 or len(polygon) % 2:
                raise RecordError(f"polygon must have >= 3 points, got {len(polygon)} numbers")
            if not all(map(math.isfinite, polygon)):
                raise RecordError(f"polygon {polygon[:8]}... is not finite")

    def label(self, kind: LabelKind) -> str | None:
        """The first label of a kind, None where there is none."""
        return next((label.text for label in self.labels if label.kind == kind), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Characters `[start, end)` of a grounding's text and the boxes they speak of.

    Scores are in [0, 1]: `phrase_score` how surely the phrase names something here, `box_scores`
    (one a box, or none at all) how surely it is there; None and empty where the maker gave none.
    `dropped` says why a filter took the span out, as in `Provenance`.
    """

    start: int
    end: int
    boxes: tuple[Box, ...]
    phrase_score: float | None = None
    box_scores: tuple[float, ...] = ()
    dropped: str = ""

    def __post_init__(self):
        _require(0 <= self.start < self.end, f"span [{self.start}, {self.end}) is empty")
        _require(bool(self.boxes), f"span [{self.start}, {self.end}) has no box")
        for box in self.boxes:
            _check_box(box, "box of a span")
        scores = self.box_scores
        _require(
            len(scores) in (0, len(self.boxes)), f"{len(scores)} scores of {len(self.boxes)} boxes"
        )
        for score in (*scores, *(() if self.phrase_score is None else (self.phrase_score,))):
            _require(0 <= score <= 1, f"score {score} of a span not in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grounding:
    """A text whose phrases are tied to boxes, in order of their first characters."""

    text: str
    spans: tuple[Span, ...]
    provenance: Provenance = HUMAN

    def __post_init__(self):
        _check_text(self.text, "grounding")
        _require(bool(self.spans), f"grounding {self.text!r} has no spans")
        starts = [span.start for span in self.spans]
        _require(starts == sorted(starts), f"spans of {self.text!r} are not in order: {starts}")
        end = max(span.end for span in self.spans)
        _require(end <= len(self.text), f"a span ends at {end}, beyond {self.text!r}")

    def phrase(self, span: Span) -> str:
        """The characters of a span."""
        return self.text[span.start : span.end]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question about the image with the answers people gave, most trusted first."""

    question: str
    answers: tuple[str, ...]
    provenance: Provenance = HUMAN

    def __post_init__(self):
        _require(bool(self.question.strip()), "a question is empty")
        _require(bool(self.answers), f"question {self.question!r} has no answer")
        for text in (self.question, *self.answers):
            _check_text(text, "question or answer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One image, encoded, with its annotations.

    `id` is unique in a store; `origin` says where the image came from; `split_key` decides the
    split by its hash (images that must not be parted, such as crops of one photo, share a key).
    `source_size` is what the image was before it was shrunk on import, None where it was not;
    coordinates are of the image as it is here.
    """

    id: str
    image: bytes
    width: int
    height: int
    origin: str = ""
    split_key: str = ""
    source_size: Size | None = None
    texts: tuple[Text, ...] = ()
    regions: tuple[Region, ...] = ()
    groundings: tuple[Grounding, ...] = ()
    questions: tuple[Question, ...] = ()

    def __post_init__(self):
        _require(bool(self.id), "a record has no id")
        _require(bool(self.image), f"record {self.id}: no image bytes")
        _require(self.width > 0 and self.height > 0, f"record {self.id}: size {self.size}")
        source = self.source_size
        _require(source is None or min(source) > 0, f"record {self.id}: source size {source}")
        boxes = [region.box for region in self.regions]
        boxes += [box for g in self.groundings for span in g.spans for box in span.boxes]
        width, height = self.size
        for box in boxes:
            if not (box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height):
                raise RecordError(
                    f"record {self.id}: box {box} leaves its {width} x {height} image"
                )

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` in pixels."""
        return self.width, self.height

    @property
    def num_dropped(self) -> int:
        """Texts, regions, groundings, questions, labels and spans that filters dropped."""
        return sum(map(is_dropped, _annotations(self)))

    def kept(self) -> "Record":
        """The record without what filters dropped: what is learnt from and counted."""
        if not _has_dropped(self):
            return self  # The common case, by far.
        return dataclasses.replace(
            self,
            texts=_kept(self.texts),
            regions=tuple(map(_kept_region, _kept(self.regions))),
            groundings=tuple(
                dataclasses.replace(grounding, spans=spans)
                for grounding in _kept(self.groundings)
                if (spans := _kept(grounding.spans))
            ),
            questions=_kept(self.questions),
        )


def is_dropped(annotation: Any) -> bool:
    """Whether a filter took out a text, region, grounding, question, label or span."""
    if isinstance(annotation, Span):
        return bool(annotation.dropped)
    return annotation.provenance is not None and bool(annotation.provenance.dropped)


_Annotation = TypeVar("_Annotation", Text, Region, Grounding, Question, Label, Span)


def _kept(annotations: tuple[_Annotation, ...]) -> tuple[_Annotation, ...]:
    return tuple(annotation for annotation in annotations if not is_dropped(annotation))


def _is_mask_dropped(region: Region) -> bool:
    return region.mask_provenance is not None and bool(region.mask_provenance.dropped)


def _kept_region(region: Region) -> Region:
    if _is_mask_dropped(region):
        region = dataclasses.replace(region, polygons=(), mask_provenance=None)
    return dataclasses.replace(region, labels=_kept(region.labels))


def _annotations(record: Record) -> Iterator[Any]:
    """All that can be dropped, the parts of regions and groundings too."""
    yield from record.texts
    yield from record.questions
    for region in record.regions:
        yield region
        yield from region.labels
    for grounding in record.groundings:
        yield grounding
        yield from grounding.spans


def _has_dropped(record: Record) -> bool:
    return any(map(is_dropped, _annotations(record))) or any(map(_is_mask_dropped, record.regions))
