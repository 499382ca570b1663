# SPDX-License-Identifier: Apache-2.0
"""The grammar inside the compiled loop: every output of an untrained model parses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks.test_grammar import TEXTS, check_answer, first_refused

from florence2_jax.inference.decoding import Constraint, GenerationConfig, generate
from florence2_jax.inference.rules import allowed
from florence2_jax.models.config import Florence2Config
from florence2_jax.tasks.grammar import Grammar
from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.tokenizer import PAD_ID, Tokenizer
from florence2_jax.training.state import InitConfig, init_params, model_graph

ALL = list(TASKS.values())  # One prompt each, in one batch.


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, vocab_size=420)


@pytest.fixture(scope="module")
def grammar(tokenizer) -> Grammar:
    return Grammar.build(tokenizer)


@pytest.fixture(scope="module")
def untrained(tokenizer):
    """An untrained model, more at home in words than in locations, so that some answers are whole.

    Returns a function: options of generation -> ids of all answers, by task.
    """
    davit = dict(dims=(8, 16), num_heads=(1, 2), depths=(1, 1), window_size=4)
    davit |= dict(patch_kernels=(7, 3), patch_strides=(4, 4), pre_norm=(False, True))
    text = dict(d_model=32, encoder_layers=1, decoder_layers=1, num_heads=2, mlp_dim=64)
    text |= dict(vocab_size=len(tokenizer), max_positions=128)
    config = Florence2Config.create("base", davit=davit, text=text, image_size=64, dtype="float32")
    init = functools.partial(init_params, config, init=InitConfig(scale="fan_in"))
    params = jax.jit(init)(jax.random.key(0))  # One program: quicker than op by op.
    rows = np.array(params["text"]["shared"]["embedding"])
    rows[: tokenizer.first_location_id] *= 3
    params["text"]["shared"]["embedding"] = jnp.asarray(rows)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    prompts = rng.integers(4, 400, (2, len(ALL), 6)).astype(np.int32)

    def answer(grammar: Grammar | None, **options) -> list[tuple]:
        constraint = {}
        if grammar is not None:
            starts = np.array([[grammar.initial[task.token] for task in ALL]] * 2)
            constraint = dict(grammar=Constraint.of(grammar), initial_states=starts)
        options = GenerationConfig(**options)
        found = generate(params, image, prompts, graphdef=graph, config=options, **constraint)
        ids = np.asarray(found.ids)
        return [
            (task, [int(i) for i in row if i != PAD_ID])
            for k, task in enumerate(ALL)
            for row in ids[:, k].reshape(-1, ids.shape[-1])
        ]

    graph = model_graph(config)
    return answer


GREEDY = dict(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=64)


@pytest.fixture(scope="module")
def free(untrained):
    return untrained(None, **GREEDY)


@pytest.fixture(scope="module")
def bound(grammar, untrained):
    return untrained(grammar, **GREEDY)


def check_all(tokenizer, grammar, answers, max_new_tokens: int) -> None:
    for task, ids in answers:
        assert first_refused(grammar, task, ids, room=max_new_tokens - len(ids)) is None
        check_answer(tokenizer, task, ids)


def test_every_output_of_an_untrained_model_parses(tokenizer, grammar, free, bound):
    check_all(tokenizer, grammar, bound, GREEDY["max_new_tokens"])
    refused = [first_refused(grammar, task, ids, room=64) is not None for task, ids in free]
    assert np.mean(refused) > 0.5  # So they would not by themselves.


def test_answers_that_follow_the_grammar_anyway_stay_as_they_are(grammar, free, bound):
    is_whole = [first_refused(grammar, task, ids, room=64 - len(ids)) is None for task, ids in free]
    assert any(is_whole)
    for whole, before, after in zip(is_whole, free, bound, strict=True):
        assert not whole or before == after


@pytest.mark.parametrize(
    "options",
    [
        dict(num_beams=3, no_repeat_ngram_size=3, max_new_tokens=40, num_return_sequences=3),
        dict(num_beams=3, no_repeat_ngram_size=1, max_new_tokens=24),  # The rules' worst quarrel.
        dict(num_beams=1, do_sample=True, top_k=0, temperature=3.0, num_return_sequences=16,
             no_repeat_ngram_size=3, max_new_tokens=17),
    ],
    ids=["beams", "beams without repeats", "samples"],
)  # fmt: skip
def test_so_do_those_of_other_searches(tokenizer, grammar, untrained, options):
    answers = untrained(grammar, **options)
    check_all(tokenizer, grammar, answers, options["max_new_tokens"])


def test_the_loop_looks_up_what_the_definition_says(grammar):
    rng = np.random.default_rng(0)
    num_states, num_tokens = len(grammar.next_state), len(grammar.token_class)
    states = np.arange(num_states, dtype=np.int32)
    locations = np.flatnonzero(grammar.location_bin >= 0)
    two_back = rng.choice(locations, num_states).astype(np.int32)
    for tokens_left in (0, 1, 3, 5, 8, 99):
        left = jnp.int32(tokens_left)
        found = allowed(Constraint.of(grammar), states, two_back, left, num_tokens + 7)
        for state in states:
            ids = [int(two_back[state]), int(locations[0])]
            expected = grammar.allowed(int(state), ids, tokens_left)
            np.testing.assert_array_equal(found[state, :num_tokens], expected)
        assert not found[:, num_tokens:].any()
