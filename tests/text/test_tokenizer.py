# SPDX-License-Identifier: Apache-2.0
import multiprocessing
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence2_jax.text.tokenizer import (
    ADDED_TOKENS,
    BOS_ID,
    EOS_ID,
    PAD_ID,
    Tokenizer,
    neutralize,
)
from florence2_jax.typing import UserError

TEXTS = ["a red star and a blue car", "two small stars left of a green tree. CAFE", "what is it?"]
UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60)


def test_the_added_tokens_are_the_released_1024_in_order():
    assert len(ADDED_TOKENS) == len(set(ADDED_TOKENS)) == 1024
    # Offsets from 50265, facts 1.5.
    known = {"<od>": 0, "<loc_0>": 4, "<loc_999>": 1003, "<cap>": 1004, "<sep>": 1014}
    known |= {"<region_cap>": 1015, "</proposal>": 1020, "<poly>": 1021, "<and>": 1023}
    assert {token: ADDED_TOKENS.index(token) for token in known} == known


def test_control_ids_are_those_of_bart(tokenizer):
    assert tokenizer.encode("<s><pad></s>") == [BOS_ID, PAD_ID, EOS_ID]
    assert tokenizer.decode([0, 1, 2, 3, 2]) == ""
    assert tokenizer.decode([0, 1, 2, 3], keep_control=True) == "<s><pad></s><unk>"


def test_no_added_token_is_split_and_ids_are_consecutive(tokenizer):
    first = len(tokenizer) - 1025
    ids = [tokenizer.encode(token) for token in (*ADDED_TOKENS, "<image>")]
    assert ids == [[first + k] for k in range(1025)]
    assert tokenizer.encode("star<loc_7>")[-1] == tokenizer.first_location_id + 7 == first + 11
    assert len(tokenizer.encode("<loc_1000>")) > 1  # Not a token, facts 1.5.


def test_blanks_around_locations_are_tokens_of_their_own(tokenizer):
    bare, blank = tokenizer.encode("region<loc_1>car"), tokenizer.encode(" ")
    spaced = tokenizer.encode("region <loc_1> <loc_1>car")
    location = tokenizer.first_location_id + 1
    cut = bare.index(location)
    assert spaced == [*bare[:cut], *blank, location, *blank, *bare[cut:]]


@settings(max_examples=200)
@given(text=UNICODE)
def test_sentencepiece_restores_any_text(sentencepiece_tokenizer, text):
    text = neutralize(text)
    assert sentencepiece_tokenizer.decode(sentencepiece_tokenizer.encode(text)) == text


@settings(max_examples=200)
@given(text=UNICODE | st.text(st.characters(exclude_categories=["Cs"])))
def test_bart_restores_any_text(bart_tokenizer, text):
    text = neutralize(text)
    assert bart_tokenizer.decode(bart_tokenizer.encode(text)) == text


def test_a_vocabulary_without_a_blank_restores_blanks():
    tokenizer = Tokenizer.train(["abcabcabc"], vocab_size=300)
    assert tokenizer.decode(tokenizer.encode("ab  c ")) == "ab  c "


def test_texts_met_again_have_the_same_ids(tokenizer, monkeypatch):
    monkeypatch.setattr("florence2_jax.text.tokenizer._MAX_KNOWN", 3)
    fast = tokenizer.to_fast()
    texts = [f"{word}<loc_{k}>{word} <sep>" for k in range(2) for word in ("star", "a car", "tree")]
    for text in texts * 3:
        ids = tokenizer.encode(text)
        assert ids == fast.encode(text, add_special_tokens=False).ids
        ids.clear()  # The caller's own.


def test_locations_and_newlines_survive(tokenizer):
    text = "café\n 日本 <b<loc_0><loc_999>  two  blanks<poly><sep></poly>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_any_ids_decode_and_unknown_ones_are_named(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(50):  # Halves of characters included, as an untrained model writes them.
        ids = rng.integers(0, len(tokenizer) - 1024, 20)
        assert isinstance(tokenizer.decode(ids.tolist()), str)
    for index in (-1, len(tokenizer)):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            tokenizer.decode([index])


def test_text_that_spells_a_token_is_neutralised(tokenizer):
    assert neutralize("a<loc_5></s>b<loc_1000><mask>") == "a‹loc_5>‹/s>b<loc_1000>‹mask>"
    ids = tokenizer.encode(neutralize("<loc_5></s>"))
    assert EOS_ID not in ids and tokenizer.first_location_id + 5 not in ids


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded == tokenizer and hash(loaded) == hash(tokenizer)
    assert len(loaded) == len(tokenizer)
    assert loaded.encode("a red star<loc_3>") == tokenizer.encode("a red star<loc_3>")


def test_tokenizers_of_other_pieces_are_unequal(sentencepiece_tokenizer, bart_tokenizer):
    other = Tokenizer.train(TEXTS * 20, vocab_size=330)
    assert len({sentencepiece_tokenizer, bart_tokenizer, other}) == 3
    assert other != "a tokenizer"


def _in_a_process(context: str, tokenizer: Tokenizer) -> list[int]:
    with multiprocessing.get_context(context).Pool(1) as pool:
        return pool.apply(tokenizer.encode, ("a red car <loc_3>",))


def test_pickles_travel_to_workers(tokenizer):
    assert tokenizer == tokenizer  # The cached identity travels too.
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer
    ids = tokenizer.encode("a red car <loc_3>")
    assert again.encode("a red car <loc_3>") == ids
    assert _in_a_process("spawn", tokenizer) == ids


def test_training_is_deterministic():
    first, again = (Tokenizer.train(TEXTS * 20, vocab_size=330) for _ in range(2))
    assert first._base.files() == again._base.files()


def test_bad_training_input_is_named():
    with pytest.raises(UserError, match="no texts"):
        Tokenizer.train(["", "\n"], vocab_size=400)
    with pytest.raises(UserError, match="leaves no room"):
        Tokenizer.train(TEXTS, vocab_size=100)
