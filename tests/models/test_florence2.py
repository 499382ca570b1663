# SPDX-License-Identifier: Apache-2.0
"""What must not change the answer, what must, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from florence2_jax.models.config import PAD_ID, Florence2Config
from florence2_jax.models.florence2 import Florence2, num_parameters

from .conftest import (
    FAST_COMPILE,
    MINI,
    NUM_TOKENS,
    call,
    make_config,
    mini_model,
    random_inputs,
    randomize,
)

# float32, the same products summed in another order by another program.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def inputs():
    return random_inputs(height=16, width=24)


def loss(params, graphdef, inputs, key):
    """A scalar in which every logit has its own weight."""
    options = {} if key is None else {"rngs": nnx.Rngs(dropout=key)}
    logits = nnx.merge(graphdef, params)(*inputs, **options)[..., :NUM_TOKENS]
    return jnp.mean(logits * jnp.sin(jnp.arange(logits.size)).reshape(logits.shape))


value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1, compiler_options=FAST_COMPILE)


def value_and_grads(model, inputs, key=None):
    """The loss and its gradients by path, NumPy arrays; a scanned layer axis is taken apart."""
    graphdef, params = nnx.split(model)
    value, grads = value_and_grad(params, graphdef, inputs, key)
    flat = {}
    for keys, grad in nnx.to_flat_state(grads):
        at = next((i for i, k in enumerate(keys) if k in ("blocks", "layers")), None)
        if at is None or isinstance(keys[at + 1], int):
            flat[keys] = np.asarray(grad[...])
        else:
            split = enumerate(np.asarray(grad[...]))
            flat |= {(*keys[: at + 1], i, *keys[at + 1 :]): part for i, part in split}
    return value, flat


def assert_equal_training(expected, actual):
    (value, grads), (other_value, other_grads) = expected, actual
    np.testing.assert_allclose(other_value, value, **CLOSE)
    assert other_grads.keys() == grads.keys()
    for path, grad in grads.items():
        scale = np.abs(grad).max()
        np.testing.assert_allclose(
            other_grads[path], grad, rtol=0, atol=1e-3 * scale + 1e-7, err_msg=str(path)
        )


@pytest.fixture(scope="module")
def plain_training(inputs):
    """Loss and gradients with dropout, layer by layer, nothing recomputed."""
    return value_and_grads(mini_model(), inputs, jax.random.key(3))


def used_primitives(model, inputs) -> tuple[bool, bool]:
    """Whether the gradient's program has a scan, and whether it has a rematerialised part."""
    graphdef, params = nnx.split(model)
    program = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, graphdef, inputs, None)
    names = set(re.findall(r"(\w+)\[", str(program)))
    return "scan" in names, bool(names & {"remat", "remat2", "checkpoint"})


@pytest.mark.parametrize(
    ("remat", "scan"),
    [("none", True), ("full", False), ("dots", False), ("full", True), ("dots", True)],
)
def test_remat_and_scan_change_neither_loss_nor_gradients(inputs, plain_training, remat, scan):
    model = mini_model(remat=remat, scan=scan)
    assert used_primitives(model, inputs) == (scan, remat != "none")
    assert_equal_training(plain_training, value_and_grads(model, inputs, jax.random.key(3)))


def test_depthwise_shift_equals_convolution(inputs):
    models = [mini_model(davit={"depthwise": method}) for method in ("conv", "shift")]
    for model in models:
        randomize(model)
    assert_equal_training(*(value_and_grads(model, inputs) for model in models))


def test_every_parameter_is_used(inputs):
    model = mini_model()
    randomize(model)
    _, grads = value_and_grads(model, inputs)
    # A key's bias moves all scores of a query alike, which softmax does not see.
    unused = [path for path, grad in grads.items() if not np.abs(grad).max() > 1e-7]
    assert all(path[-2:] == ("k_proj", "bias") for path in unused), unused


