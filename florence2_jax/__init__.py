# SPDX-License-Identifier: Apache-2.0
"""Florence-2 in JAX: pretrain, fine-tune, evaluate, run and convert."""

import importlib
from typing import TYPE_CHECKING, Any

from florence2_jax.version import __version__

if TYPE_CHECKING:
    from florence2_jax.inference.generation_config import GenerationConfig
    from florence2_jax.inference.predictor import Prediction, Predictor
    from florence2_jax.tasks.registry import TASKS
    from florence2_jax.typing import UserError
    from florence2_jax.viewing.draw import draw_answer

__all__ = [
    "TASKS",
    "GenerationConfig",
    "Prediction",
    "Predictor",
    "UserError",
    "__version__",
    "draw_answer",
]

_HOMES = {
    "GenerationConfig": "florence2_jax.inference.generation_config",
    "Prediction": "florence2_jax.inference.predictor",
    "Predictor": "florence2_jax.inference.predictor",
    "TASKS": "florence2_jax.tasks.registry",
    "UserError": "florence2_jax.typing",
    "draw_answer": "florence2_jax.viewing.draw",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: `florence2-jax --help` must not wait for JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
