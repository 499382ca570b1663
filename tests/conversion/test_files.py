# SPDX-License-Identifier: Apache-2.0
"""Weights on disk: formats of others are read, ours are read by others, damage is named."""

import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import Florence2ForConditionalGeneration

from florence2_jax.conversion.files import read_file, read_image_size, read_json, read_tensors
from florence2_jax.conversion.tensors import Tensor, read_safetensors, write_safetensors
from florence2_jax.typing import UserError

from .conftest import IMAGE_SIZE, digests

NORM = "model.vision_tower.convs.0.norm.bias"


def lazy(arrays):
    return {n: Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}


@pytest.fixture
def folder(hf_folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(hf_folder, tmp_path / "copy")


@pytest.fixture
def sharded(oracle, tmp_path):
    oracle.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    return tmp_path / "sharded"


def test_shards_of_transformers_are_one_state_dict(sharded, hf_folder):
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    one, other = read_tensors(sharded), read_tensors(hf_folder)
    assert digests(one) == digests(other) == digests(load_file(hf_folder / "model.safetensors"))


def test_shards_of_ours_open_in_transformers(hf_folder, folder, oracle):
    tensors = read_tensors(hf_folder)
    (folder / "model.safetensors").unlink()
    write_safetensors(folder, tensors, max_shard_bytes=60_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert digests(read_tensors(folder)) == digests(tensors)
    model, report = Florence2ForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_every_kind_of_array_is_written_as_the_reference_reads_it(tmp_path):
    arrays = {
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 4), np.float16),
        "view": np.arange(12, dtype=np.int64).reshape(3, 4).T,
        "last": np.array([True, False]),
    }
    write_safetensors(tmp_path, lazy(arrays))
    path = tmp_path / "model.safetensors"
    assert digests(load_file(path)) == digests(arrays) == digests(read_safetensors(path))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_pickle_and_safetensors_hold_the_same(hf_folder, tmp_path, dtype):
    kind = getattr(torch, dtype)
    values = {n: torch.from_numpy(np.array(t)).to(kind) for n, t in read_tensors(hf_folder).items()}
    torch.save(values, tmp_path / "pytorch_model.bin")
    read = read_tensors(tmp_path)
    assert {str(tensor.dtype) for tensor in read.values()} == {dtype}
    for name, tensor in read.items():
        np.testing.assert_array_equal(
            np.asarray(tensor).astype(np.float32), values[name].float().numpy()
        )


def test_an_old_pickle_that_is_no_archive(hf_folder, tmp_path):
    values = {n: torch.from_numpy(np.array(t)) for n, t in read_tensors(hf_folder).items()}
    torch.save(values, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert digests(read_tensors(tmp_path)) == digests(read_tensors(hf_folder))


def test_missing_shards_are_all_named(sharded):
    shards = sorted(sharded.glob("model-*.safetensors"))
    for path in shards[1:]:
        path.unlink()
    with pytest.raises(UserError, match="shards are missing") as caught:
        read_tensors(sharded)
    assert all(path.name in str(caught.value) for path in shards[1:])
    assert shards[0].name not in str(caught.value)


def test_an_index_that_disagrees_with_its_shards(sharded):
    index = sharded / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["more"] = values["weight_map"].pop(NORM)
    index.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"disagree about more in .*norm\.bias in model-"):
        read_tensors(sharded)


def test_an_index_may_not_lead_out_of_its_folder(sharded):
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(UserError, match="files outside its folder"):
        read_tensors(sharded)


@pytest.mark.parametrize("keep", [4, 200, 20_000, -1])
def test_a_file_cut_short(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model.safetensors is (cut short|no safetensors file)"):
        read_tensors(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "no safetensors file"),
        (b"<html><body>Not found</body></html>", "no safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "run `git lfs pull`"),
        (b"\x04" + bytes(7) + b"{]]]", "header .* is damaged"),
        (
            b"\x50"
            + bytes(7)
            + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}'.ljust(80),
            r"damaged: \(2,\) of F32 is not 4 bytes",
        ),
        (
            b"\x50" + bytes(7) + b'{"a":{"dtype":"F3","shape":[1],"data_offsets":[0,4]}}'.ljust(80),
            "unknown dtype 'F3'",
        ),
    ],
)
def test_what_is_no_safetensors_file(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch it-ran",)


def test_a_pickle_with_code_is_refused_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for legacy in (False, True):
        path = tmp_path / "pytorch_model.bin"
        torch.save({"a": Malicious()}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=r"holds code \(posix\.system\)"):
            read_tensors(tmp_path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        read_tensors(tmp_path)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("keep", [0, 3, 500, 50_000, -30])
def test_a_damaged_pickle(microsoft_folder, tmp_path, keep):
    whole = (microsoft_folder / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(whole[:keep])
    with pytest.raises(UserError, match="is damaged, cut short, or no file of PyTorch's"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("wrapping", ["state_dict", "model"])
def test_tensors_that_a_training_script_wrapped(wrapping, tmp_path):
    saved = {wrapping: {"w": torch.arange(3.0)}, "epoch": 3}
    torch.save(saved, tmp_path / "pytorch_model.bin")
    [(name, tensor)] = read_tensors(tmp_path).items()
    assert name == "w" and tensor.read().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(2)], "holds a list, not tensors by name"),
        ({"epoch": 3, "w": torch.zeros(1)}, "more than tensors by name: epoch"),
    ],
)
def test_a_pickle_of_something_else(tmp_path, value, message):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        read_file(tmp_path / "pytorch_model.bin")


def test_without_pytorch_the_error_says_what_to_install(microsoft_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # What an import without it does.
    with pytest.raises(UserError, match=r"pip install 'florence2-jax\[convert\]'"):
        read_tensors(microsoft_folder)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match=r"holds no weights: none of model\.safetensors"):
        read_tensors(tmp_path)


def test_json_that_is_not(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        read_json(tmp_path / "config.json")
    for content, message in (("{", "is damaged"), ("[]", "holds no JSON object")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_json(tmp_path / "config.json")


def test_the_image_size_is_that_of_the_processor(folder, tmp_path):
    assert read_image_size(folder) == IMAGE_SIZE
    (folder / "processor_config.json").unlink()
    assert read_image_size(folder) == IMAGE_SIZE  # Older folders have one file only.
    assert read_image_size(tmp_path / "nothing") is None
