# SPDX-License-Identifier: Apache-2.0
"""The text towers of Florence-2 out of BART's weights.

| parameter | rule |
|---|---|
| layers and norms of encoder and decoder | BART's |
| embedding rows that BART has (0 to 50,264) | BART's |
| further rows: the 1,024 added tokens, `<image>` | the mean of BART's rows, plus the fresh row |
| positions | BART's; a longer table repeats them, a shorter one is their beginning |

With these a text without an image is computed as BART computes it.

Why the mean: there a token's logit is the mean of BART's logits, so that whatever the state, a new
token is no likelier than BART's are on average, and what BART predicts hardly changes. A row near
zero has the logit zero, which can beat every word. The fresh row on top tells new tokens apart.

Why repeated positions: up to BART's own length nothing changes, and beyond it neighbours are still
neighbours. Source: Longformer (arXiv:2004.05150), which lengthened RoBERTa so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence2_jax.conversion.files import CONFIG, read_json
from florence2_jax.conversion.initial_sources import open_source, read_matched, without
from florence2_jax.conversion.names import entries
from florence2_jax.conversion.tensors import ArrayLike
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.encoder_decoder import POSITION_OFFSET
from florence2_jax.text.tokenizer import (
    ADDED_TOKENS,
    BOS_ID,
    DECODER_START_ID,
    EOS_ID,
    PAD_ID,
    Tokenizer,
)
from florence2_jax.typing import UserError

_OURS = "model.language_model."
_SHARED = "shared.weight"
_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
_LOGITS_BIAS = "final_logits_bias"
_POSITIONS = ("encoder.embed_positions.weight", "decoder.embed_positions.weight")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")

_FIXED: dict[str, Any] = {
    "model_type": "bart",
    "activation_function": "gelu",
    "scale_embedding": False,
    "normalize_before": False,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
    "bos_token_id": BOS_ID,
    "pad_token_id": PAD_ID,
    "eos_token_id": EOS_ID,
    "decoder_start_token_id": DECODER_START_ID,
}
"""What the text towers compute; a `config.json` may leave out what transformers assumes too."""


def bart_tensors(
    source: str | Path,
    fresh: Mapping[str, ArrayLike],
    config: Florence2Config,
    *,
    tokenizer: Tokenizer | None = None,
) -> dict[str, NDArray[np.float32]]:
    """BART's tensors by transformers' names for Florence-2, the text part whole.

    Args:
        source: a folder or hub name in the layout of `facebook/bart-base`; names may begin with
            `model.` or not.
        fresh: tensors by the same names, for their shapes and for the rows that BART lacks.
        config: of the model.
        tokenizer: the run's, if known, to be compared with BART's.

    Raises:
        UserError: naming what does not fit: sizes, tensors, options, the vocabulary.
    """
    place, tensors = open_source(source)
    _check_config(read_json(_folder(place) / CONFIG), config, place)
    tensors = _settle(tensors, place)
    shapes: dict[str, tuple[int | None, ...]] = {
        entry.name.removeprefix(_OURS): tuple(fresh[entry.name].shape)
        for entry in entries(config, "hf")
        if entry.name.startswith(_OURS)
    }
    for name in (_SHARED, *_POSITIONS):
        shapes[name] = (None, config.text.d_model)
    arrays = read_matched(tensors, shapes, place)
    _check_vocabulary(len(arrays[_SHARED]), config, tokenizer, place)
    arrays[_SHARED] = _extend_rows(arrays[_SHARED], np.asarray(fresh[_OURS + _SHARED]))
    for name in _POSITIONS:
        arrays[name] = _fit_positions(arrays[name], config.text.max_positions, f"{place}: {name}")
    return {_OURS + name: array for name, array in arrays.items()}


def _folder(place: Path) -> Path:
    return place.parent if place.is_file() else place


def _check_config(values: Mapping[str, Any], config: Florence2Config, place: Path) -> None:
    """Refuses another architecture or other sizes: of some of them the tensors say nothing."""
    text = config.text
    wanted = _FIXED | {
        "d_model": text.d_model,
        "encoder_layers": text.encoder_layers,
        "decoder_layers": text.decoder_layers,
        "encoder_attention_heads": text.num_heads,
        "decoder_attention_heads": text.num_heads,
        "encoder_ffn_dim": text.mlp_dim,
        "decoder_ffn_dim": text.mlp_dim,
    }
    required = (wanted.keys() - _FIXED.keys()) | {"model_type"}
    wrong = [
        f"{key} is {values.get(key)!r}, expected {value!r}"
        for key, value in wanted.items()
        if (key in required or values.get(key) is not None) and values.get(key) != value
    ]
    if wrong:
        raise UserError(
            f"{place} is no BART of the model's sizes: {'; '.join(wrong)}. Give another folder, or "
            "change model.text"
        )


def _settle(tensors: Mapping[str, ArrayLike], place: Path) -> dict[str, ArrayLike]:
    """The parameters alone, without `model.`; what are none must be as BART's are."""
    left = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    bias = left.pop(_LOGITS_BIAS, None)
    if bias is not None and np.any(np.asarray(bias) != 0):  # NaN too.
        raise UserError(f"{place}: {_LOGITS_BIAS} is not zero; the model has no such bias")
    copies = [name for name in (_SHARED, *_ALIASES) if name in left]
    if copies:  # Any of the names may be the one that was kept.
        kept = np.asarray(left[copies[0]])
        untied = [name for name in copies[1:] if not np.array_equal(np.asarray(left[name]), kept)]
        if untied:
            raise UserError(
                f"{place}: {', '.join(untied)} differ from {copies[0]}; Florence-2 ties them"
            )
        left = without(left, copies) | {_SHARED: left[copies[0]]}
    return left


def _check_vocabulary(
    rows: int, config: Florence2Config, tokenizer: Tokenizer | None, place: Path
) -> None:
    """Refuses rows that would become those of other tokens."""
    room = config.text.vocab_size - len(ADDED_TOKENS)
    if rows > room:
        raise UserError(
            f"{place}: {rows} embedding rows and the {len(ADDED_TOKENS)} added tokens do not fit "
            f"into model.text.vocab_size={config.text.vocab_size}"
        )
    if tokenizer is None:
        return
    folder = _folder(place)
    known = len(tokenizer) - len(ADDED_TOKENS) - 1  # The last id is <image>.
    has_files = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    if rows != known or (has_files and Tokenizer.load(folder) != tokenizer):
        raise UserError(
            f"{place} has {rows} embedding rows for BART's vocabulary, and the run's tokenizer "
            f"({known} base ids) is another: give tokenizer.path=FOLDER with BART's or "
            "Florence-2's tokenizer.json"
        )


def _extend_rows(known: NDArray, fresh: NDArray) -> NDArray[np.float32]:
    """BART's rows, then the fresh ones about their mean."""
    mean = known.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.concatenate([known, mean + fresh[len(known) :]])


def _fit_positions(table: NDArray, max_positions: int, place: str) -> NDArray[np.float32]:
    """A table of `max_positions`; the first `POSITION_OFFSET` rows are never used."""
    known = len(table) - POSITION_OFFSET
    if known < 1:
        raise UserError(f"{place}: {len(table)} rows, the first {POSITION_OFFSET} of them unused")
    rows = POSITION_OFFSET + np.arange(max_positions) % known
    return table[np.concatenate([np.arange(POSITION_OFFSET), rows])]
