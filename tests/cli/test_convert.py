# SPDX-License-Identifier: Apache-2.0
"""`convert` as a person types it: a converted workdir is trained on, exported and read again."""

import json

import jax
import numpy as np
import pytest

from florence2_jax.cli.main import main
from florence2_jax.conversion.configs import GENERATION
from florence2_jax.conversion.export import save_workdir
from florence2_jax.conversion.load import Pretrained, load_pretrained
from florence2_jax.conversion.translate import flatten
from florence2_jax.models.config import Florence2Config
from florence2_jax.records.store import RecordStore
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training import loop
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.state import init_params
from florence2_jax.typing import UserError


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A workdir without a run: random weights, as `--to jax` leaves them."""
    tokenizer = Tokenizer.train(["a red circle on a green square"], vocab_size=320)
    davit = dict(dims=(8, 16), num_heads=(1, 2), depths=(1, 1), window_size=4)
    davit |= dict(patch_kernels=(7, 3), patch_strides=(4, 4), pre_norm=(False, True))
    text = dict(d_model=32, encoder_layers=1, decoder_layers=1, num_heads=2, mlp_dim=64)
    text |= dict(vocab_size=len(tokenizer))
    config = Florence2Config.create(
        "tiny", image_size=(64, 32), dtype="float32", davit=davit, text=text
    )
    params = init_params(config, jax.random.key(0))
    folder = tmp_path_factory.mktemp("start")
    save_workdir(Pretrained(config, params, tokenizer, GENERATION), folder, {"name": "random"})
    return folder


@pytest.fixture(scope="module")
def run_file(start, scenes) -> dict:
    model = json.loads((start / workdir_lib.MODEL).read_text())
    inputs = dict(records=str(scenes), batch_size=8, prompt_length=24, target_length=40)
    return dict(
        seed=3,
        total_steps=1,
        model=model,
        input=inputs,
        tokenizer=dict(path=str(start / workdir_lib.TOKENIZER)),
        optimizer=dict(peak_lr=1e-3, warmup_steps=0),
        checkpoint=dict(every_steps=1, keep=1),
        init=dict(workdir=str(start)),
    )


@pytest.fixture(scope="module")
def workdir(run_file, tmp_path_factory):
    """A run of one step that started from there."""
    folder = tmp_path_factory.mktemp("run") / "workdir"
    loop.run(run_file, folder)
    return folder


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    """The run as a folder of transformers, verified."""
    target = tmp_path_factory.mktemp("hf") / "folder"
    report = target.parent / "report.json"
    command = ["convert", str(workdir), str(target), "--to", "hf", "--verify"]
    assert main([*command, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["differences"]["logits"] < 1e-5 and found["parameters"] > 10_000
    return target


def test_a_run_starts_from_a_converted_workdir(start, workdir):
    one, other = flatten(load_pretrained(start).params), flatten(load_pretrained(workdir).params)
    moved = [float(np.abs(one[path] - other[path]).max()) for path in one]
    assert 0 < max(moved) < 2e-3  # One step of Adam, at a rate of 1e-3.


def test_a_run_becomes_a_folder_and_a_workdir_again(workdir, folder, tmp_path, scenes, capsys):
    assert main(["convert", str(folder), str(tmp_path / "again"), "--to", "jax", "--verify"]) == 0
    assert "  logits: " in capsys.readouterr().out
    one, other = load_pretrained(workdir), load_pretrained(tmp_path / "again")
    assert one.config == other.config and one.tokenizer == other.tokenizer
    assert one.generation == other.generation and one.generation["max_length"] == 41
    photo = tmp_path / "photo.png"
    photo.write_bytes(RecordStore(scenes, "validation")[0].image)
    command = ["predict", "--task", "<OD>", str(photo), "--model"]
    for name, model in (("one", workdir), ("other", tmp_path / "again")):
        assert main([*command, str(model), "--json", str(tmp_path / name)]) == 0
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("one", "other"))
    raw = [answers["answers"][0]["raw"] for answers in (one, other)]
    assert raw[0] and raw[1].startswith(raw[0][:20])  # The same until the run's length is used up.


def test_the_card_tells_of_the_run(folder, scenes):
    card = (folder / "README.md").read_text()
    assert "| steps | 1 |" in card and f"| data | `{scenes.name}`, split `train` |" in card
    assert str(scenes.parent) not in card


def test_a_converted_workdir_is_no_place_for_a_run(start, run_file):
    before = (start / "config.json").read_text()
    with pytest.raises(UserError, match="belongs to another run"):
        loop.run(run_file | dict(init=dict(workdir="")), start)
    assert (start / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("{f} {f} --to jax", "is not empty: give a new folder"),
        ("nowhere {t} --to jax", "nowhere: no such folder, and no hub name"),
        ("{f} {t} --to jax --dtype float16", "a workdir always holds float32"),
        ("{f} {t} --to hf --dtype bfloat16", "would be rounded to fit bfloat16"),
        ("{f}/.. {t} --to hf", "holds no model"),
    ],
)
def test_user_errors_are_one_line_and_status_2(folder, tmp_path, capsys, command, message):
    words = command.format(f=folder, t=tmp_path / "target").split()
    assert main(["convert", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.iterdir())
