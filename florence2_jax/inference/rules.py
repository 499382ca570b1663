# SPDX-License-Identifier: Apache-2.0
"""What may be written next: the rules of `GenerationConfig`, and a grammar as a table.

Locations are pooled first, if at all. Rules are masks on the scores of the next token, in the order
of `transformers`: n-grams, minimum length, (ours: `<s>`, the grammar,) forced tokens. `R` rows are
hypotheses, W per prompt.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import NDArray

from florence2_jax.inference.generation_config import GenerationConfig
from florence2_jax.text.locations import NUM_BINS
from florence2_jax.text.tokenizer import BOS_ID, EOS_ID


class Constraint(NamedTuple):
    """A grammar as tables of Q states and C classes of tokens; arrays, so it is a pytree.

    A token is allowed in a state if the state has a next one for its class, if from there the
    answer can be finished with the tokens left, and, in a floored state, if it is a location not
    below the one two tokens back (`x1 >= x0`). Source: `tasks/grammar.py`, which makes them.

    Attributes:
        token_class: `int32[V]`, the class of each token id; ids behind are never allowed.
        next_state: `int32[Q, C]`, -1 where a class is forbidden.
        finish_cost: `int32[Q]`, the fewest tokens to the end, `</s>` included; 0 behind `</s>`.
        is_floored: `bool[Q]`.
        location_bin: `int32[V]`, -1 for what is no location.
    """

    token_class: Any
    next_state: Any
    finish_cost: Any
    is_floored: Any
    location_bin: Any

    @classmethod
    def of(cls, grammar: Any) -> "Constraint":
        """The tables of a `tasks.grammar.Grammar`, or of anything with these attributes."""
        return cls(*(getattr(grammar, name) for name in cls._fields))


class Rules(NamedTuple):
    """The rules of one call.

    Attributes:
        ngram_sizes: a size per row.
        grammar: None without one.
        first_location: the id of `<loc_0>`; None where locations are not pooled.
    """

    ngram_sizes: Int[Array, "R"]
    grammar: Constraint | None
    first_location: Int[Array, ""] | None = None


def forced_token(position: Int[Array, ""], config: GenerationConfig) -> Int[Array, ""]:
    """The token that must be written at `position` (from 0), -1 where there is a choice."""
    forced = jnp.int32(-1)
    if config.forced_bos_token_id is not None:
        forced = jnp.where(position == 0, config.forced_bos_token_id, forced)
    if config.forced_eos_token_id is not None:
        is_last = position == config.num_new_tokens - 1
        forced = jnp.where(is_last, config.forced_eos_token_id, forced)
    return forced


def apply_rules(
    scores: Float[Array, "R V"],
    ids: Int[Array, "R T1"],
    position: Int[Array, ""],
    grammar_states: Int[Array, "R"] | None,
    rules: Rules,
    config: GenerationConfig,
) -> Float[Array, "R V"]:
    """Scores of the next token with what is forbidden at -inf, or a forced token alone at 0.

    Args:
        scores: logits or log-probabilities.
        ids: the start token, then what has been written; the new token goes to `position + 1`.
        grammar_states: of each row, None without a grammar.

    Where the grammar leaves only tokens that other rules forbid, the grammar wins: those rules are
    dropped for that row and this token, since an answer that repeats itself is still an answer.
    """
    if rules.first_location is not None and config.pool_locations and not config.do_sample:
        scores = pooled(scores, rules.first_location)
    ruled = scores
    if config.largest_ngram_size:
        repeats = repeating(ids, position + 1, rules.ngram_sizes, config.largest_ngram_size)
        rows = jnp.arange(len(ids))[:, None]
        ruled = ruled.at[rows, ids].min(jnp.where(repeats, -jnp.inf, jnp.inf))
    token = jnp.arange(scores.shape[1])
    if config.fewest_new_tokens:
        is_early = (token == EOS_ID) & (position < config.fewest_new_tokens)
        ruled = jnp.where(is_early, -jnp.inf, ruled)
    if config.suppress_bos:
        ruled = jnp.where((token == BOS_ID) & (position > 0), -jnp.inf, ruled)
    if rules.grammar is not None and grammar_states is not None:
        tokens_left = config.num_new_tokens - 1 - position
        two_back = jax.lax.dynamic_index_in_dim(ids, position - 1, axis=1, keepdims=False)
        is_allowed = allowed(rules.grammar, grammar_states, two_back, tokens_left, len(token))
        ruled = jnp.where(is_allowed, ruled, -jnp.inf)
        is_stuck = (ruled == -jnp.inf).all(axis=-1, keepdims=True)
        ruled = jax.lax.cond(  # Rare: else a pass over all scores for each token.
            is_stuck.any(),
            lambda: jnp.where(is_stuck & is_allowed, scores, ruled),
            lambda: ruled,
        )
    forced = forced_token(position, config)
    only_forced = jnp.where(token == forced, 0.0, -jnp.inf)
    return jnp.where(forced >= 0, only_forced, ruled)


def pooled(scores: Float[Array, "R V"], first_location: Int[Array, ""]) -> Float[Array, "R V"]:
    """Scores with those of all locations raised alike, the largest to the sum of all of them."""
    bins = jnp.arange(scores.shape[1]) - first_location
    is_location = (bins >= 0) & (bins < NUM_BINS)
    locations = jnp.where(is_location, scores, -jnp.inf)
    total = jax.nn.logsumexp(locations, axis=1, keepdims=True)
    return jnp.where(is_location, scores + total - locations.max(axis=1, keepdims=True), scores)


def repeating(
    ids: Int[Array, "R T1"], length: Int[Array, ""], sizes: Int[Array, "R"], largest: int
) -> Bool[Array, "R T1"]:
    """Whether writing `ids[:, i]` again behind `length` tokens would repeat an n-gram.

    That is so where the `n - 1` tokens before `i` are the last ones written. The start token takes
    part, as in `transformers`.

    Args:
        sizes: n of each row, 0 for no rule.
        largest: the largest of them, at least.
    """
    index, sizes = jnp.arange(ids.shape[1]), sizes[:, None]
    repeats = (index < length) & (index >= sizes - 1) & (sizes > 0)
    for back in range(1, largest):
        latest = jax.lax.dynamic_index_in_dim(ids, length - back, axis=1)
        earlier = jnp.roll(ids, back, axis=1)  # What is rolled around is left of `sizes - 1`.
        repeats &= (earlier == latest) | (back >= sizes)
    return repeats


def allowed(
    grammar: Constraint,
    states: Int[Array | NDArray, "R"],
    two_back: Int[Array | NDArray, "R"],
    tokens_left: Int[Array, ""],
    num_tokens: int,
) -> Bool[Array, "R V"]:
    """Which tokens a grammar has next.

    Args:
        two_back: the token two before the one to be written.
        tokens_left: room behind the one to be written.
        num_tokens: V, columns of the logits, padding rows of the embedding included.
    """
    grammar = Constraint(*map(jnp.asarray, grammar))
    following = grammar.next_state[states]  # [R, C]
    cost = grammar.finish_cost[jnp.maximum(following, 0)]
    class_allowed = (following >= 0) & (cost <= tokens_left)
    is_allowed = class_allowed.at[:, grammar.token_class].get(mode="promise_in_bounds")
    floor = jnp.where(grammar.is_floored[states], grammar.location_bin[two_back], -1)
    is_allowed &= grammar.location_bin >= floor[:, None]
    return jnp.pad(is_allowed, ((0, 0), (0, num_tokens - is_allowed.shape[1])))


def advance(
    grammar: Constraint | None,
    states: Int[Array, "*R"] | None,
    tokens: Int[Array, "*R"],
    position: Int[Array, ""],
) -> Int[Array, "*R"] | None:
    """States behind `tokens`, None without a grammar. The forced `<s>` is before the initial one.

    Rows that are over, or that no beam follows, get any state: nothing is read from them.
    """
    if grammar is None or states is None:
        return None
    known = jnp.minimum(tokens, len(grammar.token_class) - 1)
    following = grammar.next_state[states, grammar.token_class[known]]
    return jnp.where(position == 0, states, jnp.maximum(following, 0))
