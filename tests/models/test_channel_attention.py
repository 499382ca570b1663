# SPDX-License-Identifier: Apache-2.0
"""Channel attention on tiles of 128 channels against the reference, group by group."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from florence2_jax.models.attention import ChannelAttention
from florence2_jax.models.kernels.channel import channel_attention

from .conftest import relative_errors


@functools.partial(jax.jit, static_argnums=(2, 3))
def attend(qkv, d_out, num_groups: int, method: str):
    """The result, and the gradients of q, k and v."""
    run = functools.partial(channel_attention, num_groups=num_groups, method=method)
    out, pull = jax.vjp(run, qkv)
    return (out, *jnp.split(pull(d_out)[0], 3, axis=-1))


def draw(num_tokens: int, dim: int, dtype="float32"):
    rng = np.random.default_rng(0)
    sizes = (3, num_tokens, 3 * dim), (3, num_tokens, dim)
    return [jnp.asarray(rng.normal(size=size), dtype) for size in sizes]


@pytest.mark.parametrize(
    ("num_tokens", "num_groups", "group_dim"), [(36, 4, 32), (35, 16, 32), (7, 2, 64), (9, 32, 8)]
)
def test_tiles_equal_the_reference_in_float32(num_tokens, num_groups, group_dim):
    qkv, d_out = draw(num_tokens, num_groups * group_dim)
    results = attend(qkv, d_out, num_groups, "tiled")
    expected = attend(qkv, d_out, num_groups, "reference")
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_tiles_in_bfloat16_are_as_near_to_float32_as_the_reference():
    qkv, d_out = draw(144, 256, "bfloat16")
    exact = attend(qkv.astype("float32"), d_out.astype("float32"), 8, "reference")

    def errors(method: str) -> list[float]:
        return relative_errors(attend(qkv, d_out, 8, method), exact)

    for tiled, reference in zip(errors("tiled"), errors("reference"), strict=True):
        assert tiled <= 1e-2
        assert tiled <= 1.1 * reference


def test_the_layer_gives_the_same_with_tiles():
    layers = [
        ChannelAttention(128, num_groups=4, method=method, dtype="float32", rngs=nnx.Rngs(0))
        for method in ("tiled", "reference")
    ]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 7, 128)), jnp.float32)
    ours, theirs = (nnx.jit(lambda layer, x: layer(x))(layer, x) for layer in layers)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
