# SPDX-License-Identifier: Apache-2.0
"""Beam search with the semantics of `transformers`, to the token.

W open hypotheses per prompt, W finished ones. Each step weighs the `W * V` continuations of a
prompt and takes the best `2 * W`: at most W of them can end, so W are left to go on. What ends
among the first W competes for a place among the finished, by log-probability over length.

Source: behaviour of `generate` in transformers 5.23 (`_beam_search`); prompts that are over stay as
they are while others go on, so an answer does not depend on the batch it was made in.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from florence2_jax.inference.generation_config import GenerationConfig
from florence2_jax.inference.rules import Rules, advance, apply_rules, forced_token
from florence2_jax.inference.sampling import filter_scores
from florence2_jax.models.encoder_decoder import reorder_cache
from florence2_jax.models.florence2 import Florence2
from florence2_jax.text.tokenizer import DECODER_START_ID, EOS_ID, PAD_ID

_NEVER = -1e9  # Added to what must not be chosen: finite, so that sums and ties stay ordered.


class _Hypotheses(NamedTuple):
    """N hypotheses per prompt, best first."""

    ids: Int[Array, "M N T1"]  # The start token in front.
    log_probs: Float[Array, "M N T"]
    scores: Float[Array, "M N"]
    grammar_states: Int[Array, "M N"] | None

    def take(self, index: Int[Array, "M K"]) -> "_Hypotheses":
        """Some of them, in another order."""
        return jax.tree.map(lambda leaf: _take(leaf, index), self)


class _Search(NamedTuple):
    """What changes from token to token."""

    position: Int[Array, ""]
    open: _Hypotheses
    finished: _Hypotheses  # Their grammar states mean nothing.
    is_finished: Bool[Array, "M W"]  # Places among the finished that are taken.
    can_improve: Bool[Array, "M"]
    cache: Any


def beam_search(
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
    """The best finished hypotheses of each prompt, best first.

    Returns:
        New tokens, their log-probabilities and the scores of the answers: see `Generated`.
    """
    width, length = config.num_beams, config.num_new_tokens

    def step(search: _Search) -> _Search:
        position = search.position
        token = jax.lax.dynamic_index_in_dim(search.open.ids, position, axis=2, keepdims=False)
        logits, cache = model.decode_step(token.reshape(-1), position, search.cache, mask)
        draw = jax.random.fold_in(key, position)
        found, parents = _continuations(logits, search.open, position, rules, draw, config)
        is_end = found.ids[:, :, 1:] == EOS_ID
        is_end = jax.lax.dynamic_index_in_dim(is_end, position, axis=2, keepdims=False)
        is_end |= position == length - 1

        going_on = found.scores + is_end * _NEVER
        going_on, best = jax.lax.top_k(going_on, width)
        cache = reorder_cache(cache, _take(parents, best))
        finished, is_finished = _finish(search, found, is_end, config)
        search = _Search(
            position=position + 1,
            open=found.take(best)._replace(scores=going_on),
            finished=finished,
            is_finished=is_finished,
            can_improve=search.can_improve,
            cache=cache,
        )
        return search._replace(can_improve=_can_improve(search, config))

    def is_open(search: _Search) -> Bool[Array, ""]:
        goes_on = search.can_improve
        if config.early_stopping is True:
            goes_on &= ~search.is_finished.all(axis=1)
        return (search.position < length) & goes_on.any()

    cache = model.init_cache(states, length, num_hypotheses=width)
    search = _start(is_asked, initial_states, cache, config)
    finished = jax.lax.while_loop(is_open, step, search).finished
    return finished.ids[:, :, 1:], finished.log_probs, finished.scores


def _start(
    is_asked: Bool[Array, "M"],
    initial_states: Int[Array, "M"] | None,
    cache: Any,
    config: GenerationConfig,
) -> _Search:
    """The start token, W times. One of the beams is enough: at first they are all equal."""
    shape = len(is_asked), config.num_beams
    ids = jnp.full((*shape, config.num_new_tokens + 1), PAD_ID, jnp.int32)
    if initial_states is not None:
        initial_states = jnp.repeat(initial_states[:, None], config.num_beams, axis=1)
    start = _Hypotheses(
        ids=ids.at[:, :, 0].set(DECODER_START_ID),
        log_probs=jnp.zeros((*shape, config.num_new_tokens)),
        scores=jnp.full(shape, _NEVER).at[:, 0].set(0.0),
        grammar_states=initial_states,
    )
    return _Search(
        position=jnp.int32(0),
        open=start,
        finished=start._replace(scores=jnp.full(shape, _NEVER)),
        is_finished=jnp.zeros(shape, bool),
        can_improve=is_asked,
        cache=cache,
    )


def _continuations(
    logits: Float[Array, "MW V"],
    beams: _Hypotheses,
    position: Int[Array, ""],
    rules: Rules,
    key: jax.Array,
    config: GenerationConfig,
) -> tuple[_Hypotheses, Int[Array, "M K"]]:
    """The best `2 * W` continuations of each prompt (or as many drawn), and whose they are."""
    num_prompts, width = beams.scores.shape
    num_tokens = logits.shape[1]
    log_probs = jax.nn.log_softmax(logits)
    ids, grammar_states = beams.ids.reshape(-1, beams.ids.shape[2]), beams.grammar_states
    if grammar_states is not None:
        grammar_states = grammar_states.reshape(-1)
    scores = apply_rules(log_probs, ids, position, grammar_states, rules, config)
    if config.do_sample:
        scores = filter_scores(scores, config)
    totals = scores.reshape(num_prompts, width, num_tokens) + beams.scores[:, :, None]
    totals = totals.reshape(num_prompts, -1)
    keys = totals
    if config.do_sample:  # The largest of perturbed scores are draws without replacement.
        keys = totals + jax.random.gumbel(key, totals.shape)
    _, index = jax.lax.top_k(keys, 2 * width)
    parents, tokens = index // num_tokens, index % num_tokens

    log_prob = _take(log_probs.reshape(num_prompts, -1), index)
    log_prob = jnp.where(forced_token(position, config) < 0, log_prob, 0.0)
    found = beams.take(parents)
    write = jax.lax.dynamic_update_index_in_dim
    found = _Hypotheses(
        ids=write(found.ids, tokens, position + 1, axis=2),
        log_probs=write(found.log_probs, log_prob, position, axis=2),
        scores=_take(totals, index),
        grammar_states=advance(rules.grammar, found.grammar_states, tokens, position),
    )
    return found, parents


def _finish(
    search: _Search, found: _Hypotheses, is_end: Bool[Array, "M K"], config: GenerationConfig
) -> tuple[_Hypotheses, Bool[Array, "M W"]]:
    """The best W of those finished before and those that end now, and whether they are any."""
    width = search.is_finished.shape[1]
    ends_now = is_end & (jnp.arange(is_end.shape[1]) < width)
    scores = found.scores / _penalties(config)[search.position]
    if config.early_stopping is True:
        scores += search.is_finished.all(axis=1, keepdims=True) * _NEVER
    scores += ~search.can_improve[:, None] * _NEVER
    scores += ~ends_now * _NEVER
    merged = jax.tree.map(
        lambda old, new: jnp.concatenate([old, new], axis=1),
        (search.finished, search.is_finished),
        (found._replace(scores=scores), ends_now),
    )
    _, best = jax.lax.top_k(merged[0].scores, width)
    return merged[0].take(best), _take(merged[1], best)


def _can_improve(search: _Search, config: GenerationConfig) -> Bool[Array, "M"]:
    """Whether the best open hypothesis may still beat the worst finished one.

    Its log-probability can only fall, so what decides is the length it is divided by: the present
    one, or, for `early_stopping="never"` and a penalty that rewards length, the longest.
    """
    at = search.position - 1
    if config.early_stopping == "never" and config.length_penalty > 0:
        at = config.num_new_tokens - 1
    hoped_for = search.open.scores[:, :1] / _penalties(config)[at]
    worst = search.finished.scores.min(axis=1, keepdims=True)
    worst = jnp.where(search.is_finished, worst, _NEVER)
    return search.can_improve & (hoped_for > worst).any(axis=1)


def _penalties(config: GenerationConfig) -> Float[Array, "T"]:
    """What the score of an answer of 1, 2, ... tokens is divided by; powers in double precision."""
    lengths = np.arange(1, config.num_new_tokens + 1, dtype=np.float64)
    return jnp.asarray(lengths**config.length_penalty, jnp.float32)


def _take(leaf: Array, index: Int[Array, "M K"]) -> Array:
    """`leaf[m, index[m, k]]`, whatever axes follow."""
    index = index.reshape(*index.shape, *(1,) * (leaf.ndim - 2))
    return jnp.take_along_axis(leaf, index, axis=1)
