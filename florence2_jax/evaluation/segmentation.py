# SPDX-License-Identifier: Apache-2.0
"""Segmentation: overlap of the masks that polygons draw."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.evaluation.scored import Scored, mean, polygons_of
from florence2_jax.tasks.answers import AnyRegion
from florence2_jax.typing import Polygon, Size

_mask: Any = pycocotools.mask  # Its annotations are narrower than what it takes.


def segmentation_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """`mask_scores` of answers.

    Masks are the union of all polygons of all instances at the size of the original image.
    """
    return mask_scores(
        [
            _overlap(one.regions, one.example.regions, one.size)
            for one in scored
            if one.example.regions
        ]
    )


def mask_scores(areas: Sequence[tuple[float, float]]) -> dict[str, float]:
    """`miou`: mean IoU per question; `oiou`: all intersections over all unions.

    No questions: NaN. An empty answer has IoU 0, as has a truth too thin to cover a pixel. Large
    objects rule `oiou`. Areas that are not finite: ValueError.

    Args:
        areas: pixels in both masks of a question, and in either.

    Source: the protocol of referring segmentation on RefCOCO.
    """
    if not np.isfinite(areas).all():
        raise ValueError("an area of a mask is not finite")
    intersections, unions = np.array(areas, np.float64).reshape(-1, 2).T
    return {
        "miou": mean(intersections / np.maximum(unions, 1)),
        "oiou": float(intersections.sum() / max(unions.sum(), 1)) if areas else math.nan,
    }


def _overlap(
    found: Iterable[AnyRegion], true: Iterable[AnyRegion], size: Size
) -> tuple[float, float]:
    """Pixels in both masks, and in either."""
    drawn = (
        rasterize([polygon for region in regions for polygon in polygons_of(region)], size)
        for regions in (found, true)
    )
    return mask_overlap(*drawn)


def mask_overlap(found: dict[str, Any], true: dict[str, Any]) -> tuple[float, float]:
    """Pixels in both of two run-length codes of one size, and in either."""
    masks = [found, true]
    areas = _mask.area([_mask.merge(masks, intersect=True), _mask.merge(masks)])
    return float(areas[0]), float(areas[1])


def rasterize(polygons: Sequence[Polygon], size: Size) -> dict[str, Any]:
    """The pixels inside any of some polygons, as COCO draws them: a run-length code.

    Args:
        polygons: `x, y, ...` in pixels; those of fewer than three points draw nothing.
        size: `(width, height)` of the mask, in pixels.
    """
    width, height = size
    rings = [list(polygon) for polygon in polygons if len(polygon) >= 6]
    if not rings:
        return _mask.encode(np.zeros((height, width), np.uint8, order="F"))
    return _mask.merge(_mask.frPyObjects(rings, height, width))


def mask_iou(
    found: Sequence[dict[str, Any]], true: Sequence[dict[str, Any]]
) -> Float[NDArray, "R Q"]:
    """Intersection over union of every pair of run-length codes of one size."""
    if not (found and true):
        return np.zeros((len(found), len(true)))
    return _mask.iou(list(found), list(true), [0] * len(true))
