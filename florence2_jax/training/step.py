# SPDX-License-Identifier: Apache-2.0
"""One update, as a pure function of arrays."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from florence2_jax.models.config import Florence2Config
from florence2_jax.models.florence2 import Florence2
from florence2_jax.parallel.data_parallel import value_and_grad
from florence2_jax.parallel.partitioning import batch_sharding, num_data_shards
from florence2_jax.training.config import RunConfig
from florence2_jax.training.loss import (
    LossConfig,
    shift_right,
    sums_per_task,
    tasks_of_chunks,
    token_cross_entropy,
    token_weights,
)
from florence2_jax.training.state import TrainState, merge, model_graph
from florence2_jax.training.trained import ALL, Trained, dropout_keys
from florence2_jax.training.trees import combine
from florence2_jax.typing import UserError

Metrics: TypeAlias = dict[str, jax.Array]
Step: TypeAlias = Callable[[TrainState, dict[str, Any]], tuple[TrainState, Metrics]]

DEVICE_KEYS = ("image", "prompt_ids", "target_ids", "target_prompts", "task_ids")
"""What of a batch travels to the devices; `target_prompts` only if its targets are packed."""


def check_batch(run: RunConfig, mesh: Mesh) -> None:
    """Raises UserError, with sizes that do, if the batch does not divide by the mesh."""
    batch, shards = run.input.batch_size, num_data_shards(mesh) * run.accumulate
    if batch % shards:
        lower = batch // shards * shards
        near = [number for number in (lower, lower + shards) if number]
        raise UserError(
            f"input.batch_size: {batch} images in {run.accumulate} part(s) do not divide by the "
            f"{num_data_shards(mesh)} data shards of mesh {dict(mesh.shape)}; take "
            f"{' or '.join(map(str, near))}"
        )


def make_step(
    run: RunConfig,
    model: Florence2Config,
    optimizer: optax.GradientTransformation,
    *,
    first_location_id: int,
    trained: Trained = ALL,
) -> Step:
    """`train_step` as a run file has it, of a model that has its vocabulary."""
    return functools.partial(
        train_step,
        graphdef=model_graph(model, trained),
        optimizer=optimizer,
        seed=run.seed,
        accumulate=run.accumulate,
        loss=run.loss,
        first_location_id=first_location_id,
        trained=trained,
    )


def train_step(
    state: TrainState,
    batch: dict[str, Any],
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    seed: int,
    accumulate: int = 1,
    loss: LossConfig = LossConfig(),
    first_location_id: int = 0,
    trained: Trained = ALL,
) -> tuple[TrainState, Metrics]:
    """One update of Florence-2 Eq. 1. Returns the new state and global float32 metrics.

    The loss is summed over target tokens and divided by their global number (or sum of weights), so
    neither padding nor accumulation (`accumulate` equal parts of the batch, one after another)
    biases it. Only what is `trained` has gradients (and counts in their norms) and changes.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), state.step)
    changing, frozen = trained.split(state.params, state.adapters)

    def whole_model(parts: tuple[Any, Any], key: jax.Array) -> Florence2:
        everything = combine(*parts)
        if trained.adapted and trained.lora.dropout:
            keys = dropout_keys(state.adapters, jax.random.fold_in(key, 1))
            everything = combine(everything, keys)
        return merge(graphdef, everything)

    dtype = whole_model((changing, frozen), step_key).config.dtype

    def summed_loss(params: tuple[Any, Any], part: dict[str, Any], key: jax.Array):
        model = whole_model(params, key)
        target_ids, task_ids = part["target_ids"], part["task_ids"]
        packing = part.get("target_prompts")
        logits = model(
            part["image"],
            part["prompt_ids"],
            shift_right(target_ids, packing),
            target_prompts=packing,
            rngs=nnx.Rngs(dropout=key),
        )
        if packing is not None:  # To the loss, a chunk is a short target of its own.
            target_ids = target_ids.reshape(*packing.shape, -1)
            logits = logits.reshape(*target_ids.shape, -1)
            task_ids = tasks_of_chunks(task_ids, packing)
        losses = token_cross_entropy(logits, target_ids, loss, first_location_id=first_location_id)
        weights = token_weights(target_ids, loss, first_location_id=first_location_id)
        sums = sums_per_task(losses, target_ids, task_ids)
        return (weights * losses).sum(), (*sums, weights.sum())

    def part_gradient(part: dict[str, Any], index: jax.Array | int):
        key = jax.random.fold_in(step_key, index)
        (_, sums), grads = value_and_grad(
            summed_loss, changing, part, key, dtype=dtype, held=frozen
        )
        return grads, sums

    if accumulate == 1:
        grads, sums = part_gradient(batch, 0)
    else:
        grads, sums = _accumulate(part_gradient, batch, accumulate)
    loss_sums, token_sums, weight_sum = sums
    grads = jax.tree.map(lambda g: g / jnp.maximum(weight_sum, 1.0), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, changing)
    changed = optax.apply_updates(changing, updates)
    metrics = {
        "loss": loss_sums.sum() / jnp.maximum(token_sums.sum(), 1.0),
        "num_tokens": token_sums.sum(),
        "grad_norm": optax.tree.norm(grads),
        "grad_norms": {name: optax.tree.norm(part) for name, part in model_parts(grads).items()},
        "task_loss_sums": loss_sums,
        "task_token_sums": token_sums,
    }
    params, adapters = _apart(changed, frozen, state.adapters)
    ema = state.ema
    if ema is not None:
        early = (1.0 + state.step) / (10.0 + state.step)
        rate = 1 - jnp.minimum(trained.ema_decay, early)
        ema = jax.tree.map(lambda mean, x: mean + rate * (x - mean), ema, changed)
    new_state = state.replace(
        step=state.step + 1, params=params, opt_state=opt_state, adapters=adapters, ema=ema
    )
    return new_state, metrics


