# SPDX-License-Identifier: Apache-2.0
"""How much a question weighs in metrics that are ratios of sums: its part of the denominator."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pycocotools.mask

from florence2_jax.evaluation.scored import Scored, polygons_of
from florence2_jax.evaluation.segmentation import rasterize
from florence2_jax.tasks.targets import clean_text


def _num_phrases(one: Scored) -> float:
    """Mentions with a true box; neighbouring regions of one text are one mention."""
    return sum(1 for _ in itertools.groupby(one.example.regions, lambda r: clean_text(r.label)))


def _union(one: Scored) -> float:
    """Pixels in the true mask or the found one."""
    regions = (*one.regions, *one.example.regions) if one.example.regions else ()
    polygons = [polygon for region in regions for polygon in polygons_of(region)]
    mask: Any = rasterize(polygons, one.size)  # Annotations of pycocotools are narrower.
    return float(pycocotools.mask.area(mask))


def _true_words(one: Scored) -> int:
    return len(one.true_texts[0].split()) if one.true_texts else 0


def _found_words(one: Scored) -> int:
    return len(one.text.split()) if one.true_texts else 0


def _true_characters(one: Scored) -> int:
    return len(" ".join(one.true_texts[0].split())) if one.true_texts else 0


Shares = Mapping[str, Callable[[Scored], float]]

REGIONS: Shares = dict.fromkeys(
    ("f1", "hmean"), lambda one: len(one.regions) + len(one.example.regions)
) | {
    "precision": lambda one: len(one.regions),
    "recall": lambda one: len(one.example.regions),
}
WORDS: Shares = {
    "word_f1": lambda one: _found_words(one) + _true_words(one),
    "word_precision": _found_words,
    "word_recall": _true_words,
    "cer": _true_characters,
}
PHRASES: Shares = {
    f"{cut}_{protocol}": _num_phrases
    for cut in ("r1", "r5", "r10", "upper_bound")
    for protocol in ("any", "merged")
}
MASKS: Shares = {"oiou": _union}
