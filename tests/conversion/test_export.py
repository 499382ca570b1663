# SPDX-License-Identifier: Apache-2.0
"""Whole folders: they open in transformers and here, compute the same, and come back equal."""

import json
import logging
import shutil
import types

import numpy as np
import pytest
from transformers import AutoProcessor, Florence2ForConditionalGeneration, GenerationConfig

from florence2_jax.conversion import export
from florence2_jax.conversion.export import convert
from florence2_jax.conversion.files import read_tensors
from florence2_jax.conversion.load import load_pretrained
from florence2_jax.conversion.translate import flatten
from florence2_jax.conversion.verify import compare
from florence2_jax.inference.predictor import Predictor
from florence2_jax.typing import UserError

from .conftest import IMAGE_SIZE, assert_equal_tensors

TOLERANCE = 2e-5  # float32, about thirty matrix products of numbers around one.


@pytest.fixture(scope="module")
def workdir(hf_folder, tmp_path_factory):
    """The workdir out of transformers' folder."""
    folder = tmp_path_factory.mktemp("jax") / "workdir"
    convert(hf_folder, folder, "jax")
    return folder


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """The folder of transformers out of the workdir."""
    folder = tmp_path_factory.mktemp("exported") / "florence"
    convert(workdir, folder, "hf")
    return folder


def assert_same(source, target):
    found = compare(source, target)
    assert found.keys() == {"image features", "encoder", "logits", "largest logit"}
    assert max(found["image features"], found["encoder"], found["logits"]) < TOLERANCE
    assert found["largest logit"] > 0.1


def test_a_workdir_out_of_transformers_computes_the_same(hf_folder, workdir):
    assert_same(hf_folder, workdir)


def test_a_folder_of_ours_opens_in_transformers_without_a_word(exported, caplog, capfd):
    logger = logging.getLogger("transformers")
    propagates, logger.propagate = logger.propagate, True
    try:
        model, report = Florence2ForConditionalGeneration.from_pretrained(
            exported, output_loading_info=True
        )
        generation = GenerationConfig.from_pretrained(exported)
    finally:
        logger.propagate = propagates
    assert not any(report.values()), report
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "warning" not in capfd.readouterr().err.lower()
    assert model.config.text_config.vocab_size == len(
        AutoProcessor.from_pretrained(exported).tokenizer
    )
    assert generation.decoder_start_token_id == 2 and generation.num_beams == 2


def test_a_folder_of_ours_computes_the_same(workdir, exported):
    assert_same(workdir, exported)


def test_transformers_to_jax_and_back_is_exact(hf_folder, exported):
    assert_equal_tensors(read_tensors(hf_folder), read_tensors(exported))


def test_microsoft_to_jax_and_back_is_exact(microsoft_folder, tmp_path):
    convert(microsoft_folder, tmp_path / "jax", "jax")
    convert(tmp_path / "jax", tmp_path / "back", "microsoft", dtype="float16")
    assert_equal_tensors(read_tensors(microsoft_folder), read_tensors(tmp_path / "back"))
    assert_same(microsoft_folder, tmp_path / "jax")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["text_config"]["num_beams"] == 3 and config["vision_config"]["dim_embed"]


def test_microsoft_to_transformers_and_back(microsoft_folder, tmp_path):
    convert(microsoft_folder, tmp_path / "hf", "hf", dtype="float16")
    assert_same(microsoft_folder, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", "microsoft", dtype="float16")
    assert_equal_tensors(read_tensors(microsoft_folder), read_tensors(tmp_path / "back"))
    assert_same(tmp_path / "hf", tmp_path / "back")


def test_jax_to_transformers_and_back_is_exact(workdir, exported, tmp_path):
    convert(exported, tmp_path / "again", "jax")
    one, other = load_pretrained(workdir), load_pretrained(tmp_path / "again")
    assert (one.config, one.tokenizer, one.generation) == other[:1] + other[2:]
    a, b = flatten(one.params), flatten(other.params)
    for path in a:
        np.testing.assert_array_equal(a[path], b[path])


def test_every_kind_of_folder_loads_alike(hf_folder, microsoft_folder, workdir, tokenizer):
    for folder in (hf_folder, microsoft_folder, workdir):
        model = load_pretrained(folder)
        assert model.config.image_size == IMAGE_SIZE and model.config.dtype == "float32"
        assert model.tokenizer == tokenizer
    assert load_pretrained(workdir, dtype="bfloat16").config.dtype == "bfloat16"
    assert load_pretrained(hf_folder).generation == load_pretrained(workdir).generation
    assert load_pretrained(microsoft_folder).generation["no_repeat_ngram_size"] == 3


@pytest.mark.parametrize("bins", [0.0, 10.0])
def test_a_model_that_learnt_smoothed_locations_pools_them_wherever_it_goes(
    workdir, tmp_path, bins
):
    run = shutil.copytree(workdir, tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"loss": {"location_smoothing_bins": bins}}))
    (run / "generation_config.json").unlink()  # As a run leaves it.
    convert(run, tmp_path / "hf", "hf")
    convert(tmp_path / "hf", tmp_path / "jax", "jax")
    convert(tmp_path / "jax", tmp_path / "microsoft", "microsoft")
    for folder in (run, tmp_path / "hf", tmp_path / "jax", tmp_path / "microsoft"):
        assert load_pretrained(folder).generation.get("pool_locations", False) == bool(bins)
        assert Predictor.load(folder).generation.pool_locations == bool(bins)
    assert not Predictor.load(run, pool_locations=False).generation.pool_locations


