# SPDX-License-Identifier: Apache-2.0
"""The train step of a run file on given devices, in shapes alone: nothing is read or allocated."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from florence2_jax.data.packing import CHUNK
from florence2_jax.models.config import Florence2Config
from florence2_jax.parallel.mesh import make_mesh
from florence2_jax.parallel.partitioning import batch_sharding, num_data_shards, state_shardings
from florence2_jax.text.tokenizer import ADDED_TOKENS, Tokenizer
from florence2_jax.training.config import RunConfig
from florence2_jax.training.job import choose_trained
from florence2_jax.training.optimizer import make_optimizer
from florence2_jax.training.starting import starting_tokenizer
from florence2_jax.training.state import TrainState, fresh_state, init_params
from florence2_jax.training.step import Step, check_batch, compile_step, make_step
from florence2_jax.typing import Size, UserError

_FIRST_LOCATION = ADDED_TOKENS.index("<loc_0>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Of the tokenizer that a run will have, as far as it is known before the run."""

    size: int
    first_location_id: int
    source: str

    @classmethod
    def of(cls, run: RunConfig) -> "Vocabulary":
        """The tokenizer's own size where its folder is at hand; else what it will probably be.

        The tokenizer of another machine is taken to be that of the released models.
        """
        if run.init.model:
            return cls(
                size=run.model.text.vocab_size,
                first_location_id=starting_tokenizer(run.init.model).first_location_id,
                source=f"that of {run.init.model}",
            )
        path = Path(run.tokenizer.path)
        if run.tokenizer.path and path.is_dir():
            tokenizer = Tokenizer.load(path)
            return cls(
                size=len(tokenizer),
                first_location_id=tokenizer.first_location_id,
                source=f"the tokenizer in {path}",
            )
        if run.tokenizer.path:
            size = Florence2Config.create().text.vocab_size
            added = size - len(ADDED_TOKENS)
            source = f"assumed: that of the released models, {path} is not here"
        else:
            added = run.tokenizer.train_size
            size = added + len(ADDED_TOKENS) + 1  # `<image>` is the last one.
            source = f"assumed: tokenizer.train_size={added}, and the added tokens"
        return cls(size=size, first_location_id=added + _FIRST_LOCATION, source=source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A train step before it is compiled; arrays are shapes."""

    run: RunConfig
    model: Florence2Config
    vocabulary: Vocabulary
    image_size: Size
    mesh: Mesh
    step: Step
    state: TrainState
    shardings: Any  # Of the state.
    batch: dict[str, jax.ShapeDtypeStruct]

    @classmethod
    def of(cls, config: Mapping[str, Any], devices: Sequence[Any]) -> "Program":
        """What `train` would run with this run file on these devices.

        Of several image sizes it is the step of the largest one.

        Raises:
            UserError: if config, mesh, devices and batch do not fit together.
        """
        run = RunConfig.create(config)
        vocabulary = Vocabulary.of(run)
        asked = dict(config["model"]).get("text", {}).get("vocab_size")
        if asked is not None:
            source = "model.text.vocab_size"
            vocabulary = dataclasses.replace(vocabulary, size=asked, source=source)
        text = dataclasses.replace(run.model.text, vocab_size=vocabulary.size)
        model = dataclasses.replace(run.model, text=text)
        mesh = _mesh(run, devices)
        check_batch(run, mesh)
        optimizer = make_optimizer(run.optimizer, run.total_steps)
        trained = choose_trained(run, model)

        def init() -> TrainState:
            params = init_params(
                model,
                jax.random.key(run.seed),
                run.init,
                first_location_id=vocabulary.first_location_id,
            )
            return fresh_state(params, optimizer, trained)

        state = jax.eval_shape(init)
        try:
            shardings = state_shardings(state, mesh)
        except ValueError as error:
            raise UserError(f"mesh: {error}") from error
        first_location_id = vocabulary.first_location_id
        step = make_step(
            run, model, optimizer, first_location_id=first_location_id, trained=trained
        )
        image_size = max(run.image_sizes() or [run.model.image_size], key=math.prod)
        return cls(
            run=run,
            model=model,
            vocabulary=vocabulary,
            image_size=image_size,
            mesh=mesh,
            step=step,
            state=state,
            shardings=shardings,
            batch=abstract_batch(run, image_size),
        )

    @property
    def images_per_device(self) -> int:
        """That a device works on at once: one part of an accumulated batch."""
        part = self.run.input.batch_size // self.run.accumulate
        return part // num_data_shards(self.mesh)

    def bytes_per_device(self) -> dict[str, int]:
        """What a step is given, without the padding of its layouts."""
        rows = batch_sharding(self.mesh)
        return {
            "parameters": _shard_bytes(self.state.params, self.shardings.params),
            "optimizer": _shard_bytes(self.state.opt_state, self.shardings.opt_state),
            "batch": _shard_bytes(self.batch, {name: rows for name in self.batch}),
        }

    def checkpoint_bytes(self) -> int:
        """Of a saved state, all devices together, each array once."""
        return sum(_num_bytes(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(self.state))

    def compile(self, compiler_options: dict[str, Any] | None = None) -> Any:
        """Compiles for the mesh's devices, which need not be there."""
        arguments = self.step, self.state, self.shardings, self.batch, self.mesh
        return compile_step(*arguments, compiler_options=compiler_options)


def abstract_batch(run: RunConfig, image_size: Size) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch as shapes: what of a `data.loading.Batch` travels to the devices."""
    spec = run.batch_spec()
    width, height = image_size
    batch, prompts = spec.batch_size, spec.num_prompts
    shapes = {
        "prompt_ids": (batch, prompts, spec.prompt_length),
        "target_ids": (batch, prompts, spec.target_length),
        "task_ids": (batch, prompts),
    }
    if spec.pack_length:
        shapes["target_ids"] = (batch, spec.pack_length)
        shapes["target_prompts"] = (batch, spec.pack_length // CHUNK)
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
    return {"image": jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)} | arrays


def _mesh(run: RunConfig, devices: Sequence[Any]) -> Mesh:
    try:
        return make_mesh(run.mesh, devices)
    except (ValueError, NotImplementedError) as error:  # Of JAX, about the shape of a slice.
        raise UserError(
            f"mesh: {dataclasses.asdict(run.mesh)} cannot be laid out on these chips; choose axes "
            f"that are products of the sides of a slice ({str(error).partition('.')[0]})"
        ) from error


def _shard_bytes(tree: Any, shardings: Any) -> int:
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(_num_bytes(sharding.shard_shape(x.shape), x.dtype) for x, sharding in leaves)


def _num_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
