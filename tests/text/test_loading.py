# SPDX-License-Identifier: Apache-2.0
"""Folders of tokenizers: which open, with which ids, and what the others are told."""

import copy
import io
import json
import re

import pytest
import sentencepiece
from token_samples import TEXTS, random_texts

from florence2_jax.text.tokenizer import ADDED_TOKENS, Tokenizer
from florence2_jax.typing import UserError


def train_sentencepiece(texts=TEXTS, **options) -> bytes:
    model = io.BytesIO()
    settings = dict(model_type="unigram", vocab_size=330, hard_vocab_limit=False)
    settings |= dict(byte_fallback=True, normalization_rule_name="identity")
    settings |= dict(add_dummy_prefix=False, remove_extra_whitespaces=False)
    settings |= dict(bos_id=0, pad_id=1, eos_id=2, unk_id=3, unk_piece="<unk>")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20), model_writer=model, minloglevel=2, **settings | options
    )
    return model.getvalue()


def write_json(folder, content):
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def row(token, index, **flags):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | flags
    return {"id": index, "content": token, "special": True} | flags


def with_added(bart_json, names, **flags):
    content = copy.deepcopy(bart_json)
    size = len(content["model"]["vocab"])
    content["added_tokens"] += [row(name, size + i, **flags) for i, name in enumerate(names)]
    return content


def test_microsofts_files_get_the_added_tokens(bart_json, bart_tokenizer):
    size = len(bart_json["model"]["vocab"])  # 50,265 in the released files.
    assert bart_tokenizer.encode("<mask>") == [size - 1]
    assert bart_tokenizer.encode("<od><loc_0>") == [size, size + 4]
    assert len(bart_tokenizer) == size + 1025


