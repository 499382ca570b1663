# SPDX-License-Identifier: Apache-2.0
"""Token for token what `generate` of transformers writes, with its probabilities and scores."""

import numpy as np
import pytest

from florence2_jax.inference.decoding import GenerationConfig, generate
from florence2_jax.models.config import PAD_ID, Florence2Config

from .conftest import make_pair, questions, random_params

T = 16
RELEASED = dict(max_new_tokens=T, forced_bos_token_id=0, forced_eos_token_id=2)
PLAIN = dict(num_beams=1, no_repeat_ngram_size=0, early_stopping=False)
ATOL = 2e-4  # Float32 log-probabilities of up to -30, and sums of 16 of them.


def compare(pair, image, prompts, **options):
    """Asks both and returns their answers `[M, R, T]` and ours in full, padding rows left out."""
    options = RELEASED | PLAIN | options
    config = GenerationConfig(**options)
    theirs = pair.torch_generate(image, prompts, **options)
    ours = generate(pair.params, image, prompts, graphdef=pair.graphdef, config=config)
    asked = (prompts != PAD_ID).any(axis=-1)
    ids, log_probs, scores = (np.asarray(x)[asked] for x in ours)
    length = ids.shape[-1]

    def padded(rows, value):
        room = ((0, 0), (0, length - rows.shape[1]))
        return np.pad(rows, room, constant_values=value).reshape(ids.shape)

    expected = padded(theirs.sequences.numpy()[:, 1:], PAD_ID)
    np.testing.assert_array_equal(ids, expected)
    if config.num_beams > 1:
        of_tokens = pair.torch_model.compute_transition_scores(
            theirs.sequences, theirs.scores, theirs.beam_indices
        )
        expected_scores = theirs.sequences_scores.numpy().reshape(scores.shape)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=ATOL)
        np.testing.assert_allclose(log_probs, padded(of_tokens.numpy(), 0.0), rtol=0, atol=ATOL)
    not_asked = [np.asarray(x)[~asked] for x in ours]
    assert (not_asked[0] == PAD_ID).all() and not any(x.any() for x in not_asked[1:])
    return ids


@pytest.mark.parametrize(
    "options",
    [
        dict(no_repeat_ngram_size=3),
        dict(num_beams=3, no_repeat_ngram_size=3, early_stopping=True),
    ],
    ids=["greedy", "released"],
)
def test_210_questions_get_the_same_answers(pair, options):
    answers = [
        compare(pair, *questions(seed, batch=6, num_prompts=6), **options) for seed in range(6)
    ]
    answers = np.concatenate(answers)[:, 0]
    assert len(answers) == 210
    ends = (answers != PAD_ID).sum(axis=1)
    # The comparison is worth something: answers differ, some end early, some at full length.
    assert len({tuple(row) for row in answers}) > 100
    assert (ends < T).sum() > 20 and (ends == T).sum() > 20


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(no_repeat_ngram_size=2, min_new_tokens=7),
        dict(num_beams=3, early_stopping=False),
        dict(num_beams=3, early_stopping="never"),
        dict(num_beams=3, early_stopping=False, length_penalty=-1.0, num_return_sequences=3),
        dict(num_beams=4, early_stopping="never", length_penalty=2.0, no_repeat_ngram_size=2,
             num_return_sequences=2),
        dict(num_beams=2, early_stopping=True, length_penalty=0.0, min_length=6,
             no_repeat_ngram_size=2, num_return_sequences=2),
        dict(num_beams=3, early_stopping="never", forced_bos_token_id=None,
             forced_eos_token_id=None),
        dict(num_beams=3, num_return_sequences=3, max_new_tokens=2),
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items())
    or "greedy",
)  # fmt: skip
def test_every_option_means_the_same(pair, options):
    compare(pair, *questions(7, batch=4, num_prompts=5), **options)


def test_prompts_have_their_own_ngram_rule(pair):
    image, prompts = questions(8, batch=2, num_prompts=3)
    options = RELEASED | PLAIN | dict(no_repeat_ngram_size=2)
    config = GenerationConfig(**options)
    sizes = np.array([[0, 2, 0], [2, 0, 0]], np.int32)
    ask = dict(graphdef=pair.graphdef, config=config, ngram_sizes=sizes)
    ids = np.asarray(generate(pair.params, image, prompts, **ask).ids)[:, :, 0]
    answers = {size: compare(pair, image, prompts, no_repeat_ngram_size=size) for size in (0, 2)}
    asked = (prompts != PAD_ID).any(axis=-1)
    expected = np.where(sizes[asked][:, None] == 2, answers[2][:, 0], answers[0][:, 0])
    np.testing.assert_array_equal(ids[asked], expected)
    assert (answers[0] != answers[2]).any()


@pytest.mark.slow
def test_base_writes_the_same_at_full_size():
    size = dict(image_size=384, dtype="float32", text=dict(vocab_size=51328))  # No padding rows.
    config = Florence2Config.create("base", **size)
    pair = make_pair(config, random_params(config, sureness=4.0), image_id=51327)
    image, prompts = questions(0, batch=2, num_prompts=3, height=384, width=384)
    prompts = np.where(prompts == PAD_ID, PAD_ID, prompts * 300)  # From all over the vocabulary.
    answers = [
        compare(pair, image, prompts, max_new_tokens=24, **options)
        for options in (
            dict(no_repeat_ngram_size=2),
            dict(num_beams=3, no_repeat_ngram_size=3, early_stopping=True),
        )
    ]
    for found in answers:
        assert len({tuple(row) for row in found[:, 0]}) > 3 and len(np.unique(found)) > 6
