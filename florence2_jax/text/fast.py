# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE and SentencePiece BPE as tokenizers of the `tokenizers` library, and its files.

Whatever a file says about normalising, padding or truncating is checked or left out, never taken
over: what comes out here is built from the vocabulary, the merges and Florence-2's added tokens.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from florence2_jax.text.vocabulary import (
    ADDED_TOKENS,
    BOS,
    BOS_ID,
    CONTROL_TOKENS,
    EOS,
    EOS_ID,
    IMAGE_TOKEN,
    MASK_TOKEN,
    special_ids,
)
from florence2_jax.typing import UserError

BLANK = "▁"  # U+2581, how SentencePiece writes a blank.
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
TOKENIZER_FILE, VOCAB_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"
_ADDED_FILE = "added_tokens.json"
_REMEDY = "give the folder of a Florence-2 or BART tokenizer, or of one this package exported"

Merges = Sequence[tuple[str, str]]


def byte_level(
    vocab: Mapping[str, int], merges: Merges, *, mask_takes_blanks: bool = True
) -> tokenizers.Tokenizer:
    """BART's tokenizer over a vocabulary, its merges in order of priority.

    With `mask_takes_blanks`, `<mask>` swallows the blanks before it, as BART's does.
    """
    fast = tokenizers.Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    if MASK_TOKEN in vocab:
        fast.add_special_tokens([_whole(MASK_TOKEN, lstrip=mask_takes_blanks)])
    return _with_special_tokens(fast, trim_offsets=True)


def sentencepiece_level(vocab: Mapping[str, int], merges: Merges) -> tokenizers.Tokenizer:
    """SentencePiece's BPE with byte fallback and an identity normaliser."""
    model = models.BPE(vocab=dict(vocab), merges=list(merges), byte_fallback=True)
    fast = tokenizers.Tokenizer(model)
    fast.normalizer = normalizers.Replace(" ", BLANK)
    fast.decoder = sentencepiece_decoder()
    return _with_special_tokens(fast)


def sentencepiece_decoder() -> decoders.Decoder:
    """Joins SentencePiece's pieces to text; bytes that are no UTF-8 become U+FFFD, one each."""
    # Blanks last, since a vocabulary without the piece for a blank spells it in bytes.
    steps = [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(BLANK, " ")]
    return decoders.Sequence(steps)


def _whole(token: str, *, lstrip: bool = False) -> tokenizers.AddedToken:
    # Blanks around added tokens are kept, as released: "region <loc_1>" has a token for the blank.
    return tokenizers.AddedToken(token, special=True, normalized=False, lstrip=lstrip)


def _with_special_tokens(
    fast: tokenizers.Tokenizer, *, trim_offsets: bool = False
) -> tokenizers.Tokenizer:
    specials = special_ids(fast.get_vocab_size())
    fast.add_special_tokens([_whole(token) for token in specials])
    fast.post_processor = processors.RobertaProcessing(
        (EOS, EOS_ID), (BOS, BOS_ID), trim_offsets=trim_offsets, add_prefix_space=False
    )
    assert fast.get_vocab(with_added_tokens=True).items() >= specials.items()
    return fast


