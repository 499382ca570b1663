# SPDX-License-Identifier: Apache-2.0
"""A few updates of a small model, for tests that compare one way of making them with another."""

import functools
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from florence2_jax.models.config import Florence2Config
from florence2_jax.parallel.partitioning import batch_sharding
from florence2_jax.training.state import init_params, init_state, model_graph
from florence2_jax.training.step import compile_step, train_step


def descend(
    config: Florence2Config, batch: dict, mesh: Mesh, *, steps: int = 2, **options: Any
) -> tuple[Any, list[dict], Any]:
    """Parameters after `steps` on the same batch, the metrics of each, and the compiled step.

    Plain descent: Adam divides by the gradient's size and would blow rounding up.
    """
    optimizer = optax.sgd(0.5)
    make = functools.partial(init_params, config, jax.random.key(0))
    state, shardings = init_state(make, optimizer, mesh)
    step = functools.partial(
        train_step, graphdef=model_graph(config), optimizer=optimizer, seed=7, **options
    )
    batch = jax.device_put(batch, batch_sharding(mesh))
    compiled = compile_step(step, state, shardings, batch, mesh)
    history = []
    for _ in range(steps):
        state, metrics = compiled(state, batch)
        history.append(jax.device_get(metrics))
    return jax.device_get(state.params), history, compiled
