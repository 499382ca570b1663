# SPDX-License-Identifier: Apache-2.0
"""What annotation files say about one image, not mended yet, and the record that becomes of it.

An importer lists its source into `AnnotatedImage`s; `make_record`, the same for every format, reads
the image, mends what can be mended and keeps the books. So a rule about boxes has one home, and an
importer is left with what is particular to its format.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from florence2_jax.records.checks import (
    MendedImage,
    mend_box,
    mend_image,
    mend_polygon,
    mend_quad,
    mend_text,
    read_bytes,
)
from florence2_jax.records.importers.masks import MaskError, decode_rle, trace_mask
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import (
    HUMAN,
    Granularity,
    Grounding,
    Label,
    LabelKind,
    Provenance,
    Question,
    Record,
    Region,
    Span,
    Text,
)
from florence2_jax.typing import Box, Polygon, Size


@runtime_checkable
class ImageFile(Protocol):
    """Where the bytes of an image are: a `pathlib.Path`, or what reads like one."""

    @property
    def name(self) -> str: ...

    def exists(self) -> bool: ...

    def read_bytes(self) -> bytes: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Patch:
    """A mask bool[Y, X] of a part of an image; its first pixel is `(left, top)` of the image."""

    mask: NDArray[np.bool_]
    left: int
    top: int


Outline: TypeAlias = Sequence[Any] | dict[str, Any] | NDArray[np.bool_] | Patch | None
"""Rings of `x, y, ...`; or a run-length mask of COCO; or a mask bool[Y, X]; or nothing."""


@dataclasses.dataclass(kw_only=True, slots=True)
class RawRegion:
    """A region as its file has it.

    `place` completes the id of the image in the books ("instance 12"). `labels` are pairs of text
    and kind; a "text" may be empty (an illegible word), another label may not. Without a `box` the
    hull of the quad, or else of the outline, is taken.
    """

    place: str
    box: Any = None
    labels: Sequence[tuple[Any, LabelKind]] = ()
    quad: Any = None
    outline: Outline = None
    is_crowd: bool = False
    provenance: Provenance = HUMAN


@dataclasses.dataclass(kw_only=True, slots=True)
class RawGrounding:
    """A text with spans `(start, end, boxes)`, as its file has them."""

    place: str
    text: Any
    spans: Sequence[tuple[int, int, Sequence[Any]]]
    provenance: Provenance = HUMAN


@dataclasses.dataclass(kw_only=True, slots=True)
class AnnotatedImage:
    """One image and everything its annotation files say about it.

    Boxes are `x0, y0, x1, y1`, in pixels, or in shares of the image's sides if `is_relative`.
    `stated_size` is the `(width, height)` that the annotation file gives, if it gives one. `where`
    is what the books call the image: its id, unless another name leads there sooner.
    """

    id: str
    image: ImageFile
    where: str = ""
    origin: str = ""
    split_key: str = ""
    stated_size: tuple[Any, Any] | None = None
    is_relative: bool = False
    texts: list[tuple[Any, Granularity]] = dataclasses.field(default_factory=list)
    regions: list[RawRegion] = dataclasses.field(default_factory=list)
    groundings: list[RawGrounding] = dataclasses.field(default_factory=list)
    questions: list[tuple[Any, Sequence[Any]]] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.where = self.where or self.id


def make_record(unit: AnnotatedImage, ledger: Ledger) -> Record | None:
    """The record of one image; None after its image was set aside, and all it had with it."""
    counts = {
        "image": 1,
        "caption": len(unit.texts),
        "region": len(unit.regions),
        "grounding": len(unit.groundings),
        "question": len(unit.questions),
    }
    for kind, num in counts.items():
        if num:
            ledger.read(kind, num)
    data = read_bytes(unit.image, ledger, unit.where)
    image = data and mend_image(data, ledger, unit.where, stated_size=unit.stated_size)
    if not image:
        ledger.withdraw("its image was set aside", where=unit.where)
        return None
    made = _Maker(unit, image, ledger)
    record = Record(
        id=unit.id,
        image=image.data,
        width=image.size[0],
        height=image.size[1],
        origin=unit.origin or unit.id,
        split_key=unit.split_key or unit.id,
        texts=_present(map(made.text, range(len(unit.texts)))),
        regions=_present(map(made.region, unit.regions)),
        groundings=_present(map(made.grounding, unit.groundings)),
        questions=_present(map(made.question, range(len(unit.questions)))),
    )
    kept = (1, len(record.texts), len(record.regions), len(record.groundings))
    for kind, num in zip(counts, (*kept, len(record.questions)), strict=True):
        if num:
            ledger.keep(kind, num)
    return record


def _present(things: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(thing for thing in things if thing is not None)


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Raw annotations of one image -> those of its record; None after setting one aside."""

    unit: AnnotatedImage
    image: MendedImage
    ledger: Ledger

    def text(self, index: int) -> Text | None:
        raw, granularity = self.unit.texts[index]
        text = mend_text(raw, self.ledger, f"{self.unit.where} caption {index}")
        return None if text is None else Text(text=text, granularity=granularity)

    def question(self, index: int) -> Question | None:
        where = f"{self.unit.where} question {index}"
        raw, raw_answers = self.unit.questions[index]
        question = mend_text(raw, self.ledger, where, "question")
        if question is None:
            return None
        answers = _clean_texts(raw_answers)
        if not answers:
            why = "no answer that is a text"
            self.ledger.set_aside("question", why, where=where, value=repr(raw_answers)[:200])
            return None
        return Question(question=question, answers=answers)

    def region(self, raw: RawRegion) -> Region | None:
        where = f"{self.unit.where} {raw.place}"
        if self._is_misplaced("region", where):
            return None
        labels = self._labels(raw, where)
        if labels is None:
            return None
        quad = None
        if raw.quad is not None:
            quad = mend_quad(self._scaled(raw.quad), self.image.size, self.ledger, where)
        polygons = self._polygons(raw.outline, where)
        box: Any = raw.box
        box = _hull([quad] if quad else polygons) if box is None else self._scaled(box)
        box = mend_box(box, self.image.size, self.ledger, where)
        if box is None:
            return None
        return Region(
            box=box,
            labels=labels,
            quad=quad,
            polygons=polygons,
            is_crowd=raw.is_crowd,
            provenance=raw.provenance,
        )

    def grounding(self, raw: RawGrounding) -> Grounding | None:
        where = f"{self.unit.where} {raw.place}"
        if self._is_misplaced("grounding", where):
            return None
        # Cleaning would move the spans, so a text that needs it is set aside.
        text = raw.text if isinstance(raw.text, str) and _clean_texts([raw.text]) else None
        if text is None or mend_text(text, Ledger(), where) != text.strip():
            why = "empty, or holds control characters"
            self.ledger.set_aside("grounding", why, where=where, value=repr(raw.text)[:200])
            return None
        spans = []
        for start, end, raw_boxes in sorted(raw.spans, key=lambda span: span[:2]):
            boxes = self._span_boxes(raw_boxes, where)
            if 0 <= start < end <= len(text) and boxes:
                spans.append(Span(start=start, end=end, boxes=boxes))
            else:
                self.ledger.note("grounding", "phrases left out: no box, or not in the text")
        if not spans:
            self.ledger.set_aside("grounding", "no phrase with a box", where=where, value=text)
            return None
        return Grounding(text=text, spans=tuple(spans), provenance=raw.provenance)

    def _span_boxes(self, raw_boxes: Sequence[Any], where: str) -> tuple[Box, ...]:
        size, ledger = self.image.size, self.ledger
        ledger.read("phrase box", len(raw_boxes))
        boxes = [mend_box(self._scaled(b), size, ledger, where, "phrase box") for b in raw_boxes]
        kept = _present(boxes)
        ledger.keep("phrase box", len(kept))
        return kept

    def _is_misplaced(self, kind: str, where: str) -> bool:
        # Shares of the sides hold for an image of any size.
        if self.image.is_as_annotated or self.unit.is_relative:
            return False
        why = "annotated at another size of the image"
        stated = f"{self.unit.stated_size}, the file is {self.image.size}"
        self.ledger.set_aside(kind, why, where=where, value=stated)
        return True

    def _labels(self, raw: RawRegion, where: str) -> tuple[Label, ...] | None:
        labels = []
        for given, kind in raw.labels:
            own = Ledger()
            text = mend_text(given, own, where, "region")
            for tally in own.tallies.values():  # Of most labels there is none.
                for how, num in tally.repaired.items():
                    self.ledger.repair("region", how, num)
            if text is not None or (kind == "text" and given == ""):
                labels.append(Label(text=text or "", kind=kind))
            else:
                self.ledger.note("region", f"{kind} labels left out: empty, or not a text")
        if raw.labels and not labels:
            why = "no label that is a text"
            value = repr([text for text, _ in raw.labels])[:200]
            self.ledger.set_aside("region", why, where=where, value=value)
            return None
        return tuple(labels)

    def _polygons(self, outline: Outline, where: str) -> tuple[Polygon, ...]:
        if outline is None:
            return ()
        if isinstance(outline, list | tuple):
            return _present(
                mend_polygon(self._scaled(ring), self.image.size, self.ledger, where)
                for ring in outline
            )
        return traced(outline, self.image.size, self.ledger, where)

    def _scaled(self, numbers: Any) -> list[Any]:
        """A list to mend, in pixels; what is none becomes a list that mending will refuse."""
        if not isinstance(numbers, list | tuple):
            return [numbers]
        if not self.unit.is_relative:
            return list(numbers)
        try:
            return [float(number) * self.image.size[i % 2] for i, number in enumerate(numbers)]
        except (TypeError, ValueError):
            return list(numbers)


