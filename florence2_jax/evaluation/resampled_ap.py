# SPDX-License-Identifier: Apache-2.0
"""Average precision and recall of resampled images, from matches that are found once.

A draw changes how often an image counts, not which of its boxes match. So pycocotools matches once,
and each draw only sums: detections in order of score, each as often as its image was drawn. That is
what evaluating the drawn images anew would give, but for the order of equal scores.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from florence2_jax.evaluation.bootstrap import Draws
from florence2_jax.evaluation.detection import as_coco, matched
from florence2_jax.evaluation.scored import Scored

_AREAS = ("", "_small", "_medium", "_large")  # In the order of pycocotools.
_MOST = (1, 10, 100)
_CHUNK = 50  # Draws at a time: some tens of MB for the category with most boxes of COCO.


def resampled_ap(
    scored: Sequence[Scored], draws: Draws, *, with_labels: bool, with_areas: bool = True
) -> dict[str, Float[NDArray, "B"]]:
    """The twelve numbers of COCO in each draw, by the names of `detection.COCO_SCORES`.

    Args:
        scored: each is an image of its own.
        with_labels: whether a box must have the label of its truth.
        with_areas: also small, medium and large boxes by themselves: four times the time.
    """
    truth, detections = as_coco(scored, with_labels=with_labels)
    if not truth["annotations"]:
        return {}
    evaluation = matched(truth, detections)
    weights = draws.weights[:, draws.record_of]
    found: dict[str, NDArray] = {}
    num_categories, num_images = len(evaluation.params.catIds), len(scored)
    rows = np.reshape(
        np.array(evaluation.evalImgs, object), (num_categories, len(_AREAS), num_images)
    )
    for a, area in enumerate(_AREAS if with_areas else _AREAS[:1]):
        precisions = [_Table.of(row, most=_MOST[-1]).precisions(weights) for row in rows[:, a]]
        precision = _mean(precisions)  # [draws, thresholds]
        found[f"ap{area}"] = precision.mean(axis=1)
        if not area:
            thresholds = evaluation.params.iouThrs
            for name, value in (("ap50", 0.5), ("ap75", 0.75)):
                found[name] = precision[:, np.isclose(thresholds, value).argmax()]
        for most in _MOST if not area else _MOST[-1:]:
            recalls = [_Table.of(row, most=most).recalls(weights) for row in rows[:, a]]
            found[f"ar{area or most}"] = _mean(recalls).mean(axis=1)
    return found


class _Table:
    """Detections of one category in order of score, and how many truths each image has."""

    def __init__(
        self,
        is_right: Bool[NDArray, "thresholds R"],
        is_wrong: Bool[NDArray, "thresholds R"],
        image_of: Int[NDArray, "R"],
        num_true: Float[NDArray, "images"],
    ):
        self.is_right, self.is_wrong, self.image_of = is_right, is_wrong, image_of
        self.num_true = num_true

    @classmethod
    def of(cls, rows: NDArray, *, most: int) -> "_Table":
        """From what pycocotools found about each image, None where there is nothing."""
        known = [(image, row) for image, row in enumerate(rows) if row is not None]
        num_true = np.zeros(len(rows))
        if not known:
            nothing = np.zeros((10, 0), bool)
            return cls(nothing, nothing, np.zeros(0, np.int64), num_true)
        for image, row in known:
            num_true[image] = (np.asarray(row["gtIgnore"]) == 0).sum()
        scores = np.concatenate([row["dtScores"][:most] for _, row in known])
        order = np.argsort(-scores, kind="stable")
        is_matched = np.concatenate([row["dtMatches"][:, :most] for _, row in known], axis=1) > 0
        is_ignored = np.concatenate([row["dtIgnore"][:, :most] for _, row in known], axis=1) > 0
        image_of = np.repeat(
            [image for image, _ in known], [len(row["dtScores"][:most]) for _, row in known]
        ).astype(np.int64)
        right, wrong = is_matched & ~is_ignored, ~is_matched & ~is_ignored
        return cls(right[:, order], wrong[:, order], image_of[order], num_true)

    def precisions(self, weights: Float[NDArray, "B images"]) -> Float[NDArray, "B thresholds"]:
        """Mean precision at 101 recalls; NaN in draws without truth."""
        chunks = [
            self._precisions(weights[start : start + _CHUNK])
            for start in range(0, len(weights), _CHUNK)
        ]
        return np.concatenate(chunks)

    def _precisions(self, weights: Float[NDArray, "B images"]) -> Float[NDArray, "B thresholds"]:
        num_true = weights @ self.num_true
        result = np.zeros((len(weights), len(self.is_right)))
        if self.is_right.shape[1]:
            each = weights[:, None, self.image_of]
            right = np.cumsum(each * self.is_right, axis=2)
            wrong = np.cumsum(each * self.is_wrong, axis=2)
            recall = right / np.maximum(num_true, 1)[:, None, None]
            precision = right / (right + wrong + np.spacing(1))
            # The best precision at this recall or a higher one.
            precision = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
            for b in range(len(weights)):
                for t in range(len(self.is_right)):
                    at = np.searchsorted(recall[b, t], _RECALLS, side="left")
                    reached = at < recall.shape[2]
                    result[b, t] = precision[b, t, at[reached]].sum() / len(_RECALLS)
        return np.where(num_true[:, None] > 0, result, np.nan)

    def recalls(self, weights: Float[NDArray, "B images"]) -> Float[NDArray, "B thresholds"]:
        """Share of truths that are found; NaN in draws without truth."""
        num_true = (weights @ self.num_true)[:, None]
        num_images = weights.shape[1]
        right = np.stack(
            [np.bincount(self.image_of[row], minlength=num_images) for row in self.is_right]
        )
        found = weights @ right.T.astype(np.float64)
        return np.where(num_true > 0, found / np.maximum(num_true, 1), np.nan)


_RECALLS = np.linspace(0.0, 1.0, 101)


def _mean(values: Sequence[Float[NDArray, "B thresholds"]]) -> Float[NDArray, "B thresholds"]:
    """Over the categories that have truth in a draw; NaN where none has."""
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    total, number = np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
