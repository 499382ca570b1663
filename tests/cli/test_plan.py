# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax plan` as a person types it: the real step of a small run, by the real compiler."""

import json

import pytest

from florence2_jax.cli.main import main

RUN_FILE = """
from ml_collections import ConfigDict


def get_config():
    c = ConfigDict(dict(seed=0, total_samples=64_000))
    c.model = dict(variant="tiny", image_size=32, remat="none", scan=False)
    c.model.davit = dict(dims=(16,), num_heads=(2,), depths=(1,), window_size=4)
    c.model.davit.update(drop_path_rate=0.0, patch_kernels=(7,), patch_strides=(8,))
    c.model.davit.update(pre_norm=(False,))
    c.model.text = dict(d_model=32, encoder_layers=1, decoder_layers=1, num_heads=2, mlp_dim=64)
    c.model.text.update(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    c.input = dict(records="/data", batch_size=32, num_prompts=2)
    c.input.update(prompt_length=32, target_length=64)
    c.tokenizer = dict(path="", train_size=4000)
    c.optimizer = dict(peak_lr=1e-3, warmup_steps=2)
    c.mesh = dict(replica=-1, fsdp=2, tensor=1)
    return c
"""


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(RUN_FILE)
    return path


def test_a_plan_tells_memory_time_and_traffic(run_file, tmp_path, capsys):
    path = tmp_path / "plan.json"
    command = ["plan", "--config", str(run_file), "--topology", "v5e:2x2"]
    assert main([*command, "--images-per-chip", "4", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["fits"] and report["missing"] == {}
    assert report["mesh"] == {"replica": 2, "fsdp": 2, "tensor": 1}
    assert (report["batch_size"], report["images_per_device"]) == (16, 4)
    # Nothing is recomputed, so what runs is what is useful, and the optimizer.
    assert 1.0 <= report["flops"]["executed_over_useful"] < 1.1
    memory = report["memory"]
    assert memory["needed"] + memory["headroom"] == memory["available"]
    assert memory["layout_padding"] >= 0
    sent = {(c["kind"], c["axes"]): c["bytes"] for c in report["collectives"]}
    assert sent["all-gather", "fsdp"] > 0
    # A ring of two copies sends each of them its whole shard; what is small is summed elsewhere.
    assert sent["all-reduce", "replica"] > 0.9 * memory["parameters"]
    assert sum(sent.values()) < 10 * memory["parameters"]
    times = {name: column["step_ms"] for name, column in report["estimates"].items()}
    assert 0 < times["RL"] < times["RL + collectives"] and times["RL"] < times["cyc"]
    said = capsys.readouterr().out
    for words in ("fits:", "MFU", "all-gather over fsdp (ICI)", "nothing ran on a TPU"):
        assert words in " ".join(said.split()), words


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--topology v5e:3x3", "--topology v5e:3x3: there is no such slice; did you mean v5e:2x4"),
        ("--topology v5e:2x2 --slices 0", "--slices: 0 must be at least 1"),
        ("--topology v5e:2x2 --config.model.remat=some", "model.remat: 'some' is not one of"),
        ("--topology v5e:2x2 --oops", "Unknown command line flag 'oops'"),
    ],
)
def test_user_errors_are_one_line_and_status_2(run_file, capsys, flags, message):
    assert main(["plan", "--config", str(run_file), *flags.split()]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("florence2-jax: ") and message in lines[0]
