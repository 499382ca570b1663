# SPDX-License-Identifier: Apache-2.0
"""The kernel of window attention, interpreted, against the reference; and that it compiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies

from florence2_jax.models.attention import WindowAttention
from florence2_jax.models.kernels import choice, window_pallas
from florence2_jax.models.kernels.window import window_attention
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.typing import UserError

from .conftest import relative_errors


@functools.partial(jax.jit, static_argnums=(2, 3))
def attend(qkv, d_out, num_heads: int, method: str):
    """The result, and the gradients of q, k and v."""
    run = functools.partial(window_attention, num_heads=num_heads, method=method)
    out, pull = jax.vjp(run, qkv)
    return (out, *jnp.split(pull(d_out)[0], 3, axis=-1))


def draw(num_windows: int, num_tokens: int, dim: int, dtype="float32"):
    rng = np.random.default_rng(0)
    sizes = (num_windows, num_tokens, 3 * dim), (num_windows, num_tokens, dim)
    return [jnp.asarray(rng.normal(size=size), dtype) for size in sizes]


def blocks_of(num_windows: int, qkv, monkeypatch) -> None:
    monkeypatch.setattr(window_pallas, "BLOCK_BYTES", num_windows * qkv[0].nbytes)


@pytest.mark.parametrize(
    ("num_windows", "num_tokens", "num_heads", "head_dim"),
    [
        (3, 144, 4, 32),  # Stage 1 of base.
        (5, 16, 8, 32),
        (1, 64, 16, 32),
        (3, 16, 32, 32),
        (7, 16, 2, 64),
        (2, 48, 1, 128),
        (3, 16, 16, 8),
    ],
)
def test_kernel_equals_the_reference_in_float32(
    num_windows, num_tokens, num_heads, head_dim, monkeypatch
):
    qkv, d_out = draw(num_windows, num_tokens, num_heads * head_dim)
    blocks_of(2, qkv, monkeypatch)  # Most numbers of windows above leave a block half empty.
    results = attend(qkv, d_out, num_heads, "tiled")
    expected = attend(qkv, d_out, num_heads, "reference")
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_kernel_in_bfloat16_is_as_near_to_float32_as_the_reference(monkeypatch):
    qkv, d_out = draw(5, 144, 256, "bfloat16")
    blocks_of(3, qkv, monkeypatch)
    exact = attend(qkv.astype("float32"), d_out.astype("float32"), 8, "reference")

    def errors(method: str) -> list[float]:
        return relative_errors(attend(qkv, d_out, 8, method), exact)

    for kernel, reference in zip(errors("tiled"), errors("reference"), strict=True):
        assert kernel <= 1e-2
        assert kernel <= 1.1 * reference


def test_large_logits_neither_overflow_nor_vanish():
    qkv, d_out = draw(1, 16, 128)
    qkv = qkv.at[..., :256].multiply(8)  # Logits of +-200: exp of 89 is infinite in float32.
    results = attend(qkv, d_out, 4, "tiled")
    for ours, theirs in zip(results, attend(qkv, d_out, 4, "reference"), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)  # Logits round to 2e-5.


@pytest.mark.parametrize("num_windows", [8, 6])  # Six do not spread over four: all compute all.
def test_each_device_attends_in_its_own_windows(num_windows):
    qkv, d_out = draw(num_windows, 16, 128)
    expected = attend(qkv, d_out, 4, "reference")
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        spec = jax.P(("replica", "fsdp") if num_windows == 8 else None)
        sharding = jax.NamedSharding(mesh, spec)
        placed = [jax.device_put(x, sharding) for x in (qkv, d_out)]
        compiled = attend.lower(*placed, 4, "tiled").compile()
        results = compiled(*placed)
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert results[0].sharding.shard_shape(results[0].shape)[0] == (2 if num_windows == 8 else 6)
    text = compiled.as_text() or ""
    assert not [op for op in ("all-gather", "all-reduce", "all-to-all") if f" {op}(" in text]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 11)])  # The second needs padding.
def test_the_layer_gives_the_same_with_the_kernel(height, width):
    layers = [
        WindowAttention(
            128, num_heads=4, window_size=4, method=method, dtype="float32", rngs=nnx.Rngs(0)
        )
        for method in ("tiled", "reference")
    ]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, height, width, 128)), jnp.float32)
    ours, theirs = (nnx.jit(lambda layer, x: layer(x))(layer, x) for layer in layers)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_choice_is_by_platform_and_size():
    tiny, base = dict(dim=64, num_heads=2), dict(dim=128, num_heads=4)
    assert not choice.is_tiled("auto", **base, window_tokens=144)
    with jax.set_mesh(tpu_mesh()):
        assert choice.is_tiled("auto", **base, window_tokens=144)
        assert choice.is_tiled("auto", **base)
        assert not choice.is_tiled("reference", **base)
        assert not choice.is_tiled("auto", **tiny)
        assert not choice.is_tiled("auto", **base, window_tokens=49)
        assert not choice.is_tiled("auto", **base, window_tokens=576)
    with pytest.raises(UserError, match="windows of 49 tokens cannot be tiled"):
        choice.is_tiled("tiled", **base, window_tokens=49)
    with pytest.raises(UserError, match="2 heads of 32 channels cannot be tiled"):
        choice.is_tiled("tiled", **tiny)
    with pytest.raises(UserError, match="no method 'flash'; choose one of auto"):
        choice.is_tiled("flash", **base)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
def test_forward_and_backward_compile_for_tpus_that_are_not_here(topology):
    mesh = tpu_mesh(topology)
    shape, whole = (16, 144), jax.NamedSharding(mesh, jax.P(("replica", "fsdp")))
    arrays = [
        jax.ShapeDtypeStruct((*shape, width), jnp.bfloat16, sharding=whole) for width in (768, 256)
    ]
    with jax.set_mesh(mesh):
        compiled = attend.lower(*arrays, 8, "auto").compile()
    text = compiled.as_text() or ""
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert "bf16[4,144,768]" in text  # A quarter of the windows on each of four devices.
    assert "f32[4,8,144,144]" not in text


def tpu_mesh(topology: str = "v5e:2x2"):
    pytest.importorskip("libtpu")
    devices = topologies.get_topology_desc(topology, "tpu").devices
    return make_mesh(MeshConfig(fsdp=4), devices)
