# SPDX-License-Identifier: Apache-2.0
"""The planned step is the step that `train` runs: same arrays, same shards."""

import jax
import numpy as np
import pytest

from florence2_jax.data.pipeline import make_dataset
from florence2_jax.data.texts import store_texts
from florence2_jax.planning.chips import Topology
from florence2_jax.planning.program import Program, Vocabulary, abstract_batch
from florence2_jax.planning.worker import describe, describe_devices
from florence2_jax.records.store import RecordStore
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training.config import RunConfig
from florence2_jax.training.step import DEVICE_KEYS
from florence2_jax.typing import UserError


@pytest.fixture
def devices():
    return describe_devices(Topology.parse("v5e:4x4"))


@pytest.mark.parametrize("packed", [{}, {"pack_length": 64, "target_length": 40}])
def test_its_batch_has_the_arrays_of_a_real_one(small_run, scenes, packed):
    small_run["input"] |= packed
    run = RunConfig.create(small_run)
    store = RecordStore(scenes, "train")
    tokenizer = Tokenizer.train(store_texts(store), vocab_size=400)
    real = make_dataset(store, tokenizer, run.batch_spec(), seed=0)[0]
    planned = abstract_batch(run, run.model.image_size)
    shapes = {name: (x.shape, np.dtype(x.dtype)) for name, x in planned.items()}
    assert shapes == {name: (x.shape, x.dtype) for name, x in real.items() if name in DEVICE_KEYS}


def test_a_vocabulary_to_be_trained_has_the_size_it_will_have(small_run, scenes, tmp_path):
    run = RunConfig.create(small_run)
    tokenizer = Tokenizer.train(store_texts(RecordStore(scenes, "train")), vocab_size=400)
    assumed = Vocabulary.of(run)
    assert assumed.size == len(tokenizer) and "assumed" in assumed.source
    assert assumed.first_location_id == tokenizer.first_location_id
    tokenizer.save(tmp_path / "tokenizer")
    small_run["tokenizer"] = dict(path=str(tmp_path / "tokenizer"), train_size=0)
    known = Vocabulary.of(RunConfig.create(small_run))
    assert (known.size, known.first_location_id) == (assumed.size, assumed.first_location_id)
    assert "assumed" not in known.source


def test_a_tokenizer_of_another_machine_is_taken_to_be_the_released_one(small_run):
    small_run["tokenizer"] = dict(path="/nowhere/tokenizer", train_size=0)
    assumed = Vocabulary.of(RunConfig.create(small_run))
    assert (assumed.size, assumed.first_location_id) == (51_289, 50_269)
    assert "/nowhere/tokenizer is not here" in assumed.source


def test_its_bytes_are_those_of_its_shards(small_run, devices):
    small_run |= dict(mesh=dict(replica=2, fsdp=8), accumulate=2)
    small_run["input"]["batch_size"] = 96
    small_run["model"]["text"]["vocab_size"] = 6400
    program = Program.of(small_run, devices)
    params = jax.tree.leaves(program.state.params)
    count = sum(x.size for x in params)
    own = program.bytes_per_device()
    assert program.checkpoint_bytes() == 12 * count + 4 * 3  # Three counts of steps.
    assert 4 * count / 8 <= own["parameters"] < 4 * count / 4  # Small ones are replicated.
    assert own["optimizer"] == 2 * own["parameters"] + 8
    pixels, ids = 64 * 64 * 3, 3 * (24 + 40 + 1) * 4
    assert own["batch"] == 96 // 16 * (pixels + ids)
    assert program.images_per_device == 3
    assert describe(program)["vocabulary"]["size"] == 6400


def test_the_largest_of_several_image_sizes_is_planned(small_run, devices):
    small_run["input"] |= dict(image_sizes={"64x64": 1.0, "96x64": 1.0, "48x64": 3.0})
    small_run["input"]["batch_size"] = 16
    program = Program.of(small_run, devices)
    assert program.image_size == (96, 64)
    assert program.batch["image"].shape == (16, 64, 96, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(mesh=dict(fsdp=3)), r"mesh: .* needs 3 devices, but 16 are present"),
        (dict(mesh=dict(fsdp=5, replica=-1)), r"needs a multiple of 5 devices, but 16 are present"),
        (dict(batch_size=24), r"24 images in 1 part\(s\) .* 16 data shards .* take 16 or 32"),
        (dict(batch_size=8), r"8 images in 1 part\(s\) do not divide .* take 16$"),
        (dict(batch_size=48, accumulate=2), r"48 images in 2 part\(s\) .* take 32 or 64"),
    ],
)
def test_what_does_not_divide_is_one_line_with_its_remedy(small_run, devices, changes, message):
    small_run["input"]["batch_size"] = changes.pop("batch_size", 16)
    with pytest.raises(UserError, match=message) as error:
        Program.of(small_run | changes, devices)
    assert "\n" not in str(error.value)


def test_a_large_parameter_that_does_not_divide_is_one_line(small_run):
    small_run["input"]["batch_size"] = 256
    small_run["model"]["text"]["vocab_size"] = 129 * 128
    with pytest.raises(UserError, match=r"^mesh: text/shared/embedding: .* choose another mesh$"):
        Program.of(small_run, describe_devices(Topology.parse("v5e:16x16")))
