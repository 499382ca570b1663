# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from florence2_jax.training.optimizer import OptimizerConfig, clip_by_norm, make_optimizer


@pytest.mark.parametrize("size", [0.01, 10.0])  # Below the limit, and above it.
def test_clipping_is_that_of_optax(size):
    rng = np.random.default_rng(0)
    grads = {name: jnp.asarray(size * rng.normal(size=(3, 5)), jnp.float32) for name in "ab"}
    ours, theirs = clip_by_norm(1.0), optax.clip_by_global_norm(1.0)
    found, expected = (clip.update(grads, clip.init(grads))[0] for clip in (ours, theirs))
    for name in grads:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_clipping_leaves_zero_gradients_zero():
    grads = {"a": jnp.zeros((3, 5))}
    clip = clip_by_norm(1.0)
    assert not np.asarray(clip.update(grads, clip.init(grads))[0]["a"]).any()


@pytest.mark.parametrize("bad", [7.0, float("nan"), float("inf")])
def test_a_spike_changes_neither_parameters_nor_moments_but_is_counted(bad):
    config = OptimizerConfig(peak_lr=1e-2, warmup_steps=1, skip_norm=5.0)
    optimizer = make_optimizer(config, 10)
    params = {"a": {"kernel": jnp.ones((3, 1))}}

    def step(params, state, size):
        grads = {"a": {"kernel": jnp.asarray([[size], [0.0], [0.0]])}}
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(params, optimizer.init(params), 1.0)
    params, state = step(params, state, 4.0)
    same, after = step(params, state, bad)
    assert config.skips(bad) and not config.skips(4.0)
    np.testing.assert_array_equal(same["a"]["kernel"], params["a"]["kernel"])
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        if jnp.issubdtype(new.dtype, jnp.floating):
            np.testing.assert_array_equal(new, old)
        else:
            assert new == old + 1
    moved, _ = step(same, after, 1.0)
    assert np.isfinite(moved["a"]["kernel"]).all()
    assert (moved["a"]["kernel"] != params["a"]["kernel"]).any()


def test_without_a_limit_nothing_is_skipped():
    assert not OptimizerConfig(peak_lr=1e-2, warmup_steps=1).skips(float("nan"))