def read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """Reads a `tokenizer.json` of BART, of Florence-2 (either layout) or of `save_hugging_face`.

    Raises:
        UserError: if it is damaged, of another kind of model, or holds other tokens than
            Florence-2's added ones behind its base vocabulary.
    """
    content = _read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{path} is of another model (no BPE vocabulary): {_REMEDY}")
    added = _added_rows(content.get("added_tokens") or [], path)
    ids = {content: row["id"] for content, row in added.items()}
    vocab = _base_vocabulary(model["vocab"], ids, path)
    for token in (*ADDED_TOKENS, IMAGE_TOKEN):
        row = added.get(token, {})
        if any(row.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            raise UserError(f"{path} lets {token} swallow what is around it: {_REMEDY}")
    merges = _merges(model.get("merges"), path)
    kind = _kind(content, model)
    if kind == "byte_level":
        lstrip = bool(added.get(MASK_TOKEN, {}).get("lstrip"))
        return _byte_level(vocab, merges, path, mask_takes_blanks=lstrip)
    if kind == "sentencepiece":
        _require(BYTE_PIECES, vocab, path)
        return _built(lambda: sentencepiece_level(vocab, merges), path)
    raise UserError(f"{path} is of another model (no byte-level BPE as BART's): {_REMEDY}")


def read_vocab_and_merges(folder: Path) -> tokenizers.Tokenizer:
    """Reads `vocab.json` and `merges.txt`, and `added_tokens.json` where there is one.

    Raises:
        UserError: as `read_tokenizer_json`.
    """
    vocab_path, merges_path = folder / VOCAB_FILE, folder / MERGES_FILE
    added_path = folder / _ADDED_FILE
    added = _read_json(added_path) if added_path.is_file() else {}
    vocab = _base_vocabulary(_read_json(vocab_path), added, vocab_path)
    lines = _read_text(merges_path).split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").split(" ")
        if len(pair) == 2 and all(pair) and not (number == 1 and pair[0] == "#version:"):
            merges.append((pair[0], pair[1]))
        elif line.strip() and number > 1:
            raise UserError(f"{merges_path}:{number} is no pair of pieces: copy the file again")
    return _byte_level(vocab, merges, merges_path, mask_takes_blanks=True)


def _kind(content: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    # Files of 2020 do not name the type of their model.
    affixes = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"))
    if model.get("type", "BPE") != "BPE" or any(affixes) or model.get("ignore_merges"):
        return None
    normalizer, pre = content.get("normalizer"), content.get("pre_tokenizer")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    if normalizer == replace and pre is None and model.get("byte_fallback"):
        return "sentencepiece"
    if normalizer is not None or not isinstance(pre, dict) or pre.get("type") != "ByteLevel":
        return None
    plain = not pre.get("add_prefix_space", True) and pre.get("use_regex", True)
    return "byte_level" if plain else None


def _merges(rows: Any, path: Path) -> Merges:
    try:
        pairs = [row.split(" ") if isinstance(row, str) else row for row in rows]
        return [(str(left), str(right)) for left, right in pairs]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its merges are no pairs of pieces: copy it again") from error


def _added_rows(rows: Any, path: Path) -> dict[str, dict[str, Any]]:
    try:
        return {str(row["content"]): {**row, "id": int(row["id"])} for row in rows}
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: its added_tokens cannot be read: copy it again") from error


def _base_vocabulary(
    vocab: Mapping[str, Any], added: Mapping[str, Any], path: Path
) -> dict[str, int]:
    """The pieces before the added tokens. Raises UserError if the layout is not Florence-2's."""
    ids = dict(vocab) | dict(added)
    names = sorted(ids, key=lambda token: ids[token] if isinstance(ids[token], int) else -1)
    if [ids[token] for token in names] != list(range(len(names))):
        raise UserError(f"{path}: its ids do not run from 0 without gaps and doubles: {_REMEDY}")
    if tuple(names[:4]) != CONTROL_TOKENS:
        raise UserError(
            f"{path} is of another model: ids 0 to 3 are {names[:4]}, expected "
            f"{list(CONTROL_TOKENS)}: {_REMEDY}"
        )
    size = ids.get(ADDED_TOKENS[0], len(names))
    strangers = [t for t in added if ids[t] < size and t not in (*CONTROL_TOKENS, MASK_TOKEN)]
    strangers += sorted({*ADDED_TOKENS, IMAGE_TOKEN} & set(names[:size]) - set(strangers))
    if strangers:
        raise UserError(
            f"{path} has added tokens that Florence-2 does not know there, or not there "
            f"({', '.join(strangers[:3])}, {len(strangers)} in all): {_REMEDY}"
        )
    expected = (*ADDED_TOKENS, IMAGE_TOKEN)
    behind = names[size:]
    if behind not in ([], list(ADDED_TOKENS), list(expected)):
        pairs = zip(behind, expected, strict=False)
        index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(behind), 1025))
        found, wanted = [*behind, "missing"][index], [*expected, "the end"][index]
        raise UserError(
            f"{path}: the added tokens are not Florence-2's 1,024 in their order (id "
            f"{size + index} is {found}, expected {wanted}): {_REMEDY}"
        )
    return {token: index for index, token in enumerate(names[:size])}


def _byte_level(
    vocab: dict[str, int], merges: Merges, path: Path, *, mask_takes_blanks: bool
) -> tokenizers.Tokenizer:
    _require(pre_tokenizers.ByteLevel.alphabet(), vocab, path)
    return _built(lambda: byte_level(vocab, merges, mask_takes_blanks=mask_takes_blanks), path)


def _require(pieces: Iterable[str], vocab: Mapping[str, int], path: Path) -> None:
    missing = sorted(set(pieces) - vocab.keys())
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of the 256 bytes have no piece ({missing[0]}), so that some "
            f"texts would be lost: {_REMEDY}"
        )


def _built(build: Any, path: Path) -> tokenizers.Tokenizer:
    try:
        return build()
    except Exception as error:  # The library raises nothing more specific.
        raise UserError(f"{path} does not fit its vocabulary ({error}): copy it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is cut short or damaged ({error}): copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no file of a tokenizer: {_REMEDY}")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again") from error
