# SPDX-License-Identifier: Apache-2.0
"""Orbax checkpoints of a run: parameters by themselves, what only training needs, and `data`.

The RNG is a function of the step. So is the data position, as long as the order of the data is what
it was: `data` is JSON that says which order that is, see `DataOrder`.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from florence2_jax.training.state import TrainState
from florence2_jax.typing import UserError


class Checkpoints:
    """The checkpoints under one directory, saved in the background.

    Use as a context manager: leaving it waits for the last save. A disk that refuses to be written
    (full, over quota) is a UserError, raised by the save or by what comes after it.
    """

    def __init__(self, directory: Path, *, every_steps: int = 1, keep: int | None = None):
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=every_steps, max_to_keep=keep, create=True
        )
        self.directory = Path(directory).absolute()
        handlers: dict[str, ocp.CheckpointHandler] = {
            "params": ocp.StandardCheckpointHandler(),
            "training": ocp.StandardCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with _disk_errors(self.directory):
                self._manager.wait_until_finished()
        finally:
            self._manager.close()

    def latest_step(self) -> int | None:
        """The newest step that was saved to its end."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        data: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> None:
        """Saves if the step is due, or at once if forced; the arrays are copied on return.

        Args:
            data: the position in the data, as JSON.
        """
        if step == self.latest_step():
            return
        training = {"step": state.step, "opt_state": state.opt_state}
        items: dict[str, ocp.args.CheckpointArgs] = {
            "params": ocp.args.StandardSave(state.params),
            "training": ocp.args.StandardSave(training),
        }
        if data is not None:
            items["data"] = ocp.args.JsonSave(dict(data))
        with _disk_errors(self.directory):
            self._manager.save(step, args=ocp.args.Composite(**items), force=force)

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest state, in the shardings of `abstract` (sharded `ShapeDtypeStruct` leaves)."""
        step = self._newest()
        self._check_shapes(step, abstract.params)
        training = {"step": abstract.step, "opt_state": abstract.opt_state}
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            training=ocp.args.StandardRestore(training),
        )
        restored = self._manager.restore(step, args=items)
        return TrainState(params=restored["params"], **restored["training"])

    def restore_data(self) -> dict[str, Any] | None:
        """The newest position in the data; None if it was saved without."""
        step = self._newest()
        if not (self.directory / str(step) / "data").is_dir():
            return None
        items = ocp.args.Composite(data=ocp.args.JsonRestore())
        return self._manager.restore(step, args=items)["data"]

    def restore_params(self, abstract: Any) -> Any:
        """The newest parameters alone."""
        step = self._newest()
        self._check_shapes(step, abstract)
        items = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=items)["params"]

    def _newest(self) -> int:
        step = self.latest_step()
        if step is None:
            raise UserError(f"{self.directory} holds no finished checkpoint: train first")
        return step

    def _check_shapes(self, step: int, abstract: Any) -> None:
        metadata = self._manager.item_metadata(step)["params"]
        saved = {name: tuple(leaf.shape) for name, leaf in _named(metadata.tree).items()}
        wanted = {name: tuple(leaf.shape) for name, leaf in _named(abstract).items()}
        if saved == wanted:
            return
        offenders = [
            f"{name} is {saved.get(name, 'missing')} there, {wanted.get(name, 'unknown')} here"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        raise UserError(
            f"the checkpoint of step {step} in {self.directory} is of another model: "
            f"{'; '.join(offenders[:3])}{' ...' if len(offenders) > 3 else ''}"
        )


_DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Turns a refused write into one line. TensorStore tells the errno only in its text."""
    try:
        yield
    except Exception as error:
        told = re.search(r"os_error_code='(\d+)'", str(error))
        code = int(told[1]) if told else getattr(error, "errno", None)
        if code not in _DISK_REFUSES:
            raise
        raise UserError(
            f"{directory}: a checkpoint could not be written to its end ({os.strerror(code)}); "
            "older ones are whole. Make room and run the same command again"
        ) from error


def _named(tree: Mapping[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
