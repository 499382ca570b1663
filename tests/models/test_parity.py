# SPDX-License-Identifier: Apache-2.0
"""Equality with transformers' Florence-2 on random weights, float32.

The tolerance is for sums of up to a thousand float32 products in another order, through some fifty
residuals, on outputs of unit scale.
"""

import dataclasses

import numpy as np
import pytest
import torch
from flax import nnx

from florence2_jax.models.config import PAD_ID
from florence2_jax.models.davit import drop_path_rates
from florence2_jax.models.florence2 import Florence2

from .conftest import NUM_TOKENS, call, channels_first, random_inputs

ATOL = 2e-5


def assert_close(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert 0.2 < np.std(theirs) < 5, "the tolerance is for outputs of unit scale"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL)


# Windows of 12 tokens: 96 px is 24, 12, 6, 3 tokens, so the first two stages of 96 x 96 need no
# padding, its last two and every other stage do.
@pytest.mark.parametrize(("height", "width"), [(64, 96), (160, 32), (96, 96)])
def test_image_tower_and_projector_match_pytorch(oracle, height, width):
    image, _, _ = random_inputs(height=height, width=width)
    with torch.no_grad():
        theirs = oracle.torch_model.model.vision_tower(channels_first(image)).last_hidden_state
        tokens = oracle.torch_model.model.multi_modal_projector(theirs).numpy()
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    scale = np.std(theirs)  # Not 1 by itself: no norm follows the last block.
    assert_close(call(oracle.model.image, image) / scale, theirs / scale)
    assert_close(call(oracle.model, image, method="encode_image"), tokens)


@pytest.mark.parametrize("num_padded", [0, 3])
def test_encoder_matches_pytorch(oracle, num_padded):
    rng = np.random.default_rng(2)
    image, prompt_ids, _ = random_inputs(height=64, width=96, num_prompts=1)
    tokens = call(oracle.model, image, method="encode_image")
    prompt_ids = np.asarray(rng.integers(4, NUM_TOKENS, prompt_ids.shape), np.int32)
    prompt_ids[:, :, prompt_ids.shape[2] - num_padded :] = PAD_ID
    states, mask = call(oracle.model, tokens, prompt_ids, method="encode")
    assert mask.sum() == mask.size - num_padded * len(mask)

    language_model = oracle.torch_model.model.language_model
    with torch.no_grad():
        words = language_model.shared(torch.tensor(prompt_ids[:, 0]).long())
        expected = language_model.encoder(
            inputs_embeds=torch.cat([torch.tensor(np.asarray(tokens)), words], dim=1),
            attention_mask=torch.tensor(np.asarray(mask)).long(),
        ).last_hidden_state
    assert_close(states, expected)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 32)])
def test_logits_match_pytorch(oracle, height, width):
    inputs = random_inputs(height=height, width=width)  # Every second prompt is padded.
    logits = call(oracle.model, *inputs)
    expected = oracle.torch_logits(*inputs)
    assert_close(logits[..., :NUM_TOKENS], expected[..., :NUM_TOKENS])


def test_padding_is_attended_as_by_microsoft(oracle):
    """Microsoft's code puts an all-ones mask in place of the prompt's, for both attentions."""
    inputs = random_inputs(height=64, width=96)
    config = oracle.model.config
    text = dataclasses.replace(config.text, attend_prompt_padding=True)
    model = Florence2(dataclasses.replace(config, text=text), rngs=nnx.Rngs(0))
    nnx.update(model, nnx.state(oracle.model))
    logits = np.asarray(call(model, *inputs))[..., :NUM_TOKENS]
    expected = oracle.torch_logits(*inputs, attend_padding=True)[..., :NUM_TOKENS]
    assert_close(logits, expected)
    masked = np.asarray(call(oracle.model, *inputs))[..., :NUM_TOKENS]
    assert np.abs(masked - logits)[:, 1::2].max() > 1e-2  # The padded prompts; the others agree.
    np.testing.assert_allclose(masked[:, ::2], logits[:, ::2], rtol=0, atol=ATOL)


def test_drop_path_rates_match_pytorch(oracle):
    ours = drop_path_rates(oracle.model.config.davit)
    blocks = oracle.torch_model.model.vision_tower.blocks
    theirs = [
        [
            [
                getattr(half.drop_path2, "drop_prob", 0.0)
                for half in (b.spatial_block, b.channel_block)
            ]
            for b in stage
        ]
        for stage in blocks
    ]
    assert max(theirs[-1][-1]) == pytest.approx(0.2)
    for stage, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(stage, expected, rtol=1e-6)
