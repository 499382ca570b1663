# SPDX-License-Identifier: Apache-2.0
"""What an HTTP annotator is sent and what it answers: JSON, read strictly.

The request of version 1 (`image` in base64; regions in the order to which `region` refers):

    {"version": 1, "id": "...", "width": 640, "height": 480, "kinds": ["text_regions"],
     "media_type": "image/jpeg", "image": "...",
     "texts": [{"text": "...", "granularity": "brief"}],
     "regions": [{"box": [x0, y0, x1, y1], "labels": [{"text": "car", "kind": "category"}]}]}

The answer, every list of which may be missing; coordinates in pixels of the image that was sent:

    {"id": "...", "width": 640, "height": 480,
     "texts": [{"text": "...", "granularity": "brief", "score": 0.9}],
     "regions": [{"box": [x0, y0, x1, y1], "quad": [x, y, x, y, x, y, x, y],
                  "polygons": [[x, y, ...]], "score": 0.9,
                  "labels": [{"text": "STOP", "kind": "text", "score": 0.8}]}],
     "groundings": [{"text": "a red car", "score": 0.7,
                     "spans": [{"start": 0, "end": 9, "boxes": [[x0, y0, x1, y1]],
                                "phrase_score": 0.7, "box_scores": [0.6]}]}],
     "questions": [{"question": "...", "answers": ["..."], "score": 0.5}],
     "labels": [{"region": 0, "text": "...", "kind": "brief", "score": 0.5}],
     "masks": [{"region": 0, "polygons": [[x, y, ...]], "score": 0.9}]}

`id`, `width` and `height` must be those of the request: an answer about another image, or about
the image at another size, has its boxes in wrong places. A region needs a box, a quad or polygons.
An unknown key, a box outside of the image or a value of another type makes the whole answer
garbage.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from florence2_jax.engine.specialists.base import Annotations, Kind
from florence2_jax.geometry import hull_box
from florence2_jax.records.schema import (
    GRANULARITIES,
    LABEL_KINDS,
    Grounding,
    Label,
    Provenance,
    Question,
    Record,
    RecordError,
    Region,
    Span,
    Text,
)

VERSION = 1
_PARTS = ("texts", "regions", "groundings", "questions", "labels", "masks")
_OF_KIND: dict[Kind, str] = {
    "texts": "texts", "boxes": "regions", "text_regions": "regions", "region_texts": "labels",
    "groundings": "groundings", "masks": "masks", "questions": "questions",
}  # fmt: skip

_T = TypeVar("_T")
Maker = Callable[[float | None], Provenance]


class WireError(ValueError):
    """An answer that does not keep to the format. The message names the place."""


def request_of(record: Record, kinds: Sequence[Kind], media_type: str) -> dict[str, Any]:
    """What is posted about a record: all of it that filters have not dropped by place."""
    return {
        "version": VERSION,
        "id": record.id,
        "width": record.width,
        "height": record.height,
        "kinds": list(kinds),
        "media_type": media_type,
        "image": base64.b64encode(record.image).decode(),
        "texts": [{"text": t.text, "granularity": t.granularity} for t in record.kept().texts],
        "regions": [
            {
                "box": list(region.box),
                "labels": [{"text": label.text, "kind": label.kind} for label in region.labels],
            }
            for region in record.regions  # All: an index means the same on both sides.
        ],
    }


def read_answer(answer: Any, record: Record, kinds: Sequence[Kind], maker: Maker) -> Annotations:
    """The annotations of an answer.

    Args:
        kinds: what may be in it.
        maker: the provenance of an annotation, given its score.

    Raises:
        WireError: naming the first place that is wrong.
    """
    fields = _Fields(answer, "answer", required=("id", "width", "height"), optional=_PARTS)
    if fields["id"] != record.id:
        raise WireError("answer: is about another image")
    size = fields.whole("width"), fields.whole("height")
    if size != record.size:
        given = f"{size[0]} x {size[1]}"
        raise WireError(f"answer: is of an image of {given}, not {record.width} x {record.height}")
    allowed = {_OF_KIND[kind] for kind in kinds}
    for part in _PARTS:
        if fields.values.get(part) and part not in allowed:
            raise WireError(f"answer: has {part}, which were not asked for")
    reader = _Reader(record, maker)
    return Annotations(
        texts=fields.each("texts", reader.text),
        regions=fields.each("regions", reader.region),
        groundings=fields.each("groundings", reader.grounding),
        questions=fields.each("questions", reader.question),
        labels=fields.each("labels", reader.new_label),
        masks=fields.each("masks", reader.mask),
    )


class _Fields:
    """A JSON object whose keys are known."""

    def __init__(
        self, values: Any, place: str, *, required: Sequence[str], optional: Sequence[str] = ()
    ):
        if not isinstance(values, dict):
            raise WireError(f"{place}: is no object")
        for name in values:
            if name not in required and name not in optional:
                raise WireError(f"{place}: has an unknown key {str(name)[:40]!r}")
        for name in required:
            if name not in values:
                raise WireError(f"{place}: has no {name}")
        self.values, self.place = values, place

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def string(self, name: str, otherwise: str | None = None) -> str:
        value = self.values.get(name, otherwise)
        if not isinstance(value, str):
            raise WireError(f"{self.place}.{name}: is no text")
        return value

    def choice(self, name: str, known: Sequence[str], otherwise: str) -> Any:
        value = self.string(name, otherwise)
        if value not in known:
            raise WireError(f"{self.place}.{name}: {value[:40]!r} is not one of {', '.join(known)}")
        return value

    def whole(self, name: str) -> int:
        if type(self.values[name]) is not int:
            raise WireError(f"{self.place}.{name}: is no whole number")
        return self.values[name]

    def list_of(self, name: str) -> list[Any]:
        values = self.values.get(name, [])
        if not isinstance(values, list):
            raise WireError(f"{self.place}.{name}: is no list")
        return values

    def each(self, name: str, read: Callable[[Any, str], _T]) -> tuple[_T, ...]:
        found = []
        for i, value in enumerate(self.list_of(name)):
            place = f"{self.place}.{name}[{i}]"
            try:
                found.append(read(value, place))
            except RecordError as error:
                raise WireError(f"{place}: {str(error)[:200]}") from error
        return tuple(found)

    def numbers(self, name: str, count: int | None = None) -> tuple[float, ...]:
        return _numbers(self.list_of(name), f"{self.place}.{name}", count)

    def score(self, name: str = "score") -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        (number,) = _numbers([value], f"{self.place}.{name}", 1)
        return number


def _numbers(values: Any, place: str, count: int | None = None) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(type(v) in (int, float) for v in values):
        raise WireError(f"{place}: is no list of numbers")
    if count is not None and len(values) != count:
        raise WireError(f"{place}: has {len(values)} numbers, not {count}")
    try:
        return tuple(map(float, values))
    except OverflowError as error:
        raise WireError(f"{place}: a number is too large") from error


class _Reader:
    """Reads one annotation each; the schema checks their values."""

    def __init__(self, record: Record, maker: Maker):
        self.record, self.maker = record, maker

    def text(self, value: Any, place: str) -> Text:
        fields = _Fields(value, place, required=("text",), optional=("granularity", "score"))
        return Text(
            text=fields.string("text"),
            granularity=fields.choice("granularity", GRANULARITIES, "brief"),
            provenance=self.maker(fields.score()),
        )

    def label(self, value: Any, place: str) -> Label:
        fields = _Fields(value, place, required=("text",), optional=("kind", "score"))
        kind = fields.choice("kind", LABEL_KINDS, "category")
        score = fields.score()
        made = None if score is None else self.maker(score)
        return Label(text=fields.string("text"), kind=kind, provenance=made)

    def region(self, value: Any, place: str) -> Region:
        optional = ("box", "quad", "polygons", "labels", "score")
        fields = _Fields(value, place, required=(), optional=optional)
        quad: Any = fields.numbers("quad", 8) if "quad" in fields.values else None
        polygons = fields.each("polygons", self.polygon)
        points = quad or tuple(v for polygon in polygons for v in polygon)
        if "box" not in fields.values and len(points) < 6:
            raise WireError(f"{place}: has no box, no quad and no polygons")
        box: Any = fields.numbers("box", 4) if "box" in fields.values else hull_box(points)
        self._inside((*box, *(quad or ()), *(v for p in polygons for v in p)), place)
        return Region(
            box=box,
            quad=quad,
            polygons=polygons,
            labels=fields.each("labels", self.label),
            provenance=self.maker(fields.score()),
        )

    def polygon(self, value: Any, place: str) -> tuple[float, ...]:
        numbers = _numbers(value, place)
        if len(numbers) < 6 or len(numbers) % 2:
            raise WireError(f"{place}: a polygon has three points or more")
        return numbers

    def grounding(self, value: Any, place: str) -> Grounding:
        fields = _Fields(value, place, required=("text", "spans"), optional=("score",))
        return Grounding(
            text=fields.string("text"),
            spans=fields.each("spans", self.span),
            provenance=self.maker(fields.score()),
        )

    def span(self, value: Any, place: str) -> Span:
        optional = ("phrase_score", "box_scores")
        fields = _Fields(value, place, required=("start", "end", "boxes"), optional=optional)
        return Span(
            start=fields.whole("start"),
            end=fields.whole("end"),
            boxes=fields.each("boxes", self.box),
            phrase_score=fields.score("phrase_score"),
            box_scores=fields.numbers("box_scores"),
        )

    def box(self, value: Any, place: str) -> Any:
        box = _numbers(value, place, 4)
        self._inside(box, place)
        return box

    def question(self, value: Any, place: str) -> Question:
        fields = _Fields(value, place, required=("question", "answers"), optional=("score",))
        answers = fields.list_of("answers")
        if not all(isinstance(answer, str) for answer in answers):
            raise WireError(f"{place}.answers: one is no text")
        return Question(
            question=fields.string("question"),
            answers=tuple(answers),
            provenance=self.maker(fields.score()),
        )

    def new_label(self, value: Any, place: str) -> tuple[int, Label]:
        fields = _Fields(value, place, required=("region", "text"), optional=("kind", "score"))
        kind = fields.choice("kind", LABEL_KINDS, "category")
        made = self.maker(fields.score())
        return self._index(fields), Label(text=fields.string("text"), kind=kind, provenance=made)

    def mask(self, value: Any, place: str) -> tuple[int, tuple[tuple[float, ...], ...], Provenance]:
        fields = _Fields(value, place, required=("region", "polygons"), optional=("score",))
        polygons = fields.each("polygons", self.polygon)
        self._inside([v for polygon in polygons for v in polygon], place)
        return self._index(fields), polygons, self.maker(fields.score())

    def _index(self, fields: _Fields) -> int:
        index = fields.whole("region")
        if not 0 <= index < len(self.record.regions):
            count = len(self.record.regions)
            raise WireError(f"{fields.place}.region: {index} is none of the {count} sent")
        return index

    def _inside(self, coordinates: Sequence[float], place: str) -> None:
        width, height = self.record.size
        for values, side in ((coordinates[::2], width), (coordinates[1::2], height)):
            if not all(0 <= value <= side for value in values):
                raise WireError(f"{place}: leaves the {width} x {height} image")
