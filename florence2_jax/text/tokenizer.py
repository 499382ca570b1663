# SPDX-License-Identifier: Apache-2.0
"""Text <-> ids: a base tokenizer followed by the 1,024 added tokens of Florence-2, in their order.

The base is a SentencePiece model, which `florence2-jax tokenizer train` makes, or BART's
byte-level BPE from a Hugging Face folder, with which the released models were trained. Both have
the layout that `vocabulary.py` draws, and everything after them sees that layout only.
"""

import functools
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from florence2_jax.text import fast as fast_lib
from florence2_jax.text.vocabulary import (
    ADDED_TOKENS,
    BOS,
    BOS_ID,
    CONTROL_TOKENS,
    DECODER_START_ID,
    EOS,
    EOS_ID,
    IMAGE_TOKEN,
    MASK_TOKEN,
    PAD,
    PAD_ID,
    SPECIAL_PATTERN,
    SPELLING_PATTERN,
    UNK,
    UNK_ID,
    neutralize,
    special_ids,
)
from florence2_jax.typing import UserError

__all__ = [
    "ADDED_TOKENS", "BOS", "BOS_ID", "DECODER_START_ID", "EOS", "EOS_ID", "IMAGE_TOKEN", "PAD",
    "PAD_ID", "UNK", "UNK_ID", "Tokenizer", "neutralize",
]  # fmt: skip

_MODEL_FILE = "tokenizer.model"
_ADDED_FILE = "added_tokens.json"
_MAX_KNOWN = 4096  # Texts whose ids are kept; a few MB.
_SPLIT_PATTERN = re.compile(f"({SPECIAL_PATTERN.pattern})")


