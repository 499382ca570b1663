# SPDX-License-Identifier: Apache-2.0
"""AdamW with linear warm-up and cosine decay. Source: Florence-2 §6.1, `configs/pretrain.py`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from florence2_jax.training.patterns import is_stack, matched
from florence2_jax.training.trees import Tree, by_path, flat, nest, path_of
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The recipe; the paper gives the learning rate and warm-up, the rest is ours."""

    peak_lr: float
    warmup_steps: int
    final_lr_ratio: float = 0.0
    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    skip_norm: float = 0.0  # Steps with a larger gradient norm, or none, change nothing; 0: all do.
    lr_factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Pattern of parameters -> factor on their learning rate; where several match, their product.

    Patterns name layers one by one (`text/decoder/layers/0/*`), so that a rate per layer is a row
    per layer; see `patterns.py`."""

    def __post_init__(self):
        for name in ("peak_lr", "clip_norm", "eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"optimizer.{name}: {getattr(self, name)} must be positive")
        for name in ("warmup_steps", "weight_decay", "final_lr_ratio", "skip_norm"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optimizer.{name}: {getattr(self, name)} must not be negative")
        for pattern, factor in self.lr_factors.items():
            if not isinstance(factor, int | float) or not 0 < factor < math.inf:
                raise UserError(
                    f"optimizer.lr_factors.{pattern}: {factor!r} is no number above 0; what is to "
                    "stay as it is belongs into `freeze`"
                )

    def skips(self, grad_norm: float) -> bool:
        """Whether a step with this gradient norm, which may be NaN, changes nothing."""
        return self.skip_norm > 0 and not grad_norm <= self.skip_norm


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Linear from 0 to the peak, then a cosine to `final_lr_ratio` of it at `total_steps`."""
    if config.warmup_steps >= total_steps:
        raise UserError(
            f"optimizer.warmup_steps: {config.warmup_steps} must be less than the run's "
            f"{total_steps} steps"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.peak_lr,
        warmup_steps=config.warmup_steps,
        decay_steps=total_steps,
        end_value=config.peak_lr * config.final_lr_ratio,
    )


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; only kernels are decayed (no biases, norms, embeddings)."""
    parts = [
        clip_by_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, total_steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_is_decayed,
        ),
    ]
    if config.lr_factors:
        parts.append(scale_by_path(config.lr_factors))
    optimizer = optax.chain(*parts)
    return skip_above(optimizer, config.skip_norm) if config.skip_norm else optimizer


def skip_above(
    optimizer: optax.GradientTransformation, max_norm: float
) -> optax.GradientTransformation:
    """Leaves parameters and moments as they are where the gradients' norm is above, or is NaN.

    Counters go on, so that the learning rate stays that of the step.
    """

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        is_kept = optax.tree.norm(updates) <= max_norm  # False for NaN.
        updates, new_state = optimizer.update(updates, state, params)
        updates = jax.tree.map(lambda x: jnp.where(is_kept, x, 0), updates)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(is_kept, new, old) if jnp.issubdtype(new.dtype, jnp.floating) else new

        return updates, jax.tree.map(choose, new_state, state)

    return optax.GradientTransformation(optimizer.init, update)


def scale_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies updates by the factors of their parameters' names; of AdamW, its decay too."""

    def scale(updates: Any, params: optax.Params | None) -> optax.Updates:
        del params
        by_name = factors_of(factors, updates)
        leaves = {keys: leaf * by_name[path_of(keys)] for keys, leaf in flat(updates).items()}
        return nest(leaves)

    return optax.stateless(scale)


def factors_of(factors: Mapping[str, float], params: Tree) -> dict[str, Any]:
    """The factor of every array by its path: a number, or for a stack of layers one for each."""
    leaves = by_path(params)
    found: dict[str, Any] = dict.fromkeys(leaves, 1.0)
    for pattern, rows in matched(factors, leaves).items():
        for path, hits in rows.items():
            own = np.array([factors[pattern] if hit else 1.0 for hit in hits], np.float32)
            shape = (-1, *[1] * (leaves[path].ndim - 1)) if is_stack(path) else ()
            found[path] = found[path] * own.reshape(shape)
    return found


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients whose norm, over all parameters, is above `max_norm` down to it.

    As `optax.clip_by_global_norm`, but by one factor that is 1 where nothing is clipped. A choice
    for every entry makes XLA on CPU write the clipped gradients out: AdamW then takes 1.3x as long.
    """

    def scale(grads: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(grads))
        return jax.tree.map(lambda grad: grad * factor, grads)

    return optax.stateless(scale)


def _is_decayed(params: Any) -> Any:
    def is_kernel(path: tuple, _: Any) -> bool:
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        return "kernel" in names

    return jax.tree_util.tree_map_with_path(is_kernel, params)
