# SPDX-License-Identifier: Apache-2.0
"""State dict <-> parameters: exact both ways, and everything that is wrong named at once."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from florence2_jax.conversion.configs import from_torch
from florence2_jax.conversion.names import ALIASES, FRAME_TABLE, LOGITS_BIAS
from florence2_jax.conversion.translate import flatten, frame_table, to_params, to_tensors
from florence2_jax.typing import UserError

from .conftest import (
    IMAGE_SIZE,
    arrays,
    assert_equal_tensors,
    microsoft_config,
    microsoft_state,
    torch_model,
)

ROWS = 131
SHARED = "model.language_model.shared.weight"
MS_SHARED = "language_model.model.shared.weight"
FC1 = "model.language_model.encoder.layers.1.fc1.weight"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def model():
    return torch_model(ROWS)


@pytest.fixture
def state(model) -> dict[str, np.ndarray]:
    """transformers' state dict; a test may change it."""
    return {name: array.copy() for name, array in arrays(model.state_dict()).items()}


@pytest.fixture
def microsoft(model) -> dict[str, np.ndarray]:
    return {n: a.copy() for n, a in arrays(microsoft_state(model.state_dict())).items()}


@pytest.fixture
def read(model):
    """Parameters of a state dict, and the config."""

    def run(tensors, dialect="hf", **changes):
        values = model.config.to_dict() if dialect == "hf" else microsoft_config(ROWS)
        config, found = from_torch(values, tensors, image_size=IMAGE_SIZE)
        assert found == dialect
        config = dataclasses.replace(config, **changes)
        return to_params(tensors, config, dialect, place="here"), config

    return run


def without_aliases(tensors):
    return {name: value for name, value in tensors.items() if name not in ALIASES["hf"]}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_round_trip_is_exact(state, read, dtype, scan):
    given = {name: array.astype(DTYPES[dtype]) for name, array in state.items()}
    params, config = read(given, scan=scan)
    assert {leaf.dtype for leaf in flatten(params).values()} == {np.dtype(np.float32)}
    back = to_tensors(params, config, "hf", dtype=dtype)
    assert_equal_tensors(without_aliases(given), back)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_microsoft_round_trip_is_exact(microsoft, read, dtype, scan):
    given = {name: array.astype(DTYPES[dtype]) for name, array in microsoft.items()}
    params, config = read(given, "microsoft", scan=scan)
    back = to_tensors(params, config, "microsoft", dtype=dtype)
    assert_equal_tensors(given, back)


def test_both_dialects_give_the_same_parameters(state, microsoft, read):
    one, other = flatten(read(state)[0]), flatten(read(microsoft, "microsoft")[0])
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path])


def test_mixed_dtypes_keep_every_value(state, read):
    kinds = list(DTYPES.values())
    given = {name: array.astype(kinds[i % 3]) for i, (name, array) in enumerate(state.items())}
    for name in ALIASES["hf"]:
        given[name] = given[SHARED]
    params, config = read(given)
    for name, tensor in to_tensors(params, config, "hf").items():
        if name != FRAME_TABLE["hf"]:
            np.testing.assert_array_equal(np.asarray(tensor), given[name].astype(np.float32))


@pytest.mark.parametrize("rows", [1026, 4098])
def test_position_rows_are_read_from_the_tensor(state, read, rows):
    table = np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)
    for tower in ("encoder", "decoder"):
        state[f"model.language_model.{tower}.embed_positions.weight"] = table
    params, config = read(state)
    assert config.text.max_positions == rows - 2
    assert_equal_tensors(without_aliases(state), to_tensors(params, config, "hf"))


@pytest.mark.parametrize("rows", [51_289, 51_290, 51_328])
def test_vocabulary_rows_are_read_from_the_tensor(state, read, rows):
    table = np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)
    for name in (SHARED, *ALIASES["hf"]):
        state[name] = table
    params, config = read(state)
    assert (config.text.vocab_size, config.padded_vocab_size) == (rows, 51_328)
    assert not params["text"]["shared"]["embedding"][rows:].any()
    assert_equal_tensors(without_aliases(state), to_tensors(params, config, "hf"))
    fewer = to_tensors(params, config, "microsoft", num_rows=51_289)
    np.testing.assert_array_equal(np.asarray(fewer[MS_SHARED]), table[:51_289])
    assert fewer[LOGITS_BIAS].shape == (1, 51_289)
    more = np.asarray(to_tensors(params, config, "hf", num_rows=51_330)[SHARED])
    np.testing.assert_array_equal(more[:rows], table)
    # Its logit is the mean of the others, so never the largest.
    np.testing.assert_allclose(more[-1], table.mean(axis=0), atol=1e-6)  # A sum of 51,000.


