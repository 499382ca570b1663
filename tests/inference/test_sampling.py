# SPDX-License-Identifier: Apache-2.0
"""Filters equal those of transformers; what is drawn follows the filtered probabilities."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from florence2_jax.inference.decoding import GenerationConfig, generate
from florence2_jax.inference.sampling import filter_scores
from florence2_jax.models.config import PAD_ID

from .conftest import VOCAB, questions


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 0.9), (0.7, 50, 1.0), (1.5, 20, 0.5), (0.9, 1, 0.01), (1.0, 500, 0.3), (2.0, 0, 1.0)],
)
def test_filters_equal_those_of_transformers(num_beams, temperature, top_k, top_p):
    scores = np.random.default_rng(0).normal(size=(40, 200)).astype(np.float32) * 3
    scores[:, 7] = -np.inf  # What a rule has forbidden stays so.
    scores[::2, 5] = scores[::2, 6]  # Ties are kept together by top-k.
    config = GenerationConfig(
        do_sample=True, num_beams=num_beams, temperature=temperature, top_k=top_k, top_p=top_p
    )
    fewest = 2 if num_beams > 1 else 1
    warpers = LogitsProcessorList()
    if temperature != 1:
        warpers.append(TemperatureLogitsWarper(temperature))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k, min_tokens_to_keep=fewest))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p, min_tokens_to_keep=fewest))
    expected = warpers(torch.zeros(40, 1), torch.tensor(scores)).numpy()
    ours = np.asarray(filter_scores(jnp.asarray(scores), config))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected))
    np.testing.assert_allclose(ours, expected, rtol=2e-7)  # One rounding of the division.


@pytest.fixture(scope="module")
def drawn(pair):
    """200 samples for each of two prompts: `<s>`, a token, `</s>`."""
    image, prompts = questions(0, batch=1, num_prompts=3)
    config = GenerationConfig(
        num_beams=1, do_sample=True, num_return_sequences=200, no_repeat_ngram_size=0,
        max_new_tokens=3, top_k=6, top_p=0.95, temperature=3.0, seed=1,
    )  # fmt: skip
    ask = dict(graphdef=pair.graphdef, config=config)
    return image, prompts, config, generate(pair.params, image, prompts, **ask)


def test_draws_follow_the_filtered_probabilities(pair, drawn):
    image, prompts, config, answers = drawn
    ids, log_probs = np.asarray(answers.ids)[0], np.asarray(answers.log_probs)[0]
    assert ids.shape == (3, 200, 3) and (ids[2] == PAD_ID).all()
    for k in range(2):
        one = prompts[:, k : k + 1]
        greedy = pair.torch_generate(image, one, max_new_tokens=2, forced_bos_token_id=0)
        logits = greedy.scores[1]  # The second token: behind `<s>`, whatever is drawn later.
        model = torch.log_softmax(logits, dim=-1)[0].numpy()
        probs = np.exp(np.asarray(filter_scores(jnp.asarray(logits.numpy()), config)))[0]
        probs /= probs.sum()
        counts = np.bincount(ids[k, :, 1], minlength=VOCAB)
        assert (counts[probs == 0] == 0).all() and (probs > 0).sum() > 2
        # Five standard deviations of a count; the seed is fixed.
        assert (np.abs(counts - 200 * probs) < 5 * np.sqrt(200 * probs * (1 - probs)) + 1).all()
        np.testing.assert_allclose(log_probs[k, :, 1], model[ids[k, :, 1]], atol=1e-4)
        assert not log_probs[k, :, 0].any()  # Forced.


def test_the_seed_decides_and_is_not_compiled_in(pair, drawn):
    from florence2_jax.inference import decoding

    image, prompts, config, answers = drawn
    num_programs = decoding._generate._cache_size()
    again, other = (
        generate(
            pair.params, image, prompts, graphdef=pair.graphdef,
            config=dataclasses.replace(config, seed=seed),
        )
        for seed in (1, 2)
    )  # fmt: skip
    np.testing.assert_array_equal(again.ids, answers.ids)
    assert (np.asarray(other.ids) != np.asarray(answers.ids)).any()
    assert decoding._generate._cache_size() == num_programs


def test_beams_can_be_drawn(pair):
    image, prompts = questions(0, batch=1, num_prompts=3)
    config = GenerationConfig(
        num_beams=3, do_sample=True, num_return_sequences=3, max_new_tokens=8, temperature=2.0
    )
    answers = generate(pair.params, image, prompts, graphdef=pair.graphdef, config=config)
    ids, scores = np.asarray(answers.ids)[0], np.asarray(answers.scores)[0]
    for k in range(2):
        assert len({tuple(row) for row in ids[k]}) == 3  # Without replacement.
        assert (np.diff(scores[k]) <= 0).all() and (scores[k] > -100).all()
