# SPDX-License-Identifier: Apache-2.0
"""What a run says while it trains: a line on the terminal, a JSON line, TensorBoard scalars."""

import dataclasses
import datetime
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorboardX
from rich.console import Console

from florence2_jax.tasks.registry import TASKS


@dataclasses.dataclass
class Window:
    """Sums over the steps since the last report.

    `images`, `tokens`, `cells` (tokens with padding) are totals over all hosts, `prompt_` those of
    the prompts; times in seconds.
    """

    steps: int = 0
    images: int = 0
    annotations: float = 0.0
    cells: int = 0
    prompt_tokens: int = 0
    prompt_cells: int = 0
    substitutes: int = 0
    dropped: int = 0
    unplaced: int = 0
    wait_s: float = 0.0
    start_s: float = dataclasses.field(default_factory=time.perf_counter)
    task_loss_sums: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(TASKS)))
    task_token_sums: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(TASKS)))

    def summary(self) -> dict[str, float]:
        """The window as scalars by name; rates per second, shares in [0, 1]."""
        elapsed = max(time.perf_counter() - self.start_s, 1e-9)
        tokens = self.task_token_sums.sum()
        scalars = {
            "loss": float(self.task_loss_sums.sum() / max(tokens, 1.0)),
            "images_per_s": self.images / elapsed,
            "annotations_per_s": self.annotations / elapsed,
            "tokens_per_s": float(tokens) / elapsed,
            "step_s": elapsed / max(self.steps, 1),
            "data_wait_share": self.wait_s / elapsed,
            "padding_share": 1.0 - float(tokens) / max(self.cells, 1),
            "prompt_padding_share": 1.0 - self.prompt_tokens / max(self.prompt_cells, 1),
            "substituted_records": float(self.substitutes),
            "dropped_regions": float(self.dropped),
            "unplaced_targets": float(self.unplaced),
        }
        rows = zip(TASKS.values(), self.task_loss_sums, self.task_token_sums, strict=True)
        scalars |= {f"loss/{task.name}": float(s / n) for task, s, n in rows if n > 0}
        return scalars


class Reporter:
    """Writes scalars to every place a person or a program looks at; process 0 only.

    Use as a context manager: leaving it closes the files.
    """

    def __init__(self, workdir: Path, *, total_steps: int, console: Console, is_active: bool):
        self.console = console
        self._total_steps = total_steps
        self._is_active = is_active
        if is_active:
            self._file = (workdir / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_active:
            self._file.close()
            self._board.close()

    def say(self, text: str) -> None:
        """A line for people."""
        if self._is_active:
            self.console.print(text, highlight=False, soft_wrap=True)

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of one step, everywhere."""
        if not self._is_active:
            return
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def progress(self, step: int, scalars: Mapping[str, float]) -> None:
        """The line a person watches, with the loss of every task under it."""
        self.report(step, scalars)
        left_s = (self._total_steps - step) * scalars["step_s"]
        eta = str(datetime.timedelta(seconds=round(left_s)))
        self.say(
            f"step [bold]{step:>{len(str(self._total_steps))}}[/]/{self._total_steps}  "
            f"loss [bold]{scalars['loss']:.3f}[/]  lr {scalars['learning_rate']:.1e}  "
            f"grad {scalars['grad_norm']:.2f}  {scalars['images_per_s']:.1f} images/s  "
            f"{scalars['annotations_per_s']:.0f} annotations/s  "
            f"data wait {scalars['data_wait_share']:.1%}  left {eta}"
        )
        prefix = "loss/"
        tasks = [
            f"{name.removeprefix(prefix)} {value:.2f}"
            for name, value in scalars.items()
            if name.startswith(prefix)
        ]
        self.say(f"[dim]     {' · '.join(tasks)}[/]")
