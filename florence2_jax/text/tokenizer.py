# SPDX-License-Identifier: Apache-2.0
"""Text <-> ids: a base tokenizer followed by the 1,024 added tokens of Florence-2, in their order.

The base is a SentencePiece model trained by `florence2-jax tokenizer`. Its first ids are those of
BART (`<s> <pad> </s> <unk>`), so that everything after it sees one layout:

    0 <s>   1 <pad>   2 </s>   3 <unk>   4.. pieces   B.. the 1,024 added tokens   B+1024 <image>

Source: the order of the added tokens is that of the released processors.
"""

import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from florence2_jax.text.locations import NUM_BINS
from florence2_jax.typing import UserError

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
BOS_ID, PAD_ID, EOS_ID, UNK_ID = range(4)
DECODER_START_ID = EOS_ID

# "desciption": spelt as shipped.
_TASK_TOKENS = """<cap> </cap> <ncap> </ncap> <dcap> </dcap> <grounding> </grounding> <seg> </seg>
<sep> <region_cap> </region_cap> <region_to_desciption> </region_to_desciption> <proposal>
</proposal> <poly> </poly> <and>""".split()

ADDED_TOKENS: tuple[str, ...] = (
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{k}>" for k in range(NUM_BINS)),
    *_TASK_TOKENS,
)
IMAGE_TOKEN = "<image>"  # Only in native transformers vocabularies; never in our texts.

_CONTROL = (BOS, PAD, EOS, UNK)
_SPECIAL_PATTERN = re.compile(
    "|".join([r"<loc_(?:0|[1-9]\d{0,2})>", *map(re.escape, (*_CONTROL, IMAGE_TOKEN))])
    + "|"
    + "|".join(re.escape(t) for t in ADDED_TOKENS if not t.startswith("<loc_"))
)
_MODEL_FILE = "tokenizer.model"
_ADDED_FILE = "added_tokens.json"


def neutralize(text: str) -> str:
    """Rewrites text that spells a special token: `<loc_5>` becomes `‹loc_5>`.

    Labels and captions are data. One that reads `<loc_5>` or `</s>` would otherwise turn into a
    location, or the end of the target, when it is tokenized.
    """
    return _SPECIAL_PATTERN.sub(lambda match: "‹" + match.group()[1:], text)


class Tokenizer:
    """Ids of a base vocabulary and of the added tokens behind it.

    `encode` never splits an added token and `decode(encode(text)) == text` for any text without
    `▁` (U+2581, which SentencePiece reads as a blank).
    """

    def __init__(self, base: sentencepiece.SentencePieceProcessor):
        ids = [base.piece_to_id(token) for token in _CONTROL]
        if ids != [BOS_ID, PAD_ID, EOS_ID, UNK_ID]:
            raise UserError(
                f"the SentencePiece model has {_CONTROL} at {ids}, expected ids 0 to 3: "
                "train it with `florence2-jax tokenizer train`"
            )
        self._base = base
        self._offset = base.get_piece_size()
        self._added = {token: self._offset + i for i, token in enumerate(ADDED_TOKENS)}
        self._special = dict(zip(_CONTROL, range(4), strict=True)) | self._added
        self._special[IMAGE_TOKEN] = self._offset + len(ADDED_TOKENS)
        self._names = {index: token for token, index in self._special.items()}

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Reads the files `save` wrote. Raises UserError if they are missing or do not fit."""
        path = Path(folder) / _MODEL_FILE
        if not path.is_file():
            raise UserError(
                f"{folder} holds no {_MODEL_FILE}: `florence2-jax tokenizer train` makes one"
            )
        try:
            base = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        except RuntimeError as error:
            raise UserError(f"{path} is not a SentencePiece model: {error}") from error
        tokenizer = cls(base)
        try:
            added = json.loads((Path(folder) / _ADDED_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}/{_ADDED_FILE} cannot be read ({error}): copy it again"
            ) from error
        if added != tokenizer._added:
            raise UserError(
                f"{folder}/{_ADDED_FILE} does not continue {_MODEL_FILE} in Florence-2's order"
            )
        return tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> "Tokenizer":
        """Trains a SentencePiece unigram model with byte fallback; nothing is normalised away.

        Args:
            texts: what prompts and targets are written with; all are held in memory.
            vocab_size: pieces of the base vocabulary, the 4 control and 256 byte pieces included.
                Few texts give fewer pieces; the vocabulary is then smaller.

        Raises:
            UserError: if there is no text, or `vocab_size` leaves no room for letters.
        """
        lines = [line for text in texts for line in text.split("\n") if line]
        if not lines:
            raise UserError("no texts to train a tokenizer on: is the store empty?")
        if vocab_size < 300:
            raise UserError(f"a vocabulary of {vocab_size} leaves no room beside 260 fixed pieces")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="unigram",
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
        return cls(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))

    def save(self, folder: Path) -> None:
        """Writes the base model and the added tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MODEL_FILE).write_bytes(self._base.serialized_model_proto())
        added = json.dumps(self._added, indent=0)
        (folder / _ADDED_FILE).write_text(added, encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self._base.serialized_model_proto() == other._base.serialized_model_proto()

    def __hash__(self) -> int:
        return hash(self._base.serialized_model_proto())

    def __len__(self) -> int:
        """Number of ids, `<image>` included: the model's `vocab_size`."""
        return self._offset + len(ADDED_TOKENS) + 1

    @property
    def first_location_id(self) -> int:
        """The id of `<loc_0>`; bin `k` has the id `k` higher."""
        return self._added["<loc_0>"]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without `<s>` and `</s>` unless it spells them."""
        ids, start = [], 0
        for match in _SPECIAL_PATTERN.finditer(text):
            ids += self._base.encode(text[start : match.start()])
            ids.append(self._special[match.group()])
            start = match.end()
        return ids + self._base.encode(text[start:])

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        """The text of ids; `<s>`, `</s>`, `<pad>` and `<unk>` are left out unless kept."""
        parts: list[str] = []
        pieces: list[int] = []
        for index in map(int, ids):
            name = self._names.get(index)
            if name is None:
                pieces.append(index)
                continue
            parts.append(self._base.decode(pieces))
            pieces = []
            if keep_control or name not in _CONTROL:
                parts.append(name)
        return "".join([*parts, self._base.decode(pieces)])