@pytest.mark.parametrize("names", [ADDED_TOKENS, (*ADDED_TOKENS, "<image>")])
def test_files_that_have_the_added_tokens_stay_the_same(bart_json, bart_tokenizer, tmp_path, names):
    content = with_added(bart_json, names)
    content["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst"}
    content["truncation"]["stride"] = 0  # Left behind by a fine-tuning run.
    write_json(tmp_path, content)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer == bart_tokenizer
    text = "a red star <loc_3> and a very blue car"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocab_and_merges_give_the_ids_of_tokenizer_json(bart_json, bart_tokenizer, tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(bart_json["model"]["vocab"]))
    merges = [" ".join(pair) for pair in bart_json["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert Tokenizer.load(tmp_path) == bart_tokenizer
    size = len(bart_json["model"]["vocab"])
    added = {token: size + i for i, token in enumerate(ADDED_TOKENS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    assert Tokenizer.load(tmp_path) == bart_tokenizer


def test_merges_as_strings_without_the_types_as_in_files_of_2020(
    bart_json, bart_tokenizer, tmp_path
):
    content = copy.deepcopy(bart_json)
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    del content["model"]["type"], content["pre_tokenizer"]["use_regex"]
    write_json(tmp_path, content)
    assert Tokenizer.load(tmp_path) == bart_tokenizer


def test_ids_are_those_of_bart_in_transformers(bart_json, bart_tokenizer, tmp_path):
    from transformers import AddedToken, BartTokenizerFast

    vocab, merges = bart_json["model"]["vocab"], bart_json["model"]["merges"]
    mask = AddedToken("<mask>", lstrip=True, special=True)  # As the released file has it.
    oracle = BartTokenizerFast(vocab=vocab, merges=[tuple(m) for m in merges], mask_token=mask)
    oracle.add_tokens([AddedToken(t, special=True, normalized=False) for t in ADDED_TOKENS])
    oracle.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    for text in random_texts(2000, seed=1):
        ids = bart_tokenizer.encode(text)
        assert ids == oracle(text, add_special_tokens=False)["input_ids"], repr(text)
        assert bart_tokenizer.decode(ids, keep_control=True) == oracle.decode(ids)


def test_unigram_models_still_load_and_are_not_exported(tmp_path, sentencepiece_tokenizer):
    model = train_sentencepiece()
    sentencepiece_tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(UserError, match=r"added_tokens\.json does not continue tokenizer\.model"):
        Tokenizer.load(tmp_path)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    added = {token: size + i for i, token in enumerate(ADDED_TOKENS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = Tokenizer.load(tmp_path)
    text = "a red star<loc_3>  <0x41>日"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer == Tokenizer.load(tmp_path) != sentencepiece_tokenizer
    with pytest.raises(UserError, match=r"tokenizer\.model is no plain BPE model"):
        tokenizer.to_fast()


def test_a_piece_that_spells_a_special_token_is_neither_learnt_nor_exported(tmp_path):
    texts = ["<mask><sep> ab<poly>"] * 50
    trained = Tokenizer.train(texts, vocab_size=330)
    assert trained.to_fast().token_to_id("<mask>") is None
    model = train_sentencepiece(texts, model_type="bpe", split_by_unicode_script=False)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    (tmp_path / "tokenizer.model").write_bytes(model)
    added = {token: size + i for i, token in enumerate(ADDED_TOKENS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]
    with pytest.raises(UserError, match=r"tokenizer\.model is no plain BPE model"):
        tokenizer.to_fast()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(bos_id=4), "at ids 0 to 3, expected"),
        (dict(normalization_rule_name="nfkc"), "normalises texts"),
        (dict(add_dummy_prefix=True), "normalises texts"),
        (dict(byte_fallback=False, vocab_size=100), "no pieces for single bytes"),
    ],
)
def test_foreign_sentencepiece_models_are_refused(tmp_path, options, message):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(**options))
    with pytest.raises(UserError, match=rf"tokenizer\.model .*{message}.*tokenizer train"):
        Tokenizer.load(tmp_path)


def test_a_folder_with_nothing_or_damaged_files(tmp_path, bart_json, sentencepiece_tokenizer):
    with pytest.raises(UserError, match=r"holds no tokenizer\.model, tokenizer\.json or vocab"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(bart_json["model"]["vocab"]))
    with pytest.raises(UserError, match=r"merges\.txt cannot be read .*copy it again"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(UserError, match=r"merges\.txt:2 is no pair of pieces"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nqq zz\n")
    with pytest.raises(UserError, match=r"merges\.txt does not fit its vocabulary"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(bart_json)[:-40])
    with pytest.raises(UserError, match=r"tokenizer\.json is cut short or damaged .*copy it again"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read .*copy it again"):
        Tokenizer.load(tmp_path)
    sentencepiece_tokenizer.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text("{")
    with pytest.raises(UserError, match=r"added_tokens\.json cannot be read .*copy it again"):
        Tokenizer.load(tmp_path)
    whole = (tmp_path / "tokenizer.model").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not a model", b""):
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokenizer\.model .*(copy it|train it)"):
            Tokenizer.load(tmp_path)


def _swapped(names):
    return (*names[:4], names[5], names[4], *names[6:])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["<new_1>", "<new_2>"], "added tokens that Florence-2 does not know .*<new_1>, <new_2>"),
        (["<new>", *ADDED_TOKENS], "does not know there, or not there .*<new>, 1 in all"),
        (ADDED_TOKENS[1:], "does not know there, or not there .*</od>"),
        (_swapped(ADDED_TOKENS), "not Florence-2's 1,024 .* is <loc_1>, expected <loc_0>"),
        (ADDED_TOKENS[:-1], "is missing, expected <and>"),
        ((*ADDED_TOKENS, "<new>"), "is <new>, expected <image>"),
        ((*ADDED_TOKENS, "<image>", "<new>"), "is <new>, expected the end"),
    ],
)
def test_other_added_tokens_are_refused(bart_json, tmp_path, names, message):
    write_json(tmp_path, with_added(bart_json, names))
    with pytest.raises(UserError, match=rf"tokenizer\.json.*{message}.*give the folder"):
        Tokenizer.load(tmp_path)


def _other_models(content):
    """Changes that make `content` a file of another model, and what is said of it."""
    model = content["model"]
    gpt2 = {k: v - 4 for k, v in model["vocab"].items() if v > 3}
    no_gap = {k: v + (v > 300) for k, v in model["vocab"].items()}
    no_byte = {("<a>" if k == "a" else k): v for k, v in model["vocab"].items()}
    prefix = content["pre_tokenizer"] | {"add_prefix_space": True}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}
    greedy = [
        row(token, len(model["vocab"]) + i, lstrip=True) for i, token in enumerate(ADDED_TOKENS)
    ]
    return [
        ({"model": model | {"vocab": gpt2}, "added_tokens": []}, "ids 0 to 3 are"),
        ({"model": model | {"vocab": [["a", 0.0]], "type": "Unigram"}}, "no BPE vocabulary"),
        ({"model": None}, "no BPE vocabulary"),
        ({"model": model | {"type": "WordPiece"}}, "no byte-level BPE"),
        ({"model": model | {"continuing_subword_prefix": "##"}}, "no byte-level BPE"),
        ({"model": model | {"ignore_merges": True}}, "no byte-level BPE"),
        ({"normalizer": {"type": "NFKC"}}, "no byte-level BPE"),
        ({"pre_tokenizer": prefix}, "no byte-level BPE"),
        ({"pre_tokenizer": split}, "no byte-level BPE"),
        ({"model": model | {"vocab": no_gap}}, "without gaps"),
        ({"model": model | {"vocab": no_byte}}, r"1 of the 256 bytes have no piece \(a\)"),
        ({"model": model | {"merges": [["a"]]}}, "no pairs of pieces"),
        ({"model": model | {"merges": None}}, "no pairs of pieces"),
        ({"added_tokens": content["added_tokens"] + greedy}, "lets <od> swallow"),
        ({"added_tokens": [{"id": 0}]}, "added_tokens cannot be read"),
        ({"added_tokens": 3}, "added_tokens cannot be read"),
    ]


@pytest.mark.parametrize("case", range(16))
def test_files_of_other_models_are_refused(bart_json, tmp_path, case):
    change, message = _other_models(bart_json)[case]
    write_json(tmp_path, bart_json | change)
    remedy = "(give the folder|copy it again)"
    with pytest.raises(UserError, match=rf"tokenizer\.json.*{message}.*{remedy}") as caught:
        Tokenizer.load(tmp_path)
    assert not re.search(r"\n", str(caught.value))
    assert len(_other_models(bart_json)) == 16


def test_what_is_no_object_is_refused(tmp_path):
    for text in ("[]", "3", "[" * 100_000):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match=r"tokenizer\.json is (no file|cut short)"):
            Tokenizer.load(tmp_path)
