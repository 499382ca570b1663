# SPDX-License-Identifier: Apache-2.0
"""Reading: all writing of an image, writing with its place, the writing of one region.

Words are compared as written, upper and lower case apart.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.evaluation.scored import Scored, f1_score, mean, num_matches, polygons_of
from florence2_jax.evaluation.segmentation import mask_iou, rasterize
from florence2_jax.tasks.answers import AnyRegion
from florence2_jax.tasks.targets import clean_text
from florence2_jax.typing import Size

_RASTER_SIDE = 4096  # Four points to a location bin: finer than any answer.


def reading_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """F1, precision and recall (also called word accuracy) of words, and the character error rate.

    Words are what blanks part, each image a multiset of them, so that the order of lines does not
    matter; counts are summed over images. `cer` is the edit distance over the length of the truth,
    summed over images, with blanks and line breaks alike; it depends on the order of lines and
    goes beyond 1 where too much is read.

    Source: the usual measures of page reading; there is no published protocol for Florence-2.
    """
    pairs = [(one.text.split(), one.true_texts[0].split()) for one in scored if one.true_texts]
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
    """End-to-end harmonic mean, precision and recall: IoU of the quads > 0.5 and equal text.

    Quads overlap as polygons, rotated or not, drawn on a grid of 4096 points a side. Each answer
    takes one truth; counts are summed over images. Words without letters in the truth are words
    like any other: there are no "do not care" regions.

    Source: ICDAR 2015 end-to-end reading, which also folds upper and lower case.
    """
    matched = num_found = num_true = 0
    for one in scored:
        found, true = one.regions, one.example.regions
        overlap = _quad_iou(found, true, one.size)
        texts = np.array([_spelled(region.label) for region in true], object)
        is_equal = np.array([_spelled(region.label) for region in found], object)[:, None] == texts
        matched += num_matches(overlap * ((overlap > 0.5) & is_equal))
        num_found, num_true = num_found + len(found), num_true + len(true)
    f1, precision, recall = f1_score(matched, num_found, num_true)
    return {"hmean": f1, "precision": precision, "recall": recall}


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


def _quad_iou(
    found: Sequence[AnyRegion], true: Sequence[AnyRegion], size: Size
) -> Float[NDArray, "R Q"]:
    scale = _RASTER_SIDE / max(size)
    grid = (math.ceil(size[0] * scale), math.ceil(size[1] * scale))

    def draw(region: AnyRegion) -> dict[str, Any]:
        return rasterize([tuple(v * scale for v in p) for p in polygons_of(region)], grid)

    return mask_iou([draw(region) for region in found], [draw(region) for region in true])