def test_the_card_says_where_the_model_comes_from(exported):
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "| image size | 96 x 64 px, 7 image tokens |" in card
    assert "| converted from | `tiny-florence` |" in card
    assert str(exported.parent) not in card


def test_a_workdir_with_metrics_and_a_run_tells_them(workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    values = {
        "seed": 0,
        "input": {"records": "/somewhere/private/coco", "split": "train", "batch_size": 16},
        "optimizer": {"peak_lr": 1e-3},
    }
    (run / "config.json").write_text(json.dumps(values))
    (run / "metrics.json").write_text(json.dumps({"od": {"AP": 0.25}}))
    convert(run, tmp_path / "hf", "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| data | `coco`, split `train` |" in card and "| steps | 0 |" in card
    assert '"AP": 0.25' in card and "license: other" in card
    assert "licence of these weights is not recorded" in card
    assert "/somewhere" not in card


def test_the_card_has_the_table_of_an_evaluation_the_time_and_the_licence(workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"seed": 3, "input": {"records": "/private/coco"}}))
    lines = [{"event": "start"}, {"event": "time", "steps": [0, 9], "seconds": {"step": 5400.0}}]
    (run / "goodput.jsonl").write_text(
        "".join(json.dumps({"attempt": "a", "time": i, **x}) + "\n" for i, x in enumerate(lines))
    )
    task = {"task": "od", "metrics": {"ap50": 0.51, "ap": 0.2}, "intervals": {"ap50": [0.4, 0.6]}}
    task |= {"blind": {"ap50": None}, "num_examples": 1200}
    report = {"records": "/private/coco", "split": "val", "num_records": 300, "per_record": 4}
    (run / "metrics.json").write_text(json.dumps(report | {"tasks": [task]}))
    convert(run, tmp_path / "blood-cells", "hf", licence="apache-2.0")
    card = (tmp_path / "blood-cells" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "not recorded" not in card
    assert "\n# blood-cells\n" in card and "from `run`" in card and "/private" not in card
    assert "| seed | 3 |" in card and "| time | 1.5 h in 1 start(s) |" in card
    assert "| od | ap50 | 0.510 | 0.400 | 0.600 | - | 1,200 |" in card
    convert(tmp_path / "blood-cells", tmp_path / "again", "microsoft")
    assert "license: apache-2.0" in (tmp_path / "again" / "README.md").read_text()


def test_a_target_with_something_in_it_is_left_alone(hf_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: give a new folder"):
        convert(hf_folder, tmp_path, "hf")
    with pytest.raises(UserError, match="is a file: give a new folder"):
        convert(hf_folder, tmp_path / "mine.txt", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_target_is_filled(hf_folder, tmp_path):
    (tmp_path / "new").mkdir()
    convert(hf_folder, tmp_path / "new", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_conversion_that_fails_leaves_nothing(hf_folder, tmp_path):
    with pytest.raises(UserError, match="would be rounded to fit bfloat16"):
        convert(hf_folder, tmp_path / "new", "hf", dtype="bfloat16")
    assert not list(tmp_path.iterdir())
    convert(hf_folder, tmp_path / "new", "hf", dtype="bfloat16", rounds=True)
    assert {str(t.dtype) for t in read_tensors(tmp_path / "new").values()} == {"bfloat16"}


def test_a_disk_that_is_too_small_is_seen_before(hf_folder, tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=10_000)
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: usage)  # Ours has room.
    with pytest.raises(UserError, match=r"needs 0\.10 GB and 0\.00 GB are free"):
        convert(hf_folder, tmp_path / "new", "jax")
    assert not list(tmp_path.iterdir())


def test_a_workdir_has_no_dtype_to_choose(hf_folder, tmp_path):
    with pytest.raises(UserError, match="a workdir always holds float32"):
        convert(hf_folder, tmp_path / "new", "jax", dtype="float16")
    assert not list(tmp_path.iterdir())
