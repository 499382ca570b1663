# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: answers, metrics with their intervals, and what was not scored."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any

from florence2_jax.data.examples import Example
from florence2_jax.evaluation.bootstrap import Resampled
from florence2_jax.evaluation.scored import Scored
from florence2_jax.inference.predictor import Prediction
from florence2_jax.tasks.registry import Task
from florence2_jax.training.digests import digests
from florence2_jax.typing import Size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """One question about one record and what the model said; `index` is the record's place."""

    index: int
    record_id: str
    size: Size
    example: Example
    prediction: Prediction

    @property
    def scored(self) -> Scored:
        """What the metrics read."""
        return Scored(
            example=self.example,
            answer=self.prediction.answer,
            size=self.size,
            image_id=self.record_id,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task's metrics, headline first, and what they count.

    Attributes:
        blind: the metrics of the blind baseline; empty if it was not asked.
        resampled: what the metrics would have been on other records of the same kind.
        num_examples: questions that were scored, about `num_records` records.
        left_out: questions beyond so many of a record (`Asking.per_record`).
        lost: questions about records that were set aside.
        digest: of the questions.
    """

    task: Task
    metrics: dict[str, float]
    blind: dict[str, float]
    resampled: Resampled
    num_examples: int
    num_records: int
    left_out: int
    lost: int
    digest: str

    @property
    def headline(self) -> str:
        """The name of the metric that stands for the task."""
        return next(iter(self.metrics))

    def to_json(self) -> dict[str, Any]:
        """Plain values; a metric without truth is null."""
        return {
            "task": self.task.name,
            "num_examples": self.num_examples,
            "num_records": self.num_records,
            "left_out": self.left_out,
            "lost": self.lost,
            "questions": self.digest,
            "metrics": plain(self.metrics),
            "intervals": self.resampled.intervals(),
            "no_interval": dict(self.resampled.missing),
            "blind": plain(self.blind),
            "resamples": self.resampled.to_json(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results per task, the answers behind them, and records that could not be used."""

    results: tuple[TaskResult, ...]
    answered: tuple[Answered, ...]
    num_records: int
    set_aside: tuple[tuple[int, str], ...]


def plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Values that JSON has; NaN is null."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def fingerprint(params: Any) -> str:
    """16 hexadecimal digits that tell these parameters from others."""
    digest = hashlib.sha256()
    for name, one in sorted(digests(params).items()):
        digest.update(f"{name} {one.dtype} {one.shape} {one.bits}\n".encode())
    return digest.hexdigest()[:16]
