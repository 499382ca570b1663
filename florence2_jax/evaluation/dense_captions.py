# SPDX-License-Identifier: Apache-2.0
"""Dense captions: mean average precision over places and words, as on Visual Genome."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.evaluation.scored import mean

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
TEXT_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
_SAME_PLACE_IOU = 0.7

Similarity: TypeAlias = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]
"""Captions and the references of each -> a similarity of each, in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class DenseCaptions:
    """Regions of one image: boxes `[R, 4]` in pixels, a text and a score for each."""

    boxes: Float[NDArray, "R 4"]
    texts: Sequence[str]
    scores: Sequence[float] = ()

    def __post_init__(self):
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("a box or score of a dense caption is not finite")


def dense_caption_scores(
    found: Mapping[str, DenseCaptions], true: Mapping[str, DenseCaptions], similarity: Similarity
) -> dict[str, float]:
    """`map` over 5 IoU thresholds times 6 of similarity, and `map_boxes` over IoU alone.

    Truths of one place (IoU >= 0.7) are one truth with several references, its box their mean. In
    order of score, each answer belongs to the truth it overlaps most, and only the first that does
    can be right: if IoU >= a threshold and similarity > another. Precision is interpolated at 101
    points of recall. Answers and truths are joined by image; sides are `x1 - x0 + 1`.

    No truth: NaN. No answers: 0. A caption said twice about one place: the second is wrong. Boxes
    or scores that are not finite: ValueError.

    Source: DenseCap (arXiv:1511.07571) and its released code, whose similarity is METEOR and which
    scales images to a longer side of 720 pixels first (the extra pixel weighs otherwise here).
    """
    scores, ious, captions, references = [], [], [], []
    num_true = 0
    for image in dict.fromkeys((*true, *found)):
        places, texts = _merged(true[image]) if image in true else (np.zeros((0, 4)), [])
        num_true += len(places)
        for score, iou, caption, own in _assigned(found.get(image), places, texts):
            scores.append(score)
            ious.append(iou)
            captions.append(caption)
            references.append(own)
    if not num_true:
        return {"map": math.nan, "map_boxes": math.nan}
    matched = [i for i, own in enumerate(references) if own]
    alike = np.full(len(captions), -1.0)
    if matched:
        alike[matched] = similarity(
            [captions[i] for i in matched], [references[i] for i in matched]
        )
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    iou, alike = np.array(ious, np.float64)[order], alike[order]

    def precision(is_right: NDArray) -> float:
        return _interpolated_precision(is_right, num_true)

    return {
        "map": mean(
            [precision((iou >= i) & (alike > t)) for i in IOU_THRESHOLDS for t in TEXT_THRESHOLDS]
        ),
        "map_boxes": mean([precision(iou >= i) for i in IOU_THRESHOLDS]),
    }


def _merged(true: DenseCaptions) -> tuple[Float[NDArray, "Q 4"], list[list[str]]]:
    """Truths of one place as one: those around the most crowded first."""
    is_near = _inclusive_ious(true.boxes, true.boxes) >= _SAME_PLACE_IOU
    boxes, texts = [], []
    while is_near.any():
        group = np.flatnonzero(is_near[is_near.sum(axis=1).argmax()]).tolist()
        boxes.append(true.boxes[group].mean(axis=0))
        texts.append([true.texts[i] for i in group])
        is_near[group] = False
        is_near[:, group] = False
    return np.array(boxes, np.float64).reshape(-1, 4), texts


def _assigned(
    found: DenseCaptions | None, places: Float[NDArray, "Q 4"], texts: list[list[str]]
) -> list[tuple[float, float, str, list[str]]]:
    """Score, IoU, text and references of each answer; IoU 0 and none where it cannot be right."""
    if found is None:
        return []
    overlap = _inclusive_ious(found.boxes, places)
    taken: set[int] = set()
    rows = []
    for i in np.argsort(-np.array(found.scores, np.float64), kind="stable").tolist():
        best = int(overlap[i].argmax()) if overlap[i].any() else -1
        is_first = best >= 0 and best not in taken
        taken.add(best)
        place = (float(overlap[i, best]), texts[best]) if is_first else (0.0, [])
        rows.append((found.scores[i], place[0], found.texts[i], place[1]))
    return rows


def _inclusive_ious(a: Float[NDArray, "R 4"], b: Float[NDArray, "Q 4"]) -> Float[NDArray, "R Q"]:
    """IoU where both border pixels belong to a box."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low + 1, 0, None).prod(axis=2)
    own, theirs = ((boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1) for boxes in (a, b))
    return shared / (own[:, None] + theirs[None] - shared)


def _interpolated_precision(is_right: NDArray, num_true: int) -> float:
    right = np.cumsum(is_right)
    recall, precision = right / num_true, right / np.arange(1, len(right) + 1)
    return mean([precision[recall >= k / 100].max(initial=0.0) for k in range(101)])