def _apart(changed: Any, frozen: Any, adapters: Any) -> tuple[Any, Any]:
    """The model's parameters and the adapters, out of what is trained and what is not."""
    if adapters is not None:
        return frozen, changed  # Adapters are trained beside a model that is not.
    return combine(changed, frozen), None


def model_parts(params: dict[str, Any]) -> dict[str, Any]:
    """The parts of a model whose gradients are told apart: the towers and what joins them."""
    text = {f"text/{name}": part for name, part in params.get("text", {}).items()}
    return {name: part for name, part in params.items() if name != "text"} | text


def _accumulate(part_gradient, batch: dict[str, Any], number: int):
    """Sums gradients and metrics over strided parts (each part stays spread over all devices)."""
    parts = {
        name: jnp.moveaxis(x.reshape(-1, number, *x.shape[1:]), 1, 0) for name, x in batch.items()
    }

    def add(total, indexed_part):
        index, part = indexed_part
        return jax.tree.map(jnp.add, total, part_gradient(part, index)), None

    first = part_gradient({name: x[0] for name, x in parts.items()}, 0)
    rest = (jnp.arange(1, number), {name: x[1:] for name, x in parts.items()})
    total, _ = jax.lax.scan(add, first, rest)
    return total


def compile_step(
    step: Step,
    state: TrainState,
    shardings: Any,
    batch: dict[str, Any],
    mesh: Mesh,
    *,
    compiler_options: dict[str, Any] | None = None,
):
    """Compiles a step ahead of time for one mesh; its state is donated, its metrics replicated.

    Args:
        batch: arrays or shapes of one batch over all hosts, those of `DEVICE_KEYS` it has.
    """
    rows = batch_sharding(mesh)
    jitted = jax.jit(
        step,
        in_shardings=(shardings, {name: rows for name in batch}),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
    with jax.set_mesh(mesh):
        return jitted.lower(state, batch).compile(compiler_options)
