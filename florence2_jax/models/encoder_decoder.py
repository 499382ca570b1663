# SPDX-License-Identifier: Apache-2.0
"""The multi-modality encoder-decoder: BART, with image tokens before the prompt."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from florence2_jax.models.attention import KeysValues, MultiHeadAttention
from florence2_jax.models.config import PAD_ID, TextConfig
from florence2_jax.models.layers import (
    Key,
    LayerNorm,
    Mlp,
    SharedEmbedding,
    dropout,
    make_stack,
    normal_init,
    run_stack,
    split_key,
    unstack,
)

POSITION_OFFSET = 2
"""BART's position tables begin with two rows that are never used."""

Cache: TypeAlias = dict[str, Any]
"""What a decoder remembers of M prompts with W hypotheses (beams, samples) each.

`"self"` and `"cross"` have a pair of keys and values per decoder layer. Those of the encoder,
`[M, H, S, C]`, are kept once per prompt. Those of the decoder, `[M, H, T * W, C]`, are never moved:
W slots per position, and `"slots"` `int32[M, W, T]` says in which of them each hypothesis finds the
token at each position. Where beams change places (`reorder_cache`) only that small table does.
"""


class Packing(NamedTuple):
    """Where the targets of packed rows lie: B rows of N tokens, cut into G chunks of equal size.

    A chunk belongs to one prompt, and those of a prompt stand side by side. Each target is decoded
    as if it were alone: its own positions, its own past, the encoder states of its own prompt.
    """

    prompts: Int[Array, "B G"]  # Of every chunk; unused ones read those of prompt 0.
    positions: Int[Array, "B N"]
    visible: Bool[Array, "B 1 N N"]

    @classmethod
    def of(cls, target_prompts: Int[Array, "B G"], length: int) -> "Packing":
        """The packing of rows of `length` tokens; -1 is an unused chunk."""
        num_chunks = target_prompts.shape[1]
        chunk = length // num_chunks
        is_same = target_prompts[:, :, None] == target_prompts[:, None, :]  # B G G
        place = jnp.arange(num_chunks) - jnp.argmax(is_same, axis=-1)  # Within the target.
        positions = (place * chunk)[:, :, None] + jnp.arange(chunk)
        visible = jnp.repeat(jnp.repeat(is_same, chunk, axis=1), chunk, axis=2)
        visible &= jnp.tril(jnp.ones((length, length), bool))
        positions = positions.reshape(len(positions), length)
        return cls(jnp.maximum(target_prompts, 0), positions, visible[:, None])

    def per_chunk(self, x: Shaped[Array, "M *axes"]) -> Shaped[Array, "BG *axes"]:
        """What every chunk reads of `x`, which has a row for each of the K prompts of B images.

        One copy per chunk: that is the price of attending to one prompt rather than to all K.
        """
        x = x.reshape(len(self.prompts), -1, *x.shape[1:])  # B K ...
        rows = self.prompts.reshape(*self.prompts.shape, *[1] * (x.ndim - 2))
        # Along K alone, so that a batch spread over devices is gathered where it is.
        x = jnp.take_along_axis(x, rows, axis=1)
        return x.reshape(-1, *x.shape[2:])


Past: TypeAlias = tuple[Float[Array, "M H TW C"], Float[Array, "M H TW C"]]


def _attention(config: TextConfig, *, dtype: str, rngs: nnx.Rngs) -> MultiHeadAttention:
    return MultiHeadAttention(
        config.d_model,
        num_heads=config.num_heads,
        dropout=config.attention_dropout,
        method=config.attention,
        dtype=dtype,
        rngs=rngs,
    )


def _mlp(config: TextConfig, *, dtype: str, rngs: nnx.Rngs) -> Mlp:
    return Mlp(
        config.d_model,
        config.mlp_dim,
        activation_dropout=config.activation_dropout,
        dtype=dtype,
        rngs=rngs,
    )