def traced(mask: Any, size: Size, ledger: Ledger, where: str) -> tuple[Polygon, ...]:
    """Polygons of a mask bool[Y, X], whole or a patch, or of a run-length mask.

    None after setting it aside.
    """
    ledger.read("mask")
    try:
        patch = _patch(mask, size)
    except MaskError as error:
        ledger.set_aside("mask", str(error), where=where, value=repr(mask)[:200])
        return ()
    polygons, num_holes = trace_mask(patch.mask)
    ledger.keep("mask")
    ledger.note("mask", "traced to polygons", len(polygons))
    if num_holes:
        ledger.note("mask", "holes filled", num_holes)
    if not (patch.left or patch.top):
        return tuple(polygons)
    offset = (patch.left, patch.top)
    return tuple(tuple(v + offset[i % 2] for i, v in enumerate(ring)) for ring in polygons)


def _patch(mask: Any, size: Size) -> Patch:
    """What is to be traced, within the image. Raises MaskError if that is nothing."""
    if isinstance(mask, dict):
        mask = decode_rle(mask)
    if isinstance(mask, Patch):
        left, top = max(mask.left, 0), max(mask.top, 0)
        rows = slice(top - mask.top, max(size[1] - mask.top, 0))
        columns = slice(left - mask.left, max(size[0] - mask.left, 0))
        inside = mask.mask[rows, columns]
        if not inside.any():
            raise MaskError("no pixel of the mask is in the image")
        return Patch(inside, left, top)
    if not isinstance(mask, np.ndarray):
        raise MaskError("neither polygons nor a mask")
    if mask.shape != size[::-1]:
        raise MaskError("mask of another size than the image")
    return Patch(mask, 0, 0)


def corners(box: Any) -> list[Any]:
    """`x, y, width, height` -> `x0, y0, x1, y1`; what is no box, mending will refuse."""
    if not isinstance(box, list | tuple) or len(box) != 4:
        return [box]
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError):
        return [*box[:3], None]
    return [x, y, x + width, y + height]


def _clean_texts(texts: Sequence[Any]) -> tuple[str, ...]:
    """Texts without control characters and blanks around them, those that are empty left out."""
    return _present(mend_text(text, Ledger(), "") for text in texts)


def _hull(rings: Sequence[Any]) -> list[float | None]:
    numbers = [list(ring) for ring in rings if ring is not None]
    if not numbers:
        return [None] * 4  # For `mend_box` to refuse.
    xs = [x for ring in numbers for x in ring[::2]]
    ys = [y for ring in numbers for y in ring[1::2]]
    return [min(xs), min(ys), max(xs), max(ys)]
