# SPDX-License-Identifier: Apache-2.0
"""The core of attention between tokens, of the encoder and from the decoder to it."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from florence2_jax.models.kernels import token_pallas
from florence2_jax.models.kernels.hashing import is_kept
from florence2_jax.models.kernels.token_pallas import HIDDEN, Sizes
from florence2_jax.models.layers import SAVED_NAME, Key
from florence2_jax.parallel.per_device import per_device, target_platform

SEQUENCES, SHARED = ("batch", None, None), (None, None, None)


def token_attention(
    q: Float[Array, "M T D"],
    k: Float[Array, "M S D"],
    v: Float[Array, "M S D"],
    is_visible: Bool[Array, "#M #T S"],
    *,
    num_heads: int,
    dropout_rate: float = 0.0,
    key: Key = None,
) -> Float[Array, "M T D"]:
    """Softmax attention of each query to the keys it may see, by the kernel.

    Args:
        q: scaled already; heads are side by side, as in `k` and `v`.
        dropout_rate: of the weights, where a `key` is given.

    The kernel runs on TPU; elsewhere it is interpreted, which is slow.
    """
    sizes = Sizes(q.shape[2] // num_heads, dropout_rate if key is not None else 0.0)
    seeds = jnp.zeros(len(q), jnp.int32)
    if key is not None and sizes.rate:
        seeds = seeds_of(key, len(q))
    return _tiled(q, k, v, is_visible.astype(jnp.int32), seeds, sizes)


def seeds_of(key: Array, num_sequences: int) -> Int[Array, "M"]:
    """A seed per sequence: what is dropped does not depend on how they lie on devices."""
    return jax.lax.bitcast_convert_type(jax.random.bits(key, (num_sequences,)), jnp.int32)


def reference(
    q: Float[Array, "M T D"],
    k: Float[Array, "M S D"],
    v: Float[Array, "M S D"],
    is_visible: Bool[Array, "#M #T S"],
    *,
    num_heads: int,
    dropout_rate: float = 0.0,
    key: Key = None,
) -> Float[Array, "M T D"]:
    """The equation of `token_attention`, with the same weights dropped."""
    q, k, v = (rearrange(x, "M T (H C) -> M H T C", H=num_heads) for x in (q, k, v))
    logits = jnp.einsum("MHTC,MHSC->MHTS", q, k).astype(jnp.float32)
    weights = jax.nn.softmax(jnp.where(is_visible[:, None], logits, HIDDEN))
    if key is not None and dropout_rate:
        seeds = seeds_of(key, len(q))[:, None, None, None]
        rows, columns = (jnp.arange(size, dtype=jnp.int32) for size in logits.shape[2:])
        heads = jnp.arange(num_heads, dtype=jnp.int32)[:, None, None]
        kept = is_kept(seeds, heads, rows[:, None], columns, dropout_rate)
        weights = jnp.where(kept, weights / (1 - dropout_rate), 0)
    out = jnp.einsum("MHTS,MHSC->MHTC", weights.astype(v.dtype), v)
    return rearrange(out, "M H T C -> M T (H C)")


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _tiled(q: Array, k: Array, v: Array, is_visible: Array, seeds: Array, sizes: Sizes) -> Array:
    return _forward(q, k, v, is_visible, seeds, sizes)[0]


def _forward(
    q: Array, k: Array, v: Array, is_visible: Array, seeds: Array, sizes: Sizes
) -> tuple[Array, tuple[Array, ...]]:
    kernel = functools.partial(token_pallas.forward, sizes=sizes, interpret=_interpret())
    call = per_device(kernel, *_axes(is_visible), out_axes=(SEQUENCES,))
    (out,) = call(q, k, v, is_visible, seeds)
    return checkpoint_name(out, SAVED_NAME), (q, k, v, is_visible, seeds)


def _backward(sizes: Sizes, saved: tuple[Array, ...], d_out: Array) -> tuple[Array | None, ...]:
    kernel = functools.partial(token_pallas.backward, sizes=sizes, interpret=_interpret())
    call = per_device(kernel, *_axes(saved[3]), SEQUENCES, out_axes=(SEQUENCES,) * 3)
    return (*call(*saved, d_out), None, None)


def _axes(is_visible: Array) -> tuple[tuple[str | None, ...], ...]:
    """Logical axes of q, k, v, `is_visible`, seeds."""
    seen = SHARED if len(is_visible) == 1 else SEQUENCES
    return SEQUENCES, SEQUENCES, SEQUENCES, seen, ("batch",)


_tiled.defvjp(_forward, _backward)


def _interpret() -> bool:
    return target_platform() != "tpu"
