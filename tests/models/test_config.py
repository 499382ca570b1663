# SPDX-License-Identifier: Apache-2.0
"""Presets, overrides, and what is refused with which words."""

import json

import pytest
from ml_collections import ConfigDict

from florence2_jax.models.config import VARIANTS, Florence2Config
from florence2_jax.typing import UserError


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_survives_json(variant):
    config = Florence2Config.create(variant, scan=True, text={"vocab_size": 777})
    assert Florence2Config.create(**json.loads(json.dumps(config.to_dict()))) == config
    assert config.text.vocab_size == 777 and config.padded_vocab_size == 896


def test_released_sizes():
    base, large = Florence2Config.create("base"), Florence2Config.create("large", image_size=384)
    assert (base.num_image_tokens, large.num_image_tokens) == (577, 145)
    assert base.padded_vocab_size == 51_328
    assert base.davit.patch_paddings == (3, 1, 1, 1)
    assert large.image_size == (384, 384)
    assert Florence2Config.create(image_size=(384, 768)).num_image_tokens == 12 * 24 + 1


def test_a_run_file_chooses_with_a_config_dict():
    chosen = ConfigDict({"variant": "tiny", "davit": {"drop_path_rate": 0}, "image_size": [64, 32]})
    config = Florence2Config.create(**chosen)
    assert config.davit.drop_path_rate == 0.0 and config.image_size == (64, 32)
    assert config.davit.dims == VARIANTS["tiny"].davit.dims


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"variant": "bsae"},
            "variant: 'bsae' is not one of tiny, base, large; did you mean 'base'",
        ),
        ({"imagesize": 384}, "model.imagesize: no such key; did you mean image_size"),
        ({"davit": {"window": 8}}, "model.davit.window: no such key; did you mean window_size"),
        ({"text": {"zzz": 8}}, "model.text.zzz: no such key; did you mean d_model, encoder_layers"),
        ({"davit": 3}, "model.davit: 3 is not a mapping"),
        ({"image_size": 400}, "image_size: 400 must be a multiple of 32, the total stride"),
        ({"image_size": 1632}, "1632 px is 51 image tokens, more than max_image_positions=50"),
        ({"image_size": 1600}, "2501 image tokens leave no room"),
        ({"image_size": 0}, "image_size: (0, 0) must be positive"),
        ({"image_size": [64, 64, 3]}, "[64, 64, 3] is not one side or (width, height)"),
        ({"dtype": "float64"}, "dtype: 'float64' is not one of bfloat16, float32"),
        ({"dtype": 32}, "dtype: 32 is not of type str"),
        ({"scan": 1}, "scan: 1 is not of type bool"),
        ({"remat": "dot"}, "did you mean 'dots'"),
        ({"davit": {"depths": (1, 1)}}, "one length"),
        ({"davit": {"depths": (1, 1, 0, 1)}}, "depths: (1, 1, 0, 1) must be positive"),
        ({"davit": {"num_heads": (3, 8, 16, 32)}}, "dims: 128 must be a multiple of 3"),
        ({"davit": {"patch_kernels": (7, 2, 2, 2)}}, "must be odd"),
        ({"davit": {"depthwise": "fft"}}, "depthwise: 'fft'"),
        ({"davit": {"drop_path_rate": 1.5}}, "1.5 is not a rate"),
        ({"text": {"num_heads": 7}}, "d_model: 768 must be a multiple of 7"),
        ({"text": {"dropout": "0.1"}}, "'0.1' is not of type float"),
        ({"text": {"vocab_size": 1.5}}, "1.5 is not of type int"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(UserError) as error:
        Florence2Config.create(**overrides)
    assert message in str(error.value)
