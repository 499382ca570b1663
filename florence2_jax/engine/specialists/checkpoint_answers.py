# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint is asked about a record, and how its answers become annotations."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from florence2_jax.engine.specialists.base import Annotations, Kind
from florence2_jax.engine.specialists.configured import cleaned, clipped
from florence2_jax.geometry import box_iou
from florence2_jax.inference.predictor import Prediction
from florence2_jax.records.schema import (
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
from florence2_jax.tasks.answers import AnyRegion, BoxRegion, MaskRegion, QuadRegion, TextAnswer
from florence2_jax.tasks.registry import Task, prompt_text
from florence2_jax.tasks.targets import clean_text, region_box
from florence2_jax.text.locations import coordinates_text

KIND_OF_TASK: dict[str, Kind] = {
    "<CAPTION>": "texts",
    "<DETAILED_CAPTION>": "texts",
    "<MORE_DETAILED_CAPTION>": "texts",
    "<OD>": "boxes",
    "<DENSE_REGION_CAPTION>": "boxes",
    "<REGION_PROPOSAL>": "boxes",
    "<OPEN_VOCABULARY_DETECTION>": "boxes",
    "<REFERRING_EXPRESSION_COMPREHENSION>": "boxes",
    "<OCR>": "text_regions",
    "<OCR_WITH_REGION>": "text_regions",
    "<REGION_TO_CATEGORY>": "region_texts",
    "<REGION_TO_DESCRIPTION>": "region_texts",
    "<REGION_TO_OCR>": "region_texts",
    "<CAPTION_TO_PHRASE_GROUNDING>": "groundings",
    "<REGION_TO_SEGMENTATION>": "masks",
    "<REFERRING_EXPRESSION_SEGMENTATION>": "masks",
    "<VQA>": "questions",
}

_LABELS: dict[str, LabelKind] = {
    "region:category": "category", "region:phrase": "phrase", "region:brief": "brief",
    "region:text": "text", "reading": "text", "mask:phrase": "phrase",
}  # fmt: skip

Maker = Callable[[float | None], Provenance]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A task with the prompt of one question, and what it is about: a text, or a region's index."""

    task: Task
    prompt: str
    about: Any = None


def questions_of(
    task: Task, record: Record, *, names: Sequence[str] = (), questions: Sequence[str] = ()
) -> list[Asked]:
    """What a task has to ask about a record.

    Args:
        names: for open-vocabulary detection; by default the categories that the record has.
        questions: for `<VQA>`.
    """
    given = _inputs(task, record, names, questions)
    return [
        Asked(task, prompt_text(task, text), about)
        for text, about in given
        if text or task.input == "none"
    ]


def _inputs(
    task: Task, record: Record, names: Sequence[str], questions: Sequence[str]
) -> list[tuple[str, Any]]:
    """What the prompts of a task are filled with, and what each is about."""
    if task.input == "none":
        return [("", None)]
    if task.input == "region":
        lacks = _LACKS[task.learns_from]
        return [
            (coordinates_text(region.box, record.size), i)
            for i, region in _regions(record)
            if lacks(region)
        ]
    kept = record.kept()
    if task.grammar == "named_boxes":
        words = map(_words, names or _labels(kept, "category"))
        return [("<and>".join(filter(None, words)), None)]
    if task.learns_from == "mask:phrase":
        return [
            (_words(region.label("phrase") or ""), i)
            for i, region in _regions(record)
            if _may_have_mask(region)
        ]
    if task.learns_from == "question":
        texts = questions
    elif task.learns_from == "grounding":
        texts = [text.text for text in kept.texts]
    else:
        texts = [g.phrase(span) for g in kept.groundings for span in g.spans]
    return [(_words(text), text) for text in dict.fromkeys(texts)]


def _words(text: str) -> str:
    """A text as prompts spell it."""
    return cleaned(clean_text(text))


def _labels(record: Record, kind: LabelKind) -> list[str]:
    return sorted({text for region in record.regions if (text := region.label(kind))})


def _regions(record: Record) -> list[tuple[int, Region]]:
    """Regions that count, with their index among all."""
    return [
        (i, region)
        for i, region in enumerate(record.regions)
        if not (region.is_crowd or region.provenance.dropped)
    ]


def _is_writing(region: Region) -> bool:
    return region.quad is not None or region.label("text") is not None


def _may_have_mask(region: Region) -> bool:
    return not region.polygons and region.quad is None


_LACKS: dict[str, Callable[[Region], bool]] = {
    "region:category": lambda r: r.label("category") is None and not _is_writing(r),
    "region:brief": lambda r: r.label("brief") is None and not _is_writing(r),
    "region:text": lambda r: r.label("text") is None and _is_writing(r),
    "mask:any": _may_have_mask,
}
"""Which regions a task about one region has something to add to."""


class AnswerBook:
    """Gathers the answers about one record.

    Args:
        maker: the provenance of an annotation, given its score.
        mask_iou: a mask whose box overlaps its region's by less is of something else.
    """

    def __init__(self, record: Record, maker: Maker, *, mask_iou: float):
        self.record, self.maker, self.mask_iou = record, maker, mask_iou
        self.found: dict[str, list[Any]] = {
            field.name: [] for field in dataclasses.fields(Annotations)
        }

    def annotations(self) -> Annotations:
        return Annotations(**{name: tuple(values) for name, values in self.found.items()})

    def add(self, asked: Asked, prediction: Prediction) -> None:
        """Adds what an answer says; what is no annotation of this record is left out."""
        answer = prediction.answer
        if isinstance(answer, TextAnswer):
            self._text(asked, cleaned(answer.text), prediction.scores.text)
            return
        scores = [score.label for score in prediction.scores.regions]
        if asked.task.learns_from == "grounding":
            self._grounding(asked.about, answer.regions, scores)
        elif KIND_OF_TASK[asked.task.token] == "masks":
            self._mask(asked.about, answer.regions)
        else:
            for region, score in zip(answer.regions, scores, strict=True):
                self._region(asked, region, score)

    def _text(self, asked: Asked, text: str, score: float | None) -> None:
        if not text:
            return
        source, made = asked.task.learns_from, self.maker(score)
        if source == "question":
            question = Question(question=asked.about, answers=(text,), provenance=made)
            self.found["questions"].append(question)
        elif source == "reading":  # Its place is not told: the whole image reads so.
            whole = (0.0, 0.0, float(self.record.width), float(self.record.height))
            label = Label(text=text, kind="text")
            self.found["regions"].append(Region(box=whole, labels=(label,), provenance=made))
        elif asked.about is not None:
            label = Label(text=text, kind=_LABELS[source], provenance=made)
            self.found["labels"].append((asked.about, label))
        else:
            granularity: Any = source.partition(":")[2]
            self.found["texts"].append(Text(text=text, granularity=granularity, provenance=made))

    def _region(self, asked: Asked, region: AnyRegion, label_score: float | None) -> None:
        box = clipped(region_box(region), self.record.size)
        if box is None:  # Within one bin of a side.
            return
        kind = _LABELS.get(asked.task.learns_from)
        text = cleaned(asked.about if asked.task.input == "text" and asked.about else region.label)
        made = None if label_score is None else self.maker(label_score)
        labels = (Label(text=text, kind=kind, provenance=made),) if kind and text else ()
        self.found["regions"].append(
            Region(
                box=box,
                labels=labels,
                quad=region.quad if isinstance(region, QuadRegion) else None,
                polygons=region.polygons if isinstance(region, MaskRegion) else (),
                provenance=self.maker(region.score),
            )
        )

    def _mask(self, index: int, regions: Sequence[AnyRegion]) -> None:
        masks = [region for region in regions if isinstance(region, MaskRegion)]
        box = np.array([self.record.regions[index].box])
        overlaps = [float(box_iou(box, np.array([region_box(mask)]))[0, 0]) for mask in masks]
        if masks and max(overlaps) >= self.mask_iou:
            best = masks[int(np.argmax(overlaps))]
            self.found["masks"].append((index, best.polygons, self.maker(best.score)))

    def _grounding(
        self, text: str, regions: Sequence[AnyRegion], scores: Sequence[float | None]
    ) -> None:
        """Ties phrases to their places in the text, one after the other."""
        places: dict[tuple[int, int], list[tuple[BoxRegion, float | None]]] = {}
        last, place = None, (0, 0)
        for region, score in zip(regions, scores, strict=True):
            if not isinstance(region, BoxRegion) or not region.label:
                continue
            if region.label != last:  # A phrase owns the boxes that follow it.
                start = text.find(region.label, place[1])
                start = text.find(region.label) if start < 0 else start
                if start < 0:
                    last = None
                    continue
                last, place = region.label, (start, start + len(region.label))
            if clipped(region.box, self.record.size) is not None:
                places.setdefault(place, []).append((region, score))
        spans = [
            Span(
                start=start,
                end=end,
                boxes=tuple(region.box for region, _ in found),
                phrase_score=found[0][1],
                box_scores=tuple(region.score or 0.0 for region, _ in found),
            )
            for (start, end), found in sorted(places.items())
        ]
        if spans:
            best = max((span.phrase_score or 0.0) for span in spans)
            grounding = Grounding(text=text, spans=tuple(spans), provenance=self.maker(best))
            self.found["groundings"].append(grounding)
