# SPDX-License-Identifier: Apache-2.0
"""Leaf layers of both towers, dropout by explicit keys, and stacks of equal layers.

Randomness is a key handed down, `None` where a call is deterministic: no layer holds a train or
eval flag, and a block gives the same result alone, rematerialised or inside a scan.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from florence2_jax.models.config import PAD_ID

Key: TypeAlias = jax.Array | None
"""A random key, or None for a deterministic call."""

LAYER_NORM_EPS = 1e-5  # Everywhere in the released models.
normal_init = nnx.initializers.normal(0.02)  # Everywhere too: timm's truncation is at 100 sigma.
SAVED_NAME = "dense"
"""Of results that the remat policy `dots` keeps: biased, so that nothing is left to be added."""


def split_key(key: Key, num: int) -> Sequence[Key]:
    """`num` independent keys, or `num` times None."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def dropout(x: Float[Array, "*axes"], rate: float, key: Key) -> Float[Array, "*axes"]:
    """Zeroes entries with probability `rate` (to 2**-16) and scales the rest; without a key, none.

    One random word decides on two entries: on CPU the mask is most of the cost of dropout.
    """
    if key is None or rate == 0:
        return x
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)))
    draws = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., : x.shape[-1]]
    return jnp.where(draws >= round(rate * 2**16), x / (1 - rate), 0).astype(x.dtype)


def drop_path(x: Float[Array, "B *axes"], rate: float | Array, key: Key) -> Float[Array, "B *axes"]:
    """Zeroes whole samples of a residual branch and scales the rest. `rate` may be traced."""
    if key is None or (isinstance(rate, float) and rate == 0):
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    # One factor per sample, in the type of `x`: a float32 one would widen all that it scales.
    return x * (keep / (1 - rate)).astype(x.dtype)


