# SPDX-License-Identifier: Apache-2.0
"""What a training step reads and returns, and how it is made on a mesh."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from florence2_jax.models.config import Florence2Config
from florence2_jax.models.florence2 import Florence2
from florence2_jax.parallel.partitioning import state_shardings
from florence2_jax.text.locations import NUM_BINS
from florence2_jax.typing import UserError


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes from step to step; the data position and the RNG follow from `step`.

    `params` is a nested dict of arrays, so that a checkpoint opens without the model's classes.
    """

    step: Any  # An int32 scalar.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """How fresh parameters differ from the released initialisation.

    `workdir` starts from the newest parameters of another run of the same sizes (high-resolution
    tuning after pre-training). `bart` and `davit` start the text towers and the image encoder from
    weights of `facebook/bart-base` and of an ImageNet DaViT: folders or hub names, see
    `conversion.initial`. `locations="ordinal"` starts the rows of the 1,000 location tokens
    and the image's row and column positions as sines and cosines of their place, so that near
    places look alike from the first step; "normal" is as released. `scale="fan_in"` gives every
    dense matrix the deviation `inputs**-0.5` in place of the released 0.02, which is that
    rule at 2,500 inputs. Ours.
    """

    workdir: str = ""
    bart: str = ""
    davit: str = ""
    locations: str = "normal"
    scale: str = "released"

    def __post_init__(self):
        if self.workdir and (self.bart or self.davit):
            raise UserError(
                "init.workdir gives every parameter: leave out init.bart and init.davit"
            )
        if self.scale not in ("released", "fan_in"):
            raise UserError(f"init.scale: {self.scale!r} is neither released nor fan_in")
        if self.locations not in ("normal", "ordinal"):
            raise UserError(f"init.locations: {self.locations!r} is neither normal nor ordinal")


def init_params(
    config: Florence2Config,
    key: jax.Array,
    init: InitConfig = InitConfig(),
    *,
    first_location_id: int = 0,
) -> Any:
    """Fresh parameters as a nested dict of float32 arrays."""
    model = Florence2(config, rngs=nnx.Rngs(key))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    if init.scale == "fan_in":
        params = jax.tree_util.tree_map_with_path(_scale_by_inputs, params)
    if init.locations == "ordinal":
        table = params["text"]["shared"]["embedding"]
        deviation = table.shape[1] ** -0.5 if init.scale == "fan_in" else _RELEASED_DEVIATION
        rows = deviation * _waves(NUM_BINS, table.shape[1], most_turns=64)
        table = table.at[first_location_id : first_location_id + NUM_BINS].set(rows)
        params["text"]["shared"]["embedding"] = table
        for axis, side_px in zip(("column", "row"), config.image_size, strict=True):
            cells = side_px // config.davit.total_stride
            positions = params["projector"][f"{axis}_positions"]
            waves = _waves(cells, positions.shape[1], most_turns=cells / 2)
            params["projector"][f"{axis}_positions"] = positions.at[:cells].set(waves)
    return params


_RELEASED_DEVIATION = 0.02


def _scale_by_inputs(path: tuple, x: jax.Array) -> jax.Array:
    """From the released deviation to that of the number of inputs; of tables, their width."""
    name = path[-1].key
    if name in ("embedding", "row_positions", "column_positions"):
        return x * (x.shape[-1] ** -0.5 / _RELEASED_DEVIATION)
    if name != "kernel" or path[-2].key in ("conv1", "conv2"):
        return x  # Depthwise convolutions have no norm before them: they start as near nothing.
    # Convolutions have their taps in front, scanned stacks of dense layers their layer.
    fan_in = math.prod(x.shape[-4:-1]) if path[-2].key == "conv" else x.shape[-2]
    return x * (fan_in**-0.5 / _RELEASED_DEVIATION)


def _waves(number: int, dim: int, *, most_turns: float) -> Float[Array, "places D"]:
    """Sines and cosines of half a turn to the most turns over an axis, of unit deviation."""
    turns = 2.0 ** jnp.linspace(-1.0, math.log2(most_turns), dim // 2)
    angles = 2 * jnp.pi * turns * (jnp.arange(number)[:, None] + 0.5) / number
    return math.sqrt(2) * jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def init_state(
    make_params: Callable[[], Any], optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, Any]:
    """A fresh state, made in its shards, and its shardings.

    The same `make_params` gives the same values on every mesh.
    """

    def init() -> TrainState:
        params = make_params()
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
