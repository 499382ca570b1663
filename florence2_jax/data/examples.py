# SPDX-License-Identifier: Apache-2.0
"""Record -> examples: every question a record can answer, with the true answer.

One record yields many examples; that is what multi-granularity means. Training turns an example
into a target (`target_of`), evaluation compares its truth with a model's answer.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from florence2_jax.records.schema import Record, Region
from florence2_jax.tasks.answers import AnyRegion, BoxRegion, MaskRegion, QuadRegion
from florence2_jax.tasks.registry import TASKS, Task, prompt_text
from florence2_jax.tasks.targets import (
    UNLIMITED,
    Budget,
    Drop,
    Order,
    Target,
    clean_text,
    write_region_text,
    write_regions,
    write_text,
)
from florence2_jax.text.locations import coordinates_text
from florence2_jax.typing import Box, Size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One task asked about one image.

    `text` is the true text of text grammars, `regions` the true regions of the others; `references`
    are all texts that would be right (the five captions of a photo, the ten answers of a question).
    `region` is the box a region task asks about. `crowds` are places with many of a kind: no target
    names them, and average precision counts a box there neither right nor wrong.
    """

    task: Task
    text_input: str = ""
    text: str = ""
    references: tuple[str, ...] = ()
    regions: tuple[AnyRegion, ...] = ()
    region: Box | None = None
    crowds: tuple[BoxRegion, ...] = ()

    @property
    def prompt(self) -> str:
        """The sentence the model is asked with."""
        return prompt_text(self.task, self.text_input)


def examples_of(record: Record, task: Task) -> tuple[Example, ...]:
    """Every example of a task that a record can feed, in a fixed order; empty if there is none.

    What filters of the data engine dropped is no example.
    """
    make = functools.partial(Example, task=task)
    return tuple(_maker(task)(record.kept(), task, make))


def feeds(record: Record, tokens: Iterable[str]) -> bool:
    """Whether a record has an example of any of these tasks."""
    return any(examples_of(record, TASKS[token]) for token in tokens)


def target_of(
    example: Example,
    size: Size,
    *,
    order: Order = "given",
    drop: Drop = "smallest",
    rng: np.random.Generator | None = None,
    budget: Budget = UNLIMITED,
) -> Target:
    """The text a model should write, within the task's and the caller's budget of tokens."""
    task = example.task
    if budget is not UNLIMITED:
        max_tokens = min(budget.max_tokens, task.max_target_tokens)
        budget = dataclasses.replace(budget, max_tokens=max_tokens)
    if task.grammar == "text":
        return write_text(example.text, budget=budget)
    if task.grammar == "region_text":
        assert example.region is not None
        return write_region_text(example.text, example.region, size, budget=budget)
    return write_regions(
        task, example.regions, size, order=order, drop=drop, rng=rng, budget=budget
    )


Make = Callable[..., Example]


def _targets(record: Record) -> Iterator[Region]:
    """Regions that may be asked for: all but crowds."""
    return (region for region in record.regions if not region.is_crowd)


def _texts(record: Record, task: Task, make: Make) -> Iterator[Example]:
    granularity = task.learns_from.partition(":")[2]
    texts = tuple(t.text for t in record.texts if t.granularity == granularity)
    return (make(text=text, references=texts) for text in texts)


def _crowds(record: Record) -> tuple[Region, ...]:
    return tuple(region for region in record.regions if region.is_crowd)


def _labelled_boxes(regions: Iterable[Region], kind: str) -> Iterator[BoxRegion]:
    for region in regions:
        for label in region.labels:
            if label.kind == kind:
                yield BoxRegion(label=label.text, box=region.box)


def _whole_image(record: Record, task: Task, make: Make) -> Iterator[Example]:
    """Detection, dense captions, proposals, text spotting: one question about all regions."""
    kind, crowds = task.learns_from.partition(":")[2], ()
    if task.grammar == "quads":
        regions = tuple(  # A word nobody wrote down is no word to learn.
            QuadRegion(label=text, quad=region.quad)
            for region in _targets(record)
            if region.quad is not None and (text := region.label("text")) is not None
        )
    elif task.grammar == "proposals":
        regions = tuple(BoxRegion(box=region.box) for region in _targets(record))
        crowds = tuple(BoxRegion(box=region.box) for region in _crowds(record))
    else:
        regions = tuple(_labelled_boxes(_targets(record), kind))
        crowds = tuple(_labelled_boxes(_crowds(record), kind))
    if regions:
        yield make(regions=regions, crowds=crowds)


