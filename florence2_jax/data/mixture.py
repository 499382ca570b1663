# SPDX-License-Identifier: Apache-2.0
"""Which tasks an image is asked, and how often: weights, and K draws per image without repeats."""

import difflib
from collections.abc import Mapping

import numpy as np

from florence2_jax.data.examples import Example, examples_of
from florence2_jax.records.schema import Record
from florence2_jax.tasks.registry import TASKS
from florence2_jax.typing import UserError


def parse_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Task weights of a run file, by task token, in the order of the table.

    Args:
        weights: task name (`od`) to weight; `all` stands for every task not named. A weight of 0
            leaves the task out.

    Raises:
        UserError: on an unknown task, a negative weight, or no weight above 0.
    """
    names = {task.name: task.token for task in TASKS.values()}
    for name, weight in weights.items():
        if name != "all" and name not in names:
            near = difflib.get_close_matches(name, names) or list(names)
            raise UserError(f"input.tasks.{name}: no such task; did you mean {', '.join(near)}?")
        if not weight >= 0:
            raise UserError(f"input.tasks.{name}: weight {weight} must not be negative")
    default = weights.get("all", 0)
    parsed = {token: float(weights.get(name, default)) for name, token in names.items()}
    parsed = {token: weight for token, weight in parsed.items() if weight > 0}
    if not parsed:
        raise UserError("input.tasks: no task has a weight above 0")
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
        tokens = list(open_weights)
        shares = np.array(list(open_weights.values()))
        token = tokens[int(np.searchsorted(np.cumsum(shares), rng.random() * shares.sum()))]
        if token not in left:
            left[token] = list(examples_of(record, TASKS[token]))
        if not left[token]:
            del open_weights[token]
            continue
        drawn.append(left[token].pop(int(rng.integers(len(left[token])))))
    return drawn
