# SPDX-License-Identifier: Apache-2.0
"""Ends a run whose metric gets no better. Any hook may report the metric."""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """Which scalar is watched, and how often it may come without being the best.

    `metric` is a name in `metrics.jsonl`, of a hook's evaluation or of the loop itself ("loss").
    """

    metric: str = ""
    patience: int = 0  # Reports in a row that are no better than the best; 0: never stops.
    higher_is_better: bool = False
    min_change: float = 0.0  # What counts as better.

    def __post_init__(self):
        if self.patience < 0 or self.min_change < 0:
            raise UserError(
                "early_stopping.patience, early_stopping.min_change: must not be negative"
            )
        if self.patience and not self.metric:
            raise UserError("early_stopping.metric: with a patience, say which one is watched")


class EarlyStopping:
    """What the metric was at each step, and whether that is enough.

    With several processes each of them must be told the same values, and so they all end alike.
    """

    def __init__(self, config: EarlyStoppingConfig):
        self.config = config
        self.values: dict[int, float] = {}
        self._names: set[str] = set()
        self._newest: dict[str, float] = {}
        self._newest_step = -1
        self._has_complained = False

    @classmethod
    def resume(cls, config: EarlyStoppingConfig, metrics: Path, first_step: int) -> "EarlyStopping":
        """With what a run told before, up to the step from which it goes on."""
        stopping = cls(config)
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:  # A run that was killed leaves half a line.
                continue
            if row.get("step", math.inf) <= first_step:
                stopping.note(row["step"], row)
        return stopping

    def note(self, step: int, scalars: Mapping[str, float]) -> None:
        """Is told every scalar that is reported."""
        self._names |= scalars.keys()
        self._newest = (self._newest if step == self._newest_step else {}) | dict(scalars)
        self._newest_step = step
        if (name := self.config.metric) and name in scalars:
            self.values[step] = float(scalars[name])

    def complaint(self, best_metric: str = "") -> str:
        """Once, that a metric is none of those that came; else nothing.

        Args:
            best_metric: by which checkpoints are kept, if they are.
        """
        watched = {"early_stopping.metric": self.config.metric if self.config.patience else ""}
        for key, name in (watched | {"checkpoint.best_metric": best_metric}).items():
            if name and self._names and name not in self._names and not self._has_complained:
                self._has_complained = True
                near = difflib.get_close_matches(name, self._names) or sorted(self._names)
                return (
                    f"{key} {name}: not reported so far; unless it comes, nothing is decided by "
                    f"it. Reported are {', '.join(near)}"
                )
        return ""

    def at(self, step: int) -> Mapping[str, float]:
        """What was reported for the newest step that was, if that is this one."""
        return self._newest if step == self._newest_step else {}

    @property
    def best(self) -> tuple[int, float] | None:
        """The step and value that no later one has bettered."""
        best = None
        sign = -1.0 if self.config.higher_is_better else 1.0
        for step, value in sorted(self.values.items()):
            if math.isnan(value):
                continue
            if best is None or sign * value < sign * best[1] - self.config.min_change:
                best = step, value
        return best

    @property
    def is_over(self) -> bool:
        """Whether the metric came so often, after the best, without being better."""
        if not self.config.patience:
            return False
        after = self.best[0] if self.best else -1
        return sum(step > after for step in self.values) >= self.config.patience

    def reason(self) -> str:
        """What to say about the end."""
        name, best = self.config.metric, self.best
        told = f"was best ({best[1]:.4g}) at step {best[0]}" if best else "was never a number"
        return f"stopped early: {name} {told}, and {self.config.patience} reports were no better"
