# SPDX-License-Identifier: Apache-2.0
"""What a training step reads and returns, and how it is made on a mesh."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int

from florence2_jax.models.config import Florence2Config
from florence2_jax.models.florence2 import Florence2
from florence2_jax.parallel.partitioning import state_shardings


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes from step to step; the data position and the RNG follow from `step`.

    `params` is a nested dict of arrays, so that a checkpoint opens without the model's classes.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState


def model_graph(config: Florence2Config) -> nnx.GraphDef:
    """The model without its arrays."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Florence2(config, rngs=nnx.Rngs(0))))
    return graphdef


def merge(graphdef: nnx.GraphDef, params: Any) -> Florence2:
    """The model with these parameters."""
    state = nnx.from_flat_state([(path, nnx.Param(value)) for path, value in _flat(params)])
    return nnx.merge(graphdef, state)


def init_params(config: Florence2Config, key: jax.Array) -> Any:
    """Fresh parameters as a nested dict of float32 arrays."""
    model = Florence2(config, rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def init_state(
    config: Florence2Config, optimizer: optax.GradientTransformation, *, seed: int, mesh: Mesh
) -> tuple[TrainState, Any]:
    """A fresh state, made in its shards, and its shardings.

    The same seed gives the same values on every mesh.
    """

    def init() -> TrainState:
        params = init_params(config, jax.random.key(seed))
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
        )

    shardings = state_shardings(jax.eval_shape(init), mesh)
    with jax.set_mesh(mesh):
        return jax.jit(init, out_shardings=shardings)(), shardings


def _flat(tree: Any, path: tuple = ()) -> list[tuple[tuple, Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [row for key, value in tree.items() for row in _flat(value, (*path, key))]
