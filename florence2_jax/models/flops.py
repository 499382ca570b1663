# SPDX-License-Identifier: Apache-2.0
"""Useful FLOPs of the model, counted from its equations.

A multiplication and an addition are two FLOPs. Counted are matrix products, convolutions and
attention (every pair of positions, masked or not); norms, activations and lookups are not. What a
program executes besides (recomputation, padding) is not useful: `estimate` counts that from the
compiled program. XLA's own count is of no use here: it counts the body of a loop once.
"""

import dataclasses

from florence2_jax.models.config import DaViTConfig, Florence2Config, TextConfig

TRAIN_FACTOR = 3
"""Forward and backward over forward: a product's gradient is two products of its size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of one forward pass, by what they are spent for."""

    image: float  # Image encoder and projector, per image.
    encoder: float  # Per prompt.
    decoder: float  # Per row of targets.
    head: float  # Per row of targets.
    num_prompts: int
    num_rows: int  # Rows of targets per image: one per prompt, or one for all if packed.

    @property
    def per_image(self) -> float:
        """Training on one image with all its prompts."""
        text = self.num_prompts * self.encoder + self.num_rows * (self.decoder + self.head)
        return TRAIN_FACTOR * (self.image + text)

    @property
    def per_annotation(self) -> float:
        """Training on one prompt and its target."""
        return self.per_image / self.num_prompts


def model_flops(
    config: Florence2Config,
    *,
    num_prompts: int,
    prompt_length: int,
    target_length: int,
    pack_length: int = 0,
) -> Flops:
    """What one image asks for.

    Args:
        config: its vocabulary counts without padding rows.
        num_prompts: K, which share one encoding of the image.
        prompt_length: tokens, padding included, as in the batches.
        target_length: tokens of each target.
        pack_length: cells that the targets of an image share, which attend to each other's places
            as far as the products are concerned; 0: each target has `target_length`.
    """
    text, num_tokens = config.text, config.num_image_tokens
    states = num_tokens + prompt_length
    row = pack_length or target_length
    prompts_per_row = num_prompts if pack_length else 1
    projector = 2 * num_tokens * config.davit.dims[-1] * text.d_model
    return Flops(
        image=sum(davit_stage_flops(config.davit, config.image_size)) + projector,
        encoder=text.encoder_layers * _encoder_layer(text, states),
        decoder=text.decoder_layers * _decoder_layer(text, row, states, prompts_per_row),
        head=2.0 * row * text.d_model * text.vocab_size,
        num_prompts=num_prompts,
        num_rows=1 if pack_length else num_prompts,
    )


def davit_stage_flops(config: DaViTConfig, image_size: tuple[int, int]) -> list[float]:
    """Forward FLOPs of each stage of the image encoder, its patch convolution included."""
    width, height = image_size
    stages, inputs = [], 3
    rows = zip(
        config.dims,
        config.num_heads,
        config.depths,
        config.patch_kernels,
        config.patch_strides,
        strict=True,
    )
    for dim, num_heads, depth, kernel, stride in rows:
        width, height = width // stride, height // stride
        num_tokens = width * height
        embed = 2.0 * num_tokens * kernel**2 * inputs * dim
        dense = 2 * num_tokens * dim**2 * (4 + 2 * config.mlp_ratio)  # qkv, proj, fc1, fc2.
        depthwise = 2 * (2 * num_tokens * 9 * dim)
        # Scores and sums: in a window over its tokens, in a group over its channels.
        window = 2 * (2 * num_tokens * config.window_size**2 * dim)
        channel = 2 * (2 * num_tokens * dim * (dim // num_heads))
        stages.append(embed + depth * (2 * (dense + depthwise) + window + channel))
        inputs = dim
    return stages


def _encoder_layer(text: TextConfig, length: int) -> float:
    dense = 2 * length * (4 * text.d_model**2 + 2 * text.d_model * text.mlp_dim)
    return dense + 2 * (2 * length**2 * text.d_model)


def _decoder_layer(text: TextConfig, length: int, states: int, num_prompts: int) -> float:
    """A row of `length` targets that read the states of `num_prompts` prompts.

    Every position attends to the states of one prompt, but all of them have keys and values.
    """
    dim = text.d_model
    dense = 2 * length * (6 * dim**2 + 2 * dim * text.mlp_dim)  # Self 4, cross q and output 2.
    keys_values = num_prompts * 2 * (2 * states * dim**2)
    return dense + keys_values + 2 * (2 * length * (length + states) * dim)
