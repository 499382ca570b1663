# SPDX-License-Identifier: Apache-2.0
"""What a run says while it trains: a line on the terminal, a JSON line, and to `writers.py`.

What a loop does with it:

    machine = Machine.of(mesh, model, config.batch_spec())
    hosts = HostTimes(processes.post, processes.posted, jax.process_count())
    ...
    window.step_times_s.append(ledger.step_done(number))
    window.flops += machine.flops_per_image(batch["image"].shape) * batch_size
    window.device_wait_s += ...  # The host waiting for the metrics of a step.
    ...
    scalars = window.summary(machine)
    reporter.progress(number, scalars | {...}, hosts=hosts.share(scalars))  # On every host.
"""

import dataclasses
import datetime
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from metrax.logging import TensorboardBackend
from rich.console import Console

from florence2_jax.data.loading import BatchSpec
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.flops import model_flops
from florence2_jax.parallel.peaks import num_chips, peak_flops
from florence2_jax.tasks.registry import TASKS
from florence2_jax.training.writers import Opener, Writer


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a run trains on, and what its model asks of it.

    MFU (model FLOPs utilisation) is the FLOPs that the model's equations ask for
    (`models/flops.py`: forward and backward, at the batch's shape with its padding; no
    recomputation) per second, over the bfloat16 peak of all devices (`parallel/peaks.py`).
    """

    num_chips: int
    peak_flops: float | None  # Of all devices; None if it is not known, and MFU neither.
    flops_per_image: Callable[[tuple[int, ...]], float]
    """Shape of a batch of images, `[B, Y, X, 3]` -> FLOPs to train on one of them."""

    @classmethod
    def of(cls, mesh: Mesh, model: Florence2Config, spec: BatchSpec) -> "Machine":
        """The devices of a mesh, with a model on batches of this kind."""

        @functools.cache
        def flops_per_image(shape: tuple[int, ...]) -> float:
            return model_flops(
                dataclasses.replace(model, image_size=(shape[2], shape[1])),
                num_prompts=spec.num_prompts,
                prompt_length=spec.prompt_length,
                target_length=spec.target_length,
                pack_length=spec.pack_length,
            ).per_image

        devices = mesh.devices.flatten().tolist()
        return cls(num_chips(devices), peak_flops(devices), flops_per_image)


@dataclasses.dataclass
class Window:
    """Sums over the steps since the last report.

    `images`, `tokens`, `cells` (tokens with padding), `flops` are totals over all hosts, `prompt_`
    those of the prompts; times, in seconds, are this host's.
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
    skipped: int = 0  # Steps, by `optimizer.skip_norm`.
    flops: float = 0.0
    wait_s: float = 0.0  # For data.
    device_wait_s: float = 0.0  # The slowest host of all has the least of it.
    step_times_s: list[float] = dataclasses.field(default_factory=list)
    start_s: float = dataclasses.field(default_factory=time.perf_counter)
    task_loss_sums: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(TASKS)))
    task_token_sums: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(TASKS)))

    def summary(self, machine: Machine | None = None) -> dict[str, float]:
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
            "device_wait_share": self.device_wait_s / elapsed,
            "padding_share": 1.0 - float(tokens) / max(self.cells, 1),
            "prompt_padding_share": 1.0 - self.prompt_tokens / max(self.prompt_cells, 1),
            "substituted_records": float(self.substitutes),
            "dropped_regions": float(self.dropped),
            "unplaced_targets": float(self.unplaced),
            "skipped_steps": float(self.skipped),
        }
        rows = zip(TASKS.values(), self.task_loss_sums, self.task_token_sums, strict=True)
        if self.step_times_s:
            p50, p99 = np.percentile(self.step_times_s, (50, 99))
            scalars |= {"step_s_p50": float(p50), "step_s_p99": float(p99)}
        if machine is not None:
            scalars["images_per_s_per_chip"] = self.images / elapsed / machine.num_chips
            if machine.peak_flops is not None:
                scalars["mfu"] = self.flops / elapsed / machine.peak_flops
        scalars |= {f"loss/{task.name}": float(s / n) for task, s, n in rows if n > 0}
        return scalars


