# SPDX-License-Identifier: Apache-2.0
"""Masks of the rules, against their definitions written out in plain Python."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from florence2_jax.inference.generation_config import GenerationConfig
from florence2_jax.inference.rules import Constraint, Rules, apply_rules, pooled, repeating
from florence2_jax.text.tokenizer import BOS_ID, EOS_ID

V = 12


def rules_of(sizes, grammar=None) -> Rules:
    return Rules(jnp.asarray(sizes, jnp.int32), grammar)


def config_of(**options) -> GenerationConfig:
    fixed = dict(forced_bos_token_id=None, forced_eos_token_id=None, no_repeat_ngram_size=0)
    return GenerationConfig(**(fixed | dict(max_new_tokens=10) | options))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=8, max_size=8), st.integers(1, 8), st.integers(0, 4)
)  # fmt: skip
def test_no_ngram_is_written_twice(ids, length, size):
    row = jnp.asarray([ids], jnp.int32)
    repeats = repeating(row, jnp.int32(length), jnp.asarray([size], jnp.int32), 4)[0]
    banned = {ids[i] for i in range(8) if repeats[i]}
    seen = {tuple(ids[i : i + size]) for i in range(length - size + 1)} if size else set()
    last = tuple(ids[length - size + 1 : length]) if size else ()
    can_complete = size > 0 and length >= size
    assert banned == {t for t in range(3) if can_complete and (*last, t) in seen}


def test_rows_have_their_own_ngram_rule():
    ids = jnp.asarray([[2, 0, 5, 6, 5, 0, 0, 0]] * 3, jnp.int32)
    config = config_of(no_repeat_ngram_size=2)
    scores = jnp.zeros((3, V))
    ruled = apply_rules(scores, ids, jnp.int32(4), None, rules_of([0, 1, 2]), config)
    banned = [set(np.flatnonzero(row == -np.inf).tolist()) for row in np.asarray(ruled)]
    assert banned == [set(), {0, 2, 5, 6}, {6}]  # The start token (2) takes part.


def test_ends_and_beginnings():
    ids = jnp.full((1, 11), 5, jnp.int32)
    config = config_of(min_new_tokens=3, suppress_bos=True, forced_bos_token_id=4,
                       forced_eos_token_id=EOS_ID)  # fmt: skip

    def open_at(position):
        args = jnp.zeros((1, V)), ids, jnp.int32(position), None, rules_of([0]), config
        return set(np.flatnonzero(np.isfinite(np.asarray(apply_rules(*args))[0])).tolist())

    assert open_at(0) == {4} and open_at(9) == {EOS_ID}
    assert open_at(2) == set(range(V)) - {BOS_ID, EOS_ID}
    assert open_at(3) == set(range(V)) - {BOS_ID}


def test_locations_are_weighed_together():
    rng = np.random.default_rng(0)
    shares = np.full((2, 1100), 1e-9)
    shares[:, EOS_ID] = 0.4, 0.7
    shares[:, 50:1050] = rng.dirichlet(np.ones(1000), 2) * [[0.6], [0.3]]
    scores = jnp.log(jnp.asarray(shares))
    assert (scores.argmax(axis=1) == EOS_ID).all()
    together = np.exp(np.asarray(pooled(scores, jnp.int32(50))))
    best = np.asarray(scores)[:, 50:1050].argmax(axis=1) + 50
    assert together.argmax(axis=1).tolist() == [best[0], EOS_ID]
    np.testing.assert_allclose(together[[0, 1], best], [0.6, 0.3], rtol=1e-5)
    np.testing.assert_allclose(together[:, :50], shares[:, :50], rtol=1e-5)
    gains = together[:, 50:1050] / shares[:, 50:1050]  # Among themselves they stay as they were.
    np.testing.assert_allclose(gains, gains[:, :1] * np.ones(1000), rtol=1e-4)


def test_locations_are_pooled_before_other_rules_and_only_if_asked():
    ids = jnp.full((1, 11), 5, jnp.int32)
    shares = np.full((1, 1100), 1e-9)
    shares[0, EOS_ID], shares[0, 50:1050] = 0.4, 0.6 / 1000
    rules = rules_of([0])._replace(first_location=jnp.int32(50))

    def likeliest(**options) -> int:
        config = config_of(**options)
        scores = apply_rules(jnp.log(jnp.asarray(shares)), ids, jnp.int32(3), None, rules, config)
        return int(scores.argmax())

    assert likeliest() == EOS_ID == likeliest(pool_locations=True, do_sample=True)
    assert likeliest(pool_locations=True) == 50


# Locations 4..8 (bins 0..4), words 9 and 10; 11 is a padding row of the embedding. An answer is
# `{ word pair }`, the second of a pair not below the first but one: classes 0 other, 1 </s>,
# 2 location, 3 word; states 0 end, 1 before a word, 2 and 3 inside, 4 before the floored one.
GRAMMAR = Constraint(
    token_class=np.array([0, 0, 1, 0, 2, 2, 2, 2, 2, 3, 3]),
    next_state=np.array(
        [[-1, -1, -1, -1], [-1, 0, -1, 2], [-1, -1, 3, -1], [-1, -1, 4, -1], [-1, -1, 1, -1]]
    ),
    finish_cost=np.array([0, 1, 4, 3, 2]),
    is_floored=np.array([False, False, False, False, True]),
    location_bin=np.array([-1] * 4 + [0, 1, 2, 3, 4] + [-1] * 2),
)
TABLES = Constraint(*map(jnp.asarray, GRAMMAR))


def open_tokens(state, ids, position, *, sizes=(0,), scores=None, **options) -> set[int]:
    row = np.full((1, 11), 9, np.int32)
    row[0, : len(ids)] = ids
    scores = jnp.zeros((1, V)) if scores is None else jnp.asarray([scores])
    config = config_of(forced_bos_token_id=BOS_ID, **options)
    states = jnp.asarray([state], jnp.int32)
    ruled = apply_rules(
        scores, jnp.asarray(row), jnp.int32(position), states, rules_of(sizes, TABLES), config
    )
    return set(np.flatnonzero(np.isfinite(np.asarray(ruled)[0])).tolist())


def test_the_grammar_allows_what_its_tables_say():
    assert open_tokens(1, [2, 0], 1) == {EOS_ID, 9, 10}
    assert open_tokens(2, [2, 0, 9], 2) == {4, 5, 6, 7, 8}
    # Floored: the location two back is 6 (bin 2).
    assert open_tokens(4, [2, 0, 9, 6, 4], 4) == {6, 7, 8}


def test_the_grammar_begins_only_what_it_can_finish():
    assert open_tokens(1, [2, 0], 5) == {EOS_ID, 9, 10}  # word, three locations, </s>: 5 to 9.
    assert open_tokens(1, [2, 0], 6) == {EOS_ID}


def test_where_nothing_is_left_the_grammar_wins():
    ids = [2, 0, 9, 8, 8, 8, 9, 8, 8]
    options = dict(sizes=(2,), no_repeat_ngram_size=2)
    assert open_tokens(4, ids, 8, **options) == {8}  # The only bin not below the floor.
    assert open_tokens(3, ids[:8], 7, **options) == {4, 5, 6, 7}  # A choice: the n-gram rule holds.
    assert open_tokens(1, [2, 0], 6, min_new_tokens=8) == {EOS_ID}
