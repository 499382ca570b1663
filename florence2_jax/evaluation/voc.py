# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC average precision: one IoU threshold, both interpolations.

Results on VOC, and of users with small data sets of their own, are quoted by it. COCO's average
precision is another number: it has 101 points of recall, boxes without the extra pixel, and lets
each answer look for a truth that is still free.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.typing import Box


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocBox:
    """A box of one class in one image.

    `box` is `(x0, y0, x1, y1)` with the last pixel belonging to it. Of a truth, `is_difficult`
    means that it need not be found; of an answer, `score` orders it.
    """

    image_id: str
    box: Box
    score: float = 1.0
    is_difficult: bool = False


@dataclasses.dataclass(frozen=True)
class VocPrecision:
    """Average precision of one class: the area under the curve (2010 on), at 11 points (2007)."""

    every_point: float
    eleven_point: float


def voc_ap(
    found: Sequence[VocBox], true: Sequence[VocBox], *, iou_threshold: float = 0.5
) -> VocPrecision:
    """Average precision of the answers of one class.

    In order of score (equal ones as given), each answer takes the truth of its image that it
    overlaps most; it is right if IoU >= threshold and nothing took that truth before. A second box
    on a truth is wrong. Sides are `x1 - x0 + 1`. Answers whose truth is difficult count neither
    way.

    No truth (but difficult ones): NaN. No answers: 0. A score or box that is not finite:
    ValueError.

    Source: the VOC development kit; equal to review_object_detection_metrics (arXiv, Padilla 2021),
    whose eleven thresholds of recall are `np.linspace(0, 1, 11)`: 0.6 is a hair above 9 / 15 there.
    """
    for one in (*found, *true):
        if not all(map(math.isfinite, (one.score, *one.box))):
            raise ValueError(f"image {one.image_id}: a box or score is not finite: {one}")
    num_true = sum(not one.is_difficult for one in true)
    if not num_true:
        return VocPrecision(math.nan, math.nan)
    by_image: dict[str, list[VocBox]] = {}
    for one in true:
        by_image.setdefault(one.image_id, []).append(one)
    overlaps = {image: np.array([one.box for one in some]) for image, some in by_image.items()}
    taken: set[tuple[str, int]] = set()
    is_right = []
    for one in sorted(found, key=lambda one: -one.score):
        ious = _inclusive_iou(one.box, overlaps[one.image_id]) if one.image_id in by_image else []
        best = int(np.argmax(ious)) if len(ious) else -1
        hit = best >= 0 and ious[best] >= iou_threshold
        if hit and by_image[one.image_id][best].is_difficult:
            continue
        is_right.append(hit and (one.image_id, best) not in taken)
        if hit:
            taken.add((one.image_id, best))
    right = np.cumsum(np.array(is_right, bool))
    recall, precision = right / num_true, right / np.arange(1, len(right) + 1)
    return VocPrecision(_area(recall, precision), _eleven_points(recall, precision))


def _inclusive_iou(box: Box, others: Float[NDArray, "R 4"]) -> Float[NDArray, "R"]:
    """IoU where a box from pixel 3 to pixel 5 is three pixels wide."""
    x0, y0 = np.maximum(box[0], others[:, 0]), np.maximum(box[1], others[:, 1])
    x1, y1 = np.minimum(box[2], others[:, 2]), np.minimum(box[3], others[:, 3])
    shared = np.clip(x1 - x0 + 1, 0, None) * np.clip(y1 - y0 + 1, 0, None)
    own = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
    theirs = (others[:, 2] - others[:, 0] + 1) * (others[:, 3] - others[:, 1] + 1)
    return shared / (own + theirs - shared)


def _area(recall: Float[NDArray, "R"], precision: Float[NDArray, "R"]) -> float:
    """The area under the curve, each precision raised to the best at its recall or beyond."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best))


def _eleven_points(recall: Float[NDArray, "R"], precision: Float[NDArray, "R"]) -> float:
    points = np.linspace(0, 1, 11)
    return float(np.mean([precision[recall >= point].max(initial=0.0) for point in points]))
