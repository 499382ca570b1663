# SPDX-License-Identifier: Apache-2.0
"""Adapters trained on a model of transformers: merged or as PEFT's, they open there and agree."""

import io
import json
import shutil
import warnings

import numpy as np
import pytest
from rich.console import Console

from florence2_jax.cli.main import main
from florence2_jax.conversion.export import convert
from florence2_jax.conversion.files import read_tensors
from florence2_jax.conversion.load import load_pretrained
from florence2_jax.conversion.tensors import read_safetensors
from florence2_jax.conversion.translate import flatten, to_tensors
from florence2_jax.conversion.verify import compare
from florence2_jax.training import loop
from florence2_jax.training.saved_step import saved_steps
from florence2_jax.training.starting import starting_model, starting_params
from florence2_jax.typing import UserError

from .conftest import assert_equal_tensors

torch = pytest.importorskip("torch")
from transformers import Florence2ForConditionalGeneration  # noqa: E402

TOLERANCE = 5e-5  # float32; logits reach several ones.
MODULES = ("image/*/attn/*", "image/*/fc2", "text/*_proj", "text/*/fc1")


def run_file(hf_folder, scenes) -> dict:
    # 320 pieces spell most words: prompts of 60 tokens, for which the 40 positions grow.
    inputs = dict(records=str(scenes), batch_size=8, prompt_length=64, target_length=100)
    return dict(
        total_steps=3,
        model=dict(scan=True, text=dict(max_positions=128)),
        init=dict(model=str(hf_folder)),
        input=inputs | dict(tasks=dict(all=0.0, od=1.0, caption=1.0)),
        optimizer=dict(peak_lr=3e-2, warmup_steps=0),
        lora=dict(rank=3, alpha=6.0, dropout=0.1, modules=MODULES),
        ema=dict(decay=0.5),
        log=dict(tensorboard=False),
    )


