# SPDX-License-Identifier: Apache-2.0
"""Window attention for TPU whose logits never leave the chip's vector memory (VMEM).

A vector register has 128 lanes and a head 32 channels, so four heads share a *tile*: 128 lanes of
q, k and v each. Within a tile the logits are held transposed, keys down and (head, query) across:
the softmax then runs down the sublanes, which costs neither lane shuffles nor padding of 144 to
256. The heads are told apart by zeroed copies of the queries, one per head, below one another; the
matrix unit pads 32 channels to 128 anyway, so their zeros cost nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from florence2_jax.models.kernels.choice import LANES, TOKENS
from florence2_jax.models.kernels.tiles import dot, is_head

TILES_AT_ONCE = 2  # Four are a tenth faster by the schedule, and take twice as long to compile.
COLUMNS = 256  # The side of the matrix unit of v6e; with 128 its backward pass takes a third more.
BLOCK_BYTES = 2**20  # Of qkv that are copied into VMEM at once.


def forward(
    qkv: Float[Array, "W N D3"], *, num_heads: int, interpret: bool = False
) -> tuple[Float[Array, "W N D"], Float[Array, "W G HN"]]:
    """Attention, and the base-2 logarithm of each query's softmax denominator, per tile `G`."""
    num_windows, num_tokens, width3 = qkv.shape
    sizes = _Sizes(num_tokens=num_tokens, num_heads=num_heads, width=width3 // 3)
    block = _windows_per_block(qkv)
    out, log_sums = pl.pallas_call(
        functools.partial(_forward_kernel, sizes=sizes),
        grid=(pl.cdiv(num_windows, block),),
        in_specs=[_rows(block * num_tokens, width3)],
        out_specs=(_rows(block * num_tokens, sizes.width), _sums(block, sizes)),
        out_shape=(
            jax.ShapeDtypeStruct((num_windows * num_tokens, sizes.width), qkv.dtype),
            jax.ShapeDtypeStruct((num_windows, sizes.num_tiles, sizes.num_queries), jnp.float32),
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=_cost(qkv, num_heads, matmuls=2, io_bytes=qkv.nbytes * 4 // 3),
        interpret=interpret,
        name="window_attention",
    )(qkv.reshape(-1, width3))
    return out.reshape(num_windows, num_tokens, sizes.width), log_sums


def backward(
    qkv: Float[Array, "W N D3"],
    log_sums: Float[Array, "W G HN"],
    d_out: Float[Array, "W N D"],
    *,
    num_heads: int,
    interpret: bool = False,
) -> tuple[Float[Array, "W N D3"]]:
    """The gradient of `qkv`, alone in a tuple; the softmax is recomputed from `log_sums`."""
    num_windows, num_tokens, width3 = qkv.shape
    sizes = _Sizes(num_tokens=num_tokens, num_heads=num_heads, width=width3 // 3)
    block = _windows_per_block(qkv)
    d_qkv = pl.pallas_call(
        functools.partial(_backward_kernel, sizes=sizes),
        grid=(pl.cdiv(num_windows, block),),
        in_specs=[
            _rows(block * num_tokens, width3),
            _sums(block, sizes),
            _rows(block * num_tokens, sizes.width),
        ],
        out_specs=_rows(block * num_tokens, width3),
        out_shape=jax.ShapeDtypeStruct((num_windows * num_tokens, width3), qkv.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=_cost(qkv, num_heads, matmuls=5, io_bytes=qkv.nbytes * 7 // 3),
        interpret=interpret,
        name="window_attention_backward",
    )(qkv.reshape(-1, width3), log_sums, d_out.reshape(-1, sizes.width))
    return (d_qkv.reshape(qkv.shape),)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Of one window."""

    num_tokens: int
    num_heads: int
    width: int

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def num_tiles(self) -> int:
        return self.width // LANES

    @property
    def num_queries(self) -> int:
        """Of a tile: those of each of its heads."""
        return LANES // self.head_dim * self.num_tokens


def _windows_per_block(qkv: Array) -> int:
    """A power of two: it divides most numbers of windows, and gives an even number of tiles."""
    num_windows = qkv.shape[0]
    wanted = min(num_windows, BLOCK_BYTES * num_windows // qkv.nbytes)
    return 1 << max(0, wanted.bit_length() - 1)


def _rows(num_rows: int, width: int) -> pl.BlockSpec:
    """Tokens of some windows below one another: two axes have one sensible layout in memory."""
    return pl.BlockSpec((num_rows, width), lambda i: (i, 0))


def _sums(block: int, sizes: _Sizes) -> pl.BlockSpec:
    return pl.BlockSpec((block, sizes.num_tiles, sizes.num_queries), lambda i: (i, 0, 0))


def _cost(qkv: Array, num_heads: int, *, matmuls: int, io_bytes: int) -> pl.CostEstimate:
    """As issued: each head's products run over the 128 lanes of its tile."""
    num_windows, num_tokens, _ = qkv.shape
    return pl.CostEstimate(
        flops=matmuls * 2 * num_windows * num_heads * num_tokens**2 * LANES,
        transcendentals=num_windows * num_heads * num_tokens**2,
        bytes_accessed=io_bytes,
    )


def _forward_kernel(qkv_ref, out_ref, log_sums_ref, *, sizes: _Sizes):
    exponent = sizes.head_dim**-0.5 / math.log(2)
    chunks = _chunks(sizes.num_queries)

    def attend(tiles: list["_Tile"]) -> None:
        qkv = [[tile.read(qkv_ref, part) for part in range(3)] for tile in tiles]
        queries = [_by_head(q, sizes) for q, _, _ in qkv]
        logits = [
            [dot(k, rows[chunk], 1, 1) * exponent for chunk in chunks]
            for rows, (_, k, _) in zip(queries, qkv, strict=True)
        ]
        softmaxes = [[_softmax(x) for x in of_tile] for of_tile in logits]
        for tile, (_, _, v), softmax in zip(tiles, qkv, softmaxes, strict=True):
            out = [dot(weights.astype(v.dtype), v, 0, 0) for weights, _ in softmax]
            tile.write(out_ref, _heads_together(jnp.concatenate(out), sizes))
            log_sums = jnp.concatenate([log_sum for _, log_sum in softmax], axis=1)
            log_sums_ref[tile.window, pl.ds(tile.index, 1), :] = log_sums

    _for_each_tile(log_sums_ref.shape[0], sizes, attend)


def _softmax(logits: Array) -> tuple[Array, Array]:
    """Weights over keys, of logits in base 2, and what one subtracts from logits to have theirs."""
    top = logits.max(axis=0, keepdims=True)
    weights = jnp.exp2(logits - top)
    total = weights.sum(axis=0, keepdims=True)
    return weights / total, top + jnp.log2(total)


def _backward_kernel(qkv_ref, log_sums_ref, d_out_ref, d_qkv_ref, *, sizes: _Sizes):
    scale = sizes.head_dim**-0.5
    exponent = scale / math.log(2)
    chunks = _chunks(sizes.num_queries)

    def attend(tiles: list["_Tile"]) -> None:
        qkv = [[tile.read(qkv_ref, part) for part in range(3)] for tile in tiles]
        queries = [_by_head(q, sizes) for q, _, _ in qkv]
        d_outs = [_by_head(tile.read(d_out_ref), sizes) for tile in tiles]
        log_sums = [log_sums_ref[tile.window, pl.ds(tile.index, 1), :] for tile in tiles]
        products = [
            [(dot(k, q[chunk], 1, 1) * exponent, dot(v, d[chunk], 1, 1)) for chunk in chunks]
            for q, d, (_, k, v) in zip(queries, d_outs, qkv, strict=True)
        ]
        softmaxes = [
            [
                _softmax_backward(*pair, row[:, chunk])
                for pair, chunk in zip(of_tile, chunks, strict=True)
            ]
            for row, of_tile in zip(log_sums, products, strict=True)
        ]
        for i, tile in enumerate(tiles):
            _, k, v = qkv[i]
            d_q, d_k, d_v = [], jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
            for chunk, (weights, d_logits) in zip(chunks, softmaxes[i], strict=True):
                d_logits = d_logits.astype(k.dtype)
                d_q.append(dot(d_logits, k, 0, 0))
                d_k += dot(d_logits, queries[i][chunk], 1, 0)
                d_v += dot(weights.astype(v.dtype), d_outs[i][chunk], 1, 0)
            d_q = _heads_together(jnp.concatenate(d_q), sizes)
            for part, grad in enumerate((d_q * scale, d_k * scale, d_v)):
                tile.write(d_qkv_ref, grad, part)

    _for_each_tile(log_sums_ref.shape[0], sizes, attend)


def _softmax_backward(logits: Array, d_weights: Array, log_sums: Array) -> tuple[Array, Array]:
    """The weights once more, and the gradient of the logits they were made of."""
    weights = jnp.exp2(logits - log_sums)
    mean = (weights * d_weights).sum(axis=0, keepdims=True)
    return weights, weights * (d_weights - mean)


@dataclasses.dataclass(frozen=True)
class _Tile:
    """Heads that share 128 lanes, of one window of a block. Which one is known as it runs."""

    window: Any
    index: Any
    sizes: _Sizes

    def read(self, ref: Any, part: int = 0) -> Array:
        """`[N, 128]` of the first, second or third of arrays side by side."""
        return ref[self._place(part)]

    def write(self, ref: Any, value: Array, part: int = 0) -> None:
        ref[self._place(part)] = value.astype(ref.dtype)

    def _place(self, part: int) -> tuple[Any, Any]:
        row = self.window * self.sizes.num_tokens
        lane = (part * self.sizes.num_tiles + self.index) * LANES
        return (
            pl.ds(pl.multiple_of(row, TOKENS), self.sizes.num_tokens),
            pl.ds(pl.multiple_of(lane, LANES), LANES),
        )


def _for_each_tile(
    num_windows: int, sizes: _Sizes, function: Callable[[list[_Tile]], None]
) -> None:
    """Calls `function` until it had every tile of the block, with some of them at once.

    One tile is a chain of operations that wait for one another; several, each operation written for
    all of them before the next one, keep the units of the chip busy.
    """
    count = num_windows * sizes.num_tiles
    at_once = math.gcd(count, TILES_AT_ONCE)

    @pl.loop(0, count, step=at_once)
    def _(first):
        indices = [first + i for i in range(at_once)]
        function([_Tile(i // sizes.num_tiles, i % sizes.num_tiles, sizes) for i in indices])


def _chunks(num_rows: int) -> list[slice]:
    """Columns of logits that are computed together."""
    return [slice(i, min(i + COLUMNS, num_rows)) for i in range(0, num_rows, COLUMNS)]


def _by_head(x: Array, sizes: _Sizes) -> Array:
    """`[N, 128]` to `[H N, 128]`: a copy per head, zero outside of the head's lanes."""
    heads = range(LANES // sizes.head_dim)
    return jnp.concatenate([jnp.where(is_head(x.shape, h, sizes.head_dim), x, 0) for h in heads])


def _heads_together(x: Array, sizes: _Sizes) -> Array:
    """`[H N, 128]` to `[N, 128]`: of each head's rows the head's lanes."""
    out, *others = (x[i : i + sizes.num_tokens] for i in range(0, len(x), sizes.num_tokens))
    for h, rows in enumerate(others, start=1):
        out = jnp.where(is_head(rows.shape, h, sizes.head_dim), rows, out)
    return out
