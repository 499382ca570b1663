# SPDX-License-Identifier: Apache-2.0
"""Small models in PyTorch (transformers) and here, whose answers vary and end early."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from models.conftest import channels_first, from_torch, torch_name
from transformers import GenerationConfig
from transformers.models.florence2.configuration_florence2 import (
    Florence2Config as TorchConfig,
)
from transformers.models.florence2.modeling_florence2 import Florence2ForConditionalGeneration

from florence2_jax.conversion.configs import to_torch
from florence2_jax.models.config import PAD_ID, Florence2Config
from florence2_jax.models.florence2 import Florence2
from florence2_jax.training.state import model_graph

VOCAB = 128  # A multiple of 128: no padding rows, which PyTorch would give a probability.
IMAGE_ID = VOCAB - 1


@dataclasses.dataclass
class Pair:
    """The same model twice; `params` and `graphdef` are ours."""

    torch_model: Any
    params: Any
    graphdef: nnx.GraphDef
    config: Florence2Config

    def torch_generate(self, image, prompt_ids, **options) -> Any:
        """What `generate` of transformers makes of every asked (image, prompt)."""
        _, num_prompts, length = prompt_ids.shape
        rows = prompt_ids.reshape(-1, length)
        asked = (rows != PAD_ID).any(axis=1)
        tokens = np.full((len(rows), self.config.num_image_tokens), self.torch_image_id)
        ids = np.concatenate([tokens, rows], axis=1)[asked]
        pixels = channels_first(np.repeat(image, num_prompts, axis=0)[asked])
        fixed = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2)
        fixed |= dict(return_dict_in_generate=True, output_scores=True)
        with torch.no_grad():
            return self.torch_model.generate(
                input_ids=torch.tensor(ids).long(),
                attention_mask=torch.tensor(ids != PAD_ID).long(),
                pixel_values=pixels,
                generation_config=GenerationConfig(**fixed, **options),
            )

    @property
    def torch_image_id(self) -> int:
        return self.torch_model.config.image_token_id


# Attends to something rather than to the average; what a layer reads outlives the layers after it.
_GAINS = {"q_proj": 4.0, "out_proj": 0.5, "fc2": 0.5}


def random_params(config: Florence2Config, *, sureness: float) -> dict:
    """Every parameter random. `sureness` is the deviation of the logits: where it is some units,
    words differ in probability by far more than rounding moves them."""
    rng = np.random.default_rng(0)
    abstract = nnx.eval_shape(lambda: Florence2(config, rngs=nnx.Rngs(0)))

    def draw(path, value):
        noise = rng.normal(size=value.shape).astype(np.float32)
        *_, parent, name = [step.key for step in path]
        if name == "scale":
            return 1 + 0.2 * noise
        if name == "kernel":
            return noise * _GAINS.get(parent, 1.0) * math.prod(value.shape[:-1]) ** -0.5
        if parent == "shared":
            return noise * sureness * value.shape[-1] ** -0.5
        if parent == "positions":
            return noise  # As loud as words, so that a word does not simply follow itself.
        return 0.2 * noise

    return jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(nnx.state(abstract)))


def make_pair(config: Florence2Config, params: dict, *, image_id: int) -> Pair:
    """Both models with the same weights, written into the tensors of the PyTorch one."""
    rows = config.text.padded_vocab_size
    values = to_torch(config, "hf", num_rows=rows, image_id=image_id, dtype="float32")
    torch_config = TorchConfig.from_dict(values)
    torch_model = Florence2ForConditionalGeneration(torch_config).eval()
    torch_model.generation_config = GenerationConfig()  # BART's would fill in what is None.
    tensors = torch_model.state_dict()
    with torch.no_grad():
        for keys, value in jax.tree_util.tree_leaves_with_path(params):
            path = "/".join(str(step.key) for step in keys)
            from_torch(tensors[torch_name(path)], path)[...] = value  # A view of the tensor.
    return Pair(torch_model, params, model_graph(config), config)


@pytest.fixture(scope="session")
def pair() -> Pair:
    """Two layers each; fond of `</s>`, so that answers end early."""
    config = Florence2Config.create(
        "base",
        davit=dict(
            dims=(16, 24, 32, 40), num_heads=(2, 3, 4, 5), depths=(1, 1, 1, 1), window_size=4,
        ),
        text=dict(
            d_model=48, encoder_layers=2, decoder_layers=2, num_heads=4, mlp_dim=64,
            vocab_size=VOCAB, max_positions=40,
        ),
        image_size=(64, 32),
        dtype="float32",
    )  # fmt: skip
    params = random_params(config, sureness=5.0)
    params["text"]["shared"]["embedding"][2] *= 1.7
    return make_pair(config, params, image_id=IMAGE_ID)


def questions(seed: int, *, batch: int, num_prompts: int, height: int = 32, width: int = 64):
    """Normalised images and prompts of 2 to 9 tokens, the last one of the first image missing."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(batch, height, width, 3)).astype(np.float32)
    prompts = rng.integers(4, IMAGE_ID, (batch, num_prompts, 9)).astype(np.int32)
    lengths = rng.integers(2, 10, (batch, num_prompts, 1))
    prompts[np.arange(9) >= lengths] = PAD_ID
    prompts[0, -1] = PAD_ID
    return image, prompts
