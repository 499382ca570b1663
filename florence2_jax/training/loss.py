# SPDX-License-Identifier: Apache-2.0
"""Token cross-entropy. Source: Florence-2 Eq. 1; padding never counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.locations import NUM_BINS
from florence2_jax.text.tokenizer import DECODER_START_ID, PAD_ID
from florence2_jax.typing import UserError


def shift_right(
    target_ids: Int[Array, "... T"], target_prompts: Int[Array, "B G"] | None = None
) -> Int[Array, "... T"]:
    """What the decoder reads to predict each target token: the start token, then the targets.

    Packed targets (`[B, N]`, with the prompt of each chunk) each begin with the start token.
    """
    start = jnp.full_like(target_ids[..., :1], DECODER_START_ID)
    shifted = jnp.concatenate([start, target_ids[..., :-1]], axis=-1)
    if target_prompts is None:
        return shifted
    chunks = shifted.reshape(*target_prompts.shape, -1)  # B G C
    is_first = jnp.diff(target_prompts, axis=1, prepend=-2) != 0
    chunks = chunks.at[..., 0].set(jnp.where(is_first, DECODER_START_ID, chunks[..., 0]))
    return chunks.reshape(target_ids.shape)


def tasks_of_chunks(
    task_ids: Int[Array, "B K"], target_prompts: Int[Array, "B G"]
) -> Int[Array, "B G"]:
    """The task of every chunk of packed targets, -1 where it is unused."""
    tasks = jnp.take_along_axis(task_ids, jnp.maximum(target_prompts, 0), axis=1)
    return jnp.where(target_prompts < 0, -1, tasks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Options of the loss; the defaults are the paper's.

    `location_smoothing_bins` spreads the target of a location token over its neighbours, a Gaussian
    of this width: a bin beside the true one is nearly right, and a small model has few examples of
    each of the 1,000. Ours.

    `location_weight` is what a location token counts in the gradient, any other token counting 1:
    locations are most of the tokens, and a small model learns to find things only once it can name
    them. Reported losses count every token alike. Ours.
    """

    location_smoothing_bins: float = 0.0
    location_weight: float = 1.0

    def __post_init__(self):
        if not self.location_weight > 0:
            raise UserError(f"loss.location_weight: {self.location_weight} must be above 0")
        if not 0 <= self.location_smoothing_bins <= NUM_BINS:
            raise UserError(
                f"loss.location_smoothing_bins: {self.location_smoothing_bins} is not in [0, 1000]"
            )


def token_cross_entropy(
    logits: Float[Array, "B K T V"],
    target_ids: Int[Array, "B K T"],
    config: LossConfig = LossConfig(),
    *,
    first_location_id: int = 0,
) -> Float[Array, "B K T"]:
    """Negative log-probability of every target token in float32; 0 at padding."""
    logits = logits.astype(jnp.float32)
    # A sum over the vocabulary, not a lookup: the gradient of a lookup writes all logits again.
    is_target = target_ids[..., None] == jnp.arange(logits.shape[-1])
    picked = jnp.where(is_target, logits, 0.0).sum(axis=-1)
    if config.location_smoothing_bins:
        bins = target_ids - first_location_id
        is_location = _are_locations(target_ids, first_location_id)
        smooth = _smoothed_bins(config.location_smoothing_bins)[jnp.where(is_location, bins, 0)]
        near = logits[..., first_location_id : first_location_id + NUM_BINS]
        picked = jnp.where(is_location, (smooth * near).sum(axis=-1), picked)
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.where(target_ids == PAD_ID, 0.0, losses)


def token_weights(
    target_ids: Int[Array, "B K T"], config: LossConfig, *, first_location_id: int = 0
) -> Float[Array, "B K T"]:
    """What every target token counts in the gradient; 0 at padding."""
    is_location = _are_locations(target_ids, first_location_id)
    weights = jnp.where(is_location, config.location_weight, 1.0)
    return jnp.where(target_ids == PAD_ID, 0.0, weights)


def _are_locations(target_ids: Int[Array, "..."], first_location_id: int) -> Bool[Array, "..."]:
    return (target_ids >= first_location_id) & (target_ids < first_location_id + NUM_BINS)


def _smoothed_bins(width: float) -> Float[Array, "bins bins"]:
    """Row `k` is the target distribution of `<loc_k>`; it sums to 1 at the borders too."""
    bins = np.arange(NUM_BINS)
    weights = np.exp(-0.5 * np.square((bins[:, None] - bins[None, :]) / width))
    return jnp.asarray(weights / weights.sum(axis=1, keepdims=True), jnp.float32)


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
