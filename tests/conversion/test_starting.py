# SPDX-License-Identifier: Apache-2.0
"""A run starts from any kind of model with its very numbers, however its layers are laid out."""

import dataclasses

import numpy as np
import pytest

from florence2_jax.conversion.export import convert
from florence2_jax.conversion.load import read_config, read_pretrained
from florence2_jax.conversion.translate import to_tensors
from florence2_jax.training.starting import (
    extend_positions,
    starting_model,
    starting_params,
    starting_tokenizer,
)
from florence2_jax.typing import UserError

from .conftest import IMAGE_SIZE, MAX_POSITIONS, assert_equal_tensors


@pytest.fixture(scope="module")
def places(hf_folder, microsoft_folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("start") / "workdir"
    convert(hf_folder, workdir, "jax")
    return {"hf": hf_folder, "microsoft": microsoft_folder, "workdir": workdir}


@pytest.mark.parametrize("kind", ["hf", "microsoft", "workdir"])
def test_sizes_tokenizer_and_numbers_are_those_of_the_model(places, kind, tokenizer):
    place = places[kind]
    model = starting_model(str(place), dict(scan=True, dtype="bfloat16", text=dict(dropout=0.0)))
    assert (model.scan, model.dtype, model.text.dropout) == (True, "bfloat16", 0.0)
    assert model.image_size == IMAGE_SIZE and model.davit == read_config(place).davit
    assert starting_tokenizer(str(place)) == tokenizer
    params = starting_params(str(place), model)
    source = read_pretrained(place)
    assert model.text.vocab_size == source.config.text.vocab_size
    assert_equal_tensors(
        dict(to_tensors(params, model, "hf")), dict(to_tensors(source.params, source.config, "hf"))
    )


def test_a_run_that_has_begun_needs_the_model_no_longer(places, tmp_path):
    own = places["workdir"]
    model = starting_model(str(tmp_path / "gone"), dict(remat="dots"), own)
    assert model == dataclasses.replace(read_config(own), remat="dots")
    with pytest.raises(UserError, match="no such folder, and no hub name"):
        starting_model(str(tmp_path / "gone"), {}, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(variant="base"), r"model\.variant: init\.model brings its sizes"),
        (dict(text=dict(d_model=64)), r"model\.text\.d_model: 64, but .* has 32; leave it out"),
        (dict(davit=dict(depths=(1, 1, 1, 1))), r"model\.davit\.depths: \(1, 1, 1, 1\), but"),
        (dict(max_image_positions=60), r"model\.max_image_positions: 60, but .* has 50"),
        (dict(text=dict(max_positions=30)), r"max_positions: 30 is less than the 40"),
        (dict(txt={}), r"model\.txt: no such key"),
    ],
)
def test_another_model_than_that_is_refused(places, overrides, message):
    with pytest.raises(UserError, match=message):
        starting_model(str(places["hf"]), overrides)


def test_new_positions_are_copies_and_old_ones_stay(places):
    model = starting_model(str(places["hf"]), dict(text=dict(max_positions=100)))
    assert model.text.max_positions == 100
    old = read_pretrained(places["hf"]).params
    new = extend_positions(old, 100)
    for tower in ("encoder", "decoder"):
        before, after = (x["text"][tower]["positions"]["embedding"] for x in (old, new))
        assert before.shape == (MAX_POSITIONS + 2, 32) and after.shape == (102, 32)
        np.testing.assert_array_equal(after[: MAX_POSITIONS + 2], before)
        for position in (40, 79, 80, 99):
            np.testing.assert_array_equal(after[2 + position], before[2 + position % 40])
    assert extend_positions(old, MAX_POSITIONS)["text"].keys() == old["text"].keys()
