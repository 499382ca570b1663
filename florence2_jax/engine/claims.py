# SPDX-License-Identifier: Apache-2.0
"""What a region is said to be, who says so, and how surely.

A region claims a name for a place: a category, or the words written there. Where the name has a
maker and score of its own, as with our models, these are the claim's; else those of the box. All
of the engine reads a region's score here: a model's box has two, and that of its locations alone
says little (see `calibrated.py`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import LabelKind, Provenance, Region

Name = tuple[LabelKind | None, str]
"""What a region is said to be, and by which kind of label; `(None, "")` for a mere box."""


def name_of(region: Region) -> Name:
    """What a region is said to be; categories compare without their case, words with it."""
    for kind in ("category", "text"):
        if (text := region.label(kind)) is not None:
            return kind, text.strip() if kind == "text" else text.strip().casefold()
    return None, ""


def claim(region: Region) -> Provenance:
    """Who says what the region is: the maker of its name, or that of its box."""
    kind, _ = name_of(region)
    label = next((one for one in region.labels if one.kind == kind), None)
    return region.provenance if label is None or not label.provenance else label.provenance


def with_claim(region: Region, maker: Provenance) -> Region:
    """The region with another provenance of what it is said to be."""
    kind, _ = name_of(region)
    labels = list(region.labels)
    for i, label in enumerate(labels):
        if label.kind == kind:
            if label.provenance is None:
                break
            labels[i] = dataclasses.replace(label, provenance=maker)
            return dataclasses.replace(region, labels=tuple(labels))
    return dataclasses.replace(region, provenance=maker)


def boxes_of(regions: Sequence[Region]) -> NDArray[np.float64]:
    """Boxes [N, 4] in pixels."""
    return np.array([region.box for region in regions], float).reshape(-1, 4)


def alike(
    regions: Sequence[Region], predicted: Sequence[Region], iou: float
) -> NDArray[np.float64]:
    """Overlap [R, Q] of regions and predictions of one name at one place; 0 for all others."""
    overlaps = box_iou(boxes_of(regions), boxes_of(predicted))
    names, theirs = ([name_of(one) for one in some] for some in (regions, predicted))
    same = np.array([[a == b for b in theirs] for a in names], bool).reshape(overlaps.shape)
    crowds = np.array([region.is_crowd for region in regions], bool)
    return np.where(same & (overlaps >= iou) & ~crowds[:, None], overlaps, 0)


def are_new(regions: Sequence[Region], predicted: Sequence[Region], iou: float) -> list[bool]:
    """Which predictions have no region of their name that overlaps them so much."""
    overlaps = alike(regions, predicted, iou)
    return [not overlaps[:, j].any() for j in range(len(predicted))]