@pytest.mark.parametrize("scan", [False, True])
def test_cached_decoding_equals_teacher_forcing(inputs, scan):
    model = mini_model(scan=scan)
    randomize(model)
    image, prompt_ids, decoder_ids = inputs
    ids = decoder_ids.reshape(-1, decoder_ids.shape[-1])
    tokens = call(model, image, method="encode_image")
    states, mask = call(model, tokens, prompt_ids, method="encode")
    expected = call(model, ids, states, mask, method="decode")
    graphdef, params = nnx.split(model)

    @jax.jit
    def decode(params, states, mask):
        model = nnx.merge(graphdef, params)

        def body(carry):
            position, cache, logits = carry
            step, cache = model.decode_step(ids[:, position], position, cache, mask)
            return position + 1, cache, logits.at[:, position].set(step)

        cache = model.init_cache(states, ids.shape[1] + 2)  # Room that is never filled.
        start = jnp.int32(0), cache, jnp.zeros(expected.shape)
        return jax.lax.while_loop(lambda carry: carry[0] < ids.shape[1], body, start)[2]

    np.testing.assert_allclose(decode(params, states, mask), expected, **CLOSE)


def test_cache_leaves_lead_with_the_rows(inputs):
    model = mini_model()
    states = jnp.zeros((6, 13, model.config.text.d_model))
    cache = model.init_cache(states, 5)
    heads, dim = 4, model.config.text.d_model // 4
    assert {leaf.shape for leaf in jax.tree.leaves(cache["self"])} == {(6, heads, 5, dim)}
    assert {leaf.shape for leaf in jax.tree.leaves(cache["cross"])} == {(6, heads, 13, dim)}


def test_more_padding_of_the_prompt_changes_nothing(inputs):
    model = mini_model()
    randomize(model)
    image, prompt_ids, decoder_ids = inputs
    padded = jnp.pad(prompt_ids, ((0, 0), (0, 0), (0, 5)), constant_values=PAD_ID)
    expected = call(model, image, prompt_ids, decoder_ids)
    np.testing.assert_allclose(call(model, image, padded, decoder_ids), expected, **CLOSE)
    attended = padded.at[..., -1].set(7)
    assert jnp.abs(call(model, image, attended, decoder_ids) - expected).max() > 1e-2


def test_prompts_in_one_call_equal_prompts_one_by_one(inputs):
    model = mini_model()
    randomize(model)
    image, prompt_ids, decoder_ids = inputs
    together = call(model, image, prompt_ids, decoder_ids)
    for k in range(prompt_ids.shape[1]):
        alone = call(model, image, prompt_ids[:, k : k + 1], decoder_ids[:, k : k + 1])
        np.testing.assert_allclose(together[:, k : k + 1], alone, **CLOSE)


def test_later_target_tokens_are_not_seen(inputs):
    model = mini_model()
    randomize(model)
    image, prompt_ids, decoder_ids = inputs
    changed = decoder_ids.at[..., 5:].set(9)
    before, after = (call(model, image, prompt_ids, ids) for ids in (decoder_ids, changed))
    np.testing.assert_allclose(before[:, :, :5], after[:, :, :5], **CLOSE)
    assert jnp.abs(before[:, :, 5:] - after[:, :, 5:]).max() > 1e-2