class Positions(nnx.Module):
    """Adds learned positions to embedded tokens, normalises, drops out."""

    def __init__(self, config: TextConfig, *, dtype: str, rngs: nnx.Rngs):
        self.max_positions = config.max_positions
        self.dropout = config.dropout
        self.dtype = dtype
        table = (config.max_positions + POSITION_OFFSET, config.d_model)
        self.embedding = nnx.Param(normal_init(rngs.params(), table, jnp.float32))
        self.norm = LayerNorm(config.d_model, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "M S D"],
        *,
        start: int | Int[Array, ""] = 0,
        positions: Int[Array, "M S"] | None = None,
        key: Key = None,
    ) -> Float[Array, "M S D"]:
        """`x[:, 0]` is at position `start`, which may be traced, or `x` at the positions given.

        Raises:
            ValueError: if the sequence is longer than the table.
        """
        if x.shape[1] > self.max_positions:
            raise ValueError(
                f"a sequence of {x.shape[1]} tokens (image tokens included) is longer than"
                f" text.max_positions={self.max_positions}; shorten it or use a smaller image"
            )
        table = self.embedding[...]
        if positions is None:
            rows = jax.lax.dynamic_slice_in_dim(table, start + POSITION_OFFSET, x.shape[1])
        else:
            rows = table[positions + POSITION_OFFSET]
        return dropout(self.norm(x + rows.astype(self.dtype)), self.dropout, key)


class EncoderLayer(nnx.Module):
    """Self-attention and MLP, each followed by its residual and a norm (post-LN)."""

    def __init__(self, config: TextConfig, *, dtype: str, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.self_attn = _attention(config, dtype=dtype, rngs=rngs)
        self.self_attn_norm = LayerNorm(config.d_model, dtype=dtype, rngs=rngs)
        self.ffn = _mlp(config, dtype=dtype, rngs=rngs)
        self.ffn_norm = LayerNorm(config.d_model, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "M S D"], mask: Bool[Array, "M 1 1 S"], *, key: Key
    ) -> Float[Array, "M S D"]:
        keys = split_key(key, 4)
        attended = self.self_attn(x, self.self_attn.keys_values(x), mask, key=keys[0])
        x = self.self_attn_norm(x + dropout(attended, self.dropout, keys[1]))
        return self.ffn_norm(x + dropout(self.ffn(x, key=keys[2]), self.dropout, keys[3]))


class DecoderLayer(nnx.Module):
    """Causal self-attention, attention to the encoder, MLP; post-LN."""

    def __init__(self, config: TextConfig, *, dtype: str, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.self_attn = _attention(config, dtype=dtype, rngs=rngs)
        self.self_attn_norm = LayerNorm(config.d_model, dtype=dtype, rngs=rngs)
        self.cross_attn = _attention(config, dtype=dtype, rngs=rngs)
        self.cross_attn_norm = LayerNorm(config.d_model, dtype=dtype, rngs=rngs)
        self.ffn = _mlp(config, dtype=dtype, rngs=rngs)
        self.ffn_norm = LayerNorm(config.d_model, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "rows T D"],
        states: Float[Array, "M S D"],
        mask: Bool[Array, "M 1 1 S"],
        packing: Packing | None = None,
        *,
        key: Key,
    ) -> Float[Array, "rows T D"]:
        """A row for each of the M prompts, or with a packing one per image."""
        memory = self.cross_attn.keys_values(states)
        if packing is None:
            visible = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
        else:
            visible, mask = packing.visible, packing.per_chunk(mask)
            memory = packing.per_chunk(memory[0]), packing.per_chunk(memory[1])
        return self.attend(x, self.self_attn.keys_values(x), visible, memory, mask, key=key)

    def step(
        self,
        x: Float[Array, "M W D"],
        position: Int[Array, ""],
        past: Past,
        visible: Bool[Array, "M 1 W TW"],
        memory: KeysValues,
        mask: Bool[Array, "M 1 1 S"],
    ) -> tuple[Float[Array, "M W D"], Past]:
        """The token at `position` of W hypotheses per prompt.

        Hypotheses stand where `__call__` has positions: they share keys and values, and `visible`
        says which are whose. Returns the tokens and `past` with their keys and values written in.
        """
        k, v = self.self_attn.keys_values(x)
        start = position * x.shape[1]
        write = jax.lax.dynamic_update_slice_in_dim
        past = write(past[0], k, start, axis=2), write(past[1], v, start, axis=2)
        return self.attend(x, past, visible, memory, mask, key=None), past

    def attend(self, x, past, visible, memory, mask, *, key: Key) -> Float[Array, "M T D"]:
        """The equation of the layer, over keys and values made before.

        `memory` has a row for each of `x`, or for each of the equal chunks of its rows.
        """
        keys = split_key(key, 6)
        attended = self.self_attn(x, past, visible, key=keys[0])
        x = self.self_attn_norm(x + dropout(attended, self.dropout, keys[1]))
        chunks = x.reshape(len(memory[0]), -1, x.shape[-1])
        attended = self.cross_attn(chunks, memory, mask, key=keys[2]).reshape(x.shape)
        x = self.cross_attn_norm(x + dropout(attended, self.dropout, keys[3]))
        return self.ffn_norm(x + dropout(self.ffn(x, key=keys[4]), self.dropout, keys[5]))


