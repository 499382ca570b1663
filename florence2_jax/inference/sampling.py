# SPDX-License-Identifier: Apache-2.0
"""Greedy search and sampling: one token at a time, W independent rows per prompt."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from florence2_jax.inference.generation_config import GenerationConfig
from florence2_jax.inference.rules import Rules, advance, apply_rules, forced_token
from florence2_jax.models.florence2 import Florence2
from florence2_jax.text.tokenizer import DECODER_START_ID, EOS_ID, PAD_ID


class _Rows(NamedTuple):
    """What changes from token to token."""

    position: Int[Array, ""]
    ids: Int[Array, "R T1"]  # The start token in front.
    log_probs: Float[Array, "R T"]
    is_done: Bool[Array, "R"]
    grammar_states: Int[Array, "R"] | None
    cache: Any


def sample(
    model: Florence2,
    states: Float[Array, "M S D"],
    mask: Bool[Array, "M S"],
    is_asked: Bool[Array, "M"],
    *,
    rules: Rules,
    initial_states: Int[Array, "M"] | None,
    key: jax.Array,
    config: GenerationConfig,
) -> tuple[Int[Array, "M W T"], Float[Array, "M W T"], Float[Array, "M W"]]:
    """The most probable token or a drawn one, again and again, until every row has ended.

    Returns:
        New tokens, their log-probabilities and the scores of the answers: see `Generated`.
    """
    width, length = config.num_return_sequences, config.num_new_tokens

    def step(rows: _Rows) -> _Rows:
        position = rows.position
        token = jax.lax.dynamic_index_in_dim(rows.ids, position, axis=1, keepdims=False)
        logits, cache = model.decode_step(token, position, rows.cache, mask)
        scores = apply_rules(logits, rows.ids, position, rows.grammar_states, rules, config)
        if config.do_sample:
            scores = filter_scores(scores, config)
            draw = jax.random.fold_in(key, position)
            token = jax.random.categorical(draw, scores).astype(jnp.int32)
        else:
            token = scores.argmax(axis=-1).astype(jnp.int32)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
        log_prob = chosen - jax.nn.logsumexp(logits, axis=-1)
        has_choice = ~rows.is_done & (forced_token(position, config) < 0)
        log_prob = jnp.where(has_choice, log_prob, 0.0)
        token = jnp.where(rows.is_done, PAD_ID, token)
        write = jax.lax.dynamic_update_index_in_dim
        return _Rows(
            position=position + 1,
            ids=write(rows.ids, token, position + 1, axis=1),
            log_probs=write(rows.log_probs, log_prob, position, axis=1),
            is_done=rows.is_done | (token == EOS_ID),
            grammar_states=advance(rules.grammar, rows.grammar_states, token, position),
            cache=cache,
        )

    num_rows = len(states) * width
    start = _Rows(
        position=jnp.int32(0),
        ids=jnp.full((num_rows, length + 1), PAD_ID, jnp.int32).at[:, 0].set(DECODER_START_ID),
        log_probs=jnp.zeros((num_rows, length)),
        is_done=jnp.repeat(~is_asked, width),
        grammar_states=None if initial_states is None else jnp.repeat(initial_states, width),
        cache=model.init_cache(states, length, num_hypotheses=width),
    )
    rows = jax.lax.while_loop(
        lambda rows: (rows.position < length) & ~rows.is_done.all(), step, start
    )
    ids = rows.ids[:, 1:].reshape(-1, width, length)
    log_probs = rows.log_probs.reshape(ids.shape)
    is_end = ids == EOS_ID
    num_tokens = jnp.where(is_end.any(axis=-1), is_end.argmax(axis=-1) + 1, length)
    return ids, log_probs, log_probs.sum(axis=-1) / num_tokens**config.length_penalty


def filter_scores(scores: Float[Array, "R V"], config: GenerationConfig) -> Float[Array, "R V"]:
    """Scores divided by the temperature, -inf outside `top_k`, then outside `top_p`.

    As in `transformers`, tokens that tie with the last of `top_k` stay, and beam search keeps two
    tokens at least, so that a hypothesis can both end and go on.
    """
    fewest = 2 if config.num_beams > 1 else 1
    scores = scores / config.temperature
    if config.top_k:
        top_k = min(max(config.top_k, fewest), scores.shape[1])
        smallest = jax.lax.top_k(scores, top_k)[0][:, -1:]
        scores = jnp.where(scores < smallest, -jnp.inf, scores)
    if config.top_p < 1:
        order = jnp.argsort(scores, axis=1)  # Ascending: what is dropped comes first.
        ascending = jnp.take_along_axis(scores, order, axis=1)
        mass = jnp.cumsum(jax.nn.softmax(ascending, axis=1), axis=1)
        is_dropped = mass <= 1 - config.top_p
        is_dropped = is_dropped.at[:, -fewest:].set(False)
        rows = jnp.arange(len(scores))[:, None]
        scores = scores.at[rows, order].min(jnp.where(is_dropped, -jnp.inf, jnp.inf))
    return scores
