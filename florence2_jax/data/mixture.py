# SPDX-License-Identifier: Apache-2.0
"""Which image comes when, and what it is asked: stores and tasks by weights, in stages.

The order of a run is a function of its seed and an image's number, without memory: any image is as
near as the first. Every store is walked in epochs of its own, each record once in each.
"""

import bisect
import dataclasses
import difflib
import itertools
import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import grain
import numpy as np

from florence2_jax.data.examples import Example, examples_of
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import TASKS
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One store of a mixture.

    Two parts may read the same records, say with other tasks: each has an order of its own, so that
    a record comes once per epoch of each part.

    Raises:
        UserError: if the weight is not a positive number.
    """

    name: str  # Empty where the mixture is a single store.
    store: RecordStore
    weight: float = 1.0  # Images it gives, beside those of the others.
    tasks: Mapping[str, float] | None = None  # By token; None: those of the run.

    def __post_init__(self):
        check_weight(f"{self.place}.weight", self.weight)

    @property
    def place(self) -> str:
        """The key of the run file that holds it."""
        return f"input.mixture.{self.name}" if self.name else "input.records"

    def seed(self, seed: int) -> int:
        """Its own seed in a run of `seed`: stores of one length are not shuffled alike.

        A single store keeps the run's. It depends on the name, not on the other stores.
        """
        if not self.name:
            return seed
        sequence = np.random.SeedSequence((seed, zlib.crc32(self.name.encode())))
        return int(sequence.generate_state(1)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A time of the run, up to `end_step`: what is asked in it, and of which stores.

    `tasks` (by token) multiply the weights that the tasks have anyway, and leave out those they do
    not name; None changes nothing. `weights` replace those of the stores they name; with 0 a store
    gives nothing in this stage and goes on later where it was.

    Raises:
        UserError: if a weight of a store is negative or no number.
    """

    name: str
    end_step: int = sys.maxsize
    tasks: Mapping[str, float] | None = None
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, weight in self.weights.items():
            check_weight(f"{self.place}.weights.{name}", weight, may_be_zero=True)

    @property
    def place(self) -> str:
        """The key of the run file that holds it."""
        return f"input.stages.{self.name}"


