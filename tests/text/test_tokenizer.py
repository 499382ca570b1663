# SPDX-License-Identifier: Apache-2.0
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
UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\0"), max_size=60)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, vocab_size=330)


def test_the_added_tokens_are_the_released_1024_in_order():
    assert len(ADDED_TOKENS) == len(set(ADDED_TOKENS)) == 1024
    # Offsets from 50265, facts 1.5.
    known = {"<od>": 0, "<loc_0>": 4, "<loc_999>": 1003, "<cap>": 1004, "<sep>": 1014}
    known |= {"<region_cap>": 1015, "</proposal>": 1020, "<poly>": 1021, "<and>": 1023}
    assert {token: ADDED_TOKENS.index(token) for token in known} == known


def test_control_ids_are_those_of_bart(tokenizer):
    assert tokenizer.encode("<s><pad></s>") == [BOS_ID, PAD_ID, EOS_ID]


def test_no_added_token_is_split(tokenizer):
    for token in ADDED_TOKENS:
        assert len(tokenizer.encode(token)) == 1
    assert tokenizer.encode("star<loc_7>")[-1] == tokenizer.first_location_id + 7
    assert len(tokenizer.encode("<loc_1000>")) > 1  # Not a token, facts 1.5.


@settings(max_examples=200)
@given(text=UNICODE)
def test_decoding_restores_any_text(tokenizer, text):
    text = neutralize(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_locations_and_newlines_survive(tokenizer):
    text = "café\n 日本 <b<loc_0><loc_999>  two  blanks<poly><sep></poly>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_that_spells_a_token_is_neutralised(tokenizer):
    assert neutralize("a<loc_5></s>b<loc_1000>") == "a‹loc_5>‹/s>b<loc_1000>"
    ids = tokenizer.encode(neutralize("<loc_5></s>"))
    assert EOS_ID not in ids and tokenizer.first_location_id + 5 not in ids


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert len(loaded) == len(tokenizer)
    assert loaded.encode("a red star<loc_3>") == tokenizer.encode("a red star<loc_3>")


def test_training_is_deterministic(tokenizer):
    again = Tokenizer.train(TEXTS * 20, vocab_size=330)
    assert again._base.serialized_model_proto() == tokenizer._base.serialized_model_proto()


def test_bad_input_is_named(tmp_path):
    with pytest.raises(UserError, match="no texts"):
        Tokenizer.train(["", "\n"], vocab_size=400)
    with pytest.raises(UserError, match="leaves no room"):
        Tokenizer.train(TEXTS, vocab_size=100)
    with pytest.raises(UserError, match=r"holds no tokenizer\.model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path)