def test_randomness_needs_rngs_and_follows_the_key(inputs):
    model = mini_model()
    randomize(model)
    plain = call(model, *inputs)
    first, again, other = (call(model, *inputs, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - plain).max() > 0.1
    assert jnp.abs(first - other).max() > 0.1


@pytest.mark.parametrize(
    "rate", ["drop_path_rate", "dropout", "attention_dropout", "activation_dropout"]
)
def test_each_rate_acts_alone(inputs, rate):
    rates = {"davit": {"drop_path_rate": 0.0}}
    rates["text"] = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    model = mini_model(**rates)
    randomize(model)
    plain = call(model, *inputs)
    np.testing.assert_array_equal(call(model, *inputs, key=jax.random.key(0)), plain)
    rates["davit" if rate == "drop_path_rate" else "text"][rate] = 0.3
    model = mini_model(**rates)
    randomize(model)
    assert jnp.abs(call(model, *inputs, key=jax.random.key(0)) - plain).max() > 0.01


def test_padding_rows_of_the_vocabulary_are_never_likely(inputs):
    model = mini_model()
    logits = call(model, *inputs)
    assert logits.shape == (2, 3, 9, 256) and logits.dtype == jnp.float32
    assert (logits[..., NUM_TOKENS:] == -1e9).all()
    assert jnp.abs(logits[..., :NUM_TOKENS]).max() < 100

    def log_likelihood(params, graphdef):
        return nnx.merge(graphdef, params).text.shared.logits(jnp.ones((1, 48))).max()

    graphdef, params = nnx.split(model)
    grads = jax.grad(log_likelihood)(params, graphdef)
    assert (grads["text"]["shared"]["embedding"][NUM_TOKENS:] == 0).all()


def test_a_token_outside_the_table_is_loud(inputs):
    image, prompt_ids, decoder_ids = inputs
    logits = call(mini_model(), image, prompt_ids.at[0, 0, 0].set(999), decoder_ids)
    logits = logits[..., :NUM_TOKENS]
    assert jnp.isnan(logits[0, 0]).all() and not jnp.isnan(logits[0, 1]).any()


def test_uint8_images_are_normalised_on_the_device(inputs):
    model = mini_model()
    pixels = np.random.default_rng(0).integers(0, 256, inputs[0].shape, dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = jnp.asarray((pixels / 255 - mean) / std, jnp.float32)
    expected = call(model, normalised, method="encode_image")
    np.testing.assert_allclose(
        call(model, jnp.asarray(pixels), method="encode_image"), expected, **CLOSE
    )


def test_bfloat16_computes_in_bfloat16_around_float32(inputs):
    model, exact = mini_model(dtype="bfloat16"), mini_model()
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    tokens = call(model, inputs[0], method="encode_image")
    assert tokens.dtype == jnp.bfloat16
    logits, expected = call(model, *inputs), call(exact, *inputs)
    assert logits.dtype == jnp.float32
    error = (logits - expected)[..., :NUM_TOKENS].std() / expected[..., :NUM_TOKENS].std()
    assert 1e-4 < error < 0.03  # bfloat16 keeps 8 bits, 2**-8 = 0.004 per rounding.


def test_initial_weights_are_those_of_the_released_recipe():
    model = mini_model(text={"vocab_size": 1000})
    embedding = model.text.shared.embedding[...]
    assert (embedding[PAD_ID] == 0).all() and (embedding[1000:] == 0).all()
    assert jnp.std(embedding[2:1000]) == pytest.approx(0.02, rel=0.02)  # 50,000 draws: 0.3 %.
    for keys, param in nnx.to_flat_state(nnx.state(model)):
        if keys[-1] == "bias":
            assert (param[...] == 0).all(), keys
        elif keys[-1] == "scale":
            assert (param[...] == 1).all(), keys
        else:  # The smallest table has 144 entries: 6 % is one sigma.
            assert jnp.std(param[...]) == pytest.approx(0.02, rel=0.3), keys


def test_scanned_layers_start_from_the_same_weights():
    (flat, scanned) = (
        dict(nnx.to_flat_state(nnx.state(mini_model(scan=scan)))) for scan in (False, True)
    )
    path = ("image", "stages", 1, "blocks", 1, "channel", "ffn", "fc1", "kernel")
    np.testing.assert_array_equal(scanned[path[:4] + path[5:]][1], flat[path][...])


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(("variant", "expected"), [("base", 231_414_016), ("large", 770_173_952)])
def test_number_of_parameters_is_that_of_the_release(variant, expected, scan):
    assert num_parameters(Florence2Config.create(variant, scan=scan)) == expected


def test_images_that_do_not_fit_are_refused(inputs):
    model = mini_model()
    with pytest.raises(ValueError, match=r"30x16 px.*multiples of 8"):
        model.encode_image(jnp.zeros((1, 16, 30, 3)))
    small = Florence2(make_config(MINI, max_image_positions=3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"4x2 needs more than 3 positions"):
        small.encode_image(jnp.zeros((1, 16, 32, 3)))


def test_sequences_longer_than_the_tables_are_refused():
    model = mini_model()  # 24 positions, 7 of them for image tokens.
    tokens = jnp.zeros((1, 7, 48))
    with pytest.raises(ValueError, match=r"25 tokens.*max_positions=24"):
        model.encode(tokens, jnp.zeros((1, 1, 18), jnp.int32))
    with pytest.raises(ValueError, match=r"25 tokens"):
        model.decode(jnp.zeros((1, 25), jnp.int32), tokens, jnp.ones((1, 7), bool))
    with pytest.raises(ValueError, match=r"max_length 25"):
        model.init_cache(tokens, 25)
