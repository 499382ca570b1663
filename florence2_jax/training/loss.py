# SPDX-License-Identifier: Apache-2.0
"""Token cross-entropy. Source: Florence-2 Eq. 1; padding never counts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.tokenizer import DECODER_START_ID, PAD_ID


def shift_right(target_ids: Int[Array, "... T"]) -> Int[Array, "... T"]:
    """What the decoder reads to predict each target token: the start token, then the targets."""
    start = jnp.full_like(target_ids[..., :1], DECODER_START_ID)
    return jnp.concatenate([start, target_ids[..., :-1]], axis=-1)


def token_cross_entropy(
    logits: Float[Array, "B K T V"], target_ids: Int[Array, "B K T"]
) -> Float[Array, "B K T"]:
    """Negative log-probability of every target token in float32; 0 at padding."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, target_ids[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.where(target_ids == PAD_ID, 0.0, losses)


def sums_per_task(
    losses: Float[Array, "B K T"], target_ids: Int[Array, "B K T"], task_ids: Int[Array, "B K"]
) -> tuple[Float[Array, " tasks"], Float[Array, " tasks"]]:
    """Summed loss and number of target tokens of every row of `TASKS`; missing prompts drop out."""
    tokens = (target_ids != PAD_ID).astype(jnp.float32)
    rows = jax.nn.one_hot(task_ids, len(TASKS), dtype=jnp.float32)  # -1 gives a row of zeros.
    return (
        jnp.einsum("BKT,BKt->t", losses, rows),
        jnp.einsum("BKT,BKt->t", tokens, rows),
    )
