# SPDX-License-Identifier: Apache-2.0
"""Greedy generation is the argmax of teacher forcing, again and again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence2_jax.inference.decoding import greedy
from florence2_jax.text.tokenizer import BOS_ID, EOS_ID, PAD_ID
from florence2_jax.training.config import RunConfig
from florence2_jax.training.loss import shift_right
from florence2_jax.training.state import InitConfig, init_params, merge, model_graph


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    prompts = rng.integers(4, 1400, (2, 3, 7)).astype(np.int32)
    prompts[0, 1, 4:] = PAD_ID
    prompts[1, 2] = PAD_ID  # Not asked.
    return image, prompts


@pytest.fixture
def model(small_run):
    small_run["model"]["text"] |= dict(vocab_size=1400)
    config = RunConfig.create(small_run).model
    params = init_params(config, jax.random.key(1), InitConfig(scale="fan_in"))
    return params, model_graph(config)


def test_it_equals_teacher_forcing(model, asked):
    (params, graph), (image, prompts) = model, asked
    ids, scores = greedy(params, image, prompts, graphdef=graph, max_length=9)
    logits = merge(graph, params)(jnp.asarray(image), jnp.asarray(prompts), shift_right(ids))
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    ids, scores = np.asarray(ids), np.asarray(scores)
    assert (ids[:, :, 0][prompts[..., 0] != PAD_ID] == BOS_ID).all()
    for b, k in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
        length = int((ids[b, k] != PAD_ID).sum())
        for t in range(1, length):
            if t < 8:  # The last token is forced.
                assert ids[b, k, t] == log_probs[b, k, t].argmax()
                best = log_probs[b, k, t].max()
                np.testing.assert_allclose(scores[b, k, t], best, atol=1e-4)
        assert ids[b, k, length - 1] == EOS_ID
        assert not scores[b, k, length:].any() and scores[b, k, 0] == 0


def test_a_prompt_that_is_not_there_is_not_answered(model, asked):
    (params, graph), (image, prompts) = model, asked
    ids, scores = greedy(params, image, prompts, graphdef=graph, max_length=5)
    assert (np.asarray(ids)[1, 2] == PAD_ID).all() and not np.asarray(scores)[1, 2].any()


def test_prompts_do_not_hear_each_other(model, asked):
    (params, graph), (image, prompts) = model, asked
    together, _ = greedy(params, image, prompts, graphdef=graph, max_length=6)
    alone, _ = greedy(params, image[:1], prompts[:1, 1:2], graphdef=graph, max_length=6)
    np.testing.assert_array_equal(together[0, 1], alone[0, 0])
