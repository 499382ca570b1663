# SPDX-License-Identifier: Apache-2.0
"""Two evaluations of the same questions: which differences are real, which may be noise.

Both were drawn alike (`bootstrap.py`), so the difference is taken draw by draw: what makes a draw
easy for one model makes it easy for the other, and falls out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from florence2_jax.evaluation.bootstrap import percentiles
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of one task: `second - first`, and where it lies in 95 % of the draws.

    `is_real` says that the interval leaves out 0; None where there is no interval.
    """

    task: str
    metric: str
    first: float
    second: float
    interval: tuple[float, float] | None

    @property
    def value(self) -> float:
        """The second less the first."""
        return self.second - self.first

    @property
    def is_real(self) -> bool | None:
        """Whether the difference is more than the choice of records explains."""
        if self.interval is None:
            return None
        low, high = self.interval
        return low > 0 or high < 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = dataclasses.asdict(self)
        return values | {"difference": self.value, "is_real": self.is_real}


def compare(
    first: Mapping[str, Any], second: Mapping[str, Any], *, places: tuple[str, str]
) -> list[Difference]:
    """Differences of all metrics that two reports of `evaluate` share.

    Args:
        first: a report; `places` says where both were read, for errors.

    Raises:
        UserError: if one is no such report, or they were not asked the same questions.
    """
    tasks = [_tasks(report, place) for report, place in zip((first, second), places, strict=True)]
    shared = [name for name in tasks[0] if name in tasks[1]]
    if not shared:
        raise UserError(
            f"{places[0]} has {', '.join(tasks[0])}, {places[1]} has {', '.join(tasks[1])}: no "
            "task is in both"
        )
    differences = []
    for name in shared:
        a, b = (one[name] for one in tasks)
        if a["questions"] != b["questions"]:
            raise UserError(
                f"{name}: {places[0]} has {a['num_examples']} questions about "
                f"{a['num_records']} records, {places[1]} {b['num_examples']} about "
                f"{b['num_records']}, and they are not the same; evaluate both models on the same "
                "store, split and limits"
            )
        for metric, value in a["metrics"].items():
            other = b["metrics"].get(metric)
            if value is None or other is None:
                continue
            drawn = [one["resamples"].get(metric, []) for one in (a, b)]
            num = min(map(len, drawn))
            interval = None
            if num:
                x, y = (np.array(some[:num], np.float64) for some in drawn)  # None becomes NaN.
                interval = percentiles(y - x)
            differences.append(
                Difference(task=name, metric=metric, first=value, second=other, interval=interval)
            )
    return differences


def _tasks(report: Mapping[str, Any], place: str) -> dict[str, Any]:
    try:
        tasks = {row["task"]: row for row in report["tasks"]}
        for row in tasks.values():
            for key in ("questions", "resamples", "metrics", "num_examples", "num_records"):
                if key not in row:
                    raise KeyError(key)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{place}: no report of this version's florence2-jax evaluate (no {error})"
        ) from error
    return tasks
