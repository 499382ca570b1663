# SPDX-License-Identifier: Apache-2.0
"""What is no model, or not one model, is refused with what to do about it."""

import json
import shutil
import sys

import numpy as np
import pytest

from florence2_jax.conversion.load import find, load_pretrained
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.typing import UserError


@pytest.fixture
def folder(hf_folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(hf_folder, tmp_path / "copy")


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_no_folder_and_no_hub_name(tmp_path):
    with pytest.raises(UserError, match=r"no such folder, and no hub name \(owner/name\)"):
        find(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no model: give a workdir of `train`"):
        find(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file: give the folder it is in"):
        find(tmp_path / "file")


def test_a_hub_name_without_a_network(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be downloaded \(.*copy the repository's files"):
        load_pretrained("someone/Florence-2-none")


def test_a_hub_name_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # What an import without it does.
    with pytest.raises(UserError, match="pip install huggingface_hub, or give a folder"):
        load_pretrained("someone/Florence-2-none")


def test_another_architecture(folder):
    change(folder, model_type="blip")
    with pytest.raises(UserError, match="describes a model of type 'blip', not florence2"):
        load_pretrained(folder)


def test_a_tokenizer_of_another_model(folder, tokenizer):
    letters = np.random.default_rng(0).choice(list("abcdefgh"), size=(200, 5))
    other = Tokenizer.train(["".join(word) for word in letters], vocab_size=400)
    assert len(other) > len(tokenizer)
    other.save(folder)
    with pytest.raises(UserError, match=r"the tokenizer has .* the embedding"):
        load_pretrained(folder)


def test_image_token_elsewhere(folder):
    change(folder, image_token_id=7)
    with pytest.raises(UserError, match="has <image> at 7, the tokenizer at"):
        load_pretrained(folder)


def test_a_folder_without_a_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer\.model"):
        load_pretrained(folder)
