# SPDX-License-Identifier: Apache-2.0
"""What the last steps were made of, kept for the moment when one of them goes wrong.

What a loop does with it, on every host (each keeps its own rows):

    with BlackBox(workdir, config, seed=seed, learning_rate=schedule, mesh=mesh, rows=rows) as box:
        for number in ...:
            batch = next(batches)
            box.note(number, batch)
            state, metrics = step(state, batch)
            ...
            # Wherever the metrics of a step are read, at most one step late:
            if reason := box.check(number, jax.device_get(metrics)):
                path = box.write(reason)
            # Not finite: stop the run, naming `path`. Else a spike: say so and go on.

Leaving the block by an exception that is no UserError writes too. `replay.py` reads the files.

DIR/black_box/step_N.json  why, where, the scalars of the last steps and which examples they had
DIR/black_box/step_N.npz   this host's rows of the batch of step N, images as uint8, compressed
Hosts other than the first write step_N_hostP.json and .npz.
"""

import collections
import dataclasses
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from florence2_jax.data.loading import Batch
from florence2_jax.parallel.host_rows import HostRows
from florence2_jax.typing import UserError

FOLDER = "black_box"
_IDS = ("index", "store", "is_substitute")  # What names the examples of a batch.
_CRASH = "crash: "
_NUM_BATCHES = 2  # Metrics are read one step late.
_LEAST_HISTORY = 16  # Steps before a median means something.
_HISTORY = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlackBoxConfig:
    """What is kept of a run's last steps, and what is a spike."""

    steps: int = 16  # Steps kept; 0 for no black box.
    loss_factor: float = 3.0  # A spike is a loss this many times the median of 64 steps,
    grad_norm_factor: float = 20.0  # or such a gradient norm; 0: there are no spikes of its kind.
    files: int = 10  # Most steps written by a run, over all its starts; and its last crash.
    batch_mb: int = 1024  # A host's batch that is larger is not written: the ids have to do.

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise UserError(
                    f"black_box.{field.name}: {getattr(self, field.name)} must not be negative"
                )


@dataclasses.dataclass
class _Entry:
    """One step; `batch` only for the newest."""

    step: int
    batch: Batch | None
    ids: dict[str, np.ndarray]
    scalars: dict[str, Any] = dataclasses.field(default_factory=dict)


