# SPDX-License-Identifier: Apache-2.0
"""The core of attention between tokens, of the encoder and from the decoder to it."""

import functools
from collections.abc import Callable

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
    q: Float[Array, "M H T C"],
    k: Float[Array, "M H S C"],
    v: Float[Array, "M H S C"],
    is_visible: Bool[Array, "#M #H #T S"],
    drop: Callable[[Array], Array],
) -> Float[Array, "M T D"]:
    """The equation: of queries that are scaled already, with `drop` on its weights `[M, H, T, S]`.

    Layers drop by `layers.dropout`; with `dropped_as_in_kernel` it is `token_attention`.
    """
    logits = jnp.einsum("MHTC,MHSC->MHTS", q, k).astype(jnp.float32)
    weights = jax.nn.softmax(jnp.where(is_visible, logits, HIDDEN)).astype(v.dtype)
    out = jnp.einsum("MHTS,MHSC->MHTC", drop(weights), v)
    return rearrange(out, "M H T C -> M T (H C)")


def dropped_as_in_kernel(
    weights: Float[Array, "M H T S"], rate: float, key: Key
) -> Float[Array, "M H T S"]:
    """The weights that `token_attention` keeps with this key, scaled."""
    if key is None or rate == 0:
        return weights
    seeds = seeds_of(key, len(weights))[:, None, None, None]
    heads, rows, columns = jnp.ogrid[tuple(map(slice, weights.shape[1:]))]
    kept = is_kept(seeds, heads, rows, columns, rate)
    return jnp.where(kept, weights / (1 - rate), 0)


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
