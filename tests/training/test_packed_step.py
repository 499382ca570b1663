# SPDX-License-Identifier: Apache-2.0
"""A step over packed targets is the step over the same targets apart."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descent import descend
from rich.console import Console

from florence2_jax.data.packing import lay_out
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.text.tokenizer import PAD_ID
from florence2_jax.training import loop
from florence2_jax.training.config import RunConfig
from florence2_jax.training.loss import LossConfig, shift_right, tasks_of_chunks
from florence2_jax.typing import UserError

# Both options of the loss, which look at single tokens.
LOSS = {"loss": LossConfig(location_smoothing_bins=5.0, location_weight=0.3)}
LOSS |= {"first_location_id": 370}


@pytest.fixture
def config(small_run):
    rates = dict(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, vocab_size=1400)
    small_run["model"]["text"] |= rates
    small_run["model"]["davit"]["drop_path_rate"] = 0.0
    return RunConfig.create(small_run).model


@pytest.fixture(scope="module")
def apart() -> dict:
    """Three prompts per image, some without a target; one target fills two chunks of 16."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 40, (8, 3))
    lengths[0], lengths[1, 2], lengths[2] = (32, 0, 17), 0, (2, 40, 16)
    targets = rng.integers(4, 1400, (8, 3, 40)).astype(np.int32)
    targets[np.arange(40) >= lengths[..., None]] = PAD_ID
    prompts = rng.integers(4, 1400, (8, 3, 6)).astype(np.int32)
    prompts[lengths == 0] = PAD_ID
    return {
        "image": rng.integers(0, 256, (8, 64, 64, 3)).astype(np.uint8),
        "prompt_ids": prompts,
        "target_ids": targets,
        "task_ids": np.where(lengths > 0, rng.integers(0, 17, (8, 3)), -1).astype(np.int32),
    }


@pytest.fixture(scope="module")
def packed(apart) -> dict:
    rows = [
        lay_out([ids[ids != PAD_ID].tolist() for ids in targets], 144)
        for targets in apart["target_ids"]
    ]
    ids, prompts = (np.stack(part) for part in zip(*rows, strict=True))
    return apart | {"target_ids": ids, "target_prompts": prompts}


def assert_same_updates(a, b):
    for one, other in zip(a[1], b[1], strict=True):
        np.testing.assert_array_equal(one["task_token_sums"], other["task_token_sums"])
        for name in ("loss", "num_tokens", "task_loss_sums"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(one["grad_norm"], other["grad_norm"], rtol=1e-5)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a[0]), jax.tree.leaves(b[0]), strict=True
    ):
        np.testing.assert_allclose(x, y, atol=1e-5, err_msg=jax.tree_util.keystr(path))


@pytest.fixture
def alone():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def test_packed_targets_make_the_same_update(config, apart, packed, alone):
    whole = descend(config, packed, alone, **LOSS)
    assert_same_updates(descend(config, apart, alone, **LOSS), whole)
    assert_same_updates(whole, descend(config, packed, alone, accumulate=4, **LOSS))


@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(replica=2, fsdp=2, tensor=2)])
def test_eight_devices_pack_like_one(config, packed, alone, sizes):
    spread = descend(config, packed, make_mesh(MeshConfig.create(**sizes)), **LOSS)
    assert_same_updates(descend(config, packed, alone, **LOSS), spread)


def test_the_decoder_reads_every_packed_target_from_its_own_start():
    ids = jnp.array([[5, 6, 7, 8, 9, 1, 4, 2, 1, 1, 1, 1]])
    prompts = jnp.array([[0, 0, 0, 2, -1, -1]])
    expected = [[2, 5, 6, 7, 8, 9, 2, 4, 2, 1, 1, 1]]
    assert shift_right(ids, prompts).tolist() == expected
    assert shift_right(ids[:, :6], prompts[:, :3]).tolist() == shift_right(ids[:, :6]).tolist()


def test_chunks_have_the_task_of_their_prompt():
    tasks = tasks_of_chunks(jnp.array([[4, -1, 9]]), jnp.array([[0, 0, 2, -1]]))
    assert tasks.tolist() == [[4, 4, 9, -1]]


def test_a_packed_run_says_what_it_pads(small_run, tmp_path):
    shares = []
    for name, inputs in {"apart": {}, "packed": dict(pack_length=80)}.items():
        run = small_run | dict(input=small_run["input"] | inputs)
        console = Console(file=io.StringIO(), width=200)
        report = loop.run(run, tmp_path / name, console=console, stop_after=2)
        row = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        assert report["step"] == 2 and 0 < row["prompt_padding_share"] < 1
        assert row["unplaced_targets"] >= 0 and row["loss"] > 0
        shares.append(row["padding_share"])
    assert shares[1] < 0.75 * shares[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(pack_length=70), r"input\.pack_length: 70 must be a multiple of 16"),
        (dict(pack_length=32), r"input\.pack_length: 32 must hold the longest target \(input\.ta"),
        (dict(pack_length=2048), r"2048 must .* fit the 1024 positions of model\.text\.max_pos"),
        (dict(pack_length=-48), r"input\.pack_length: -48 must hold the longest target"),
        (dict(pack_length="64"), r"input\.pack_length: '64' is not of type int"),
    ],
)
def test_a_row_that_cannot_be_packed_is_refused_with_its_place(small_run, values, message):
    small_run["input"] |= values
    with pytest.raises(UserError, match=message):
        RunConfig.create(small_run)
