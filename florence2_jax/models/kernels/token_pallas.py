# SPDX-License-Identifier: Apache-2.0
"""Attention of tokens for TPU whose logits never leave the chip's vector memory (VMEM).

A program of the grid has one sequence and one *tile*: 128 lanes of q, k and v, the width of a
vector register, which is one head or several. Heads are told apart by queries that are zero outside
of the head's lanes; the matrix unit pads 64 channels to 128 anyway, so their zeros cost nothing.
All keys are there at once, so the softmax is exact; the backward pass computes it once more.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from florence2_jax.models.kernels.choice import LANES
from florence2_jax.models.kernels.hashing import is_kept
from florence2_jax.models.kernels.tiles import dot, is_head

ROWS = 256  # Queries at a time: with 1,024 keys a MB of logits, of which several are alive.
VMEM_BYTES = 64 * 2**20
HIDDEN = -1e9  # A logit, also of the reference: where every key is hidden, weights are equal.


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Channels of a head, and the probability to drop a weight."""

    head_dim: int
    rate: float

    @property
    def num_heads(self) -> int:
        """Of a tile."""
        return LANES // self.head_dim


def forward(
    q: Float[Array, "M T D"],
    k: Float[Array, "M S D"],
    v: Float[Array, "M S D"],
    is_visible: Int[Array, "#M #T S"],
    seeds: Int[Array, "M"],
    *,
    sizes: Sizes,
    interpret: bool = False,
) -> tuple[Float[Array, "M T D"]]:
    """The result, alone in a tuple. `q` is scaled already; `seeds` are of the dropped weights."""
    out = pl.pallas_call(
        functools.partial(_forward_kernel, sizes=sizes),
        grid=(len(q), q.shape[2] // LANES),
        in_specs=[_SEEDS, _visible(is_visible), _tile(q), _tile(k), _tile(k)],
        out_specs=_tile(q),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=_parameters(),
        cost_estimate=_cost(q, k, sizes, matmuls=2, io_bytes=2 * (q.nbytes + k.nbytes)),
        interpret=interpret,
        name="token_attention",
    )(seeds, is_visible, q, k, v)
    return (out,)


def backward(
    q: Float[Array, "M T D"],
    k: Float[Array, "M S D"],
    v: Float[Array, "M S D"],
    is_visible: Int[Array, "#M #T S"],
    seeds: Int[Array, "M"],
    d_out: Float[Array, "M T D"],
    *,
    sizes: Sizes,
    interpret: bool = False,
) -> tuple[Float[Array, "M T D"], Float[Array, "M S D"], Float[Array, "M S D"]]:
    """The gradients of `q`, `k` and `v`."""
    return pl.pallas_call(
        functools.partial(_backward_kernel, sizes=sizes),
        grid=(len(q), q.shape[2] // LANES),
        in_specs=[_SEEDS, _visible(is_visible), _tile(q), _tile(k), _tile(k), _tile(q)],
        out_specs=(_tile(q), _tile(k), _tile(k)),
        out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)),
        compiler_params=_parameters(),
        cost_estimate=_cost(q, k, sizes, matmuls=5, io_bytes=3 * q.nbytes + 4 * k.nbytes),
        interpret=interpret,
        name="token_attention_backward",
    )(seeds, is_visible, q, k, v, d_out)


_SEEDS = pl.BlockSpec(memory_space=pltpu.SMEM)


def _tile(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, x.shape[1], LANES), lambda m, tile: (m, 0, tile))


def _visible(is_visible: Array) -> pl.BlockSpec:
    is_shared = len(is_visible) == 1
    return pl.BlockSpec((1, *is_visible.shape[1:]), lambda m, tile: (0 if is_shared else m, 0, 0))


def _parameters() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_BYTES
    )


def _cost(q: Array, k: Array, sizes: Sizes, *, matmuls: int, io_bytes: int) -> pl.CostEstimate:
    """As issued: each head's products run over the 128 lanes of its tile."""
    num_weights = len(q) * q.shape[2] // sizes.head_dim * q.shape[1] * k.shape[1]
    return pl.CostEstimate(
        flops=matmuls * 2 * num_weights * LANES,
        transcendentals=num_weights,
        bytes_accessed=io_bytes,
    )


