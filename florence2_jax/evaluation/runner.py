# SPDX-License-Identifier: Apache-2.0
"""A model's answers to every question a store can ask, and what they are worth.

Beside each metric stands that of a blind baseline: the same model, the same prompts, but the image
of another record. What a model knows without looking (language, the box in the prompt) is in both.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from florence2_jax.data.examples import Example, examples_of
from florence2_jax.data.transforms import decode, resize
from florence2_jax.evaluation.captions import content_vocabulary
from florence2_jax.evaluation.families import score_task
from florence2_jax.evaluation.scored import Scored
from florence2_jax.inference.predictor import Prediction, Predictor
from florence2_jax.records.checks import ImageError
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import TASKS, Task
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """One question about one record and what the model said."""

    record: Record
    example: Example
    prediction: Prediction

    @property
    def scored(self) -> Scored:
        """What the metrics read."""
        return Scored(
            example=self.example,
            answer=self.prediction.answer,
            size=self.record.size,
            image_id=self.record.id,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task's metrics, headline first, those of the blind baseline, and what they count."""

    task: Task
    metrics: dict[str, float]
    blind: dict[str, float]
    num_examples: int

    def to_json(self) -> dict[str, Any]:
        """Plain values; a metric without truth is null."""

        def plain(metrics: dict[str, float]) -> dict[str, float | None]:
            return {name: None if math.isnan(v) else v for name, v in metrics.items()}

        return {
            "task": self.task.name,
            "num_examples": self.num_examples,
            "metrics": plain(self.metrics),
            "blind": plain(self.blind),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results per task, the answers behind them, and records that could not be used."""

    results: tuple[TaskResult, ...]
    answered: tuple[Answered, ...]
    num_records: int
    set_aside: tuple[tuple[int, str], ...]


def evaluate(
    predictor: Predictor,
    store: RecordStore,
    tasks: Sequence[Task] = tuple(TASKS.values()),
    *,
    max_records: int | None = None,
    per_record: int = 4,
    with_blind: bool = True,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Asks, and scores.

    Args:
        tasks: those that no record feeds are left out of the results.
        max_records: the first so many records of the split; all by default.
        per_record: questions per task and record at most (the first ones: regions, phrases).
        batch_size: images per call of the model.
        on_progress: called with (batches done, batches in all).

    Raises:
        UserError: if no record feeds any of the tasks.
    """
    records, set_aside = _readable(store, max_records)
    asked = [_questions(record, tasks, per_record) for record in records]
    if not records:
        raise UserError(
            f"{store.directory}: no record of {store.split} can be read: {set_aside[0]}"
        )
    if not any(asked):
        names = ", ".join(task.name for task in tasks)
        raise UserError(f"no record of {store.directory} ({store.split}) feeds {names}")
    starts = range(0, len(records), batch_size)
    total = len(starts) * (2 if with_blind else 1)

    def run(shift: int, done: int) -> Iterator[Answered]:
        for number, start in enumerate(starts, 1):
            rows = range(start, min(start + batch_size, len(records)))
            seen = [records[(i + shift) % len(records)] for i in rows]
            batch = [(records[i], asked[i]) for i in rows]
            yield from _answer(predictor, batch, seen, batch_size, max(map(len, asked)))
            if on_progress:
                on_progress(done + number, total)

    answered = tuple(run(0, 0))
    # Half a store away: neighbours may be alike. With one record there is nothing to be blind with.
    shift = len(records) // 2
    blind = tuple(run(shift, len(starts))) if with_blind and shift else ()
    words = content_vocabulary(_category_names(records))
    results = []
    for task in tasks:
        own = [one.scored for one in answered if one.example.task is task]
        others = [one.scored for one in blind if one.example.task is task]
        if own:
            metrics = score_task(task, own, content_words=words)
            blind_metrics = score_task(task, others, content_words=words) if others else {}
            results.append(
                TaskResult(task=task, metrics=metrics, blind=blind_metrics, num_examples=len(own))
            )
    return Evaluation(
        results=tuple(results),
        answered=answered,
        num_records=len(records),
        set_aside=tuple(set_aside),
    )


def _readable(
    store: RecordStore, max_records: int | None
) -> tuple[list[Record], list[tuple[int, str]]]:
    records, set_aside = [], []
    for index in range(min(len(store), max_records or len(store))):
        try:
            record = store[index]
            decode(record.image)
        except (UserError, ImageError) as error:
            set_aside.append((index, str(error)))
            continue
        records.append(record)
    return records, set_aside


def _questions(record: Record, tasks: Sequence[Task], per_record: int) -> list[Example]:
    """Up to `per_record` examples per task, each prompt once (five captions are one question)."""
    questions = []
    for task in tasks:
        by_prompt: dict[str, Example] = {}
        for example in examples_of(record, task):
            by_prompt.setdefault(example.text_input, example)
        questions += list(by_prompt.values())[:per_record]
    return questions


def _answer(
    predictor: Predictor,
    batch: Sequence[tuple[Record, list[Example]]],
    seen: Sequence[Record],
    batch_size: int,
    num_prompts: int,
) -> Iterator[Answered]:
    images = np.stack([_pixels(predictor, record) for record in seen])
    asked = [[(example.task, example.prompt) for example in examples] for _, examples in batch]
    missing = batch_size - len(batch)  # Every call has one shape: one compilation.
    images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
    asked += [[]] * missing
    ids, scores = predictor.generate(images, asked, num_prompts=num_prompts)
    for row, (record, examples) in enumerate(batch):
        for k, example in enumerate(examples):
            prediction = predictor.read(example.task, ids[row, k], scores[row, k], record.size)
            yield Answered(record=record, example=example, prediction=prediction)


def _pixels(predictor: Predictor, record: Record) -> UInt8[NDArray, "Y X 3"]:
    return resize(decode(record.image), predictor.config.image_size)


def _category_names(records: Sequence[Record]) -> set[str]:
    return {
        label.text
        for record in records
        for region in record.regions
        for label in region.labels
        if label.kind == "category"
    }
