# SPDX-License-Identifier: Apache-2.0
"""A model of 60,000 random parameters that says something else about every image."""

from pathlib import Path

import jax

from florence2_jax.data.texts import store_texts
from florence2_jax.inference.generation_config import GenerationConfig
from florence2_jax.inference.predictor import Predictor
from florence2_jax.models.config import Florence2Config
from florence2_jax.records.store import RecordStore
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training.state import InitConfig, init_params


def random_predictor(scenes: Path) -> Predictor:
    """Ten tokens an answer, greedily; the same on every machine and in every process."""
    tokenizer = Tokenizer.train(store_texts(RecordStore(scenes, "train")), vocab_size=400)
    davit = dict(dims=(8, 16), num_heads=(1, 2), depths=(1, 1), window_size=4)
    davit |= dict(patch_kernels=(7, 3), patch_strides=(4, 4), pre_norm=(False, True))
    text = dict(d_model=32, encoder_layers=1, decoder_layers=1, num_heads=2, mlp_dim=64)
    text |= dict(vocab_size=len(tokenizer))
    config = Florence2Config.create("tiny", davit=davit, text=text, image_size=64, dtype="float32")
    init = InitConfig(scale="fan_in", locations="ordinal")
    params = init_params(config, jax.random.key(1), init)
    params = jax.tree.map(lambda x: 2 * x, params)
    generation = GenerationConfig(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=10)
    return Predictor(config, params, tokenizer, generation=generation)
