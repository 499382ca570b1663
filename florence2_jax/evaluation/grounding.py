# SPDX-License-Identifier: Apache-2.0
"""Grounding: whether the first box of a phrase or of a referring expression is right."""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from florence2_jax.evaluation.scored import Scored, boxes_of, mean
from florence2_jax.geometry import box_iou
from florence2_jax.tasks.answers import AnyRegion
from florence2_jax.tasks.targets import clean_text


def grounding_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """R@1 at IoU >= 0.5 over all phrases that have a true box, both ways of reading several boxes.

    `r1_any`: the first box of the phrase meets one of its true boxes; `r1_merged`: it meets the box
    around all of them. A phrase finds its boxes by its text; where a caption says the same twice,
    the first mention takes the first boxes, and so on. Neighbouring regions of one text are one
    mention, as the grammar has it. A phrase without a box is a miss.

    Source: Flickr30k Entities as MDETR (arXiv:2104.12763) evaluates it.
    """
    any_box, merged = [], []
    for one in scored:
        answers = _mentions(one.regions)
        for phrase, mentions in _mentions(one.example.regions).items():
            for index, true in enumerate(mentions):
                found = answers[phrase][index][:1] if index < len(answers[phrase]) else ()
                hull = boxes_of(true)
                hull = np.concatenate([hull[:, :2].min(axis=0), hull[:, 2:].max(axis=0)])[None]
                any_box.append(float(_best_iou(found, boxes_of(true)) >= 0.5))
                merged.append(float(_best_iou(found, hull) >= 0.5))
    return {"r1_any": mean(any_box), "r1_merged": mean(merged)}


def referring_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Share of expressions whose first box has IoU >= 0.5 with a true box, and the mean IoU.

    Source: the RefCOCO protocol. Plain IoU, where MDETR's own evaluator takes generalised IoU.
    """
    ious = _referring_ious(scored)
    return {"accuracy": mean([iou >= 0.5 for iou in ious]), "mean_iou": mean(ious)}


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
