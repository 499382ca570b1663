# SPDX-License-Identifier: Apache-2.0
"""The core of window attention, between its two projections."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from florence2_jax.models.kernels import window_pallas
from florence2_jax.models.kernels.choice import is_tiled
from florence2_jax.models.layers import SAVED_NAME
from florence2_jax.parallel.per_device import per_device, target_platform

WINDOWS = ("batch", None, None)  # Windows are cut as the batch they come from.


def window_attention(
    qkv: Float[Array, "W N D3"], *, num_heads: int, method: str = "auto"
) -> Float[Array, "W N D"]:
    """Softmax attention of the `N` tokens of each window to one another.

    Args:
        qkv: queries, keys and values side by side, each of `num_heads` heads side by side.
        num_heads: heads; queries are scaled by the root of their size.
        method: of `choice.METHODS`. The kernel runs on TPU; elsewhere, where it was asked for, it
            is interpreted, which is slow.
    """
    dim = qkv.shape[2] // 3
    if is_tiled(method, dim=dim, num_heads=num_heads, window_tokens=qkv.shape[1]):
        return _tiled(qkv, num_heads)
    q, k, v = rearrange(qkv, "W N (P H C) -> P W H N C", P=3, H=num_heads)
    logits = jnp.einsum("WHNC,WHMC->WHNM", q * q.shape[-1] ** -0.5, k)
    weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(v.dtype)
    out = jnp.einsum("WHNM,WHMC->WHNC", weights, v)
    return rearrange(out, "W H N C -> W N (H C)")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _tiled(qkv: Array, num_heads: int) -> Array:
    return _forward(qkv, num_heads)[0]


def _forward(qkv: Array, num_heads: int) -> tuple[Array, tuple[Array, Array]]:
    kernel = functools.partial(window_pallas.forward, num_heads=num_heads, interpret=_interpret())
    results = per_device(kernel, WINDOWS, out_axes=(WINDOWS, WINDOWS))(qkv)
    out, log_sums = checkpoint_name(results, SAVED_NAME)
    return out, (qkv, log_sums)


def _backward(num_heads: int, saved: tuple[Array, Array], d_out: Array) -> tuple[Array]:
    kernel = functools.partial(window_pallas.backward, num_heads=num_heads, interpret=_interpret())
    return per_device(kernel, WINDOWS, WINDOWS, WINDOWS, out_axes=(WINDOWS,))(*saved, d_out)


_tiled.defvjp(_forward, _backward)


def _interpret() -> bool:
    return target_platform() != "tpu"
