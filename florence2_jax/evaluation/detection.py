# SPDX-License-Identifier: Apache-2.0
"""Detection: COCO average precision and recall, and F1 at IoU 0.5.

A category is a label, letter by letter. Labels that are no truth's label lie outside the list of
categories and cost no average precision, as in COCO; they do cost F1. A region without a score
counts as 1.0: equal scores keep the order in which images and boxes were given, so that the
average precision of a model without scores says less than its F1.
"""

import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from florence2_jax.evaluation.scored import Scored, box_of, boxes_of, f1_score, num_matches
from florence2_jax.geometry import box_iou
from florence2_jax.tasks.answers import AnyRegion
from florence2_jax.tasks.targets import clean_text

COCO_SCORES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


def detection_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Box AP (`ap` is the mean over IoU 0.50 to 0.95), AR at 100 boxes, F1 at IoU 0.5.

    Each `Scored` is an image of its own, so that an open-vocabulary prompt is judged by the boxes
    of its own names. Images without truth add false positives. NaN without any truth; sizes (small
    below 32 x 32 pixels, large from 96 x 96) are those of the boxes.

    Source: the COCO protocol, by pycocotools.
    """
    scores = coco_scores(*as_coco(scored, with_labels=True))
    names = ("ap50", "ap", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
    return {name: scores[name] for name in names} | match_metrics(scored)


def proposal_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """`proposal_scores` of answers, and F1 at IoU 0.5 with no regard to labels."""
    scores = proposal_scores(*as_coco(scored, with_labels=False))
    return scores | match_metrics(scored, with_labels=False)


def match_metrics(scored: Sequence[Scored], *, with_labels: bool = True) -> dict[str, float]:
    """Micro-averaged F1, precision and recall at IoU >= 0.5, one box to one truth.

    Boxes choose in order of score, then of writing; each takes the free truth of its label that it
    overlaps most. It is the fair measure of answers without scores.
    """
    matched = num_found = num_true = 0
    for one in scored:
        found = sorted(one.regions, key=lambda region: -_score(region))
        true = one.example.regions
        overlap = box_iou(boxes_of(found), boxes_of(true))
        allowed = overlap >= 0.5
        if with_labels:
            names = np.array([clean_text(region.label) for region in true], object)
            allowed &= np.array([clean_text(r.label) for r in found], object)[:, None] == names
        matched += num_matches(overlap * allowed)
        num_found, num_true = num_found + len(found), num_true + len(true)
    f1, precision, recall = f1_score(matched, num_found, num_true)
    return {"f1": f1, "precision": precision, "recall": recall}


def coco_scores(
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
) -> dict[str, float]:
    """The twelve numbers of `COCOeval`, without its output; NaN where no truth is of that size.

    No truth: NaN. No detections: 0. A box said twice: the second is a false positive. A score or
    box that is not finite: ValueError.

    Args:
        truth: a COCO instances dictionary: `images`, `categories`, `annotations`.
        detections: COCO results: `image_id`, `category_id`, `score`, `bbox` or `segmentation`.
        iou_type: "bbox" or "segm".
    """
    if not truth["annotations"]:
        return dict.fromkeys(COCO_SCORES, math.nan)
    evaluation = matched(truth, detections, iou_type=iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    values = np.where(evaluation.stats < 0, math.nan, evaluation.stats)
    return dict(zip(COCO_SCORES, values.tolist(), strict=True))


def proposal_scores(
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
) -> dict[str, float]:
    """Average recall over IoU 0.50 to 0.95 at 100, 10 and 1000 boxes an image, all one category.

    The recalls by size are at 100 boxes. Arguments and degenerate input: as `coco_scores`.

    Source: the COCO protocol with `useCats` off, by pycocotools.
    """
    if not truth["annotations"]:
        return dict.fromkeys(_PROPOSAL_SCORES, math.nan)
    evaluation = matched(truth, detections, _any_category, iou_type=iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    recall = evaluation.eval["recall"]  # [IoU thresholds, one category, sizes, boxes]
    values = {}
    for name, (size, limit) in _PROPOSAL_SCORES.items():
        cell = recall[:, 0, evaluation.params.areaRngLbl.index(size), _PROPOSAL_LIMITS.index(limit)]
        values[name] = math.nan if (cell < 0).all() else float(cell.mean())
    return values


_PROPOSAL_LIMITS = (10, 100, 1000)
_PROPOSAL_SCORES = {
    "ar100": ("all", 100),
    "ar10": ("all", 10),
    "ar1000": ("all", 1000),
    "ar_small": ("small", 100),
    "ar_medium": ("medium", 100),
    "ar_large": ("large", 100),
}


def _any_category(*args: Any) -> COCOeval:
    """A `COCOeval` that does not look at categories, up to 1000 boxes an image."""
    evaluation = COCOeval(*args)
    evaluation.params.useCats = 0
    evaluation.params.maxDets = list(_PROPOSAL_LIMITS)
    return evaluation


def matched(
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    make: Callable[..., Any] = COCOeval,
    *,
    iou_type: str = "bbox",
) -> Any:
    """A `COCOeval` that has matched detections to truths and not summed over them yet.

    Arguments and errors as `coco_scores`; `make` makes the evaluation.
    """
    for one in detections:
        if not (np.isfinite(one["score"]) and np.isfinite(one.get("bbox", 0)).all()):
            raise ValueError(f"image {one['image_id']}: a box or score is not finite: {one}")
    # Copies: pycocotools writes into its input. Numbers from 1: it takes a match with 0 for none.
    annotations = [dict(a, id=number) for number, a in enumerate(truth["annotations"], start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        true = _index({**truth, "annotations": annotations})
        if detections:
            found = true.loadRes([dict(detection) for detection in detections])
        else:
            found = _index({**truth, "annotations": []})
        evaluation = make(true, found, iou_type)
        evaluation.evaluate()
    return evaluation


def _index(dataset: dict[str, Any]) -> Any:  # Its annotations are narrower than what it takes.
    coco: Any = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def as_coco(
    scored: Sequence[Scored], *, with_labels: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth and results as COCO has them, images and categories numbered from 1."""

    def name(region: AnyRegion) -> str:
        return clean_text(region.label) if with_labels else ""

    names = sorted({name(region) for one in scored for region in one.example.regions})
    numbers = {name: number for number, name in enumerate(names, start=1)}
    annotations, detections = [], []
    for image, one in enumerate(scored, start=1):
        true = [(region, 0) for region in one.example.regions]
        # A category that has nothing but crowds has no average precision.
        true += [(region, 1) for region in one.example.crowds if name(region) in numbers]
        for region, is_crowd in true:
            entry = _entry(region, image, numbers[name(region)])
            area = entry["bbox"][2] * entry["bbox"][3]
            annotations.append(entry | {"area": area, "iscrowd": is_crowd})
        for region in one.regions:
            if name(region) in numbers:
                entry = _entry(region, image, numbers[name(region)])
                detections.append(entry | {"score": _score(region)})
    truth = {
        "images": [{"id": image} for image in range(1, len(scored) + 1)],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": annotations,
    }
    return truth, detections


def _entry(region: AnyRegion, image: int, category: int) -> dict[str, Any]:
    x0, y0, x1, y1 = box_of(region)
    return {"image_id": image, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]}


def _score(region: AnyRegion) -> float:
    return 1.0 if region.score is None else region.score
