# SPDX-License-Identifier: Apache-2.0
"""The kernel of attention between tokens, interpreted, against the reference; that it compiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx
from jax.experimental import topologies

from florence2_jax.models.attention import MultiHeadAttention
from florence2_jax.models.kernels import choice, token, token_pallas
from florence2_jax.models.kernels.hashing import is_kept
from florence2_jax.parallel.mesh import MeshConfig, make_mesh

from .conftest import relative_errors


def reference(q, k, v, is_visible, *, num_heads: int, dropout_rate: float, key):
    """The equation, with heads side by side and dropout as in the kernel."""
    q, k, v = (rearrange(x, "M T (H C) -> M H T C", H=num_heads) for x in (q, k, v))
    drop = functools.partial(token.dropped_as_in_kernel, rate=dropout_rate, key=key)
    return token.reference(q, k, v, is_visible[:, None], drop)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def attend(run, num_heads: int, rate: float, q, k, v, is_visible, d_out):
    """The result, and the gradients of q, k and v."""

    def function(q, k, v):
        key = jax.random.key(5) if rate else None
        return run(q, k, v, is_visible, num_heads=num_heads, dropout_rate=rate, key=key)

    out, pull = jax.vjp(function, q, k, v)
    return (out, *pull(d_out))


def draw(num_sequences: int, num_queries: int, num_keys: int, dim: int, dtype="float32"):
    rng = np.random.default_rng(0)
    sizes = [(num_sequences, n, dim) for n in (num_queries, num_keys, num_keys, num_queries)]
    q, k, v, d_out = (jnp.asarray(rng.normal(size=size), dtype) for size in sizes)
    is_visible = np.arange(num_keys) < rng.integers(1, num_keys + 1, (num_sequences, 1, 1))
    return q / 8, k, v, jnp.asarray(is_visible), d_out  # Scaled, as queries are.


def hide_the_future(arrays, *, is_shared: bool):
    """Each query sees the keys up to its own, of those that it saw before or of all."""
    q, k, v, is_visible, d_out = arrays
    past = jnp.tril(jnp.ones((1, q.shape[1], k.shape[1]), bool))
    return q, k, v, past if is_shared else past & is_visible, d_out


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "num_heads", "head_dim", "rate"),
    [
        (48, 48, 2, 64, 0.1),
        (40, 56, 4, 32, 0.0),
        (17, 33, 1, 128, 0.3),
    ],
)
def test_token_kernel_equals_the_reference_in_float32(
    num_queries, num_keys, num_heads, head_dim, rate, monkeypatch
):
    monkeypatch.setattr(token_pallas, "ROWS", 32)  # More than one round, the last one shorter.
    arrays = draw(3, num_queries, num_keys, num_heads * head_dim)
    results = attend(token.token_attention, num_heads, rate, *arrays)
    expected = attend(reference, num_heads, rate, *arrays)
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_shared", [True, False])
def test_token_kernel_hides_the_future(is_shared, monkeypatch):
    monkeypatch.setattr(token_pallas, "ROWS", 16)
    arrays = hide_the_future(draw(2, 40, 40, 128), is_shared=is_shared)
    results = attend(token.token_attention, 2, 0.1, *arrays)
    for ours, theirs in zip(results, attend(reference, 2, 0.1, *arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_token_kernel_in_bfloat16_is_as_near_to_float32_as_the_reference():
    arrays = draw(2, 64, 80, 256, "bfloat16")
    wide = (x if x.dtype == bool else x.astype("float32") for x in arrays)
    exact = attend(reference, 4, 0.1, *wide)

    def errors(run) -> list[float]:
        return relative_errors(attend(run, 4, 0.1, *arrays), exact)

    for ours, theirs in zip(errors(token.token_attention), errors(reference), strict=True):
        assert ours <= max(1.2 * theirs, 1e-3) and ours < 1e-2


def test_a_share_of_the_weights_is_dropped_and_no_two_places_alike():
    grid = np.ogrid[:4, :8, :64, :96]
    seeds = np.random.default_rng(0).integers(-(2**31), 2**31, 4)
    seed = jnp.asarray(seeds, jnp.int32)[grid[0]]
    heads, rows, columns = (jnp.asarray(x, jnp.int32) for x in grid[1:])
    kept = np.asarray(is_kept(seed, heads, rows, columns, 0.1))
    assert abs(kept.mean() - 0.9) < 3e-3  # Four standard deviations of 196,608 draws.
    for axis in range(4):  # Neighbours agree as often as by chance.
        ours, theirs = (np.delete(kept, i, axis) for i in (0, kept.shape[axis] - 1))
        assert abs((ours == theirs).mean() - 0.82) < 6e-3


def test_what_is_dropped_does_not_depend_on_the_number_of_devices():
    arrays = draw(8, 32, 32, 128)
    expected = attend(token.token_attention, 2, 0.2, *arrays)
    with jax.set_mesh(make_mesh(MeshConfig())):
        found = attend(token.token_attention, 2, 0.2, *arrays)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(208, 208), (64, 641)])
def test_the_tpu_compiler_takes_the_token_kernel(num_queries, num_keys):
    pytest.importorskip("libtpu")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = make_mesh(MeshConfig(), devices)
    spread = jax.NamedSharding(mesh, jax.P(("replica", "fsdp")))
    shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread)
        for x in draw(4, num_queries, num_keys, 256, "bfloat16")
    ]
    with jax.set_mesh(mesh):
        text = attend.lower(token.token_attention, 4, 0.1, *shapes).compile().as_text() or ""
    assert "token_attention_backward" in text and " all-gather(" not in text


def test_the_choice_is_by_platform_size_and_method():
    base = dict(dim=768, num_heads=12, num_queries=208, num_keys=208)
    assert not choice.is_token_tiled("auto", **base)
    assert choice.is_token_tiled("tiled", **base)
    devices = np.array(
        topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    )
    with jax.set_mesh(make_mesh(MeshConfig(), devices.tolist())):
        assert choice.is_token_tiled("auto", **base)
        assert not choice.is_token_tiled("reference", **base)
        for other in (dict(num_queries=1), dict(num_keys=4096), dict(num_heads=9)):
            assert not choice.is_token_tiled("auto", **base | other)


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_layer_of_tokens_gives_the_same_with_the_kernel(is_shared):
    layers = [
        MultiHeadAttention(
            128, num_heads=2, dropout=0.1, method=method, dtype="float32", rngs=nnx.Rngs(0)
        )
        for method in ("tiled", "reference")
    ]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 128)), jnp.float32)
    mask = hide_the_future(draw(2, 32, 32, 128), is_shared=is_shared)[3][:, None]
    ours, theirs = (
        nnx.jit(lambda layer: layer(x, layer.keys_values(x), mask))(layer) for layer in layers
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
