# SPDX-License-Identifier: Apache-2.0
"""What must not change an answer, and what `generate` refuses."""

import dataclasses

import jax
import numpy as np
import pytest

from florence2_jax.inference.decoding import Constraint, GenerationConfig, generate
from florence2_jax.models.config import PAD_ID
from florence2_jax.training.state import model_graph
from florence2_jax.typing import UserError

from .conftest import questions

CONFIG = GenerationConfig(max_new_tokens=8)


def test_prompts_do_not_hear_each_other(pair):
    image, prompts = questions(1, batch=2, num_prompts=3)
    ask = dict(graphdef=pair.graphdef, config=CONFIG)
    together = generate(pair.params, image, prompts, **ask)
    alone = generate(pair.params, image[1:], prompts[1:, 1:2], **ask)
    np.testing.assert_array_equal(together.ids[1, 1], alone.ids[0, 0])
    np.testing.assert_allclose(together.scores[1, 1], alone.scores[0, 0], atol=1e-5)
    assert (np.asarray(together.ids)[0, 2] == PAD_ID).all() and together.scores[0, 2] == 0


def scanned(params, name=""):
    """The same parameters with a leading layer axis."""
    if not isinstance(params, dict):
        return params
    inner = {key: scanned(value, key) for key, value in params.items()}
    if name in ("blocks", "layers"):
        return jax.tree.map(lambda *layers: np.stack(layers), *inner.values())
    return inner


def test_scanned_layers_generate_the_same(pair):
    image, prompts = questions(2, batch=1, num_prompts=3)
    answers = []
    for scan, params in ((False, pair.params), (True, scanned(pair.params))):
        graphdef = model_graph(dataclasses.replace(pair.config, scan=scan))
        answers.append(generate(params, image, prompts, graphdef=graphdef, config=CONFIG))
    np.testing.assert_array_equal(answers[0].ids, answers[1].ids)
    np.testing.assert_allclose(answers[0].log_probs, answers[1].log_probs, atol=1e-4)


def test_bfloat16_is_close(pair):
    image, prompts = questions(2, batch=1, num_prompts=3)
    config = GenerationConfig(num_beams=1, max_new_tokens=3)
    first = []
    for dtype in ("float32", "bfloat16"):
        graphdef = model_graph(dataclasses.replace(pair.config, dtype=dtype))
        answers = generate(pair.params, image, prompts, graphdef=graphdef, config=config)
        assert answers.log_probs.dtype == answers.scores.dtype == np.float32
        first.append(np.asarray(answers.log_probs)[0, :2, 0, 1])  # Of the first free token.
    np.testing.assert_allclose(*first, atol=0.2)  # Eight bits of logits of up to 15.


TABLES = Constraint(
    token_class=np.zeros(128, np.int32),
    next_state=np.array([[0]]),
    finish_cost=np.array([9]),
    is_floored=np.array([False]),
    location_bin=np.full(128, -1),
)


@pytest.mark.parametrize(
    ("options", "extra", "named"),
    [
        (dict(pool_locations=True), {}, "pool_locations: give the first_location_id"),
        (dict(max_new_tokens=41), {}, "max_new_tokens=41 is more than the 40 positions"),
        ({}, dict(ngram_sizes=np.full((1, 2), 4)), "ngram_sizes: 4 is more than"),
        ({}, dict(initial_states=np.zeros((1, 2), int)), "belong together"),
        ({}, dict(grammar=TABLES), "belong together"),
        (dict(forced_bos_token_id=None), dict(grammar=TABLES, initial_states=np.zeros((1, 2), int)),
         "forced_bos_token_id is None"),
        ({}, dict(grammar=TABLES, initial_states=np.zeros((1, 2), int)),
         "max_new_tokens=8 is too short for the grammar, whose shortest answer has 10"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(pair, options, extra, named):
    image, prompts = questions(0, batch=1, num_prompts=2)
    config = GenerationConfig(**(dict(max_new_tokens=8) | options))
    with pytest.raises(UserError, match=named):
        generate(pair.params, image, prompts, graphdef=pair.graphdef, config=config, **extra)