class HostTimes:
    """Shows each host's own times to process 0, through the coordination service of JAX.

    No device takes part and nobody waits: process 0 reads what each host said last.
    """

    NAMES = ("step_s_p50", "step_s_p99", "data_wait_share", "device_wait_share")

    def __init__(
        self,
        post: Callable[[str, str], None],
        posted: Callable[[str], Mapping[int, str]],
        num_hosts: int,
    ):
        """Says nothing yet.

        Args:
            post: leaves a text under a name for the other processes, over the one before.
            posted: such texts by process.
        """
        self._post, self._posted, self._num_hosts = post, posted, num_hosts

    def share(
        self, scalars: Mapping[str, float], *, is_reader: bool = True
    ) -> dict[str, list[float | None]]:
        """Tells this host's times, and returns those of all: name -> value of each process.

        None stands for a host that said nothing yet. Empty if there is one host only.
        """
        if self._num_hosts == 1:
            return {}
        self._post("times", json.dumps([scalars.get(name) for name in self.NAMES]))
        if not is_reader:
            return {}
        told = {host: json.loads(text) for host, text in self._posted("times").items()}
        nothing = [None] * len(self.NAMES)
        return {
            name: [told.get(host, nothing)[i] for host in range(self._num_hosts)]
            for i, name in enumerate(self.NAMES)
        }


class Reporter:
    """Writes scalars to every place a person or a program looks at; process 0 only.

    Use as a context manager: leaving it closes the files. A writer that fails is left out from then
    on, and says so: a run does not end because somebody's server did.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        total_steps: int,
        console: Console,
        is_active: bool,
        writers: Mapping[str, Opener] | None = None,
    ):
        """Opens `metrics.jsonl`.

        Args:
            writers: see `choose_writers`; None for TensorBoard alone.
        """
        self.console = console
        self._total_steps = total_steps
        self._is_active = is_active
        if writers is None:
            writers = {"tensorboard": lambda: TensorboardBackend(str(workdir / "tensorboard"))}
        self.listeners: list[Callable[[int, Mapping[str, float]], None]] = []
        """Called on every process with all scalars of a step, whoever reports them."""
        self._to_open = dict(writers)
        self._writers: dict[str, Writer] = {}
        if is_active:
            self._file = (workdir / "metrics.jsonl").open("a", encoding="utf-8")

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_active:
            self._file.close()
            for name in list(self._writers):
                self._try(name, lambda writer: writer.close())

    def say(self, text: str) -> None:
        """A line for people."""
        if self._is_active:
            self.console.print(text, highlight=False, soft_wrap=True)

    def report(
        self,
        step: int,
        scalars: Mapping[str, float],
        *,
        hosts: Mapping[str, list[float | None]] | None = None,
    ) -> None:
        """Scalars of one step, everywhere; lists with a value per host to `metrics.jsonl` only."""
        for listener in self.listeners:
            listener(step, scalars)
        if not self._is_active:
            return
        line: dict[str, Any] = {"step": step, **scalars}
        self._file.write(json.dumps(line | ({"hosts": hosts} if hosts else {})) + "\n")
        self._file.flush()

        def write(writer: Writer) -> None:
            for name, value in scalars.items():
                writer.log_scalar(name, value, step=step)

        for name in [*self._to_open, *self._writers]:
            self._try(name, write)

    def progress(
        self,
        step: int,
        scalars: Mapping[str, float],
        *,
        hosts: Mapping[str, list[float | None]] | None = None,
    ) -> None:
        """The line a person watches, with the loss of every task under it."""
        self.report(step, scalars, hosts=hosts)
        left_s = (self._total_steps - step) * scalars["step_s"]
        eta = str(datetime.timedelta(seconds=round(left_s)))
        mfu = f"MFU {scalars['mfu']:.1%}  " if "mfu" in scalars else ""
        self.say(
            f"step [bold]{step:>{len(str(self._total_steps))}}[/]/{self._total_steps}  "
            f"loss [bold]{scalars['loss']:.3f}[/]  lr {scalars['learning_rate']:.1e}  "
            f"grad {scalars['grad_norm']:.2f}  {scalars['images_per_s']:.1f} images/s  "
            f"{scalars['annotations_per_s']:.0f} annotations/s  {mfu}"
            f"data wait {scalars['data_wait_share']:.1%}  left {eta}"
        )
        prefix = "loss/"
        tasks = [
            f"{name.removeprefix(prefix)} {value:.2f}"
            for name, value in scalars.items()
            if name.startswith(prefix)
        ]
        self.say(f"[dim]     {' · '.join(tasks)}[/]")

    def _try(self, name: str, use: Callable[[Writer], None]) -> None:
        try:
            if name in self._to_open:
                self._writers[name] = self._to_open.pop(name)()
            use(self._writers[name])
        except Exception as error:
            self._to_open.pop(name, None)
            self._writers.pop(name, None)
            self.say(f"no more scalars for {name}: {type(error).__name__}: {error}")