def _names(record: Record, task: Task, make: Make) -> Iterator[Example]:
    """Open vocabulary: each category by itself, then all together."""
    by_name: dict[str, list[BoxRegion]] = {}
    for box in _labelled_boxes(_targets(record), "category"):
        name = clean_text(box.label)
        if name:
            by_name.setdefault(name, []).append(dataclasses.replace(box, label=name))
    crowds: dict[str, tuple[BoxRegion, ...]] = {}
    for box in _labelled_boxes(_crowds(record), "category"):
        name = clean_text(box.label)
        crowds[name] = (*crowds.get(name, ()), dataclasses.replace(box, label=name))
    for name, boxes in by_name.items():
        yield make(text_input=name, regions=tuple(boxes), crowds=crowds.get(name, ()))
    if len(by_name) > 1:
        boxes = tuple(box for some in by_name.values() for box in some)
        among = tuple(box for name in by_name for box in crowds.get(name, ()))
        yield make(text_input="<and>".join(by_name), regions=boxes, crowds=among)


def _phrases(record: Record, task: Task, make: Make) -> Iterator[Example]:
    """Referring expressions: all regions that share the phrase are its answer."""
    by_phrase: dict[str, list[Region]] = {}
    for region in _targets(record):
        for label in region.labels:
            if label.kind == "phrase" and clean_text(label.text):
                by_phrase.setdefault(clean_text(label.text), []).append(region)
    for phrase, regions in by_phrase.items():
        if task.grammar != "masks":
            boxes = tuple(BoxRegion(box=region.box) for region in regions)
            yield make(text_input=phrase, regions=boxes)
        elif all(region.polygons for region in regions):
            masks = tuple(MaskRegion(polygons=region.polygons) for region in regions)
            yield make(text_input=phrase, regions=masks)


def _one_region(record: Record, task: Task, make: Make) -> Iterator[Example]:
    """What is this region: its category, description or writing, or its mask."""
    kind = task.learns_from.partition(":")[2]
    for region in _targets(record):
        if task.grammar == "masks":
            if region.polygons:
                place = coordinates_text(region.box, record.size)
                mask = MaskRegion(polygons=region.polygons)
                yield make(text_input=place, region=region.box, regions=(mask,))
            continue
        texts = tuple(label.text for label in region.labels if label.kind == kind)
        for text in filter(clean_text, texts):
            place = coordinates_text(region.box, record.size)
            yield make(text_input=place, region=region.box, text=text, references=texts)


def _reading(record: Record, task: Task, make: Make) -> Iterator[Example]:
    """All writing of the image, line by line from the top."""
    words = [(region.box[1], region.box[0], region.label("text")) for region in _targets(record)]
    lines = [text for _, _, text in sorted((y, x, text) for y, x, text in words if text)]
    if lines:
        text = "\n".join(lines)
        yield make(text=text, references=(text,))


def _groundings(record: Record, task: Task, make: Make) -> Iterator[Example]:
    for grounding in record.groundings:
        regions = tuple(
            BoxRegion(label=grounding.phrase(span), box=box)
            for span in grounding.spans
            for box in span.boxes
        )
        yield make(text_input=clean_text(grounding.text), regions=regions)


def _questions(record: Record, task: Task, make: Make) -> Iterator[Example]:
    for question in record.questions:
        text_input = clean_text(question.question)
        yield make(text_input=text_input, text=question.answers[0], references=question.answers)


def _maker(task: Task) -> Callable[[Record, Task, Make], Iterator[Example]]:
    if task.grammar == "named_boxes":
        return _names
    if task.input == "region":
        return _one_region
    kind, _, detail = task.learns_from.partition(":")
    if kind == "text":
        return _texts
    if detail == "phrase":
        return _phrases
    return {"reading": _reading, "grounding": _groundings, "question": _questions}.get(
        kind, _whole_image
    )
