# SPDX-License-Identifier: Apache-2.0
"""Annotations -> target text, for every grammar; the inverse of `answers.py`.

Targets fit their budget of tokens by whole items: polygons are first drawn with fewer points, then
regions are left out until the rest fits, and counted: the smallest first, unless the caller says
otherwise. Text loses whole sentences from its end, then whole words. Nothing is ever written by
half.

Unlabelled boxes are written first: after a label they would read as one more box of that label.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from florence2_jax.geometry import hull_box, polygon_area, simplify_polygon
from florence2_jax.tasks.answers import AnyRegion, BoxRegion, MaskRegion, QuadRegion
from florence2_jax.tasks.registry import Task
from florence2_jax.text.locations import coordinates_text
from florence2_jax.text.tokenizer import neutralize
from florence2_jax.typing import Box, Size

Order: TypeAlias = Literal["random", "raster", "area", "label", "given"]
Drop: TypeAlias = Literal["smallest", "random", "last"]

_SIMPLIFICATIONS_PX = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # At a side of 1,000 px.


@dataclasses.dataclass(frozen=True)
class Target:
    """What the model learns to write, and how many regions or sentences did not fit."""

    text: str
    num_dropped: int = 0


@dataclasses.dataclass(frozen=True)
class Budget:
    """At most `max_tokens` as `count` counts them, `<s>` and `</s>` not among them."""

    count: Callable[[str], int]
    max_tokens: int

    def fits(self, text: str) -> bool:
        return self.count(text) <= self.max_tokens


UNLIMITED = Budget(count=len, max_tokens=2**63)


def clean_text(text: str) -> str:
    """A label or caption as targets and prompts spell it: no outer blanks, no special tokens."""
    return neutralize(text).strip()


def write_text(text: str, *, budget: Budget = UNLIMITED) -> Target:
    """A caption, answer or reading, shortened by whole sentences, then by whole words."""
    text = clean_text(text)
    if budget.fits(text):
        return Target(text)
    sentences = re.split(r"(?<=[.!?])\s+", text)
    for kept in range(len(sentences) - 1, 0, -1):
        shorter = " ".join(sentences[:kept])
        if budget.fits(shorter):
            return Target(shorter, num_dropped=len(sentences) - kept)
    words = sentences[0].split()
    while words and not budget.fits(" ".join(words)):
        words.pop()
    return Target(" ".join(words), num_dropped=len(sentences))


def write_region_text(text: str, box: Box, size: Size, *, budget: Budget = UNLIMITED) -> Target:
    """What a region is, then its box once more."""
    echo = coordinates_text(box, size)
    words = write_text(
        text, budget=dataclasses.replace(budget, max_tokens=budget.max_tokens - budget.count(echo))
    )
    return dataclasses.replace(words, text=words.text + echo)


def write_regions(
    task: Task,
    regions: Sequence[AnyRegion],
    size: Size,
    *,
    order: Order = "given",
    drop: Drop = "smallest",
    rng: np.random.Generator | None = None,
    budget: Budget = UNLIMITED,
) -> Target:
    """Boxes, quads or masks in the grammar of a task.

    Args:
        regions: of the type the grammar needs (`BoxRegion`, `QuadRegion`, `MaskRegion`).
        size: `(width, height)` of the original image, in pixels.
        order: "random" (needs `rng`), "raster" (top to bottom, then left to right), "area"
            (largest first), "label" (by the alphabet, which puts boxes of one label side by side;
            equal labels in raster order) or as given. Phrases always stay in caption order.
        drop: what is left out of a target that costs too much: the "smallest" regions, "random"
            ones (needs `rng`), or the "last" in the order of writing.
        budget: what the target may cost.

    Raises:
        ValueError: if `order` or `drop` is unknown, or random without an rng.

    Source: Florence-2 §3 for boxes, quads and polygons; order and dropping are ours. What
    little is known of detections by the released models has its labels in alphabetical order.
    """
    regions = list(regions)
    if task.grammar != "phrases":
        regions = _arrange(regions, order, rng)
    if task.grammar in ("boxes", "named_boxes", "phrases"):
        regions.sort(key=lambda region: bool(clean_text(region.label)))  # Stable: unlabelled first.
    if drop not in get_args(Drop):
        raise ValueError(f"drop {drop!r} is not one of {', '.join(get_args(Drop))}")
    if drop == "random" and rng is None:
        raise ValueError("to drop regions at random needs an rng")
    return _fit(task, regions, size, budget, rank=functools.partial(_ranks, regions, drop, rng))


def _join(task: Task, regions: Sequence[AnyRegion], size: Size) -> str:
    if task.grammar == "masks" and len(regions) == 1 and not clean_text(regions[0].label):
        return _polygons_text(regions[0], size)
    parts, last_label = [], None
    for region in regions:
        label = "" if task.grammar == "proposals" else clean_text(region.label)
        # One label owns the boxes that follow it; named boxes and quads repeat theirs.
        is_continued = task.grammar in ("boxes", "phrases") and label == last_label
        parts.append(("" if is_continued else label) + _marks(region, size))
        last_label = label
    return "".join(parts)


def _marks(region: AnyRegion, size: Size) -> str:
    if isinstance(region, BoxRegion):
        return coordinates_text(region.box, size)
    if isinstance(region, QuadRegion):
        return coordinates_text(region.quad, size)
    return f"<poly>{_polygons_text(region, size)}</poly>"


def _polygons_text(region: AnyRegion, size: Size) -> str:
    assert isinstance(region, MaskRegion)
    return "<sep>".join(coordinates_text(polygon, size) for polygon in region.polygons)


def _ranks(regions: list[AnyRegion], drop: Drop, rng: np.random.Generator | None) -> list[int]:
    """Indices of regions, those to leave out first."""
    if drop == "smallest":
        return sorted(range(len(regions)), key=lambda i: region_area(regions[i]))
    if drop == "last":
        return list(range(len(regions)))[::-1]
    assert rng is not None
    return rng.permutation(len(regions)).tolist()


def _fit(
    task: Task,
    regions: list[AnyRegion],
    size: Size,
    budget: Budget,
    *,
    rank: Callable[[], list[int]],
) -> Target:
    """The target of as many regions as fit; `rank`, asked only if some do not, says which go."""
    text = _join(task, regions, size)
    if budget.fits(text):
        return Target(text)
    for tolerance_px in _SIMPLIFICATIONS_PX if task.grammar == "masks" else ():
        regions = [_simplify(r, tolerance_px * max(size) / 1000) for r in regions]
        text = _join(task, regions, size)
        if budget.fits(text):
            return Target(text)
    ranks = rank()

    def without(number: int) -> str:
        dropped = set(ranks[:number])
        return _join(task, [r for i, r in enumerate(regions) if i not in dropped], size)

    # The cost falls with every region left out: bisect for the first number that fits.
    low, high = 1, len(regions)
    while low < high:
        middle = (low + high) // 2
        if budget.fits(without(middle)):
            high = middle
        else:
            low = middle + 1
    return Target(without(high), num_dropped=high)


def _simplify(region: AnyRegion, tolerance_px: float) -> AnyRegion:
    assert isinstance(region, MaskRegion)
    polygons = tuple(simplify_polygon(polygon, tolerance_px) for polygon in region.polygons)
    # Crumbs cost as much as bodies: a part under 1 % of its instance goes with the first step.
    total = sum(map(polygon_area, polygons))
    large = tuple(p for p in polygons if polygon_area(p) >= 0.01 * total)
    return dataclasses.replace(region, polygons=large or polygons)


def region_area(region: AnyRegion) -> float:
    """Square pixels of a box, quad or of all polygons."""
    if isinstance(region, BoxRegion):
        x0, y0, x1, y1 = region.box
        return (x1 - x0) * (y1 - y0)
    if isinstance(region, QuadRegion):
        return polygon_area(region.quad)
    return sum(map(polygon_area, region.polygons))


def _arrange(
    regions: list[AnyRegion], order: Order, rng: np.random.Generator | None
) -> list[AnyRegion]:
    if order == "given":
        return regions
    if order == "random":
        if rng is None:
            raise ValueError("a random order needs an rng")
        return [regions[i] for i in rng.permutation(len(regions))]
    if order == "area":
        return sorted(regions, key=region_area, reverse=True)
    if order == "raster":
        return sorted(regions, key=_raster)
    if order == "label":
        return sorted(regions, key=lambda region: (clean_text(region.label), _raster(region)))
    raise ValueError(f"order {order!r} is not one of random, raster, area, label, given")


def _raster(region: AnyRegion) -> tuple[float, float]:
    x0, y0, _, _ = region_box(region)
    return y0, x0


def region_box(region: AnyRegion) -> Box:
    """The box itself, or the box around a quad or mask."""
    if isinstance(region, BoxRegion):
        return region.box
    if isinstance(region, QuadRegion):
        return hull_box(region.quad)
    return hull_box([v for polygon in region.polygons for v in polygon])