@jax.custom_vjp
def gelu(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """The exact GELU; `erf` as in PyTorch, cheaper than the `erfc` of `jax.nn.gelu`.

    Its gradient is made of `x` alone, so that nothing of the size of `x` is kept besides.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_backward(x: Array, grad: Array) -> tuple[Array]:
    density = jnp.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5
    return (grad * (_normal_cdf(x) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Linear(nnx.Module):
    """A biased dense layer run as one 2-D product: on CPU twice as fast as over `[B, N, D]`."""

    def __init__(self, dim: int, out_dim: int, *, dtype: str, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(normal_init(rngs.params(), (dim, out_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes F"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        y = x.astype(self.dtype).reshape(-1, x.shape[-1]) @ kernel + bias
        return checkpoint_name(y, SAVED_NAME).reshape(*x.shape[:-1], -1)


class LayerNorm(nnx.Module):
    """Normalises the last axis in float32, with the variance about the mean (two passes)."""

    def __init__(self, dim: int, *, dtype: str, rngs: nnx.Rngs):
        del rngs  # Nothing here starts at random.
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes D"]:
        scale, bias = jnp.asarray(self.scale[...]), jnp.asarray(self.bias[...])
        return _layer_norm(x, scale, bias, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, dtype: str) -> Array:
    return _layer_norm_forward(x, scale, bias, dtype)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, dtype: str) -> tuple[Array, Any]:
    mean = jnp.mean(x, axis=-1, keepdims=True, dtype=jnp.float32)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    deviations = jax.lax.rsqrt(variance + LAYER_NORM_EPS)
    y = (x - mean) * deviations * scale + bias
    return y.astype(dtype), (x, mean, deviations, scale)


def _layer_norm_backward(dtype: str, residuals: Any, grad: Array) -> tuple[Array, Array, Array]:
    x, mean, deviations, scale = residuals
    if dtype != "float32":
        # XLA would have the product before this write, and move, its gradient in float32.
        grad = jax.lax.optimization_barrier(grad).astype(jnp.float32)
    normal = (x - mean) * deviations
    along = grad * normal
    inner = grad * scale - _mean_by(grad, scale) - normal * _mean_by(along, scale)
    return (inner * deviations).astype(x.dtype), _sum_rows(along), _sum_rows(grad)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


# XLA on CPU sums slowly where a sum shares its loop with what it sums, but calls a fast product.
# The platform is that of the compiled program, also where a TPU's is compiled on a CPU.


def _mean_by(x: Float[Array, "*axes D"], weights: Float[Array, "D"]) -> Float[Array, "*axes 1"]:
    """Mean of `weights * x` over the last axis."""
    return jax.lax.platform_dependent(
        x,
        weights,
        cpu=lambda x, weights: x @ weights[:, None] / len(weights),
        default=lambda x, weights: jnp.mean(x * weights, axis=-1, keepdims=True),
    )


def _sum_rows(x: Float[Array, "*axes D"]) -> Float[Array, "D"]:
    """Sum over all axes but the last."""
    return jax.lax.platform_dependent(
        x.reshape(-1, x.shape[-1]),
        cpu=lambda rows: jnp.ones(len(rows), rows.dtype) @ rows,
        default=lambda rows: rows.sum(axis=0),
    )


class Mlp(nnx.Module):
    """Two dense layers around a GELU; `activation_dropout` acts between them."""

    def __init__(
        self, dim: int, mlp_dim: int, *, activation_dropout: float = 0.0, dtype: str, rngs: nnx.Rngs
    ):
        self.activation_dropout = activation_dropout
        self.fc1 = Linear(dim, mlp_dim, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(mlp_dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*axes D"], *, key: Key = None) -> Float[Array, "*axes D"]:
        # Rows stay flat in between: sequences of odd lengths would be laid out anew each time.
        hidden = gelu(self.fc1(x.reshape(-1, x.shape[-1])))
        return self.fc2(dropout(hidden, self.activation_dropout, key)).reshape(x.shape)


class DepthwiseConv(nnx.Module):
    """3x3 convolution of each channel by itself, zero padded, as `"conv"` or as `"shift"`.

    `"shift"` adds nine shifted products; measured, it is 2x faster than XLA's grouped convolution
    on CPU and by the TPU compiler 1.4x slower there.
    """

    def __init__(self, dim: int, *, method: str, dtype: str, rngs: nnx.Rngs):
        self.method = method
        self.dtype = dtype
        self.kernel = nnx.Param(normal_init(rngs.params(), (3, 3, 1, dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Float[Array, "B Y X D"]) -> Float[Array, "B Y X D"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        if self.method == "conv":
            axes = ("NHWC", "HWIO", "NHWC")
            return bias + jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=axes, feature_group_count=x.shape[-1]
            )
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [(i, j) for i in range(3) for j in range(3)]
        return bias + sum(x[:, i : i + height, j : j + width] * kernel[i, j, 0] for i, j in taps)


class SharedEmbedding(nnx.Module):
    """Token embedding and, transposed, the output layer. Rows are padded to `padded_size`."""

    def __init__(self, size: int, padded_size: int, dim: int, *, dtype: str, rngs: nnx.Rngs):
        self.size = size
        self.dtype = dtype
        rows = normal_init(rngs.params(), (padded_size, dim), jnp.float32)
        self.embedding = nnx.Param(rows.at[PAD_ID].set(0).at[size:].set(0))

    def __call__(self, ids: Int[Array, "*axes"]) -> Float[Array, "*axes D"]:
        """Rows of `ids`; an id outside the table gives NaN rather than another token's row."""
        return jnp.take(self.embedding[...], ids, axis=0, mode="fill").astype(self.dtype)

    def logits(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes V"]:
        """Float32 scores of every row; those of padding rows are -1e9, and pass no gradient."""
        rows = self.embedding[...].astype(self.dtype)
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        scores = jnp.einsum("ND,VD->NV", flat, rows, preferred_element_type=jnp.float32)
        if self.size < len(rows):
            scores = jnp.where(jnp.arange(len(rows)) < self.size, scores, -1e9)
        return scores.reshape(*x.shape[:-1], -1)


# Stacks of equal layers: a list, or one layer whose parameters lead with a layer axis.

Stack: TypeAlias = nnx.Module

_POLICIES = {"full": None, "dots": jax.checkpoint_policies.save_only_these_names(SAVED_NAME)}


def make_stack(make_layer: Callable[[], nnx.Module], depth: int, *, scan: bool) -> Stack:
    """`depth` layers. The same random stream gives the same weights with and without `scan`."""
    layers = [make_layer() for _ in range(depth)]
    if not scan:
        return nnx.List(layers)
    graphdefs, states = zip(*(nnx.split(layer) for layer in layers), strict=True)
    return nnx.merge(graphdefs[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def run_stack(
    stack: Stack,
    x: Float[Array, "B *axes"],
    *context: Any,
    remat: str,
    key: Key = None,
    **per_layer: Sequence[Any],
) -> Float[Array, "B *axes"]:
    """Applies `x = layer(x, *context, key=..., **{name: values[i]})` for every layer `i`.

    Args:
        stack: from `make_stack`.
        x: what the layers pass on.
        context: what every layer reads besides.
        remat: `"none"`, `"full"` (each layer is recomputed in the backward pass) or `"dots"` (all
            of it but the results of dense layers and of the kernel of window attention).
        key: split into one per layer.
        per_layer: sequences with one entry per layer.
    """

    def checkpoint(function, **options):
        if remat == "none":
            return function
        return jax.checkpoint(function, policy=_POLICIES[remat], **options)

    if isinstance(stack, nnx.List):
        for i, (layer, layer_key) in enumerate(zip(stack, split_key(key, len(stack)), strict=True)):
            options = {name: values[i] for name, values in per_layer.items()}
            # The key is an argument; options stay outside, so that a rate of 0 is seen as such.
            call = functools.partial(_call, nnx.split(layer)[0], options)
            x = checkpoint(call)(nnx.state(layer), layer_key, x, context)
        return x

    graphdef, params = nnx.split(stack)
    depth = len(jax.tree.leaves(params)[0])
    keys = None if key is None else jax.random.split(key, depth)
    options = {name: jnp.asarray(values) for name, values in per_layer.items()}

    def body(x, scanned):
        params, layer_key, options = scanned
        return _call(graphdef, options, params, layer_key, x, context), None

    # Inside a loop nothing can be merged with the forward pass, so no barrier is needed.
    return jax.lax.scan(checkpoint(body, prevent_cse=False), x, (params, keys, options))[0]


def _call(graphdef, options, params, key, x, context):
    return nnx.merge(graphdef, params)(x, *context, key=key, **options)


def unstack(stack: Stack) -> list[Any]:
    """The layers one by one, for code that treats them one by one (a cache per layer)."""
    if isinstance(stack, nnx.List):
        return list(stack)
    graphdef, params = nnx.split(stack)
    depth = len(jax.tree.leaves(params)[0])
    return [nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], params)) for i in range(depth)]
