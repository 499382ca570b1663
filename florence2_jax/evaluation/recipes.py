# SPDX-License-Identifier: Apache-2.0
"""A row of the paper's tables: what to ask of which split, how to decode, what was printed.

The rows are files in `configs/evaluate_*.py`; here they are checked and set beside what was
measured.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from florence2_jax.evaluation.families import score_task
from florence2_jax.evaluation.results import TaskResult
from florence2_jax.inference.generation_config import GenerationConfig
from florence2_jax.tasks.registry import Task, get_task
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row.

    Attributes:
        dataset: what to import, in words.
        split: of the store.
        num_images: that the published split has; 0 if it does not count.
        task: that is scored.
        asked_as: the task by whose prompt it is asked, where that is another.
        decoding: options of `GenerationConfig`.
        metrics: the names of what the paper prints; of several readings of one figure, all.
        scale: what the paper multiplies fractions by.
        paper: variant of the model -> its figure.
        source: where in the paper.
        note: what must be known to compare.
    """

    dataset: str
    split: str
    num_images: int = 0
    task: str
    asked_as: str = ""
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: tuple[str, ...]
    scale: float = 100.0
    paper: Mapping[str, float]
    source: str
    note: str = ""

    @classmethod
    def create(cls, values: Mapping[str, Any]) -> "Recipe":
        """Checks the values of a run file.

        Raises:
            UserError: naming the key, on unknown keys, tasks, metrics and options of decoding.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                near = difflib.get_close_matches(name, fields) or sorted(fields)
                raise UserError(f"{name}: no key of a recipe; did you mean {', '.join(near)}?")
        required = ("dataset", "split", "task", "metrics", "paper", "source")
        if missing := [name for name in required if not values.get(name)]:
            raise UserError(f"{missing[0]}: the recipe must say it")
        recipe = cls(**{**values, "metrics": tuple(values["metrics"])})
        GenerationConfig(**recipe.decoding)
        known = score_task(recipe.scored, [])
        for metric in recipe.metrics:
            if metric not in known:
                raise UserError(
                    f"metrics: {recipe.task} has no {metric!r}; there are {', '.join(known)}"
                )
        if recipe.asked_as:
            get_task(recipe.asked_as)
        return recipe

    @property
    def scored(self) -> Task:
        """The task that is scored."""
        return get_task(self.task)

    def asking(self) -> dict[str, str]:
        """Its part of `Asking.asked_as`."""
        if not self.asked_as:
            return {}
        return {self.scored.token: get_task(self.asked_as).token}

    def rows(self, result: TaskResult) -> list[dict[str, Any]]:
        """Paper and measured side by side: a row per metric, both as the paper prints them."""
        rows = []
        for metric in self.metrics:
            interval = result.resampled.interval(metric)
            rows.append(
                {
                    "task": result.task.name,
                    "metric": metric,
                    "paper": dict(self.paper),
                    "measured": self.scale * result.metrics[metric],
                    "interval": None if interval is None else [self.scale * v for v in interval],
                }
            )
        return rows

    def notes(self, split: str, num_records: int, max_records: int | None) -> list[str]:
        """What stands between the measured figure and the printed one."""
        notes = [self.note] if self.note else []
        if split != self.split:
            notes.append(f"measured on split {split}, the figure is of {self.split}: no comparison")
        if self.num_images and num_records != self.num_images:
            why = f"--max-records {max_records}" if max_records else "the store has no more"
            notes.append(
                f"measured on {num_records:,} images, the published split has "
                f"{self.num_images:,} ({why}): not the paper's figure"
            )
        return notes
