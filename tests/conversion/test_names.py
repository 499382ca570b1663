# SPDX-License-Identifier: Apache-2.0
"""The table of names: complete, unambiguous, and that of transformers at full size."""

import collections
import functools

import jax
import pytest
import torch
from transformers import Florence2Config as TorchConfig
from transformers import Florence2ForConditionalGeneration

from florence2_jax.conversion.configs import to_torch
from florence2_jax.conversion.names import ALIASES, LOGITS_BIAS, TABLE, entries
from florence2_jax.conversion.translate import param_shapes, to_tensors
from florence2_jax.models.config import Florence2Config
from florence2_jax.training.state import init_params


@functools.lru_cache  # Ten seconds for large.
def abstract_params(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def test_every_name_is_in_the_table_once():
    for column in ("microsoft", "hugging_face", "path"):
        names = [getattr(row, column) for row in TABLE]
        assert len(set(names)) == len(names)
    lines = "\n".join(map(str, TABLE)).splitlines()
    assert len(lines) == len(TABLE) == 90


@pytest.mark.parametrize(("variant", "scan"), [("base", False), ("base", True), ("large", False)])
def test_the_table_covers_every_parameter_once(variant, scan):
    config = Florence2Config.create(variant, scan=scan)
    shapes = param_shapes(config)
    for dialect in ("microsoft", "hf"):
        found = collections.Counter(entry.path for entry in entries(config, dialect))
        assert found.keys() == shapes.keys()
        for path, count in found.items():
            stacked = scan and ("/blocks/" in path or "/layers/" in path)
            assert count == (shapes[path][0] if stacked else 1)


@pytest.mark.parametrize(("variant", "num_keys"), [("base", 669), ("large", 921)])
def test_released_models_have_as_many_keys(variant, num_keys):
    config = Florence2Config.create(variant)
    tensors = to_tensors(abstract_params(config), config, "microsoft")
    assert len(tensors) == num_keys
    assert {*ALIASES["microsoft"], LOGITS_BIAS} < tensors.keys()


@pytest.mark.parametrize("variant", ["base", "large"])
def test_names_and_shapes_are_those_of_transformers(variant):
    config = Florence2Config.create(variant)
    values = to_torch(config, "hf", num_rows=51_290, image_id=51_289, dtype="float32")
    with torch.device("meta"):
        theirs = Florence2ForConditionalGeneration(TorchConfig(**values)).state_dict()
    ours = to_tensors(abstract_params(config), config, "hf", num_rows=51_290)
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    for alias in ALIASES["hf"]:
        shapes.pop(alias)
    assert {name: tensor.shape for name, tensor in ours.items()} == shapes
