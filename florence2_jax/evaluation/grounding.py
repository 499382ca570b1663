# SPDX-License-Identifier: Apache-2.0
"""Grounding: whether the first box of a phrase or of a referring expression is right."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.evaluation.scored import Scored, boxes_of, mean
from florence2_jax.geometry import box_iou
from florence2_jax.tasks.answers import AnyRegion
from florence2_jax.tasks.targets import clean_text

Boxes: TypeAlias = Float[NDArray, "_ 4"]
_CUTS = {"r1": 1, "r5": 5, "r10": 10, "upper_bound": None}


def grounding_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """`phrase_recall` of answers.

    A phrase finds its boxes by its text; where a caption says the same twice, the first mention
    takes the first boxes, and so on. Neighbouring regions of one text are one mention, as the
    grammar has it. A phrase without a box is a miss.
    """
    phrases = []
    for one in scored:
        answers = _mentions(one.regions)
        for phrase, mentions in _mentions(one.example.regions).items():
            for index, true in enumerate(mentions):
                found = answers[phrase][index] if index < len(answers[phrase]) else ()
                phrases.append((boxes_of(found), boxes_of(true)))
    return phrase_recall(phrases)


def phrase_recall(phrases: Sequence[tuple[Boxes, Boxes]]) -> dict[str, float]:
    """R@1, R@5, R@10 and upper bound at IoU >= 0.5, under both ways of reading several boxes.

    `r5_any`: one of the first five boxes of the phrase meets one of its true boxes; `r5_merged`: it
    meets the box around all of them; `upper_bound_*`: any box at all does. Sides are `x1 - x0`.

    No phrases: NaN. A phrase without an answer: a miss. A box twice: it takes two of the k places.
    Boxes that are not finite: ValueError.

    Args:
        phrases: per phrase its boxes, best first, and its true boxes, one or more; `(x0, y0, x1,
            y1)` in pixels.

    Source: Flickr30k Entities (arXiv:1505.04870) as MDETR (arXiv:2104.12763) evaluates it.
    """
    hits = {f"{name}_{protocol}": [] for name in _CUTS for protocol in ("any", "merged")}
    for found, true in phrases:
        if not (np.isfinite(found).all() and np.isfinite(true).all()):
            raise ValueError(f"a box of a phrase is not finite: {found.tolist()} {true.tolist()}")
        hull = np.concatenate([true[:, :2].min(axis=0), true[:, 2:].max(axis=0)])[None]
        for protocol, boxes in (("any", true), ("merged", hull)):
            best = box_iou(found, boxes).max(axis=1)
            for name, cut in _CUTS.items():
                hits[f"{name}_{protocol}"].append(float(best[:cut].max(initial=0.0) >= 0.5))
    return {name: mean(values) for name, values in hits.items()}


def referring_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """`referring_scores` of answers: the first box of each, against the best of its true boxes."""
    return referring_scores(_referring_ious(scored))


def referring_scores(ious: Sequence[float]) -> dict[str, float]:
    """Share of expressions whose box has IoU >= 0.5 with the true one, and the mean IoU.

    No expressions: NaN. No answer: an IoU of 0. An IoU that is not finite: ValueError.

    Source: the RefCOCO protocol. Plain IoU, where MDETR's own evaluator takes generalised IoU.
    """
    if not np.isfinite(ious).all():
        raise ValueError("the IoU of an expression is not finite")
    return {"accuracy": mean([float(iou >= 0.5) for iou in ious]), "mean_iou": mean(ious)}


def referring_iou(scored: Sequence[Scored]) -> dict[str, float]:
    """The mean IoU alone, which tells near misses from far ones."""
    return {"mean_iou": mean(_referring_ious(scored))}


def _referring_ious(scored: Sequence[Scored]) -> list[float]:
    return [
        _best_iou(one.regions[:1], boxes_of(one.example.regions))
        for one in scored
        if one.example.regions
    ]


def _mentions(regions: Sequence[AnyRegion]) -> dict[str, list[list[AnyRegion]]]:
    """Phrase -> its mentions in order, each with its regions in order."""
    mentions: dict[str, list[list[AnyRegion]]] = defaultdict(list)
    for phrase, group in itertools.groupby(regions, key=lambda region: clean_text(region.label)):
        mentions[phrase].append(list(group))
    return mentions


def _best_iou(found: Sequence[AnyRegion], true: np.ndarray) -> float:
    return float(box_iou(boxes_of(found), true).max(initial=0.0))