@pytest.mark.parametrize("kept", range(4))
def test_one_name_of_the_embedding_is_enough(state, read, kept):
    names = (SHARED, *ALIASES["hf"])
    expected = read(dict(state))[0]
    given = {n: a for n, a in state.items() if n not in names or n == names[kept]}
    found, want = flatten(read(given)[0]), flatten(expected)
    for path in want:
        np.testing.assert_array_equal(found[path], want[path])


def test_everything_wrong_is_said_at_once(state, read):
    del state["model.language_model.encoder.layers.0.fc1.bias"]
    state[FC1] = state[FC1].T
    state["vision_tower.head.weight"] = np.zeros(3, np.float32)
    state["model.vision_tower.convs.1.norm.bias"][0] = np.inf
    state["model.vision_tower.convs.2.norm.bias"][1] = np.nan
    fc2 = "model.language_model.encoder.layers.1.fc2.weight"
    state[fc2] = state[fc2].astype(np.float64)
    with pytest.raises(UserError) as caught:
        read(state)
    message = str(caught.value)
    assert message.startswith("here: 6 wrong: ")
    assert "model.language_model.encoder.layers.0.fc1.bias: missing" in message
    assert f"{FC1}: is (32, 48), expected (48, 32)" in message
    assert "vision_tower.head.weight: unknown" in message
    assert "model.vision_tower.convs.1.norm.bias: holds numbers that are not finite" in message
    assert "model.vision_tower.convs.2.norm.bias: holds numbers that are not finite" in message
    assert f"{fc2}: is float64, expected one of float32, float16, bfloat16" in message


def test_an_untied_head_is_refused(state, read):
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(UserError, match=r"lm_head.weight: differs from .*shared.weight"):
        read(state)


def test_a_bias_of_the_logits_is_refused(microsoft, read):
    microsoft[LOGITS_BIAS][0, 7] = 1e-3
    with pytest.raises(UserError, match=f"{LOGITS_BIAS}: is not zero"):
        read(microsoft, "microsoft")


@pytest.mark.parametrize("change", ["values", "first row", "width"])
def test_another_table_of_frames_is_refused(state, read, change):
    table = state[FRAME_TABLE["hf"]]
    if change == "values":
        table[5, 5] += 0.01
    elif change == "first row":
        table[0, 0] = 1e-5
    else:
        state[FRAME_TABLE["hf"]] = table[:, :-2]
    with pytest.raises(UserError, match=r"pos_idx_to_embed: is"):
        read(state)


@pytest.mark.parametrize("width", [1024, 2048])
def test_the_table_of_frames_is_that_of_transformers(model, width):
    embed = model.model.multi_modal_projector.visual_temporal_embed
    sine, cosine = embed.get_sinusoid_embeddings(100, width)
    table = frame_table(width)
    # Sines of equal float32 angles up to 99; a last bit of such an angle is 8e-6.
    np.testing.assert_allclose(table[:, 0::2], sine.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(table[:, 1::2], cosine.numpy(), rtol=0, atol=1e-5)


def test_numbers_are_rounded_only_on_request(state, read):
    params, config = read(state)
    with pytest.raises(UserError, match=r"would be rounded to fit bfloat16: allow it \(--round\)"):
        [np.asarray(t) for t in to_tensors(params, config, "hf", dtype="bfloat16").values()]
    rounded = to_tensors(params, config, "hf", dtype="bfloat16", rounds=True)
    np.testing.assert_array_equal(np.asarray(rounded[FC1]), state[FC1].astype(ml_dtypes.bfloat16))


def test_numbers_beyond_the_dtype_are_always_refused(state, read):
    state[FC1][0, 0] = 1e6
    params, config = read(state)
    tensors = to_tensors(params, config, "hf", dtype="float16", rounds=True)
    with pytest.raises(UserError, match=f"{FC1} holds numbers beyond the range of float16"):
        np.asarray(tensors[FC1])


def test_parameters_of_another_model_are_refused(state, read):
    params, config = read(state)
    other = dataclasses.replace(config, text=dataclasses.replace(config.text, mlp_dim=64))
    with pytest.raises(UserError, match=r"another model: text/decoder/layers/0/ffn/fc1/bias"):
        to_tensors(params, other, "hf")
    with pytest.raises(UserError, match="dtype 'int8' is not one of"):
        to_tensors(params, config, "hf", dtype="int8")


def test_a_diverged_model_is_not_written(state, read):
    params, config = read(state)
    params["projector"]["kernel"][0, 0] = np.nan
    tensors = to_tensors(params, config, "microsoft")
    with pytest.raises(UserError, match="image_projection holds numbers that are not finite"):
        np.asarray(tensors["image_projection"])
