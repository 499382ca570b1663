# SPDX-License-Identifier: Apache-2.0
"""Where scalars go besides the terminal and `metrics.jsonl`: the backends of `metrax.logging`.

Whatever has the methods of `Writer` can be handed to `Reporter` too. Writers are opened when the
first scalars come, which is after the first step: until every host has met in a collective, process
0 does nothing that the others do not.
"""

import functools
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from metrax.logging import TensorboardBackend, WandbBackend

from florence2_jax.typing import UserError


@runtime_checkable
class Writer(Protocol):
    """`metrax.logging.LoggingBackend`, in a form that can be checked at run time."""

    def log_scalar(self, event: str, value: Any, **kwargs: Any) -> None:
        """Writes a scalar by its name; `step` is among the keywords."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


Opener: TypeAlias = Callable[[], Writer]


def choose_writers(
    workdir: Path, *, tensorboard: bool, wandb: str, config: Mapping[str, Any]
) -> dict[str, Opener]:
    """The writers that a run file asks for, by name, not opened yet.

    Args:
        tensorboard: whether to write DIR/tensorboard.
        wandb: a project of Weights & Biases; "" for none. Every start of the run is a run there,
            and all of them a group. `WANDB_MODE=offline` writes DIR/wandb for `wandb sync`.
        config: the run file's values, shown there.

    Raises:
        UserError: if one is not installed.
    """
    openers: dict[str, Opener] = {}
    if tensorboard:
        openers["tensorboard"] = functools.partial(TensorboardBackend, str(workdir / "tensorboard"))
    if wandb:
        if importlib.util.find_spec("wandb") is None:
            raise UserError(
                "log.wandb: wandb is not installed; pip install 'florence2-jax[wandb]', or start "
                "with --config.log.wandb=''"
            )
        openers["wandb"] = functools.partial(
            WandbBackend,
            wandb,
            name=f"{workdir.absolute().name} {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}",
            group=workdir.absolute().name,
            dir=str(workdir),
            config=dict(config),
        )
    return openers
