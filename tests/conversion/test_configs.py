# SPDX-License-Identifier: Apache-2.0
"""config.json of both kinds, and generation defaults."""

import pytest

from florence2_jax.conversion.configs import (
    GENERATION,
    from_torch,
    generation_from_torch,
    generation_to_torch,
    to_torch,
)
from florence2_jax.inference.generation_config import GenerationConfig
from florence2_jax.models.config import Florence2Config
from florence2_jax.typing import UserError

from .conftest import microsoft_config, torch_model


@pytest.mark.parametrize("variant", ["tiny", "base", "large"])
@pytest.mark.parametrize("dialect", ["hf", "microsoft"])
def test_a_config_comes_back(variant, dialect):
    config = Florence2Config.create(
        variant, dtype="float32", image_size=(96, 192), text=dict(max_positions=600)
    )
    values = to_torch(config, dialect, num_rows=51_289, image_id=51_289, dtype="float32")
    found = from_torch(values, {}, image_size=(96, 192))
    assert found == (config, dialect)


def test_what_is_not_written_is_what_transformers_takes():
    config, _ = from_torch(
        {"model_type": "florence2", "vision_config": {"projection_dim": 768},
         "text_config": {"d_model": 768, "encoder_attention_heads": 12,
                         "decoder_attention_heads": 12}},
        {},
    )  # fmt: skip
    assert config.davit.dims == (128, 256, 512, 1024) and config.davit.depths == (1, 1, 9, 1)
    assert config.text.encoder_layers == 12 and config.text.attention_dropout == 0.0
    assert config.image_size == (768, 768)


@pytest.mark.parametrize("kind", ["bart", None, "florence"])
def test_another_architecture_is_refused_by_name(kind):
    with pytest.raises(UserError, match=f"x/config.json describes a model of type {kind!r}"):
        from_torch({"model_type": kind}, {}, place="x/config.json")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "activation_function", "relu"),
        ("text_config", "scale_embedding", True),
        ("text_config", "normalize_before", True),
        ("text_config", "decoder_ffn_dim", 64),
        ("text_config", "decoder_attention_heads", 4),
        ("text_config", "pad_token_id", 0),
        ("vision_config", "num_groups", [1, 1, 1, 1]),
        ("vision_config", "patch_padding", [0, 0, 0, 0]),
        ("vision_config", "projection_dim", 64),
        ("vision_config", "qkv_bias", False),
        ("vision_config", "image_feature_source", ["last_frame"]),
        ("vision_config", "visual_temporal_embedding", {"type": "LEARNED"}),
        ("vision_config", "image_pos_embed", {"type": "none"}),
    ],
)
def test_what_the_model_does_not_compute_is_refused(section, key, value):
    values = microsoft_config(200)
    values[section] = values[section] | {key: value}
    with pytest.raises(UserError, match=rf"asks for what Florence-2 .*: {section}\.{key}"):
        from_torch(values, {}, image_size=(96, 64))


def test_an_untied_config_is_refused():
    values = torch_model(50).config.to_dict() | {"tie_word_embeddings": False}
    with pytest.raises(UserError, match="tie_word_embeddings is False, expected True"):
        from_torch(values, {}, image_size=(96, 64))


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
def test_a_section_that_is_missing(section):
    values = microsoft_config(200)
    values[section] = None
    with pytest.raises(UserError, match="vision_config and text_config are missing"):
        from_torch(values, {})


def test_microsofts_code_cannot_run_another_mlp_ratio():
    config = Florence2Config.create("tiny", davit=dict(mlp_ratio=2.0))
    with pytest.raises(UserError, match=r"mlp_ratio 2.0: Microsoft's code knows 4 only"):
        to_torch(config, "microsoft", num_rows=9, image_id=9, dtype="float32")


def test_generation_options_of_each_kind():
    microsoft = microsoft_config(200)
    assert generation_from_torch(None, microsoft, "microsoft") == GENERATION
    microsoft["text_config"]["num_beams"] = 5
    assert generation_from_torch(None, microsoft, "microsoft")["num_beams"] == 5
    # As transformers: what a file leaves out is off.
    given = {"num_beams": 2, "temperature": 0.5, "early_stopping": None}
    found = generation_from_torch(given, {}, "hf")
    assert found == dict(
        num_beams=2,
        no_repeat_ngram_size=0,
        early_stopping=False,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
    )
    assert GenerationConfig(**found).num_beams == 2
    sampling = generation_from_torch({"do_sample": True, "temperature": 0.5}, {}, "hf")
    assert GenerationConfig(**sampling).temperature == 0.5
    written = generation_to_torch(GENERATION | {"max_length": 20})
    assert written["decoder_start_token_id"] == 2 and written["pad_token_id"] == 1
    assert generation_from_torch(written, {}, "hf") == GENERATION | {"max_length": 20}
