# SPDX-License-Identifier: Apache-2.0
"""CIDEr-D, BLEU and ROUGE-L of resampled images, from what is counted once per image."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.evaluation.bootstrap import Draws, divide
from florence2_jax.evaluation.captions import cider_d, rouge_l, tokenize_caption
from florence2_jax.evaluation.scored import Scored

_MAX_ORDER = 4


def resampled_captions(scored: Sequence[Scored], draws: Draws) -> dict[str, Float[NDArray, "B"]]:
    """The metrics of captions in each draw; CIDEr-D with the document frequencies of all images."""
    found = [tokenize_caption(one.text) for one in scored]
    true = [[tokenize_caption(text) for text in one.true_texts] for one in scored]
    has_truth = np.array([bool(texts) for texts in true], np.float64)
    where = np.flatnonzero(has_truth)
    cider, rouge = np.zeros(len(scored)), np.zeros(len(scored))
    cider[where] = cider_d([found[i] for i in where], [true[i] for i in where])
    rouge[where] = [rouge_l(found[i], true[i]) for i in where]
    counts = np.zeros((len(scored), 2 * _MAX_ORDER + 2))
    for i in where:
        counts[i] = _bleu_counts(found[i], true[i])
    sums = np.stack([draws.sums(column) for column in counts.T], axis=1)
    num_true = draws.sums(has_truth)
    bleu = _bleu(sums)
    return {
        "cider": divide(draws.sums(cider), num_true),
        "rouge_l": divide(draws.sums(rouge), num_true),
    } | {f"bleu{n}": np.where(num_true > 0, bleu[:, n - 1], np.nan) for n in range(1, 5)}


def _ngrams(tokens: Sequence[str]) -> Counter:
    orders = (zip(*(tokens[i:] for i in range(n)), strict=False) for n in range(1, _MAX_ORDER + 1))
    return Counter(gram for grams in orders for gram in grams)


def _bleu_counts(found: Sequence[str], true: Sequence[Sequence[str]]) -> Float[NDArray, "10"]:
    """N-grams that are right and that are written, by length, and the lengths of both texts."""
    most: Counter = Counter()
    for text in true:
        most |= _ngrams(text)
    right = np.zeros(_MAX_ORDER)
    for gram, count in (_ngrams(found) & most).items():
        right[len(gram) - 1] += count
    written = [max(len(found) - n, 0) for n in range(_MAX_ORDER)]
    nearest = min((abs(len(text) - len(found)), len(text)) for text in true)[1]
    return np.array([*right, *written, len(found), nearest], np.float64)


def _bleu(sums: Float[NDArray, "B 10"]) -> Float[NDArray, "B 4"]:
    """BLEU-1 to BLEU-4 of summed counts, with the tiny terms of the COCO code."""
    right, written = sums[:, :_MAX_ORDER], sums[:, _MAX_ORDER : 2 * _MAX_ORDER]
    precision = np.cumprod((right + 1e-15) / (written + 1e-9), axis=1)
    ratio = (sums[:, -2] + 1e-15) / (sums[:, -1] + 1e-9)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return precision ** (1 / np.arange(1, _MAX_ORDER + 1)) * penalty[:, None]
