# SPDX-License-Identifier: Apache-2.0
"""Targets that share a row give what they give apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from florence2_jax.models.config import PAD_ID, Florence2Config
from florence2_jax.models.florence2 import Florence2

from .conftest import FAST_COMPILE, NUM_TOKENS, call, mini_model, randomize

CHUNK = 4
# One target fills its chunks exactly (8), one is a chunk and one token (5), one is a single token;
# two prompts have no target, one of them before others.
LENGTHS = ((8, 5, 1, 0), (3, 0, 11, 4))
ROW = 28  # Seven chunks: the first image leaves two unused, the second one.

# float32, the same products summed in another order by another program.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


RATES = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)


def tiny_model() -> Florence2:
    text = RATES | dict(vocab_size=NUM_TOKENS)
    options = dict(davit=dict(drop_path_rate=0.0), text=text, image_size=(24, 16), dtype="float32")
    model = Florence2(Florence2Config.create("tiny", **options), rngs=nnx.Rngs(0))
    randomize(model)
    return model


def smaller_model(*, max_positions: int = 40, text=RATES, **overrides) -> Florence2:
    text = text | dict(max_positions=max_positions)
    model = mini_model(davit=dict(drop_path_rate=0.0), text=text, **overrides)
    randomize(model)
    return model


@pytest.fixture(scope="module")
def apart():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 16, 24, 3)).astype(np.float32)
    prompt_ids = rng.integers(4, NUM_TOKENS, size=(2, 4, 6)).astype(np.int32)
    prompt_ids[0, 1, 3:] = PAD_ID
    decoder_ids = rng.integers(4, NUM_TOKENS, size=(2, 4, 12)).astype(np.int32)
    for row, lengths in enumerate(LENGTHS):
        for k, length in enumerate(lengths):
            decoder_ids[row, k, length:] = PAD_ID
            if not length:
                prompt_ids[row, k] = PAD_ID
    return jnp.asarray(image), jnp.asarray(prompt_ids), jnp.asarray(decoder_ids)


def places():
    """`(image, prompt, first cell of its target, length)` of every target of the packed rows."""
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for k, length in enumerate(lengths):
            if length:
                yield row, k, start, length
            start += -(-length // CHUNK) * CHUNK


@pytest.fixture(scope="module")
def packed(apart):
    """Decoder ids in shared rows, and the prompt of each chunk; what is unused has any token."""
    ids = np.full((2, ROW), 7, np.int32)
    prompts = np.full((2, ROW // CHUNK), -1, np.int32)
    for row, k, start, length in places():
        ids[row, start : start + length] = apart[2][row, k, :length]
        prompts[row, start // CHUNK : -(-(start + length) // CHUNK)] = k
    return jnp.asarray(ids), jnp.asarray(prompts)


def packed_call(model, *inputs, key=None):
    graphdef, params = nnx.split(model)
    return _packed_call(graphdef, params, inputs, key)


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def _packed_call(graphdef, params, inputs, key):
    options = {} if key is None else {"rngs": nnx.Rngs(dropout=key)}
    return nnx.merge(graphdef, params)(*inputs[:3], target_prompts=inputs[3], **options)


def assert_targets_equal(together, alone, **tolerance):
    assert together.shape == (2, ROW, alone.shape[-1])
    for row, k, start, length in places():
        np.testing.assert_allclose(
            together[row, start : start + length], alone[row, k, :length], **tolerance
        )


def test_logits_are_those_of_separate_targets(apart, packed):
    model = tiny_model()
    together = packed_call(model, *apart[:2], *packed)
    assert_targets_equal(together, call(model, *apart), **CLOSE)
    assert jnp.isfinite(together).all(), "unused chunks must not poison a sum"


@pytest.mark.parametrize(
    "make",
    [
        tiny_model,
        functools.partial(smaller_model, remat="full"),
        functools.partial(smaller_model, remat="dots", scan=True),
    ],
)
def test_gradients_are_those_of_separate_targets(apart, packed, make):
    graphdef, params = nnx.split(make())
    noise = np.random.default_rng(1).normal(size=(2, 4, 12, NUM_TOKENS)).astype(np.float32)

    def total(params, is_packed):
        model = nnx.merge(graphdef, params)
        if is_packed:
            logits = model(*apart[:2], packed[0], target_prompts=packed[1])
            cells = [logits[r, start : start + n] for r, _, start, n in places()]
        else:
            logits = model(*apart)
            cells = [logits[r, k, :n] for r, k, _, n in places()]
        weights = [noise[r, k, :n] for r, k, _, n in places()]
        pairs = zip(cells, weights, strict=True)
        return sum((c[:, :NUM_TOKENS] * w).sum() for c, w in pairs) / 40

    grad = jax.jit(jax.grad(total), static_argnums=1, compiler_options=FAST_COMPILE)
    expected, actual = grad(params, False), grad(params, True)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True
    ):
        scale = np.abs(a).max()
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * max(scale, 1), err_msg=str(path))


def test_bfloat16_stays_as_near_as_two_programs_in_bfloat16(apart, packed):
    model = smaller_model(dtype="bfloat16")
    together = packed_call(model, *apart[:2], *packed)
    exact = call(smaller_model(), *apart)
    error = jnp.abs(call(model, *apart) - exact)[..., :NUM_TOKENS].max()
    assert_targets_equal(together, exact, rtol=0, atol=2 * float(error))


def test_targets_see_neither_each_other_nor_the_prompts_of_others(apart, packed):
    model = smaller_model()
    image, prompt_ids, _ = apart
    ids, prompts = packed
    before = packed_call(model, image, prompt_ids, ids, prompts)
    other = packed_call(model, image, prompt_ids.at[0, 0].set(9), ids.at[0, :8].set(9), prompts)
    is_changed = jnp.abs(other - before).max(axis=-1) > 1e-3
    assert is_changed[0, :8].all() and not is_changed[0, 8:20].any() and not is_changed[1].any()


def test_dropout_acts_on_packed_targets(apart, packed):
    model = smaller_model(text=dict(dropout=0.1, attention_dropout=0.1, activation_dropout=0.0))

    first, again, other = (
        packed_call(model, *apart[:2], *packed, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 0.1


def test_rows_that_do_not_fit_are_refused(apart, packed):
    model = smaller_model(max_positions=32)
    with pytest.raises(ValueError, match="a row of 28 tokens is no whole number of 5 chunks"):
        model(*apart[:2], packed[0], target_prompts=packed[1][:, :5])
    long = jnp.zeros((2, 36), jnp.int32), jnp.zeros((2, 9), jnp.int32)
    with pytest.raises(ValueError, match=r"36 tokens .* text\.max_positions=32"):
        model(*apart[:2], long[0], target_prompts=long[1])