WHOLE_RUN = Stage(name="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Stores that give the images of a run, in the proportions of their weights.

    Args:
        stages: in the order of their ends; the last one lasts for ever.

    Raises:
        UserError: if a stage gives a weight to an unknown store, or none to any.
    """

    parts: tuple[Part, ...]
    stages: tuple[Stage, ...] = (WHOLE_RUN,)

    def __post_init__(self):
        names = [part.name for part in self.parts if part.name]
        for stage in self.stages:
            for name in stage.weights:
                if name not in names:
                    raise UserError(
                        f"{stage.place}.weights.{name}: no such store; input.mixture has "
                        f"{', '.join(names) or 'none'}"
                    )
            if not any(self.weights(stage)):
                raise UserError(f"{stage.place}.weights: no store has a weight above 0")

    @classmethod
    def of(cls, source: "RecordStore | Mixture") -> "Mixture":
        """A single store as a mixture; a mixture as it is."""
        return source if isinstance(source, Mixture) else cls(parts=(Part(name="", store=source),))

    def weights(self, stage: Stage) -> list[float]:
        """Weights of the parts in a stage, 0 for those that rest."""
        return [stage.weights.get(part.name, part.weight) for part in self.parts]

    def tasks(self, stage: Stage, part: Part, tasks: Mapping[str, float]) -> dict[str, float]:
        """What a part is asked in a stage, by token, where the run's weights are `tasks`."""
        own = tasks if part.tasks is None else part.tasks
        if stage.tasks is None:
            return dict(own)
        return {token: w * stage.tasks[token] for token, w in own.items() if token in stage.tasks}


class Interleave(grain.transforms.DatasetSelectionMap):
    """An image's number -> (its stage, part and size, how many images that part gave before).

    The first number is `(stage * len(parts) + part) * len(sizes) + size`. Exact integers
    throughout: no weight is rounded, and no image comes twice or never, however far the run is. In
    a stage, a part is always within `len(parts)` images of its share.

    `sizes` are the weights of the image sizes that the steps take turns in: all images of a step
    have one size, and which one follows from the step alone.
    """

    def __init__(self, mixture: Mixture, batch_size: int, sizes: Sequence[float] = (1.0,)):
        self._batch_size, self._sizes = batch_size, _proportions(sizes)
        ends = [stage.end_step * batch_size for stage in mixture.stages]
        self._starts = [0, *ends[:-1]]
        self._proportions = [_proportions(mixture.weights(stage)) for stage in mixture.stages]
        self._before = [[0] * len(mixture.parts)]  # Taken from each part before each stage.
        for length, proportions in zip(
            (b - a for a, b in itertools.pairwise(self._starts)), self._proportions, strict=False
        ):
            self._before.append(_add(self._before[-1], _split(length, proportions)))

    def __len__(self) -> int:
        return 2**62  # Images; no run ends there, and Grain can count it in batches of one.

    def __getitem__(self, index: int) -> tuple[int, int]:
        before, after = self.taken(index), self.taken(index + 1)
        part = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
        walk = self.stage(index) * len(before) + part
        return walk * len(self._sizes) + self.size(index // self._batch_size), before[part]

    def size(self, step: int) -> int:
        """The number of the image size of a step (from 0)."""
        before, after = _split(step, self._sizes), _split(step + 1, self._sizes)
        return next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)

    def stage(self, image: int) -> int:
        """The stage of an image."""
        return bisect.bisect_right(self._starts, image) - 1

    def taken(self, images: int) -> list[int]:
        """How many of the run's first `images` each part gave."""
        stage = self.stage(images)
        inside = _split(images - self._starts[stage], self._proportions[stage])
        return _add(self._before[stage], inside)


def _split(number: int, proportions: Sequence[int]) -> list[int]:
    """Deals `number` images out to the parts.

    Each part in turn leaves to those after it their share, rounded down. One image more changes
    what is left by one or not at all, so that it always goes to exactly one part.
    """
    counts, left, total = [], number, sum(proportions)
    for proportion in proportions:
        rest = left * (total - proportion) // max(total, 1)
        counts.append(left - rest)
        left, total = rest, total - proportion
    return counts


def _proportions(weights: Sequence[float]) -> list[int]:
    """The weights, as they are written in decimals, as whole numbers."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    denominator = math.lcm(*(part.denominator for part in exact))
    return [int(part * denominator) for part in exact]


def _add(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def check_weight(place: str, weight: Any, *, may_be_zero: bool = False) -> None:
    """Raises UserError, naming the place, on a weight that is no positive number."""
    if not isinstance(weight, int | float) or not math.isfinite(weight):
        raise UserError(f"{place}: weight {weight!r} is not a number")
    if weight < 0 or (weight == 0 and not may_be_zero):
        wanted = "must not be negative" if may_be_zero else "must be above 0"
        raise UserError(f"{place}: weight {weight} {wanted}")


def parse_weights(weights: Mapping[str, float], place: str = "input.tasks") -> dict[str, float]:
    """Task weights of a run file, by task token, in the order of the table.

    Args:
        weights: task name (`od`) to weight; `all` stands for every task not named. A weight of 0
            leaves the task out.
        place: the key of the run file that holds them.

    Raises:
        UserError: on an unknown task, a negative weight, or no weight above 0.
    """
    names = {task.name: task.token for task in TASKS.values()}
    for name, weight in weights.items():
        if name != "all" and name not in names:
            near = difflib.get_close_matches(name, names) or list(names)
            raise UserError(f"{place}.{name}: no such task; did you mean {', '.join(near)}?")
        check_weight(f"{place}.{name}", weight, may_be_zero=True)
    default = weights.get("all", 0)
    parsed = {token: float(weights.get(name, default)) for name, token in names.items()}
    parsed = {token: weight for token, weight in parsed.items() if weight > 0}
    if not parsed:
        raise UserError(f"{place}: no task has a weight above 0")
    return parsed


def draw_examples(
    record: Record, weights: Mapping[str, float], number: int, rng: np.random.Generator
) -> list[Example]:
    """Up to `number` different examples of one record.

    A task is drawn by its weight among those that still have an example, then one of its examples,
    evenly. Fewer come back only if the record has no more.
    """
    left: dict[str, list[Example]] = {}
    open_weights = dict(weights)
    drawn: list[Example] = []
    while len(drawn) < number and open_weights:
        ends = list(itertools.accumulate(open_weights.values()))
        token = list(open_weights)[bisect.bisect_left(ends, rng.random() * ends[-1])]
        if token not in left:
            left[token] = list(examples_of(record, TASKS[token]))
        if not left[token]:
            del open_weights[token]
            continue
        drawn.append(left[token].pop(int(rng.integers(len(left[token])))))
    return drawn