@pytest.fixture(scope="module")
def workdir(hf_folder, scenes, tmp_path_factory):
    """A run of three steps that trains adapters of both towers."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    console = Console(file=io.StringIO(), width=200)
    loop.run(run_file(hf_folder, scenes), folder, console=console)
    (folder / "said.txt").write_text(console.file.getvalue())
    return folder


@pytest.fixture(scope="module")
def merged(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "merged"
    convert(workdir, folder, "hf")
    return folder


@pytest.fixture(scope="module")
def adapters(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "adapters"
    assert main(["convert", str(workdir), str(folder), "--to", "peft"]) == 0
    return folder


def logits(model) -> np.ndarray:
    rng = np.random.default_rng(0)
    ids = np.concatenate(
        [np.full((2, 7), model.config.image_token_id), rng.integers(4, 300, (2, 9))], 1
    )
    with torch.no_grad():
        outputs = model.eval()(
            input_ids=torch.tensor(ids),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
            pixel_values=torch.tensor(rng.normal(size=(2, 3, 64, 96)).astype(np.float32)),
            decoder_input_ids=torch.tensor(rng.integers(4, 300, (2, 6))),
        )
    return outputs.logits.numpy()


def test_the_merged_folder_computes_in_transformers_what_the_run_computes(workdir, merged):
    found = compare(workdir, merged)
    assert max(found["image features"], found["encoder"], found["logits"]) < TOLERANCE
    assert found["largest logit"] > 0.1


def test_the_adapters_open_with_peft_on_the_model_that_the_run_started_from(
    hf_folder, merged, adapters
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
        base = Florence2ForConditionalGeneration.from_pretrained(hf_folder, dtype=torch.float32)
        before = logits(base)
        model = peft.PeftModel.from_pretrained(base, adapters)
        named = {name for name, _ in model.named_parameters() if "lora_" in name}
        together = logits(model)
        whole = Florence2ForConditionalGeneration.from_pretrained(merged, dtype=torch.float32)
    np.testing.assert_allclose(together, logits(whole), rtol=0, atol=TOLERANCE)
    assert np.abs(together - before).max() > 100 * TOLERANCE
    # 10 blocks have qkv, proj and fc2; 3 layers fc1; 2 self and 1 + 1 attentions 4 projections.
    assert len(named) == 2 * (10 * 3 + 3 + 4 * 4)


def test_the_adapters_are_as_peft_writes_them(adapters):
    config = json.loads((adapters / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 6.0, 0.1)
    assert config["base_model_name_or_path"] is None, "a folder of this machine is nobody's base"
    name = "model.vision_tower.blocks.0.0.spatial_block.window_attn.qkv"
    assert name in config["target_modules"]
    tensors = read_safetensors(adapters / "adapter_model.safetensors")
    assert tensors[f"base_model.model.{name}.lora_A.weight"].shape == (3, 8)
    assert tensors[f"base_model.model.{name}.lora_B.weight"].shape == (24, 3)
    assert len(tensors) == 2 * len(config["target_modules"])


def test_only_adapters_were_trained_and_that_is_said(workdir, hf_folder, merged):
    before, after = read_tensors(hf_folder), read_tensors(merged)
    adapted = ("attn.qkv", "attn.proj", "ffn.fc2", "q_proj", "k_proj", "v_proj", "out_proj", "fc1")
    for name in before.keys() - {name for name in before if "pos_idx" in name}:
        old, new = np.asarray(before[name]), np.asarray(after[name])  # Positions are more now.
        module, _, leaf = name.rpartition(".")
        is_adapted = module.endswith(adapted) and leaf == "weight"
        is_adapted &= "vision_tower" not in name or "fc1" not in name
        assert np.array_equal(old, new[: len(old)]) != is_adapted, name
    said = (workdir / "said.txt").read_text()
    assert "(49 adapters); frozen: " in said and f"starting from {hf_folder}" in said


def test_the_last_step_may_be_taken_in_place_of_the_average(workdir):
    average, last = (flatten(load_pretrained(workdir, ema=ema).params) for ema in (True, False))
    assert average.keys() == last.keys()
    different = [path for path in last if not np.array_equal(average[path], last[path])]
    # In stacks: 6 in each of 4 stages, 5 in the encoder, 9 in the decoder.
    assert len(different) == 38 and all(path.endswith("kernel") for path in different)


def test_longer_tables_of_positions_leave_short_answers_as_they_are(hf_folder, workdir):
    before, after = load_pretrained(hf_folder), load_pretrained(workdir)
    assert (before.config.text.max_positions, after.config.text.max_positions) == (40, 128)
    for tower in ("encoder", "decoder"):
        old, new = (m.params["text"][tower]["positions"]["embedding"] for m in (before, after))
        np.testing.assert_array_equal(old, new[:42])
        np.testing.assert_array_equal(new[2:42], new[42:82])
        assert new.shape == (130, 32)


def test_a_run_with_adapters_is_a_model_to_start_from(workdir, scenes, tmp_path):
    model = starting_model(str(workdir), dict(scan=False))
    found = dict(to_tensors(starting_params(str(workdir), model), model, "hf"))
    source = load_pretrained(workdir)
    assert_equal_tensors(found, dict(to_tensors(source.params, source.config, "hf")))
    run = run_file(workdir, scenes) | dict(init=dict(workdir=str(workdir)), lora={}, ema={})
    run["model"] = json.loads((workdir / "model.json").read_text())
    run["tokenizer"] = dict(path=str(workdir / "tokenizer"))
    with pytest.raises(UserError, match=r"has adapters or an average beside .* init\.model"):
        loop.run(run, tmp_path / "b", console=Console(file=io.StringIO()))


def test_a_model_without_adapters_has_none_to_export(hf_folder, merged, tmp_path):
    for folder in (hf_folder, merged):
        with pytest.raises(
            UserError, match=r"has no adapters: give the workdir of a run with lora"
        ):
            convert(folder, tmp_path / "a", "peft")
    assert not (tmp_path / "a").exists()


def test_checkpoints_with_adapters_are_verified_whole(workdir, tmp_path, capsys):
    run = shutil.copytree(workdir, tmp_path / "run")
    assert main(["checkpoint", "verify", str(run)]) == 0
    step = saved_steps(run / "checkpoints")[-1]
    assert step.items() == ("params", "training", "adapters", "ema")
    assert step.manifest()["format"] == 2
    shutil.rmtree(step.path / "adapters")
    assert main(["checkpoint", "verify", str(run)]) != 0