class Tokenizer:
    """Ids of a base vocabulary and of the added tokens behind it.

    `encode` never splits an added token. `decode(encode(text)) == text` for any text, except that
    SentencePiece reads `▁` (U+2581) as a blank and BART drops blanks before `<mask>`. Two
    tokenizers are equal when they give every text the same ids.
    """

    def __init__(self, base: "_Base"):
        self._base = base
        self._specials = special_ids(len(base.pieces))
        self._tokens = [*base.pieces, *ADDED_TOKENS, IMAGE_TOKEN]
        self._known: dict[str, list[int]] = {}  # Texts encoded lately.

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Reads a folder of `save`, of BART or of Florence-2 (Microsoft's or native, our export).

        Where a folder of BART's vocabulary lacks the added tokens, as Microsoft's do, they are put
        behind it.

        Raises:
            UserError: if the folder holds no tokenizer, a damaged one or one of another layout.
        """
        folder = Path(folder)
        if (folder / _MODEL_FILE).is_file():
            return cls(_read_sentencepiece(folder))
        if (folder / fast_lib.TOKENIZER_FILE).is_file():
            return cls(_Fast(fast_lib.read_tokenizer_json(folder / fast_lib.TOKENIZER_FILE)))
        if (folder / fast_lib.VOCAB_FILE).is_file():
            return cls(_Fast(fast_lib.read_vocab_and_merges(folder)))
        raise UserError(
            f"{folder} holds no {_MODEL_FILE}, {fast_lib.TOKENIZER_FILE} or {fast_lib.VOCAB_FILE}: "
            "give a tokenizer's folder; `florence2-jax tokenizer train` makes one"
        )

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> "Tokenizer":
        """Trains a SentencePiece BPE model with byte fallback; nothing is normalised away.

        BPE rather than unigram: on the small vocabularies of closed worlds it writes the same
        texts in fewer tokens, and `to_fast` can express it exactly.

        Args:
            texts: what prompts and targets are written with; all are held in memory.
            vocab_size: pieces of the base vocabulary, the 4 control and 256 byte pieces included.
                Few texts give fewer pieces; the vocabulary is then smaller.

        Raises:
            UserError: if there is no text, or `vocab_size` leaves no room for letters.
        """
        # A special token is never split, so that no piece should learn to spell one.
        parts = (part for text in texts for part in SPELLING_PATTERN.split(text))
        lines = [line for part in parts for line in part.split("\n") if line]
        if not lines:
            raise UserError("no texts to train a tokenizer on: is the store empty?")
        if vocab_size < 300:
            raise UserError(f"a vocabulary of {vocab_size} leaves no room beside 260 fixed pieces")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=1.0,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                split_digits=True,
                bos_id=BOS_ID,
                pad_id=PAD_ID,
                eos_id=EOS_ID,
                unk_id=UNK_ID,
                bos_piece=BOS,
                pad_piece=PAD,
                eos_piece=EOS,
                unk_piece=UNK,
                num_threads=1,  # More threads change the result from run to run.
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(f"SentencePiece cannot train {vocab_size} pieces: {error}") from error
        return cls(_SentencePiece(model.getvalue(), "the trained model"))

    def save(self, folder: Path) -> None:
        """Writes what `load` reads: a SentencePiece model with its added tokens, or one JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._base.files().items():
            (folder / name).write_bytes(content)

    def to_fast(self) -> tokenizers.Tokenizer:
        """The same tokenizer as one of the `tokenizers` library, with the same ids for every text.

        It surrounds a text by `<s>` and `</s>` unless `add_special_tokens=False`.

        Raises:
            UserError: for a SentencePiece unigram model, which the library reads differently.
        """
        return self._base.to_fast()

    @functools.cached_property
    def _identity(self) -> bytes:
        try:
            content = self.to_fast().to_str().encode()
        except UserError:  # What only SentencePiece can run is known by its model.
            content = self._base.files()[_MODEL_FILE]
        return hashlib.sha256(content).digest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __len__(self) -> int:
        """Number of ids, `<image>` included: the model's `vocab_size`."""
        return len(self._tokens)

    @property
    def first_location_id(self) -> int:
        """The id of `<loc_0>`; bin `k` has the id `k` higher."""
        return self._specials["<loc_0>"]

    def piece_bytes(self, index: int) -> bytes | None:
        """What a piece adds to the UTF-8 of a text; None for control, added and other special ids.

        A piece need not begin or end where a character does.
        """
        piece = self._tokens[index]
        if not len(CONTROL_TOKENS) <= index < len(self._base.pieces) or piece == MASK_TOKEN:
            return None
        if isinstance(self._base.decoder, tokenizers.decoders.ByteLevel):
            known = _BYTE_LEVEL.keys() >= set(piece)
            return bytes(_BYTE_LEVEL[c] for c in piece) if known else piece.encode()
        if piece in fast_lib.BYTE_PIECES:
            return bytes([fast_lib.BYTE_PIECES.index(piece)])
        return piece.replace(fast_lib.BLANK, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without `<s>` and `</s>` unless it spells them."""
        first, *rest = _SPLIT_PATTERN.split(text)
        ids = list(self._encode_plain(first))
        for special, between in zip(rest[::2], rest[1::2], strict=True):
            ids.append(self._specials[special])
            if between:  # Most locations follow another one.
                ids += self._encode_plain(between)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of a text without special tokens; not to be changed, for labels come back often."""
        ids = self._known.get(text)
        if ids is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            ids = self._known[text] = self._base.encode(text)
        return ids

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        """The text of ids; `<s>`, `</s>`, `<pad>` and `<unk>` are left out unless kept.

        Raises:
            ValueError: for an id that is not in the vocabulary.
        """
        tokens = []
        for index in map(int, ids):
            if not 0 <= index < len(self):
                raise ValueError(f"id {index} is outside the vocabulary of {len(self)}")
            if keep_control or index >= len(CONTROL_TOKENS):
                tokens.append(self._tokens[index])
        return self._base.decoder.decode(tokens)


class _Base(Protocol):
    """One kind of tokenizer: `pieces` are those before the added tokens, by id."""

    pieces: list[str]

    @property
    def decoder(self) -> tokenizers.decoders.Decoder: ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        ...

    def to_fast(self) -> tokenizers.Tokenizer: ...

    def files(self) -> dict[str, bytes]: ...


class _Fast:
    """A tokenizer of `fast.py`, the added tokens in it."""

    def __init__(self, fast: tokenizers.Tokenizer):
        self._fast = fast
        vocab = fast.get_vocab(with_added_tokens=False)
        self.pieces = sorted(vocab, key=vocab.__getitem__)

    @property
    def decoder(self) -> tokenizers.decoders.Decoder:
        return self._fast.decoder

    def encode(self, text: str) -> list[int]:
        return self._fast.encode(text, add_special_tokens=False).ids

    def to_fast(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self._fast.to_str())  # Theirs to change.

    def files(self) -> dict[str, bytes]:
        return {fast_lib.TOKENIZER_FILE: self._fast.to_str(pretty=True).encode()}


class _SentencePiece:
    """A SentencePiece model that changes no text; `name` is what errors call it."""

    def __init__(self, model: bytes, name: str):
        try:
            base = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(
                f"{name} is not a SentencePiece model, or damaged ({error}): copy it again"
            ) from error
        self._base, self._name = base, name
        self.pieces = [base.id_to_piece(i) for i in range(base.get_piece_size())]
        if tuple(self.pieces[:4]) != CONTROL_TOKENS:
            raise UserError(
                f"{name} has {self.pieces[:4]} at ids 0 to 3, expected {list(CONTROL_TOKENS)}: "
                "train it with `florence2-jax tokenizer train`"
            )
        probe = "  a\u3000ﬁ  e\u0301 "
        bytes_missing = set(fast_lib.BYTE_PIECES) - set(self.pieces)
        if base.normalize(probe) != probe.replace(" ", fast_lib.BLANK) or bytes_missing:
            raise UserError(
                f"{name} normalises texts, or has no pieces for single bytes, so that decoding "
                "would not restore them: train it with `florence2-jax tokenizer train`"
            )
        self._specials = special_ids(len(self.pieces))

    @property
    def decoder(self) -> tokenizers.decoders.Decoder:
        return _SENTENCEPIECE_DECODER

    def encode(self, text: str) -> list[int]:
        return self._base.encode(text)

    def to_fast(self) -> tokenizers.Tokenizer:
        """Merges are not in the model, but follow from it.

        SentencePiece joins any two neighbours whose union is a piece, highest score first. Which
        two neighbours make a piece depends on nothing around it, so all ways to cut a piece in two
        may be listed, at the rank of the piece: only one of them ever comes up.
        """
        base = self._base
        scores = {
            piece: base.get_score(i)
            for i, piece in enumerate(self.pieces)
            if not (base.is_control(i) or base.is_unknown(i) or base.is_byte(i))
        }
        is_plain = list(scores.values()) == [-float(i) for i in range(len(scores))]  # As BPE's.
        if not is_plain or any(map(SPELLING_PATTERN.fullmatch, scores)):
            raise UserError(
                f"{self._name} is no plain BPE model, and the tokenizers library would read it "
                "differently: train one with `florence2-jax tokenizer train`"
            )
        merges = [
            (piece[:cut], piece[cut:])
            for piece in scores
            for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores
        ]
        vocab = {piece: index for index, piece in enumerate(self.pieces)}
        return fast_lib.sentencepiece_level(vocab, merges)

    def files(self) -> dict[str, bytes]:
        added = {token: self._specials[token] for token in ADDED_TOKENS}
        return {
            _MODEL_FILE: self._base.serialized_model_proto(),
            _ADDED_FILE: json.dumps(added, indent=0).encode(),
        }


_SENTENCEPIECE_DECODER = fast_lib.sentencepiece_decoder()

# How byte-level BPE writes bytes: visible ones as they are in Latin-1, the others from U+0100 on.
_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTE_LEVEL = {chr(byte): byte for byte in _VISIBLE} | {
    chr(0x100 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(_VISIBLE)))
}


def _read_sentencepiece(folder: Path) -> _SentencePiece:
    path = folder / _MODEL_FILE
    base = _SentencePiece(path.read_bytes(), str(path))
    try:
        added = json.loads((folder / _ADDED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}/{_ADDED_FILE} cannot be read ({error}): copy it again"
        ) from error
    if added != json.loads(base.files()[_ADDED_FILE]):
        raise UserError(
            f"{folder}/{_ADDED_FILE} does not continue {_MODEL_FILE} in Florence-2's order: copy "
            "both from one folder"
        )
    return base
