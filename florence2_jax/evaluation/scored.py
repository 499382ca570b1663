# SPDX-License-Identifier: Apache-2.0
"""What every metric reads: a question with its truth, and the answer it got.

Three rules hold for all metrics of this package, so that no score flatters:

- a question without truth is not scored, and a metric without any truth is NaN;
- an answer that is missing, or says nothing, scores 0;
- values are fractions (0.41, not 41); CIDEr (up to 10) and the character error rate go beyond 1.

Said twice, an answer is a second answer: it costs precision wherever there is one. A coordinate or
score that is not finite is a ValueError: it comes from a broken program, and every order it is
sorted into is an accident.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.data.examples import Example
from florence2_jax.geometry import hull_box
from florence2_jax.tasks.answers import (
    Answer,
    AnyRegion,
    BoxRegion,
    MaskRegion,
    QuadRegion,
    RegionsAnswer,
    TextAnswer,
)
from florence2_jax.tasks.targets import clean_text
from florence2_jax.typing import Box, Polygon, Size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """One question about one image and its answer; `size` is `(width, height)` in pixels.

    Raises ValueError if a coordinate or score is not finite.
    """

    example: Example
    answer: Answer
    size: Size
    image_id: str

    def __post_init__(self):
        found = self.answer.regions if isinstance(self.answer, RegionsAnswer) else ()
        for region in (*found, *self.example.regions):
            values = [value for polygon in polygons_of(region) for value in polygon]
            if not all(map(math.isfinite, (*values, region.score or 0.0))):
                token = self.example.task.token
                raise ValueError(f"{token} of {self.image_id}: not finite: {region}")

    @property
    def text(self) -> str:
        """The words of a text answer. Raises TypeError if the answer is of regions."""
        if not isinstance(self.answer, TextAnswer):
            raise TypeError(self._mismatch("text"))
        return self.answer.text

    @property
    def regions(self) -> tuple[AnyRegion, ...]:
        """The regions of an answer. Raises TypeError if the answer is text."""
        if not isinstance(self.answer, RegionsAnswer):
            raise TypeError(self._mismatch("regions"))
        return self.answer.regions

    @property
    def true_texts(self) -> tuple[str, ...]:
        """Every text that would be right, spelled as targets spell it; blank ones left out."""
        texts = self.example.references or (self.example.text,)
        return tuple(text for text in map(clean_text, texts) if text)

    def _mismatch(self, wanted: str) -> str:
        got = type(self.answer).__name__
        return f"{self.example.task.token} of {self.image_id}: expected {wanted}, got a {got}"


def distinct(scored: Iterable[Scored]) -> list[Scored]:
    """Each question once, the first time it is met.

    A record with five captions gives five examples of one question, alike but for `text`. Two
    regions of the same place but different truth stay two questions.
    """
    first: dict[tuple[str, Example], Scored] = {}
    for one in scored:
        first.setdefault((one.image_id, dataclasses.replace(one.example, text="")), one)
    return list(first.values())


def polygons_of(region: AnyRegion) -> tuple[Polygon, ...]:
    """The outline of any region: its polygons, its quad, or the corners of its box."""
    if isinstance(region, MaskRegion):
        return region.polygons
    if isinstance(region, QuadRegion):
        return (region.quad,)
    x0, y0, x1, y1 = region.box
    return ((x0, y0, x1, y0, x1, y1, x0, y1),)


def box_of(region: AnyRegion) -> Box:
    """The box of any region: its own, or the one around its quad or polygons."""
    if isinstance(region, BoxRegion):
        return region.box
    return hull_box([value for polygon in polygons_of(region) for value in polygon])


def boxes_of(regions: Sequence[AnyRegion]) -> Float[NDArray, "R 4"]:
    """The boxes of some regions, `[0, 4]` for none."""
    return np.array([box_of(region) for region in regions], np.float64).reshape(-1, 4)


def num_matches(overlap: Float[NDArray, "R Q"]) -> int:
    """How many answers (rows) find a truth (column) of their own.

    In order of rows, each takes the free column it overlaps most; what must not match is 0.
    """
    free = np.array(overlap)
    count = 0
    for row in free:
        if row.size and row.max() > 0:
            free[:, row.argmax()] = 0
            count += 1
    return count


def f1_score(num_matched: int, num_found: int, num_true: int) -> tuple[float, float, float]:
    """`(f1, precision, recall)`: NaN without truth, 0 without answers."""
    if not num_true:
        return math.nan, math.nan, math.nan
    precision = num_matched / num_found if num_found else 0.0
    return 2 * num_matched / (num_found + num_true), precision, num_matched / num_true


def mean(values: Sequence[float] | NDArray) -> float:
    """The mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else math.nan