class BlackBox:
    """The last steps of this host in memory, written when asked. Use as a context manager."""

    def __init__(
        self,
        workdir: Path,
        config: BlackBoxConfig = BlackBoxConfig(),
        *,
        seed: int,
        learning_rate: Callable[[int], Any],
        mesh: Mesh,
        rows: HostRows,
    ):
        """Keeps nothing yet.

        Args:
            seed: the run's; with the step it makes the keys of that step.
            learning_rate: the schedule, of steps from 0; asked only when a file is written.
            mesh: where the batch lies.
            rows: which rows of it are this host's.
        """
        self._folder = Path(workdir) / FOLDER
        self._config, self._seed, self._learning_rate = config, seed, learning_rate
        self._mesh, self._rows = mesh, rows
        self._entries: collections.deque[_Entry] = collections.deque(maxlen=max(1, config.steps))
        factors = {"loss": config.loss_factor, "grad_norm": config.grad_norm_factor}
        self._factors = {name: factor for name, factor in factors.items() if factor}
        self._history = {name: collections.deque(maxlen=_HISTORY) for name in self._factors}
        self._failed: int | None = None  # The step that `check` found.
        self._written: Path | None = None

    def __enter__(self) -> "BlackBox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        is_crash = isinstance(error, Exception) and not isinstance(error, UserError)
        if is_crash and self._entries:
            self._failed = self._entries[-1].step
            self.write(f"{_CRASH}{type(error).__name__}: {error}")

    def note(self, step: int, batch: Batch) -> None:
        """Keeps a batch that goes into a step; its arrays are not copied."""
        if not self._config.steps:
            return
        ids = {name: batch[name] for name in _IDS if name in batch}
        if len(self._entries) >= _NUM_BATCHES:
            self._entries[-_NUM_BATCHES].batch = None
        self._entries.append(_Entry(step, batch, ids))

    def check(self, step: int, metrics: Mapping[str, Any]) -> str:
        """Keeps the metrics of a step, on the host. Returns what is wrong with them, or "".

        A spike does not enter the medians.
        """
        scalars: dict[str, Any] = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
        reason = ""
        if not all(math.isfinite(value) for value in scalars.values()):
            reason = f"not finite: loss {scalars['loss']}, gradient norm {scalars['grad_norm']}"
        else:
            for name, factor in self._factors.items():
                history = self._history[name]
                is_known = len(history) >= _LEAST_HISTORY
                median = statistics.median(history) if is_known else math.inf
                if scalars[name] > factor * median:
                    reason = f"spike: {name} {scalars[name]:.4g} after a median of {median:.4g}"
                else:
                    history.append(scalars[name])
        if norms := metrics.get("grad_norms"):
            scalars["grad_norms"] = {name: float(value) for name, value in norms.items()}
        for entry in self._entries:
            if entry.step == step:
                entry.scalars = scalars
        if reason:
            self._failed = step
        return reason

    def write(self, reason: str) -> Path | None:
        """Writes the step that `check` found wrong, or else the newest.

        Returns:
            The JSON file; None if nothing was kept, the run has written its number of files, or
            the disk refuses: what is wrong with a run is never hidden by its black box.
        """
        entries = list(self._entries)
        if not entries:
            return None
        step = entries[-1].step if self._failed is None else self._failed
        entry = next((one for one in entries if one.step == step), entries[-1])
        host = f"_host{jax.process_index()}" if jax.process_index() else ""
        path = self._folder / f"step_{entry.step}{host}.json"
        if path == self._written:
            return path
        try:
            self._folder.mkdir(exist_ok=True)
            if not self._make_room(path, host, reason):
                return None
            has_batch = self._write_batch(entry, path.with_suffix(".npz"))
            report = self._report(reason, entry, entries) | {"has_batch": has_batch}
            _replace(path, lambda file: file.write(json.dumps(report, indent=1).encode()))
        except OSError:
            return None
        self._written = path
        return path

    def _make_room(self, path: Path, host: str, reason: str) -> bool:
        """Whether this host may write one more file; of crashes, only the newest stays."""
        names = re.compile(rf"step_\d+{host}\.json")
        own = [one for one in self._folder.iterdir() if names.fullmatch(one.name) and one != path]
        crashes = [one for one in own if f'"reason": "{_CRASH}' in one.read_text(encoding="utf-8")]
        if not reason.startswith(_CRASH):
            return len(own) - len(crashes) < self._config.files
        for one in crashes:
            one.unlink()
            one.with_suffix(".npz").unlink(missing_ok=True)
        return True

    def _write_batch(self, entry: _Entry, path: Path) -> bool:
        batch = entry.batch
        if batch is None or sum(x.nbytes for x in batch.values()) > self._config.batch_mb << 20:
            return False
        _replace(path, lambda file: np.savez_compressed(file, allow_pickle=False, **batch))
        return True

    def _report(self, reason: str, entry: _Entry, entries: list[_Entry]) -> dict[str, Any]:
        devices = self._mesh.devices.flat
        return {
            "step": entry.step,
            "reason": reason,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": jax.process_index(),
            "num_hosts": jax.process_count(),
            "packages": {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
            "platform": devices[0].platform,
            "device_kind": devices[0].device_kind,
            "mesh": dict(self._mesh.shape),
            # The key of the step is fold_in(key(seed), step), the step being that of its state.
            "rng": {"seed": self._seed, "step": entry.step - 1},
            "rows": {
                "block": self._rows.block,
                "num_blocks": self._rows.num_blocks,
                "offsets": [[start, row] for start, row in self._rows.offsets.items()],
            },
            "steps": [self._row(one) for one in entries if one.step <= entry.step],
        }

    def _row(self, entry: _Entry) -> dict[str, Any]:
        rate = float(self._learning_rate(entry.step - 1))
        scalars = to_json(entry.scalars)
        ids = {name: value.tolist() for name, value in entry.ids.items()}
        return {"step": entry.step, "learning_rate": rate, **scalars, **ids}


def to_json(value: Any) -> Any:
    """JSON knows no NaN: numbers that are not finite become texts, which `float` reads."""
    if isinstance(value, Mapping):
        return {name: to_json(one) for name, one in value.items()}
    if isinstance(value, list):
        return [to_json(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("wb") as file:
        write(file)
    temporary.rename(path)
