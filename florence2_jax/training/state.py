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
from florence2_jax.models.lora import with_lora
from florence2_jax.parallel.partitioning import state_shardings
from florence2_jax.text.locations import NUM_BINS
from florence2_jax.training.trained import ALL, Trained, merge_adapters
from florence2_jax.training.trees import combine, flat
from florence2_jax.typing import UserError


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes from step to step; the data position and the RNG follow from `step`.

    `params` is a nested dict of arrays, so that a checkpoint opens without the model's classes.
    """

    step: Any  # An int32 scalar.
    params: Any
    opt_state: optax.OptState
    adapters: Any = None  # Of LoRA, beside the kernels of `params`.
    ema: Any = None  # An average of what is trained, see `trained.py`.
    lora_scale: float = flax.struct.field(pytree_node=False, default=0.0)

    def model_params(self, *, ema: bool = True) -> Any:
        """The parameters to ask and to export: adapters merged, averages where there are any.

        Args:
            ema: False for the parameters of the last step, also where an average is kept.
        """
        everything = combine(self.params, self.adapters)
        if ema:
            everything = combine(everything, self.ema)
        return merge_adapters(everything, self.lora_scale) if self.adapters else everything


def model_graph(config: Florence2Config, trained: Trained = ALL) -> nnx.GraphDef:
    """The model without its arrays; with the adapters that are trained beside it."""

    def make() -> nnx.Module:
        model = Florence2(config, rngs=nnx.Rngs(0))
        return with_lora(model, trained.adapted, trained.lora) if trained.adapted else model

    graphdef, _ = nnx.split(nnx.eval_shape(make))
    return graphdef


def merge(graphdef: nnx.GraphDef, params: Any) -> Florence2:
    """The model with these parameters."""
    state = nnx.from_flat_state([(path, nnx.Param(value)) for path, value in flat(params).items()])
    return nnx.merge(graphdef, state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """How fresh parameters differ from the released initialisation.

    `model` starts from a whole model, wherever it is from: a workdir, a folder of transformers or
    of Microsoft, or a hub name; it brings sizes and tokenizer along (see `starting.py`). `workdir`
    starts from the newest parameters of another run of the same sizes (high-resolution tuning after
    pre-training). `bart` and `davit` start the text towers and the image encoder from
    weights of `facebook/bart-base` and of an ImageNet DaViT: folders or hub names, see
    `conversion.initial`. `locations="ordinal"` starts the rows of the 1,000 location tokens
    and the image's row and column positions as sines and cosines of their place, so that near
    places look alike from the first step; "normal" is as released. `scale="fan_in"` gives every
    dense matrix the deviation `inputs**-0.5` in place of the released 0.02, which is that
    rule at 2,500 inputs. Ours.
    """

    model: str = ""
    workdir: str = ""
    bart: str = ""
    davit: str = ""
    locations: str = "normal"
    scale: str = "released"

    def __post_init__(self):
        if self.model and (self.workdir or self.bart or self.davit):
            raise UserError(
                "init.model gives every parameter: leave out init.workdir, init.bart and init.davit"
            )
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


def fresh_state(
    params: Any, optimizer: optax.GradientTransformation, trained: Trained = ALL
) -> TrainState:
    """The state of step 0: moments, adapters and averages of what is trained, of nothing else."""
    adapters = trained.adapters(params)
    changing, _ = trained.split(params, adapters)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(changing),
        adapters=adapters,
        ema=jax.tree.map(jnp.copy, changing) if trained.ema_decay else None,
        lora_scale=trained.lora.scale,
    )


def init_state(
    make_params: Callable[[], Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    trained: Trained = ALL,
) -> tuple[TrainState, Any]:
    """A fresh state, made in its shards, and its shardings.

    The same `make_params` gives the same values on every mesh.
    """

    def init() -> TrainState:
        return fresh_state(make_params(), optimizer, trained)

    shardings = state_shardings(jax.eval_shape(init), mesh)
    with jax.set_mesh(mesh):
        return jax.jit(init, out_shardings=shardings)(), shardings


def starting_from(state: TrainState, params: Any, trained: Trained) -> TrainState:
    """A fresh state with other parameters; an average starts from them too."""
    state = state.replace(params=params)
    if state.ema is None:
        return state
    changing, _ = trained.split(params, state.adapters)
    return state.replace(ema=jax.tree.map(jnp.copy, changing))
