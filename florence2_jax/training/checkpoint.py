# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run: saved in the background with a digest per array, verified when read.

The RNG is a function of the step. So is the data position, as long as the order of the data is what
it was: `data` is JSON that says which order that is, see `DataOrder`.
"""

import contextlib
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from florence2_jax.parallel import processes
from florence2_jax.training.digests import digests
from florence2_jax.training.disk import disk_errors
from florence2_jax.training.keeping import keep_policy
from florence2_jax.training.saved_step import (
    ARRAY_ITEMS,
    MANIFEST,
    MANIFEST_FILE,
    OPTIONAL_ITEMS,
    Damaged,
    SavedStep,
    make_manifest,
    one_line,
    saved_steps,
)
from florence2_jax.training.state import TrainState
from florence2_jax.typing import UserError

Say = Callable[[str], None]
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints under one directory, saved in the background.

    Use as a context manager: leaving it waits for the last save. A disk that refuses to be written
    (full, over quota, read-only) is a UserError, raised by the save or by what comes after it.
    With several processes, all of them make the same calls; all come to the same decisions.

    Args:
        directory: seen by all processes.
        every_steps: a save is due at its multiples.
        keep: the newest saves that stay; None for all.
        keep_best: besides, the best saves by `best_metric` of what `save` is told.
        higher_is_better: about `best_metric`; of a loss, lower is.
        keep_every: besides, the saves at multiples of this number of steps; 0 for none.
        barrier_timeout_s: how long the hosts wait for each other while they save.
    """

    def __init__(
        self,
        directory: Path,
        *,
        every_steps: int = 1,
        keep: int | None = None,
        keep_best: int = 0,
        best_metric: str = "loss",
        higher_is_better: bool = False,
        keep_every: int = 0,
        barrier_timeout_s: int = 1200,
    ):
        self.directory = Path(directory).absolute()
        self._every_steps = every_steps
        self._best_metric, self._keep_best = best_metric, keep_best
        self._values: dict[int, float] = {}  # Of the best metric, by step, lower is better.
        self._sign = -1.0 if higher_is_better else 1.0
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=keep_policy(
                newest=keep, lowest=keep_best, values=self._values, every=keep_every
            ),
            cleanup_tmp_directories=True,  # Saves that a killed run left half-written.
            lightweight_initialize=True,  # A damaged step must not stop it from being opened.
            async_options=ocp.AsyncOptions(
                timeout_secs=barrier_timeout_s, barrier_sync_fn=self._meet
            ),
        )
        self._failure: BaseException | None = None  # Of the save under way.
        self._handled = sys.exc_info()[1]  # By the caller, who trains in an `except` block.
        self._writer: ocp.CheckpointManager | None = None  # Readers make none: it tidies up.
        self._restored: SavedStep | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is None:
            return
        try:
            with disk_errors(self.directory):
                self._writer.wait_until_finished()
        finally:
            self._writer.close()

    def check(self) -> None:
        """Raises what the save under way has met so far; costs nothing if it met nothing.

        Raises:
            UserError: if the disk refused it.
        """
        if self._failure is not None:
            with disk_errors(self.directory):
                raise self._failure

    def latest_step(self) -> int | None:
        """The newest step that was saved to its end; one still being written does not count."""
        steps = saved_steps(self.directory)
        return steps[-1].number if steps else None

    def check_writable(self) -> None:
        """Raises UserError if this process cannot write there; before work starts, that is."""
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory) as file:
                file.write(b"0")

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        data: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Saves if the step is due, or at once if forced; the arrays are copied on return.

        Args:
            data: the position in the data, as JSON.
            metrics: of this step; written down, and read by `keep_best`.

        Returns:
            Whether it saves; never a step that there already is.

        Raises:
            UserError: if a value is not finite, or the disk refused this or the previous save.
        """
        with disk_errors(self.directory):
            if self._writer is not None and not self._writer.is_saving_in_progress():
                self._writer.wait_until_finished()  # Raises what the save before has met.
            if not force and step % self._every_steps:
                return False
            writer = self._open_writer()
            if step in writer.all_steps():
                return False
            if self._keep_best and metrics and self._best_metric not in metrics:
                raise UserError(
                    f"checkpoint.best_metric: {self._best_metric!r} is not measured; there are "
                    f"{', '.join(sorted(metrics))}"
                )
            trees = items_of(state)
            found = digests(trees)
            if bad := [name for name, digest in found.items() if digest.num_not_finite]:
                raise UserError(
                    f"step {step} is not saved, {len(bad)} arrays are not finite: "
                    f"{', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}; start another "
                    "--workdir with a lower optimizer.peak_lr, from this one's newest checkpoint "
                    "by --config.init.workdir"
                )
            items: dict[str, ocp.args.CheckpointArgs] = {
                name: ocp.args.StandardSave(tree) for name, tree in trees.items()
            }
            manifest = make_manifest(step, found, data=data, metrics=metrics)
            items[MANIFEST] = ocp.args.JsonSave(manifest)
            if data is not None:
                items["data"] = ocp.args.JsonSave(dict(data))
            self._note_metric(step, manifest["metrics"])
            return writer.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, abstract: TrainState, *, say: Say = _log.warning) -> TrainState:
        """The newest state that verifies, in the shardings of `abstract`.

        Newer steps that do not verify are named and moved aside, so that they can be saved anew.

        Args:
            abstract: sharded `ShapeDtypeStruct` leaves.
            say: told, in one line each, what was passed over and what could not be verified.

        Raises:
            UserError: if there is no step, none that verifies, or the newest is of another model
                or of a newer version.
        """
        found, passed_over = self._newest(items_of(abstract), say)
        for path in passed_over:
            self._move_aside(path, say)
        if self._writer is not None:
            self._writer.reload()
        return with_items(abstract, found)

    def restore_data(self) -> dict[str, Any] | None:
        """The position in the data of the step that was restored, else of the newest."""
        step = self._restored or self._steps()[-1]
        return step.data()

    def restore_params(self, abstract: Any, *, say: Say = _log.warning) -> Any:
        """The newest parameters that verify, alone. Changes nothing in the directory.

        Of a run that trains adapters, or keeps an average, that is not all; see `restore_items`.
        """
        return self.restore_items({"params": abstract}, say=say)["params"]

    def restore_items(self, abstract: dict[str, Any], *, say: Say = _log.warning) -> dict[str, Any]:
        """Some items of the newest step of which they verify. Changes nothing in the directory."""
        return self._newest(abstract, say)[0]

    def _newest(self, wanted: dict[str, Any], say: Say) -> tuple[dict[str, Any], list[Path]]:
        """The arrays of the newest step that verifies, and the newer ones that do not."""
        reasons: dict[Path, str] = {}
        for step in reversed(self._steps()):
            found = self._verified(step, wanted, reasons)
            if found is None:
                continue
            self._restored = step
            for path, reason in reasons.items():
                say(f"{path} does not verify: {reason}")
            if reasons:
                say(f"falling back to step {step.number}, the newest that verifies")
            if step.manifest() is None:
                say(f"{step.path} has no digests (an older version saved it): not verified")
            return found, list(reasons)
        told = "; ".join(f"step {path.name}: {reason}" for path, reason in reasons.items())
        raise UserError(
            f"no checkpoint in {self.directory} verifies ({told}); put back a copy of one, or "
            "start another --workdir"
        )

    def _verified(
        self, step: SavedStep, wanted: dict[str, Any], reasons: dict[Path, str]
    ) -> dict[str, Any] | None:
        """The arrays of a step; None, with the reason noted, if it does not verify anywhere."""
        found: dict[str, Any] = {}

        def read() -> list[str]:
            found.update(step.read(wanted))
            if "training" in wanted:
                step.data()
            return []

        # Digests are summed over all processes: only once all of them have read.
        for check in (read, lambda: step.problems(digests(found))):
            refusal, reason = "", ""
            try:
                problems = check()
                reason = "; ".join(problems[:3]) + (" ..." if len(problems) > 3 else "")
            except UserError as error:
                refusal = str(error)
            except Damaged as error:
                reason = str(error)
            if refusals := _told_by_any(refusal):
                raise UserError(refusals)
            if told := _told_by_any(reason):
                reasons[step.path] = told
                return None
        return found

    def _steps(self) -> list[SavedStep]:
        """What there is, as process 0 sees it, oldest first."""
        numbers = [str(step.number) for step in saved_steps(self.directory)[-32:]]
        seen = _texts_of_all(" ".join(numbers))[0].split()
        if not seen:
            raise UserError(f"{self.directory} holds no finished checkpoint: train first")
        return [SavedStep(self.directory / number) for number in seen]

    def _move_aside(self, path: Path, say: Say) -> None:
        """Renames a step that does not verify, so that its number is free; nothing is deleted."""
        if jax.process_index() == 0:
            names = (f"corrupt-{path.name}{suffix}" for suffix in _SUFFIXES)
            aside = next(free for name in names if not (free := path.with_name(name)).exists())
            try:
                path.rename(aside)
                say(f"{path} is now {aside.name}: look at it, delete it when you like")
            except OSError as error:
                say(f"{path} cannot be moved out of the way: {one_line(error)}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"moved aside: {path.name}")

    def _open_writer(self) -> ocp.CheckpointManager:
        if self._writer is None:
            handlers: dict[str, ocp.CheckpointHandler] = {
                name: ocp.StandardCheckpointHandler() for name in (*ARRAY_ITEMS, *OPTIONAL_ITEMS)
            }
            handlers["data"] = ocp.JsonCheckpointHandler()
            handlers[MANIFEST] = ocp.JsonCheckpointHandler(MANIFEST_FILE)
            self._writer = _Writer(self.directory, options=self._options, item_handlers=handlers)
            for step in saved_steps(self.directory) if self._keep_best else ():
                with contextlib.suppress(Damaged):
                    self._note_metric(step.number, (step.manifest() or {"metrics": {}})["metrics"])
        return self._writer

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """The barrier of Orbax's background threads, which names who is late.

        Behind a save that failed here, Orbax would wait for hosts that wait for that save.
        """
        if (error := sys.exc_info()[1]) is not None and error is not self._handled:
            self._failure = error
            raise error
        processes.barrier(key, timeout_ms / 1000)

    def _note_metric(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._best_metric in metrics:
            self._values[step] = self._sign * metrics[self._best_metric]


def items_of(state: TrainState) -> dict[str, Any]:
    """A state as it is saved: item -> tree of arrays."""
    training = {"step": state.step, "opt_state": state.opt_state}
    items = dict(zip(ARRAY_ITEMS, (state.params, training), strict=True))
    more = {name: getattr(state, name) for name in OPTIONAL_ITEMS}
    return items | {name: tree for name, tree in more.items() if tree is not None}


def with_items(state: TrainState, items: Mapping[str, Any]) -> TrainState:
    """The state with what was read."""
    more = {name: items[name] for name in OPTIONAL_ITEMS if name in items}
    return state.replace(params=items["params"], **items["training"], **more)


class _Writer(ocp.CheckpointManager):
    """Orbax's manager; when a run is asked to stop is the loop's business (`stopping.py`)."""

    def reached_preemption(self, step: int) -> bool:
        # Left to itself, Orbax 0.12.8 fails behind such a save if it has read older ones from the
        # disk: it subtracts a time with a zone from one without.
        del step
        return False


_SUFFIXES = ("", *(f".{number}" for number in range(1, 100)))


def _texts_of_all(text: str) -> list[str]:
    """What every process says, by its number; at most 512 bytes each."""
    if jax.process_count() == 1:
        return [text]
    padded = np.zeros(512, np.uint8)
    said = np.frombuffer(text.encode()[:512], np.uint8)
    padded[: len(said)] = said
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


def _told_by_any(text: str) -> str:
    """What processes say, each text with who said it; empty if none says anything."""
    texts = _texts_of_all(text)
    if len(texts) == 1:
        return text
    said = {text: [i for i, other in enumerate(texts) if other == text] for text in texts if text}
    return "; ".join(f"{text} (process {', '.join(map(str, by))})" for text, by in said.items())
