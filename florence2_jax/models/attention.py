# SPDX-License-Identifier: Apache-2.0
"""The three attentions of Florence-2: over windows, over channels, and over tokens (BART)."""

import functools

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from florence2_jax.models.kernels import token
from florence2_jax.models.kernels.channel import channel_attention
from florence2_jax.models.kernels.choice import is_token_tiled
from florence2_jax.models.kernels.window import window_attention
from florence2_jax.models.layers import Key, Linear, dropout

KeysValues = tuple[Float[Array, "M H S C"], Float[Array, "M H S C"]]


class WindowAttention(nnx.Module):
    """Self-attention inside windows of `window_size` x `window_size` tokens.

    A map that windows do not tile is padded with zeros on the right and at the bottom. As in the
    released models nothing masks that padding: its keys and values are the biases.
    Source: DaViT (arXiv:2204.03645), spatial window attention.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: int,
        method: str = "auto",
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.window_size = window_size
        self.method = method
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B Y X D"]) -> Float[Array, "B Y X D"]:
        height, width = x.shape[1:3]
        size = self.window_size
        x = jnp.pad(x, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        windows = rearrange(x, "B (R y) (S x) D -> (B R S) (y x) D", y=size, x=size)
        qkv = self.qkv(windows)
        out = self.proj(window_attention(qkv, num_heads=self.num_heads, method=self.method))
        out = rearrange(
            out, "(B R S) (y x) D -> B (R y) (S x) D", R=rows, S=columns, y=size, x=size
        )
        return out[:, :height, :width]


class ChannelAttention(nnx.Module):
    """Self-attention over channels: C x C scores per group, so linear in the number of tokens.

    The released weights expect N**-0.5 as the scale; the public DaViT code has C**-0.5.
    Source: DaViT (arXiv:2204.03645), channel group attention.
    """

    def __init__(
        self, dim: int, *, num_groups: int, method: str = "auto", dtype: str, rngs: nnx.Rngs
    ):
        self.num_groups = num_groups
        self.method = method
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B Y X D"]) -> Float[Array, "B Y X D"]:
        qkv = self.qkv(rearrange(x, "B Y X D -> B (Y X) D"))
        out = channel_attention(qkv, num_groups=self.num_groups, method=self.method)
        return self.proj(out).reshape(x.shape)


class MultiHeadAttention(nnx.Module):
    """Attention of BART: separate biased projections, of one sequence to itself or to another.

    Keys and values are made apart from their use, so that a decoder can keep them.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        dropout: float,
        method: str = "auto",
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.dropout = dropout
        self.method = method
        self.q_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "M T D"],
        keys_values: KeysValues,
        mask: Bool[Array, "#M #H #T S"],
        *,
        key: Key = None,
    ) -> Float[Array, "M T D"]:
        """Attends from `x` to `keys_values` where `mask` is true. `key` turns dropout on."""
        k, v = keys_values
        if self._is_tiled(x, k, mask):
            out = token.token_attention(
                self.q_proj(x) * k.shape[-1] ** -0.5,
                rearrange(k, "M H S C -> M S (H C)"),
                rearrange(v, "M H S C -> M S (H C)"),
                mask[:, 0],
                num_heads=self.num_heads,
                dropout_rate=self.dropout,
                key=key,
            )
            return self.out_proj(out)
        q = self._heads(self.q_proj(x)) * k.shape[-1] ** -0.5
        drop = functools.partial(dropout, rate=self.dropout, key=key)
        return self.out_proj(token.reference(q, k, v, mask, drop))

    def _is_tiled(self, x: Array, k: Array, mask: Array) -> bool:
        """Whether the kernel runs; its heads all see the same keys."""
        return mask.shape[1] == 1 and is_token_tiled(
            self.method,
            dim=x.shape[2],
            num_heads=self.num_heads,
            num_queries=x.shape[1],
            num_keys=k.shape[2],
        )

    def keys_values(self, x: Float[Array, "M S D"]) -> KeysValues:
        """What the tokens of `x` offer to those that attend to them."""
        return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

    def _heads(self, x: Float[Array, "M S D"]) -> Float[Array, "M H S C"]:
        return rearrange(x, "M S (H C) -> M H S C", H=self.num_heads)
