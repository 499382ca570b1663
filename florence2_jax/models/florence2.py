# SPDX-License-Identifier: Apache-2.0
"""Florence-2 (arXiv:2311.06242): an image and prompts in, text out, location tokens included."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from florence2_jax.models.config import Florence2Config
from florence2_jax.models.davit import DaViT, normalize_image
from florence2_jax.models.encoder_decoder import Cache, EncoderDecoder
from florence2_jax.models.projector import Projector

Image = UInt8[Array, "B Y X 3"] | Float[Array, "B Y X 3"]
"""Pixels as uint8 RGB, normalised on the device, or floats that already are."""


class Florence2(nnx.Module):
    """The whole model. One image is encoded once for all its prompts.

    Dropout and drop path act where `rngs` is given (its stream `dropout`, or the default one);
    without it a call is deterministic. Shapes: `M` is `B * K`, the rows of the text part.
    Source: Florence-2 Figure 2; exact to the released models.
    """

    def __init__(self, config: Florence2Config, *, rngs: nnx.Rngs):
        self.config = config
        options = {"dtype": config.dtype, "remat": config.remat, "scan": config.scan}
        self.image = DaViT(config.davit, **options, rngs=rngs)
        self.projector = Projector(
            config.davit.dims[-1],
            config.text.d_model,
            max_positions=config.max_image_positions,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.text = EncoderDecoder(config.text, **options, rngs=rngs)

    def __call__(
        self,
        image: Image,
        prompt_ids: Int[Array, "B K L"],
        decoder_ids: Int[Array, "B *targets"],
        *,
        target_prompts: Int[Array, "B G"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B *targets V"]:
        """Float32 logits of the token after each of `decoder_ids` (teacher forcing).

        Args:
            image: B images; both sides multiples of the total stride (32 px in released models).
            prompt_ids: K prompts per image, `<s> ... </s>`, then padding.
            decoder_ids: the targets shifted right, each beginning with the decoder's start token:
                `[B, K, T]`, one target per prompt; or `[B, N]` with `target_prompts`, where the
                targets of an image share a row.
            target_prompts: the prompt of each of the G equal chunks of a shared row, -1 for none;
                the chunks of a prompt stand side by side. Results are those of separate targets.
            rngs: turns dropout on.

        Returns:
            Logits of every embedding row; rows from `text.vocab_size` on are -1e9.
        """
        tokens = self.encode_image(image, rngs=rngs)
        states, mask = self.encode(tokens, prompt_ids, rngs=rngs)
        if target_prompts is not None:
            packed = decoder_ids, target_prompts, states, mask
            return self.text.decode_packed(*packed, key=_key(rngs))
        logits = self.decode(decoder_ids.reshape(len(states), -1), states, mask, rngs=rngs)
        return logits.reshape(*decoder_ids.shape, -1)

    def encode_image(self, image: Image, *, rngs: nnx.Rngs | None = None) -> Float[Array, "B N D"]:
        """Image tokens: the average, then the grid row by row.

        Raises:
            ValueError: if a side is no multiple of the total stride, or the grid is larger than
                the position tables.
        """
        pixels = normalize_image(image).astype(self.config.dtype)
        return self.projector(self.image(pixels, key=_key(rngs)))

    def encode(
        self,
        image_tokens: Float[Array, "B N D"],
        prompt_ids: Int[Array, "B K L"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "M S D"], Bool[Array, "M S"]]:
        """Encoder states of every (image, prompt), `S = N + L`, and the mask of what is no padding.

        Padding of the prompt (`<pad>`, id 1) is masked out, as in `transformers`; the code first
        released by Microsoft attends to it, and so does `text.attend_prompt_padding`.
        """
        batch, num_prompts, length = prompt_ids.shape
        num_tokens, dim = image_tokens.shape[1:]
        repeated = jnp.broadcast_to(
            image_tokens[:, None], (batch, num_prompts, num_tokens, dim)
        ).reshape(-1, num_tokens, dim)
        return self.text.encode(repeated, prompt_ids.reshape(-1, length), key=_key(rngs))

    def decode(
        self,
        decoder_ids: Int[Array, "M T"],
        states: Float[Array, "M S D"],
        mask: Bool[Array, "M S"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "M T V"]:
        """Float32 logits of the token after each of `decoder_ids`, all positions at once."""
        return self.text.decode(decoder_ids, states, mask, key=_key(rngs))

    def init_cache(
        self, states: Float[Array, "M S D"], max_length: int, *, num_hypotheses: int = 1
    ) -> Cache:
        """What `decode_step` needs besides tokens: see `encoder_decoder.Cache`.

        Args:
            num_hypotheses: W, continuations of each prompt that are decoded side by side.

        Raises:
            ValueError: if `max_length` is more than the model has positions for.
        """
        return self.text.init_cache(states, max_length, num_hypotheses=num_hypotheses)

    def decode_step(
        self,
        token_ids: Int[Array, "MW"],
        position: Int[Array, ""] | int,
        cache: Cache,
        mask: Bool[Array, "M S"],
    ) -> tuple[Float[Array, "MW V"], Cache]:
        """Float32 logits after `token_ids`, which stand at `position` (from 0), and the new cache.

        Pure, so it runs inside `jax.lax.while_loop`. `position` must be below `max_length`. The W
        hypotheses of a prompt stand in a row; `encoder_decoder.reorder_cache` exchanges them.
        """
        return self.text.decode_step(token_ids, jnp.asarray(position, jnp.int32), cache, mask)


def num_parameters(config: Florence2Config) -> int:
    """Parameters of the model, without the padding rows of the embedding; nothing is allocated."""
    model = nnx.eval_shape(lambda: Florence2(config, rngs=nnx.Rngs(0)))
    total = sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return total - (config.padded_vocab_size - config.text.vocab_size) * config.text.d_model


def _key(rngs: nnx.Rngs | None) -> jax.Array | None:
    return None if rngs is None else rngs.dropout()
