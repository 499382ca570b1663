# SPDX-License-Identifier: Apache-2.0
"""Greedy generation with a KV cache, one compiled call per shape."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from florence2_jax.text.tokenizer import BOS_ID, DECODER_START_ID, EOS_ID, PAD_ID
from florence2_jax.training.state import merge


@functools.partial(jax.jit, static_argnames=("graphdef", "max_length"))
def greedy(
    params: Any,
    image: UInt8[Array, "B Y X 3"],
    prompt_ids: Int[Array, "B K L"],
    *,
    graphdef: nnx.GraphDef,
    max_length: int,
) -> tuple[Int[Array, "B K T"], Float[Array, "B K T"]]:
    """The most probable next token, again and again, until every row has ended.

    As the released models generate: the decoder starts with `</s>` and is made to write `<s>`; at
    `max_length` it is made to write `</s>`. Each image is encoded once for its K prompts. A prompt
    of padding alone is not answered.

    Returns:
        Token ids from `<s>` to `</s>` with padding behind, `T = max_length`, and the float32
        log-probability of each (0 at forced and padding tokens).
    """
    model = merge(graphdef, params)
    states, mask = model.encode(model.encode_image(image), prompt_ids)
    num_rows = states.shape[0]
    is_asked = (prompt_ids != PAD_ID).any(axis=-1).reshape(-1)

    def is_open(carry):
        position, _, _, _, is_done, _ = carry
        return (position < max_length) & ~is_done.all()

    def step(carry):
        position, token, ids, scores, is_done, cache = carry
        logits, cache = model.decode_step(token, position, cache, mask)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        best = log_probs.argmax(axis=-1).astype(jnp.int32)
        forced = jnp.where(position == 0, BOS_ID, jnp.where(position == max_length - 1, EOS_ID, -1))
        best = jnp.where(forced >= 0, forced, best)
        score = jnp.take_along_axis(log_probs, best[:, None], axis=-1)[:, 0]
        score = jnp.where((forced >= 0) | is_done, 0.0, score)
        token = jnp.where(is_done, PAD_ID, best)
        ids = jax.lax.dynamic_update_index_in_dim(ids, token, position, axis=1)
        scores = jax.lax.dynamic_update_index_in_dim(scores, score, position, axis=1)
        return position + 1, token, ids, scores, is_done | (token == EOS_ID), cache

    start = jnp.full(num_rows, DECODER_START_ID, jnp.int32)
    ids = jnp.full((num_rows, max_length), PAD_ID, jnp.int32)
    scores = jnp.zeros((num_rows, max_length), jnp.float32)
    cache = model.init_cache(states, max_length)
    carry = (jnp.zeros((), jnp.int32), start, ids, scores, ~is_asked, cache)
    _, _, ids, scores, _, _ = jax.lax.while_loop(is_open, step, carry)
    shape = (*prompt_ids.shape[:2], max_length)
    return ids.reshape(shape), scores.reshape(shape)
