# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from florence2_jax.training.optimizer import clip_by_norm


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
