# SPDX-License-Identifier: Apache-2.0
"""A small Florence-2 in PyTorch (transformers) and here, with the same random weights."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import BartConfig
from transformers.models.florence2.configuration_florence2 import (
    Florence2Config as TorchConfig,
)
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2ForConditionalGeneration

from florence2_jax.models.config import PAD_ID, Florence2Config
from florence2_jax.models.florence2 import Florence2

NUM_TOKENS = 200  # Words of the small models; 201 stands for <image> in the PyTorch one.
IMAGE_ID = 201
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # Each program runs once: halves the time.

SMALL = {
    "davit": {
        "dims": (16, 24, 32, 40),
        "num_heads": (2, 3, 4, 5),
        "depths": (1, 1, 2, 1),
        "window_size": 12,
        "drop_path_rate": 0.2,
    },
    "text": {
        "d_model": 48,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "num_heads": 4,
        "mlp_dim": 64,
        "vocab_size": NUM_TOKENS,
        "max_positions": 40,
    },
    "image_size": (96, 64),
    "dtype": "float32",
}

MINI = {  # Two stages: what does not need the released shape compiles in a second.
    "davit": {
        "dims": (16, 24),
        "num_heads": (2, 3),
        "depths": (1, 2),
        "window_size": 4,
        "patch_kernels": (7, 3),
        "patch_strides": (4, 2),
        "pre_norm": (False, True),
        "drop_path_rate": 0.3,
    },
    "text": SMALL["text"] | {"max_positions": 24, "decoder_layers": 2},
    "image_size": (24, 16),
    "dtype": "float32",
}

# Ours -> theirs, in order. Written apart from the package's converter, so that the two cannot
# share a mistake.
NAMES = (
    (r"^image/stages/(\d)/patch_embed/", r"vision_tower.convs.\1."),
    (r"spatial/attn/", "spatial/window_attn/"),
    (r"channel/attn/", "channel/channel_attn/"),
    (r"^image/stages/(\d)/blocks/(\d)/(\w+)/", r"vision_tower.blocks.\1.\2.\3_block."),
    (r"^projector/", "multi_modal_projector/"),
    (r"projector/kernel", "projector.image_projection.weight"),
    (r"projector/norm/", "projector.image_proj_norm."),
    (r"projector/(row|column)_positions", r"projector.image_position_embed.\1_embeddings.weight"),
    (r"^text/shared/embedding", "language_model.shared.weight"),
    (r"^text/", "language_model."),
    (r"positions/embedding", "embed_positions.weight"),
    (r"positions/norm", "layernorm_embedding"),
    (r"self_attn_norm", "self_attn_layer_norm"),
    (r"cross_attn_norm", "encoder_attn_layer_norm"),
    (r"cross_attn", "encoder_attn"),
    (r"ffn_norm", "final_layer_norm"),
    (r"^(language_model.*)/ffn/", r"\1/"),
    (r"(kernel|scale)$", "weight"),
    (r"/", "."),
)  # fmt: skip


def torch_name(path: str) -> str:
    for pattern, replacement in NAMES:
        path = re.sub(pattern, replacement, path)
    return "model." + path


def from_torch(value: torch.Tensor, path: str) -> np.ndarray:
    array = value.detach().numpy()
    if path.endswith("kernel"):
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return array


@dataclasses.dataclass
class Oracle:
    """The pair, and what both are asked."""

    torch_model: Any
    model: Florence2

    def torch_logits(
        self, image, prompt_ids, decoder_ids, *, attend_padding: bool = False
    ) -> np.ndarray:
        """Logits [B, K, T, V] of the PyTorch model, one row per (image, prompt)."""
        batch, num_prompts, length = prompt_ids.shape
        num_tokens = 1 + image.shape[1] * image.shape[2] // 32**2
        rows = np.asarray(prompt_ids).reshape(-1, length)
        ids = np.concatenate([np.full((len(rows), num_tokens), IMAGE_ID), rows], axis=1)
        with torch.no_grad():
            logits = self.torch_model(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor((ids != PAD_ID) | attend_padding).long(),
                pixel_values=channels_first(np.repeat(image, num_prompts, axis=0)),
                decoder_input_ids=torch.tensor(np.asarray(decoder_ids)).flatten(0, 1).long(),
            ).logits
        return logits.numpy().reshape(batch, num_prompts, -1, logits.shape[-1])


def channels_first(image) -> torch.Tensor:
    return torch.tensor(np.asarray(image)).permute(0, 3, 1, 2)


def random_inputs(*, batch: int = 2, num_prompts: int = 3, height: int, width: int):
    """A normalised image, prompts (every second one padded), decoder inputs."""
    rng = np.random.default_rng(1)
    image = rng.normal(size=(batch, height, width, 3))
    prompt_ids = rng.integers(4, NUM_TOKENS, size=(batch, num_prompts, 7))
    prompt_ids[:, 1::2, 4:] = PAD_ID
    decoder_ids = rng.integers(4, NUM_TOKENS, size=(batch, num_prompts, 9))
    ids = jnp.asarray(prompt_ids, jnp.int32), jnp.asarray(decoder_ids, jnp.int32)
    return jnp.asarray(image, jnp.float32), *ids


def make_config(sizes: dict[str, Any], **overrides) -> Florence2Config:
    """A config of the given sizes with `overrides`, nested ones merged."""
    merged = {
        name: (value | overrides.pop(name, {}) if isinstance(value, dict) else value)
        for name, value in sizes.items()
    }
    return Florence2Config.create("base", **(merged | overrides))


def mini_model(**overrides) -> Florence2:
    """A random two-stage model; the same weights whatever the overrides choose of how to run."""
    return Florence2(make_config(MINI, **overrides), rngs=nnx.Rngs(0))


def call(model: Florence2, *args, key=None, method: str = "__call__"):
    """Runs a method compiled, with `rngs` from `key` where one is given."""
    graphdef, params = nnx.split(model)
    return _call(graphdef, params, method, args, key)


@functools.partial(jax.jit, static_argnums=(0, 2), compiler_options=FAST_COMPILE)
def _call(graphdef, params, method, args, key):
    options = {} if key is None else {"rngs": nnx.Rngs(dropout=key)}
    return getattr(nnx.merge(graphdef, params), method)(*args, **options)


def randomize(model: nnx.Module) -> None:
    """Every parameter random, so that a swapped pair or a forgotten bias shows."""
    rng = np.random.default_rng(0)

    def draw(path, value):
        noise = rng.normal(size=value.shape)
        if "scale" in path:
            return 1 + 0.2 * noise
        if "kernel" in path:
            return noise / np.sqrt(np.prod(value.shape[:-1]))
        return 0.2 * noise

    state = nnx.to_pure_dict(nnx.state(model))
    drawn = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.asarray(draw(jax.tree_util.keystr(path), p), jnp.float32), state
    )
    nnx.update(model, drawn)


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    config = make_config(SMALL)
    davit, text = config.davit, config.text
    vision = Florence2VisionConfig(
        depths=davit.depths,
        embed_dim=davit.dims,
        num_heads=davit.num_heads,
        num_groups=davit.num_heads,
        window_size=davit.window_size,
        drop_path_rate=davit.drop_path_rate,
        projection_dim=text.d_model,
    )
    bart = BartConfig(
        vocab_size=text.padded_vocab_size,
        d_model=text.d_model,
        encoder_layers=text.encoder_layers,
        decoder_layers=text.decoder_layers,
        encoder_attention_heads=text.num_heads,
        decoder_attention_heads=text.num_heads,
        encoder_ffn_dim=text.mlp_dim,
        decoder_ffn_dim=text.mlp_dim,
        max_position_embeddings=text.max_positions,
    )
    torch_model = Florence2ForConditionalGeneration(
        TorchConfig(
            vision_config=vision.to_dict(), text_config=bart.to_dict(), image_token_id=IMAGE_ID
        )
    ).eval()

    model = Florence2(config, rngs=nnx.Rngs(0))
    randomize(model)
    tensors = torch_model.state_dict()
    used = set()
    with torch.no_grad():
        for keys, param in nnx.to_flat_state(nnx.state(model)):
            path = "/".join(map(str, keys))
            name = torch_name(path)
            theirs = from_torch(tensors[name], path)
            assert theirs.shape == param.shape, (path, name)
            theirs[...] = param[...]  # A view: writes into the PyTorch tensor.
            used.add(name)
    aliases = {name for name in tensors if "embed_tokens" in name or name == "lm_head.weight"}
    constants = {"model.multi_modal_projector.visual_temporal_embed.pos_idx_to_embed"}
    assert used == tensors.keys() - aliases - constants
    return Oracle(torch_model=torch_model, model=model)


def relative_errors(results, exact) -> list[float]:
    """Of each result, as a share of the norm of the exact one."""
    return [
        float(np.linalg.norm(np.asarray(x, np.float32) - y) / np.linalg.norm(y))
        for x, y in zip(results, exact, strict=True)
    ]
