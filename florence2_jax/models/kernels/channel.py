# SPDX-License-Identifier: Apache-2.0
"""The core of channel attention, between its two projections."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from florence2_jax.models.kernels.choice import LANES, is_tiled


def channel_attention(
    qkv: Float[Array, "B N D3"], *, num_groups: int, method: str = "auto"
) -> Float[Array, "B N D"]:
    """Softmax attention of the channels of each group to one another, over `N` tokens.

    Args:
        qkv: queries, keys and values side by side, each of `num_groups` groups side by side.
        num_groups: groups of channels; queries are scaled by the root of the number of tokens.
        method: of `choice.METHODS`. Tiled, groups share a 128 x 128 tile of scores, masked.
    """
    num_tokens, dim = qkv.shape[1], qkv.shape[2] // 3
    scale = num_tokens**-0.5
    if is_tiled(method, dim=dim, num_heads=num_groups):
        # Split and joined where they lie: an axis for the tiles would move everything in memory.
        num_tiles = dim // LANES
        tiles = jnp.split(qkv, 3 * num_tiles, axis=2)
        group = jnp.arange(LANES) // (dim // num_groups)
        outs = []
        for i in range(num_tiles):
            q, k, v = tiles[i::num_tiles]
            logits = jnp.einsum("BNC,BNE->BCE", q, k, preferred_element_type=jnp.float32) * scale
            logits = jnp.where(group[:, None] == group, logits, -jnp.inf)
            weights = jax.nn.softmax(logits).astype(v.dtype)
            outs.append(jnp.einsum("BCE,BNE->BNC", weights, v))
        return jnp.concatenate(outs, axis=2)
    q, k, v = rearrange(qkv, "B N (P G C) -> P B G N C", P=3, G=num_groups)
    logits = jnp.einsum("BGNC,BGNE->BGCE", q * scale, k)
    weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(v.dtype)
    out = jnp.einsum("BGCE,BGNE->BGNC", weights, v)
    return rearrange(out, "B G N C -> B N (G C)")
