# SPDX-License-Identifier: Apache-2.0
"""Gradients over a mesh are those of the whole batch, and end where their parameters live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence2_jax.parallel.data_parallel import value_and_grad
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.parallel.partitioning import batch_sharding, state_shardings

SIZES = [dict(fsdp=8), dict(replica=4, fsdp=2), dict(replica=8, fsdp=1)]
SIZES += [dict(replica=2, fsdp=2, tensor=2), dict(fsdp=4, tensor=2), dict(fsdp=1, tensor=8)]


@pytest.fixture
def params() -> dict:
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(64, 128)), rng.normal(size=128)
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return {"text": {"fc1": layer}}


@pytest.fixture
def batch() -> dict:
    return {"x": np.random.default_rng(1).normal(size=(16, 64)).astype(np.float32)}


def loss(params, batch, key):
    layer = params["text"]["fc1"]
    y = jnp.tanh(batch["x"].astype(layer["kernel"].dtype) @ layer["kernel"] + layer["bias"])
    return jnp.square(y.astype(jnp.float32)).sum(), jnp.asarray(len(batch["x"]))


def spread(params, batch, sizes, dtype, of=loss):
    mesh = make_mesh(MeshConfig.create(**sizes))
    shardings = state_shardings(params, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings), jax.device_put(batch, batch_sharding(mesh))
        step = jax.jit(lambda p, b, k: value_and_grad(of, p, b, k, dtype=dtype))
        (sums, grads) = step(*placed, jax.random.key(0))
    return sums, grads, shardings


@pytest.mark.parametrize("sizes", SIZES)
def test_they_are_the_gradients_of_the_whole_batch(params, batch, sizes):
    (value, rows), grads, shardings = spread(params, batch, sizes, "float32")
    (wanted, _), expected = jax.value_and_grad(loss, has_aux=True)(params, batch, None)
    assert rows == 16
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grads, expected)
    for grad, sharding in zip(jax.tree.leaves(grads), jax.tree.leaves(shardings), strict=True):
        if "tensor" not in sizes:  # What it cuts is the partitioner's until the step says where.
            assert grad.sharding.is_equivalent_to(sharding, grad.ndim)


def test_kernels_travel_in_the_compute_type_and_gradients_are_summed_in_float32(params, batch):
    seen = {}

    def looking(whole, batch, key):
        seen.update(jax.tree.map(lambda x: (x.shape, x.dtype), whole["text"]["fc1"]))
        return loss(whole, batch, key)

    (_, grads, _) = spread(params, batch, dict(fsdp=8), "bfloat16", looking)
    assert seen == {"kernel": ((64, 128), jnp.bfloat16), "bias": ((128,), jnp.float32)}
    expected = jax.grad(lambda p: loss(p, batch, None)[0])(params)
    error = np.abs(grads["text"]["fc1"]["kernel"] - expected["text"]["fc1"]["kernel"]).max()
    assert grads["text"]["fc1"]["kernel"].dtype == jnp.float32
    assert 0 < error < 0.1 * np.abs(expected["text"]["fc1"]["kernel"]).max()


def test_every_device_draws_for_itself(params):
    def noise(params, batch, key):
        draw = jax.random.normal(key)
        return draw, jnp.square(draw)

    batch = {"x": np.zeros((16, 1), np.float32)}
    (total, squares), _, _ = spread(params, batch, dict(replica=2, fsdp=4), "float32", noise)
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(8)]
    draws = np.array([jax.random.normal(key) for key in keys])
    np.testing.assert_allclose(total, draws.sum(), rtol=1e-5)
    np.testing.assert_allclose(squares, np.square(draws).sum(), rtol=1e-5)


def test_outside_a_mesh_kernels_are_cast_and_the_batch_is_one(params, batch):
    (value, rows), grads = value_and_grad(loss, params, batch, jax.random.key(0), dtype="float32")
    assert rows == 16 and value == loss(params, batch, None)[0]
    assert grads["text"]["fc1"]["bias"].shape == (128,)