def _forward_kernel(seeds_ref, visible_ref, q_ref, k_ref, v_ref, out_ref, *, sizes: Sizes):
    k, v = k_ref[0], v_ref[0]
    kept = _Kept(seeds_ref, k.shape[0], sizes)
    for rows in _chunks(q_ref.shape[1]):
        q, out, hidden = q_ref[0, rows, :], jnp.zeros((), jnp.float32), _hidden(visible_ref, rows)
        for head in range(sizes.num_heads):
            weights = _softmax(dot(_of_head(q, head, sizes), k, 1, 1), hidden)
            weights = kept.drop(weights, head, rows)
            out = _put(out, dot(weights.astype(v.dtype), v, 1, 0), head, sizes)
        out_ref[0, rows, :] = out.astype(out_ref.dtype)


def _backward_kernel(
    seeds_ref, visible_ref, q_ref, k_ref, v_ref, d_out_ref, d_q_ref, d_k_ref, d_v_ref, *, sizes
):
    k, v = k_ref[0], v_ref[0]
    kept = _Kept(seeds_ref, k.shape[0], sizes)
    d_k = d_v = jnp.zeros((), jnp.float32)
    for rows in _chunks(q_ref.shape[1]):
        q, d_out, hidden = q_ref[0, rows, :], d_out_ref[0, rows, :], _hidden(visible_ref, rows)
        d_q = jnp.zeros((), jnp.float32)
        for head in range(sizes.num_heads):
            own_q, own_d_out = _of_head(q, head, sizes), _of_head(d_out, head, sizes)
            weights = _softmax(dot(own_q, k, 1, 1), hidden)
            d_weights = kept.drop(dot(own_d_out, v, 1, 1), head, rows)
            mean = (weights * d_weights).sum(axis=1, keepdims=True)
            d_logits = (weights * (d_weights - mean)).astype(k.dtype)
            dropped = kept.drop(weights, head, rows).astype(v.dtype)
            d_v += dot(dropped, own_d_out, 0, 0)
            d_k += dot(d_logits, own_q, 0, 0)
            d_q = _put(d_q, dot(d_logits, k, 1, 0), head, sizes)
        d_q_ref[0, rows, :] = d_q.astype(d_q_ref.dtype)
    d_k_ref[0] = d_k.astype(d_k_ref.dtype)
    d_v_ref[0] = d_v.astype(d_v_ref.dtype)


def _chunks(num_rows: int) -> Iterator[slice]:
    """Queries that are computed together."""
    return (slice(i, min(i + ROWS, num_rows)) for i in range(0, num_rows, ROWS))


def _hidden(visible_ref: Any, rows: slice) -> Array:
    """`[rows, S]`, or `[1, S]` where all queries see the same keys."""
    return visible_ref[0, rows if visible_ref.shape[1] > 1 else slice(None), :] == 0


def _softmax(logits: Array, hidden: Array) -> Array:
    """Weights of float32 logits `[rows, S]`, over keys that are not hidden."""
    logits = jnp.where(hidden, HIDDEN, logits)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


class _Kept:
    """Which weights of this program's sequence and tile dropout keeps."""

    def __init__(self, seeds_ref: Any, num_keys: int, sizes: Sizes):
        self._sizes, self._num_keys = sizes, num_keys
        self._seed = seeds_ref[pl.program_id(0)] if sizes.rate else None
        self._first_head = pl.program_id(1) * sizes.num_heads

    def drop(self, weights: Array, head: int, rows: slice) -> Array:
        """What is kept of `weights` `[rows, S]`, scaled; zero elsewhere."""
        if self._seed is None:
            return weights
        # A column and a row: most of the hash is worked out before they meet.
        row = rows.start + jax.lax.broadcasted_iota(jnp.int32, (len(weights), 1), 0)
        column = jax.lax.broadcasted_iota(jnp.int32, (1, self._num_keys), 1)
        kept = is_kept(self._seed, self._first_head + head, row, column, self._sizes.rate)
        return jnp.where(kept, weights * (1 / (1 - self._sizes.rate)), 0.0)


def _of_head(x: Array, head: int, sizes: Sizes) -> Array:
    """`[rows, 128]`, zero outside of the head's lanes."""
    return x if sizes.num_heads == 1 else jnp.where(is_head(x.shape, head, sizes.head_dim), x, 0)


def _put(out: Array, x: Array, head: int, sizes: Sizes) -> Array:
    """`out` with the head's lanes taken from `x`."""
    return x if head == 0 else jnp.where(is_head(x.shape, head, sizes.head_dim), x, out)
