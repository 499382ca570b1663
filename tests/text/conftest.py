# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers of both kinds."""

import json
from pathlib import Path

import pytest
import tokenizers
from token_samples import TEXTS
from tokenizers import models, pre_tokenizers, trainers

from florence2_jax.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def sentencepiece_tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, vocab_size=450)


@pytest.fixture(scope="session")
def bart_json() -> dict:
    """A small `tokenizer.json` in the layout of BART's: specials first, `<mask>` last."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS * 20, trainer)
    content = json.loads(trained.to_str())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"]["<mask>"] = size
    mask = {"id": size, "content": "<mask>", "single_word": False, "lstrip": True}
    mask |= {"rstrip": False, "normalized": True, "special": True}
    content["added_tokens"].append(mask)
    content["decoder"] = content["pre_tokenizer"]
    return content


@pytest.fixture(scope="session")
def bart_folder(bart_json, tmp_path_factory) -> Path:
    """As Microsoft's folders: nothing behind `<mask>`."""
    folder = tmp_path_factory.mktemp("bart")
    (folder / "tokenizer.json").write_text(json.dumps(bart_json), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def bart_tokenizer(bart_folder) -> Tokenizer:
    return Tokenizer.load(bart_folder)


@pytest.fixture(params=["sentencepiece", "bart"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(f"{request.param}_tokenizer")