class Tower(nnx.Module):
    """Positions and layers: the encoder, or the decoder."""

    def __init__(
        self, make_layer, num_layers: int, config: TextConfig, *, dtype, remat, scan, rngs
    ):
        self.remat = remat
        self.positions = Positions(config, dtype=dtype, rngs=rngs)
        self.layers = make_stack(
            lambda: make_layer(config, dtype=dtype, rngs=rngs), num_layers, scan=scan
        )

    def __call__(
        self,
        x: Float[Array, "M S D"],
        *context: Any,
        positions: Int[Array, "M S"] | None = None,
        key: Key,
    ) -> Float[Array, "M S D"]:
        embed_key, layers_key = split_key(key, 2)
        x = self.positions(x, positions=positions, key=embed_key)
        return run_stack(self.layers, x, *context, remat=self.remat, key=layers_key)


class EncoderDecoder(nnx.Module):
    """BART over [image tokens, prompt]. Source: Florence-2 §3, and the released BART configs."""

    def __init__(self, config: TextConfig, *, dtype: str, remat: str, scan: bool, rngs: nnx.Rngs):
        self.attend_prompt_padding = config.attend_prompt_padding
        rows = config.vocab_size, config.padded_vocab_size
        options = {"dtype": dtype, "remat": remat, "scan": scan, "rngs": rngs}
        self.shared = SharedEmbedding(*rows, config.d_model, dtype=dtype, rngs=rngs)
        self.encoder = Tower(EncoderLayer, config.encoder_layers, config, **options)
        self.decoder = Tower(DecoderLayer, config.decoder_layers, config, **options)

    def encode(
        self, image_tokens: Float[Array, "M N D"], prompt_ids: Int[Array, "M L"], *, key: Key = None
    ) -> tuple[Float[Array, "M S D"], Bool[Array, "M S"]]:
        """Encoder states of image and prompt, and which of them may be attended (no padding)."""
        x = jnp.concatenate([image_tokens, self.shared(prompt_ids)], axis=1)
        prompt_mask = (prompt_ids != PAD_ID) | self.attend_prompt_padding
        mask = jnp.concatenate([jnp.ones(image_tokens.shape[:2], bool), prompt_mask], axis=1)
        return self.encoder(x, mask[:, None, None], key=key), mask

    def decode(
        self,
        decoder_ids: Int[Array, "M T"],
        states: Float[Array, "M S D"],
        mask: Bool[Array, "M S"],
        *,
        key: Key = None,
    ) -> Float[Array, "M T V"]:
        """Float32 logits of the token after each of `decoder_ids`, all positions at once."""
        x = self.decoder(self.shared(decoder_ids), states, mask[:, None, None], key=key)
        return self.shared.logits(x)

    def decode_packed(
        self,
        decoder_ids: Int[Array, "B N"],
        target_prompts: Int[Array, "B G"],
        states: Float[Array, "M S D"],
        mask: Bool[Array, "M S"],
        *,
        key: Key = None,
    ) -> Float[Array, "B N V"]:
        """`decode` of several targets per row, each as if it were alone.

        Args:
            decoder_ids: a row per image, G chunks of equal size.
            target_prompts: which of the image's K prompts each chunk belongs to, -1 for none.
            states: of `B * K` prompts.

        Raises:
            ValueError: if the chunks do not divide the row, or the row is longer than the table of
                positions.
        """
        length, num_chunks = decoder_ids.shape[1], target_prompts.shape[1]
        if length % num_chunks:
            raise ValueError(f"a row of {length} tokens is no whole number of {num_chunks} chunks")
        packing = Packing.of(target_prompts, length)
        context = states, mask[:, None, None], packing
        x = self.shared(decoder_ids)
        x = self.decoder(x, *context, positions=packing.positions, key=key)
        return self.shared.logits(x)

    def init_cache(
        self, states: Float[Array, "M S D"], max_length: int, *, num_hypotheses: int = 1
    ) -> Cache:
        """Keys and values of `states` for every decoder layer, and room for `max_length` tokens.

        Args:
            num_hypotheses: W, continuations of each prompt that are decoded side by side.

        Raises:
            ValueError: if `max_length` is more than the model has positions for.
        """
        if max_length > self.decoder.positions.max_positions:
            raise ValueError(
                f"max_length {max_length} is more than the {self.decoder.positions.max_positions}"
                " positions of the decoder (text.max_positions)"
            )
        cross = [layer.cross_attn.keys_values(states) for layer in unstack(self.decoder.layers)]
        room = max_length * num_hypotheses
        empty = [
            tuple(jnp.zeros((*x.shape[:2], room, x.shape[3]), x.dtype) for x in pair)
            for pair in cross
        ]
        slots = jnp.zeros((len(states), num_hypotheses, max_length), jnp.int32)
        return {"self": empty, "cross": cross, "slots": slots}

    def decode_step(
        self,
        token_ids: Int[Array, "MW"],
        position: Int[Array, ""],
        cache: Cache,
        mask: Bool[Array, "M S"],
    ) -> tuple[Float[Array, "MW V"], Cache]:
        """Logits after the tokens at `position` (from 0), W in a row per prompt, and the cache."""
        num_prompts, width, length = cache["slots"].shape
        own = jnp.broadcast_to(jnp.arange(width)[None, :, None], (num_prompts, width, 1))
        slots = jax.lax.dynamic_update_slice_in_dim(cache["slots"], own, position, axis=2)
        visible = slots[..., None] == jnp.arange(width)  # M W T W
        visible &= (jnp.arange(length) <= position)[:, None]
        visible = visible.reshape(num_prompts, 1, width, -1)

        x = self.shared(token_ids.reshape(-1, 1))
        x = self.decoder.positions(x, start=position).reshape(num_prompts, width, -1)
        pasts = []
        for layer, past, memory in zip(
            unstack(self.decoder.layers), cache["self"], cache["cross"], strict=True
        ):
            x, past = layer.step(x, position, past, visible, memory, mask[:, None, None])
            pasts.append(past)
        logits = self.shared.logits(x.reshape(-1, x.shape[-1]))
        return logits, cache | {"self": pasts, "slots": slots}


def reorder_cache(cache: Cache, parents: Int[Array, "M W"]) -> Cache:
    """Lets hypothesis `w` of each prompt go on from hypothesis `parents[:, w]`."""
    slots = jnp.take_along_axis(cache["slots"], parents[:, :, None], axis=1)
    return cache | {"slots": slots}
