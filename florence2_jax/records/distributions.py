# SPDX-License-Identifier: Apache-2.0
"""How sizes, places, lengths and labels of records are spread, in memory that does not grow.

Everything is a count in one of a fixed number of bins; only labels need names, and of those the
rare ones are forgotten where there are too many (`BoundedCounts`). So 10^8 records need no more
memory than 10^5.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from florence2_jax.records.schema import GRANULARITIES, LabelKind, Record
from florence2_jax.typing import Box, Size

GRID = 24
"""Rows and columns of the maps of box sizes and centres."""

MAX_LABELS = 100_000
"""Labels of a kind that are counted by name, at least; see `BoundedCounts`."""

AREA_OCTAVES = 16
"""Bins of the share of the image that a box covers, each half of the one above."""

_COUNTED: tuple[LabelKind, ...] = ("category", "phrase")
_MAX_REGIONS, _MAX_WORDS = 60, 160  # The last bin holds all that is more.
_MAX_RANKS = 120  # Of the tail that are told, evenly spaced in the logarithm.


class BoundedCounts:
    """How often each name was said, for the `limit` most frequent names and often for more.

    Whenever there are twice as many, the rarer half is forgotten. `dropped` is the number of
    occurrences that went with them, and no count is short of the truth by more than `max_error`;
    both are 0 unless something was forgotten.

    Source: the idea of Misra and Gries (1982), "Finding repeated elements", done in batches.
    """

    def __init__(self, limit: int = MAX_LABELS):
        self.limit = limit
        self.dropped = self.max_error = 0
        self._counts: Counter[str] = Counter()

    def update(self, names: Iterable[str]) -> None:
        """Counts each of the names once more."""
        self._counts.update(names)
        if len(self._counts) > 2 * self.limit:
            rows = self._counts.most_common()
            self._counts = Counter(dict(rows[: self.limit]))
            self.dropped += sum(num for _, num in rows[self.limit :])
            self.max_error += rows[self.limit][1]

    def most_common(self) -> list[tuple[str, int]]:
        """`(name, count)` of what is remembered, from the most frequent on."""
        return self._counts.most_common()

    def report(self) -> dict[str, Any]:
        """JSON: how many names and occurrences, what was dropped, and `[rank, count]` points."""
        rows = self.most_common()
        last = len(rows)
        spread = np.geomspace(1, max(last, 1), _MAX_RANKS).round().astype(int).tolist()
        ranks = sorted(set(spread)) if last else []
        return {
            "num_names": last,
            "num_occurrences": self._counts.total() + self.dropped,
            "num_dropped": self.dropped,
            "max_error": self.max_error,
            "rank_counts": [[rank, rows[rank - 1][1]] for rank in ranks],
        }


class Distributions:
    """Grows by a record at a time; `report` is JSON.

    Args:
        count: tokens of a text.
    """

    def __init__(self, count: Callable[[str], int]):
        self._count = count
        self.labels: dict[LabelKind, BoundedCounts] = {kind: BoundedCounts() for kind in _COUNTED}
        self._boxes = {"regions": _Boxes(), "phrases": _Boxes()}
        self._regions_per_image = np.zeros(_MAX_REGIONS + 1, np.int64)
        self._lengths: dict[str, np.ndarray] = defaultdict(
            lambda: np.zeros(_MAX_WORDS + 1, np.int64)
        )

    def add(self, record: Record) -> None:
        """Counts a record; its image stays encoded."""
        regions = record.regions
        self._boxes["regions"].add([region.box for region in regions], record.size)
        spans = [box for g in record.groundings for span in g.spans for box in span.boxes]
        self._boxes["phrases"].add(spans, record.size)
        self._regions_per_image[min(len(regions), _MAX_REGIONS)] += 1
        for kind, counts in self.labels.items():
            counts.update(
                label.text for region in regions for label in region.labels if label.kind == kind
            )
        for text in record.texts:
            self._lengths[text.granularity][min(self._count(text.text), _MAX_WORDS)] += 1

    def report(self) -> dict[str, Any]:
        """JSON with counts alone:

        - `box_sizes`, `box_centres`: of regions and of phrases, `GRID` rows from the top (large
          heights last) of `GRID` columns, in shares of the image;
        - `box_areas`: `AREA_OCTAVES` counts, the last of boxes over half of the image, each before
          it of half as much;
        - `regions_per_image`, `text_lengths` by granularity, in tokens: the count of 0, 1, ...,
          the last of that many or more;
        - `labels`: the report of `BoundedCounts` for categories and phrases.
        """
        lengths = {name: self._lengths[name].tolist() for name in GRANULARITIES}
        return {
            "box_sizes": {name: boxes.sizes.tolist() for name, boxes in self._boxes.items()},
            "box_centres": {name: boxes.centres.tolist() for name, boxes in self._boxes.items()},
            "box_areas": {name: boxes.areas.tolist() for name, boxes in self._boxes.items()},
            "regions_per_image": self._regions_per_image.tolist(),
            "text_lengths": lengths,
            "labels": {kind: counts.report() for kind, counts in self.labels.items()},
        }


class _Boxes:
    """Maps of boxes, in shares of their image."""

    def __init__(self):
        self.sizes = np.zeros((GRID, GRID), np.int64)
        self.centres = np.zeros((GRID, GRID), np.int64)
        self.areas = np.zeros(AREA_OCTAVES, np.int64)

    def add(self, boxes: Sequence[Box], size: Size) -> None:
        width, height = size
        for x0, y0, x1, y1 in boxes:  # In images of few boxes quicker than arrays.
            w, h = (x1 - x0) / width, (y1 - y0) / height
            self.sizes[_bin(h), _bin(w)] += 1
            self.centres[_bin((y0 + y1) / 2 / height), _bin((x0 + x1) / 2 / width)] += 1
            octave = math.ceil(-math.log2(w * h)) if 0 < w * h < 1 else 1
            self.areas[AREA_OCTAVES - min(max(octave, 1), AREA_OCTAVES)] += 1


def _bin(share: float) -> int:
    return min(int(share * GRID), GRID - 1)
