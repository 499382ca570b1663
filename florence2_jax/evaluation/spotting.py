# SPDX-License-Identifier: Apache-2.0
"""Words with their place, as the robust reading competitions (ICDAR 2015) find and read them."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from florence2_jax.evaluation.polygon_overlap import areas, overlap_areas
from florence2_jax.evaluation.scored import f1_score
from florence2_jax.typing import Polygon

_IOU = 0.5  # To be exceeded.
_COVERED = 0.5  # An answer that lies further in a region not cared for is not cared for either.
_EDGE_MARKS = frozenset("!?.:,*\"()·[]/'")


@dataclasses.dataclass(frozen=True)
class Word:
    """An outline in pixels and what it says; of a truth, None is not to be cared for."""

    outline: Polygon
    text: str | None

    def __post_init__(self):
        if not all(map(math.isfinite, self.outline)):
            raise ValueError(f"the outline of {self.text!r} is not finite: {self.outline}")


@dataclasses.dataclass(frozen=True)
class WordCounts:
    """Words of one image that count: found, true, in a pair of one place, and read rightly there.

    `num_equal` are words of equal text wherever they are.
    """

    num_found: int
    num_true: int
    num_paired: int
    num_read: int
    num_equal: int


def spotting_scores(counts: Sequence[WordCounts]) -> dict[str, float]:
    """Harmonic mean, precision and recall, end to end and (`det_*`) of the places alone.

    `word_f1` pairs words by their text alone. Counts are summed over images.

    No true words: NaN. No answers: 0. A word found twice: the second is wrong. Coordinates that are
    not finite: ValueError.

    Source: ICDAR 2015 incidental scene text (challenge 4, tasks 1 and 4, no lexicon).
    """
    sums = [sum(column) for column in zip(*map(dataclasses.astuple, counts), strict=True)]
    num_found, num_true, *matched = sums or [0] * 5
    paired, read, equal = (f1_score(num, num_found, num_true) for num in matched)
    return {
        **dict(zip(("hmean", "precision", "recall"), read, strict=True)),
        **dict(zip(("det_hmean", "det_precision", "det_recall"), paired, strict=True)),
        "word_f1": equal[0],
    }


def count_words(found: Sequence[Word], true: Sequence[Word]) -> WordCounts:
    """Pairs the words of one image as the code of the competition does.

    An answer of which more than half lies in a region not cared for is left out. Each true word, in
    order, takes the first answer that is free and has IoU > 0.5; whether the text is right is asked
    of that pair only. Texts are equal if they are in upper case; the truth may have a mark
    (`.`, `(`, ...) more at either end.
    """
    cared = [word for word in true if word.text is not None]
    found = _cared_for(found, [word.outline for word in true if word.text is None])
    outlines, true_outlines = ([word.outline for word in words] for words in (found, cared))
    shared = overlap_areas(true_outlines, outlines)
    union = areas(true_outlines)[:, None] + areas(outlines)[None] - shared
    is_there = shared > _IOU * union
    free = np.ones(len(found), bool)
    num_paired = num_read = 0
    for word, row in zip(cared, is_there, strict=True):
        candidates = np.flatnonzero(row & free)
        if len(candidates):
            free[candidates[0]] = False
            num_paired += 1
            num_read += is_same_word(found[candidates[0]].text or "", word.text or "")
    texts, true_texts = (Counter((w.text or "").upper() for w in ws) for ws in (found, cared))
    return WordCounts(
        num_found=len(found),
        num_true=len(cared),
        num_paired=num_paired,
        num_read=num_read,
        num_equal=(texts & true_texts).total(),
    )


def _cared_for(found: Sequence[Word], ignored: Sequence[Polygon]) -> list[Word]:
    outlines = [word.outline for word in found]
    covered = overlap_areas(outlines, ignored) > _COVERED * areas(outlines)[:, None]
    return list(itertools.compress(found, [not row.any() for row in covered]))


def is_same_word(found: str, true: str) -> bool:
    """Whether a word is read rightly: case apart, and marks at the ends of the truth apart."""
    found, true = found.upper(), true.upper()
    allowed = {true}
    if true[:1] in _EDGE_MARKS:
        allowed.add(true[1:])
    if true[-1:] in _EDGE_MARKS:
        allowed.add(true[:-1])
        if true[:1] in _EDGE_MARKS:
            allowed.add(true[1:-1])
    return found in allowed
