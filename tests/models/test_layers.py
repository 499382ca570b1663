# SPDX-License-Identifier: Apache-2.0
"""Leaf layers against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from florence2_jax.models.layers import LAYER_NORM_EPS, LayerNorm, drop_path, dropout, gelu


@pytest.mark.parametrize("width", [64, 33])  # Two entries share a random word: odd widths count.
def test_dropout_keeps_the_right_share_and_the_mean(width):
    x = jnp.ones((512, width))
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    sigma = np.sqrt(0.25 * 0.75 / y.size)
    assert abs((y == 0).mean() - 0.25) < 4 * sigma
    # Both entries of a word are independent: equal as often as two fair draws are.
    low, high = (y[:, : width // 2] == 0), (y[:, -(width // 2) :] == 0)
    expected = 0.25**2 + 0.75**2
    assert abs((low == high).mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / low.size)


@pytest.mark.parametrize("rate", [0.25, jnp.float32(0.25)])  # Traced under scan.
def test_drop_path_drops_whole_samples_and_keeps_the_mean(rate):
    y = np.asarray(drop_path(jnp.ones((4000, 2, 3)), rate, jax.random.key(0)))
    assert (y == y[:, :1, :1]).all()
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert abs((y[:, 0, 0] == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_gelu_is_exact():
    x = jnp.linspace(-6, 6, 1001)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    assert jnp.abs(gelu(x) - jax.nn.gelu(x, approximate=True)).max() > 1e-4


def test_layer_norm_survives_a_large_mean():
    x = 1000 + jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)), jnp.float32)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    ours = LayerNorm(64, dtype="float32", rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(ours, exact, atol=1e-3)  # x itself is rounded to 3e-5 of 1000.


def test_gradients_of_layer_norm_are_those_of_its_definition():
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=(2, 3, 4, 64)), jnp.float32) for _ in range(2))
    norm = LayerNorm(64, dtype="float32", rngs=nnx.Rngs(0))
    scale, bias = (jnp.asarray(rng.normal(size=64), jnp.float32) for _ in range(2))

    def by_definition(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return (weights * (centred / jnp.sqrt(variance + LAYER_NORM_EPS) * scale + bias)).sum()

    def by_layer(x, scale, bias):
        graphdef, state = nnx.split(norm)
        parameters = nnx.State({"scale": nnx.Param(scale), "bias": nnx.Param(bias)})
        return (weights * nnx.merge(graphdef, state | parameters)(x)).sum()

    expected = jax.grad(by_definition, (0, 1, 2))(x, scale, bias)
    found = jax.grad(by_layer, (0, 1, 2))(x, scale, bias)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)  # float32 sums of 64.


def test_layer_norm_gives_and_takes_gradients_in_the_dtype_it_computes_in():
    norm = LayerNorm(64, dtype="bfloat16", rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)), jnp.bfloat16)
    y, pull = jax.vjp(norm, x)
    assert y.dtype == pull(y)[0].dtype == jnp.bfloat16


def test_layer_norm_for_a_tpu_has_no_matrix_product():
    norm = LayerNorm(64, dtype="float32", rngs=nnx.Rngs(0))
    gradient = jax.jit(jax.grad(lambda x: norm(x).sum())).trace(jnp.ones((4, 64)))
    programs = {p: gradient.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu")}
    assert ("dot_general" in programs["cpu"], "dot_general" in programs["tpu"]) == (True, False)
