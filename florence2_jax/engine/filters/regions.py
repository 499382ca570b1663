# SPDX-License-Identifier: Apache-2.0
"""Boxes of objects: scores, sizes, boxes said twice; their labels and masks.

Boxes of writing are `ocr.py`'s. Crowds are neither judged by size nor compared: they are many.
Source: Florence-2 §4 for a threshold on scores followed by NMS; the values, and the rest, are ours.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.engine.filters.limits import check_counts, check_shares
from florence2_jax.engine.filters.marking import Drop, is_human, score_of
from florence2_jax.geometry import box_iou, polygon_area
from florence2_jax.records.schema import Record, Region, is_dropped


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """Thresholds on boxes of objects. What has no score passes those on scores.

    Attributes:
        min_scores: by class, instead of `min_score`; class names in any case.
        nms_iou: of boxes of one class that are two of one thing; 1 for no NMS.
        agnostic_nms_iou: the same of two classes; a box with a label wins over one without.
        merge_iou: of boxes of one class by several makers that become one, their average weighted
            by score; 0 for none.
        min_area_share, max_area_share: of the image that a box covers.
        max_aspect: of the longer side to the shorter one.
        min_label_score: of labels that have a maker of their own, such as a similarity model.
        min_mask_share: of its box that a mask fills.
    """

    min_score: float = 0.3
    min_scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    nms_iou: float = 0.7
    agnostic_nms_iou: float = 0.9
    merge_iou: float = 0.0
    min_area_share: float = 0.0001
    max_area_share: float = 0.99
    max_aspect: float = 20.0
    min_label_score: float = 0.0
    min_mask_score: float = 0.5
    min_mask_share: float = 0.05

    def __post_init__(self):
        check_shares(self, *(f.name for f in dataclasses.fields(self) if f.name != "max_aspect"))
        check_counts(self, max_aspect=1)
        named = {normal(name): score for name, score in self.min_scores.items()}
        object.__setattr__(self, "min_scores", named)  # The config is frozen.


def is_writing(region: Region) -> bool:
    """Whether a region is a place of writing rather than an object."""
    kinds = {label.kind for label in region.labels}
    return region.quad is not None or kinds == {"text"}


def class_of(region: Region) -> str:
    """What a region is, to compare with others: its category, else what else is said of it."""
    found = (region.label(kind) for kind in ("category", "phrase", "brief", "text"))
    return normal(next(filter(None, found), ""))


def normal(name: str) -> str:
    """A name without case and double blanks."""
    return " ".join(name.casefold().split())


def region_drops(record: Record, config: RegionConfig) -> Iterator[Drop]:
    """Boxes of objects that fail by themselves, and labels and masks that do."""
    for i, region in enumerate(record.regions):
        if not is_writing(region) and (reason := _judge(region, record, config)):
            yield Drop("region", (i,), reason)
        for j, label in enumerate(region.labels):
            if label.provenance is not None and _is_under(
                label.provenance.score, config.min_label_score
            ):
                yield Drop("label", (i, j), f"label score under {config.min_label_score:.2f}")
        if region.polygons and (reason := _judge_mask(region, config)):
            yield Drop("mask", (i,), reason)


def nms_drops(record: Record, config: RegionConfig) -> Iterator[Drop]:
    """Boxes of objects that are two of one thing; people's are the best, then the surest."""
    live = objects_of(record)
    if len(live) < 2:
        return
    regions = [record.regions[i] for i in live]
    iou = box_iou(boxes_of(regions), boxes_of(regions))
    classes = [class_of(region) for region in regions]
    kept: list[int] = []
    for k in sorted(range(len(live)), key=lambda k: _rank(regions[k]), reverse=True):
        reason = ""
        for better in kept:
            if classes[k] == classes[better] and iou[k, better] >= config.nms_iou < 1:
                reason = f"NMS, same class: IoU {iou[k, better]:.2f} with a better box"
            elif classes[k] != classes[better] and iou[k, better] >= config.agnostic_nms_iou < 1:
                reason = f"NMS, other class: IoU {iou[k, better]:.2f} with {classes[better]!r}"
            if reason:
                break
        if reason and not is_human(regions[k]):
            yield Drop("region", (live[k],), reason)
        else:
            kept.append(k)


def objects_of(record: Record) -> list[int]:
    """Numbers of the boxes of objects that count and may be compared."""
    return [
        i
        for i, region in enumerate(record.regions)
        if not (is_dropped(region) or region.is_crowd or is_writing(region))
    ]


def boxes_of(regions: list[Region]) -> Float[NDArray, "R 4"]:
    """The boxes as an array."""
    return np.array([region.box for region in regions], np.float64).reshape(-1, 4)


def size_reason(
    region: Region,
    record: Record,
    *,
    min_area_share: float,
    max_area_share: float,
    max_aspect: float,
) -> str:
    """Why a box is too small, too large or too long, "" if it is none of that."""
    x0, y0, x1, y1 = region.box
    share = (x1 - x0) * (y1 - y0) / (record.width * record.height)
    if share < min_area_share:
        return f"area under {100 * min_area_share:g} % of the image"
    if share > max_area_share:
        return f"area over {100 * max_area_share:g} % of the image"
    aspect = max((x1 - x0) / (y1 - y0), (y1 - y0) / (x1 - x0))
    return f"sides over {max_aspect:g} to 1" if aspect > max_aspect else ""


def _judge(region: Region, record: Record, config: RegionConfig) -> str:
    least = config.min_scores.get(class_of(region), config.min_score)
    if _is_under(score_of(region), least):
        return f"score under {least:.2f}"
    if region.is_crowd:
        return ""
    return size_reason(
        region,
        record,
        min_area_share=config.min_area_share,
        max_area_share=config.max_area_share,
        max_aspect=config.max_aspect,
    )


def _judge_mask(region: Region, config: RegionConfig) -> str:
    if region.mask_provenance is not None and _is_under(
        region.mask_provenance.score, config.min_mask_score
    ):
        return f"mask score under {config.min_mask_score:.2f}"
    x0, y0, x1, y1 = region.box
    filled = sum(map(polygon_area, region.polygons)) / ((x1 - x0) * (y1 - y0))
    if filled < config.min_mask_share:
        return f"mask under {config.min_mask_share:.0%} of its box"
    return ""


def _is_under(score: float | None, least: float) -> bool:
    # Stores hold scores as float32: 0.3 read back is a little more or less than 0.3.
    return score is not None and score < least - 1e-6


def _rank(region: Region) -> tuple[bool, bool, float]:
    return is_human(region), bool(region.labels), score_of(region) or 0.0
