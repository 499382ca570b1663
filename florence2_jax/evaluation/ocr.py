# SPDX-License-Identifier: Apache-2.0
"""Reading: all writing of an image, writing with its place, the writing of one region.

Words are compared as written, upper and lower case apart; words with a place as ICDAR does, see
`spotting.py`.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from florence2_jax.evaluation.scored import Scored, f1_score, mean, polygons_of
from florence2_jax.evaluation.spotting import Word, count_words, spotting_scores
from florence2_jax.tasks.answers import AnyRegion
from florence2_jax.tasks.targets import clean_text


def reading_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """`reading_scores` of answers; of several references the first."""
    return reading_scores([(one.text, one.true_texts[0]) for one in scored if one.true_texts])


def reading_scores(texts: Sequence[tuple[str, str]]) -> dict[str, float]:
    """F1, precision and recall (also called word accuracy) of words, and the character error rate.

    Words are what blanks part, each image a multiset of them, so that the order of lines does not
    matter; counts are summed over images. `cer` is the edit distance over the length of the truth,
    summed over images, with blanks and line breaks alike; it depends on the order of lines and
    goes beyond 1 where too much is read.

    No pages, or no words in the truth: NaN. Nothing read: 0, and an error rate of 1.

    Args:
        texts: what was read on each page, and what is written there.

    Source: the usual measures of page reading; there is no published protocol for Florence-2.
    """
    pairs = [(found.split(), true.split()) for found, true in texts]
    matched = sum((Counter(found) & Counter(true)).total() for found, true in pairs)
    f1, precision, recall = f1_score(
        matched, sum(len(found) for found, _ in pairs), sum(len(true) for _, true in pairs)
    )
    lines = [(" ".join(found), " ".join(true)) for found, true in pairs]
    errors, length = (
        sum(edit_distance(*pair) for pair in lines),
        sum(len(true) for _, true in lines),
    )
    cer = errors / length if length else math.nan
    return {"word_f1": f1, "word_precision": precision, "word_recall": recall, "cer": cer}


def spotting_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """`spotting_scores` of answers; every word of the truth is to be cared for."""
    return spotting_scores(
        [count_words(_words(one.regions), _words(one.example.regions)) for one in scored]
    )


def region_reading_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Share of regions whose writing is read without an error; blanks count as one."""
    return {
        "word_accuracy": mean(
            [
                _spelled(one.text) in map(_spelled, one.true_texts)
                for one in scored
                if one.true_texts
            ]
        )
    }


def edit_distance(a: str, b: str) -> int:
    """Characters to insert, delete or replace to turn one text into the other (Levenshtein)."""
    codes = np.array([ord(c) for c in b], np.int64)
    columns = np.arange(len(b) + 1)
    row = columns
    for number, character in enumerate(a, start=1):
        replaced = row[:-1] + (codes != ord(character))
        best = np.minimum(replaced, row[1:] + 1)
        # What insertions make of it: each costs 1 a column, so the minimum of `best - column` runs.
        best = np.concatenate([[number], best])
        row = np.minimum.accumulate(best - columns) + columns
    return int(row[-1])


def _spelled(text: str) -> str:
    return " ".join(clean_text(text).split())


def _words(regions: Sequence[AnyRegion]) -> list[Word]:
    # Of several polygons the first: writing has one outline.
    return [Word(polygons_of(region)[0], _spelled(region.label)) for region in regions]
