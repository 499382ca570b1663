# SPDX-License-Identifier: Apache-2.0
"""One update: the same on one device and eight, in one part or several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descent import descend

from florence2_jax.models.config import Florence2Config
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.training.config import RunConfig
from florence2_jax.training.loss import LossConfig
from florence2_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from florence2_jax.training.state import InitConfig, init_params
from florence2_jax.typing import UserError


@pytest.fixture
def config(small_run) -> Florence2Config:
    small_run["model"]["text"] |= dict(vocab_size=1400)
    return RunConfig.create(small_run).model


@pytest.fixture
def batch() -> dict:
    rng = np.random.default_rng(0)
    targets = rng.integers(4, 1400, (8, 2, 10)).astype(np.int32)
    targets[np.arange(8), :, 2:] = np.where(rng.random((8, 2, 8)) < 0.5, 1, targets[:, :, 2:])
    return {
        "image": rng.integers(0, 256, (8, 64, 64, 3)).astype(np.uint8),
        "prompt_ids": rng.integers(4, 1400, (8, 2, 6)).astype(np.int32),
        "target_ids": targets,
        "task_ids": rng.integers(0, 17, (8, 2)).astype(np.int32),
    }


def without_dropout(small_run: dict) -> Florence2Config:
    rates = dict(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, vocab_size=1400)
    small_run["model"]["text"] |= rates
    small_run["model"]["davit"]["drop_path_rate"] = 0.0
    return RunConfig.create(small_run).model


def assert_close(a, b, *, atol):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(x, y, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(replica=2, fsdp=2, tensor=2)])
def test_eight_devices_equal_one(small_run, batch, sizes):
    config = without_dropout(small_run)
    alone = descend(config, batch, make_mesh(MeshConfig(), jax.devices()[:1]))
    spread = descend(config, batch, make_mesh(MeshConfig.create(**sizes)))
    for one, eight in zip(alone[1], spread[1], strict=True):
        np.testing.assert_allclose(one["loss"], eight["loss"], rtol=1e-5)
        np.testing.assert_allclose(one["grad_norm"], eight["grad_norm"], rtol=1e-4)
    assert_close(alone[0], spread[0], atol=2e-5)  # float32 sums in another order.


def test_location_weight_changes_the_gradient_and_not_the_reported_loss(small_run, batch):
    config = without_dropout(small_run)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    lighter = {"loss": LossConfig(location_weight=0.1), "first_location_id": 370}
    _, plain, _ = descend(config, batch, mesh, steps=1)
    _, light, _ = descend(config, batch, mesh, steps=1, **lighter)
    np.testing.assert_allclose(plain[0]["loss"], light[0]["loss"], rtol=1e-6)
    assert abs(plain[0]["grad_norm"] / light[0]["grad_norm"] - 1) > 0.01
    _, parts, _ = descend(config, batch, mesh, steps=1, accumulate=4, **lighter)
    np.testing.assert_allclose(parts[0]["grad_norm"], light[0]["grad_norm"], rtol=1e-4)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_the_large_batch(small_run, batch, accumulate):
    config = without_dropout(small_run)
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    whole = descend(config, batch, mesh)
    parts = descend(config, batch, mesh, accumulate=accumulate)
    for a, b in zip(whole[1], parts[1], strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_array_equal(a["task_token_sums"], b["task_token_sums"])
    assert_close(whole[0], parts[0], atol=2e-5)


def test_more_padding_changes_nothing(small_run, batch):
    rates = dict(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, vocab_size=1400)
    small_run["model"]["text"] |= rates
    small_run["model"]["davit"]["drop_path_rate"] = 0.0
    config = RunConfig.create(small_run).model
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    padded = dict(batch)
    for name in ("prompt_ids", "target_ids"):
        padded[name] = np.pad(batch[name], ((0, 0), (0, 0), (0, 5)), constant_values=1)
    a, b = descend(config, batch, mesh), descend(config, padded, mesh)
    np.testing.assert_allclose(a[1][0]["loss"], b[1][0]["loss"], rtol=1e-5)
    assert_close(a[0], b[0], atol=2e-5)


def test_the_schedule_is_warm_up_then_cosine():
    rate = learning_rate(OptimizerConfig(peak_lr=1.0, warmup_steps=10, final_lr_ratio=0.1), 110)
    values = [float(rate(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0, 0.5, 1, 0.55, 0.1], atol=1e-6)
    with pytest.raises(UserError, match=r"warmup_steps: 10 must be less than the run's 10 steps"):
        learning_rate(OptimizerConfig(peak_lr=1.0, warmup_steps=10), 10)


def test_only_kernels_are_decayed(config):
    params = init_params(config, jax.random.key(0))
    optimizer = make_optimizer(
        OptimizerConfig(peak_lr=1.0, warmup_steps=0, weight_decay=0.5), total_steps=10
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, update in jax.tree_util.tree_leaves_with_path(updates)
        if np.any(update)
    }
    assert moved and all(name.endswith("kernel") for name in moved)


def test_ordinal_locations_look_alike_when_they_are_near(config):
    params = init_params(
        config, jax.random.key(0), InitConfig(locations="ordinal"), first_location_id=300
    )
    table = np.asarray(params["text"]["shared"]["embedding"])
    rows = table[300:1300]
    plain = np.asarray(init_params(config, jax.random.key(0))["text"]["shared"]["embedding"])
    np.testing.assert_array_equal(table[:300], plain[:300])
    np.testing.assert_allclose(rows.std(), 0.02, rtol=0.05)
    same, near, far = (float(rows[500] @ rows[500 + d]) for d in (0, 2, 300))
    assert same > near > 0.8 * same and far < 0.5 * same
