# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.tokenizer import DECODER_START_ID, PAD_ID
from florence2_jax.training.loss import (
    LossConfig,
    shift_right,
    sums_per_task,
    token_cross_entropy,
    token_weights,
)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5, 1100)).astype(np.float32)
    targets = rng.integers(4, 1100, size=(2, 3, 5)).astype(np.int32)
    targets[0, 0, 3:] = PAD_ID
    targets[1, 2] = PAD_ID
    return jnp.asarray(logits), jnp.asarray(targets)


def test_it_is_the_negative_log_softmax_of_the_target(batch):
    logits, targets = batch
    losses = token_cross_entropy(logits, targets)
    expected = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)), np.asarray(targets)[..., None], -1
    )[..., 0]
    expected[np.asarray(targets) == PAD_ID] = 0
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)  # float32 sums of 1,100.


def test_padding_has_no_gradient(batch):
    logits, targets = batch
    grads = jax.grad(lambda x: token_cross_entropy(x, targets).sum())(logits)
    assert not np.asarray(grads)[np.asarray(targets) == PAD_ID].any()


def test_it_equals_transformers_loss(batch):  # Facts 7, #1: shifted once, padding at -100.
    torch = pytest.importorskip("torch")
    logits, targets = batch
    labels = torch.from_numpy(np.array(targets)).long()
    labels[labels == PAD_ID] = -100
    flat = torch.from_numpy(np.array(logits)).reshape(-1, logits.shape[-1])
    expected = torch.nn.functional.cross_entropy(flat, labels.reshape(-1))
    mean = token_cross_entropy(logits, targets).sum() / (targets != PAD_ID).sum()
    np.testing.assert_allclose(float(mean), float(expected), rtol=1e-6)


def test_the_decoder_reads_the_targets_one_step_late():
    targets = jnp.array([[[0, 7, 8, 2]]])
    assert shift_right(targets).tolist() == [[[DECODER_START_ID, 0, 7, 8]]]


def test_sums_per_task_count_real_tokens_only(batch):
    logits, targets = batch
    losses = token_cross_entropy(logits, targets)
    task_ids = jnp.array([[0, 1, 0], [3, 3, -1]])
    loss_sums, token_sums = sums_per_task(losses, targets, task_ids)
    assert loss_sums.shape == (len(TASKS),)
    assert token_sums[:4].tolist() == [3 + 5, 5, 0, 10]
    np.testing.assert_allclose(loss_sums.sum(), losses.sum(), rtol=1e-6)


def test_locations_may_count_less_than_words_and_padding_never():
    targets = jnp.array([[[0, 10, 550, 1049, 1050, 2, 1, 1]]])
    weights = token_weights(targets, LossConfig(location_weight=0.25), first_location_id=50)
    assert weights.tolist() == [[[1, 1, 0.25, 0.25, 1, 1, 0, 0]]]
    plain = token_weights(targets, LossConfig(), first_location_id=50)
    assert plain.tolist() == [[[1, 1, 1, 1, 1, 1, 0, 0]]]


def test_smoothing_forgives_the_bin_beside_and_leaves_words_alone():
    config = LossConfig(location_smoothing_bins=5.0)
    targets = jnp.array([[[50 + 500, 10]]])
    near, far = (jnp.zeros((1, 1, 2, 1100)).at[0, 0, 0, 550 + d].set(10.0) for d in (1, 60))
    loss = [token_cross_entropy(x, targets, config, first_location_id=50) for x in (near, far)]
    plain = [token_cross_entropy(x, targets) for x in (near, far)]
    assert loss[0][0, 0, 0] < loss[1][0, 0, 0]
    np.testing.assert_allclose(plain[0][0, 0, 0], plain[1][0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(loss[0][0, 0, 1], plain[0][0, 0, 1], rtol=1e-6)


def test_smoothing_is_least_at_the_smooth_distribution_itself():
    config = LossConfig(location_smoothing_bins=8.0)
    targets = jnp.array([[[990]]])  # At the border, where the Gaussian is cut.
    best = -0.5 * ((jnp.arange(1000) - 990) / 8.0) ** 2

    def loss(x):
        return token_cross_entropy(x[None, None, None], targets, config).sum()

    np.testing.assert_allclose(jax.grad(loss)(best), np.zeros(1000), atol=1e-6)
