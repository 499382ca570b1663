# SPDX-License-Identifier: Apache-2.0
"""Statistics beside FLD-5B: histograms by hand, counts that stay true when names are forgotten."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from florence2_jax.records.distributions import AREA_OCTAVES, GRID, BoundedCounts
from florence2_jax.records.inspection import FLD5B, statistics
from florence2_jax.records.schema import Grounding, Label, Record, Region, Span, Text


def record(*boxes, **fields) -> Record:
    regions = tuple(Region(box=box, labels=(Label(text="dog"),)) for box in boxes)
    return Record(id="r", image=b"x", width=240, height=120, regions=regions, **fields)


def spread_of(*records: Record) -> dict:
    return statistics(records)["distributions"]


def test_boxes_are_counted_where_they_are():
    # A cell is 10 px wide and 5 px high.
    spread = spread_of(record((0, 0, 240, 120), (0, 0, 5, 4), (200, 50, 230, 60)))
    sizes, centres = (np.array(spread[f"box_{name}"]["regions"]) for name in ("sizes", "centres"))
    assert [tuple(at) for at in np.argwhere(sizes)] == [(0, 0), (2, 3), (GRID - 1, GRID - 1)]
    assert [tuple(at) for at in np.argwhere(centres)] == [(0, 0), (11, 21), (12, 12)]
    assert sizes.sum() == centres.sum() == 3
    assert sum(map(sum, spread["box_sizes"]["phrases"])) == 0


def test_areas_halve_from_bin_to_bin():
    boxes = [(0, 0, 240, 120), (0, 0, 120, 120), (0, 0, 119, 120), (0, 0, 60, 120), (0, 0, 1, 1)]
    areas = spread_of(record(*boxes))["box_areas"]["regions"]
    last = [2, 2]  # Half and more; a quarter and more.
    assert areas[-2:] == last[::-1] and sum(areas) == 5
    assert areas[AREA_OCTAVES - 15] == 1  # 1 / 28,800 is over 2**-15.


def test_boxes_of_phrases_are_those_of_groundings():
    span = Span(start=0, end=3, boxes=((0, 0, 240, 120), (0, 0, 5, 4)))
    spread = spread_of(record(groundings=(Grounding(text="two dogs", spans=(span,)),)))
    assert sum(spread["box_areas"]["phrases"]) == 2 and sum(spread["box_areas"]["regions"]) == 0


def test_lengths_and_regions_per_image():
    long = " ".join(["word"] * 500)
    texts = (Text(text="a dog"), Text(text=long), Text(text="it is", granularity="detailed"))
    spread = spread_of(record(texts=texts), record(*[(0, 0, 9, 9)] * 70), record((0, 0, 9, 9)))
    brief = spread["text_lengths"]["brief"]
    assert brief[2] == 1 and brief[-1] == 1 and sum(brief) == 2
    assert spread["text_lengths"]["detailed"][2] == 1
    per_image = spread["regions_per_image"]
    assert (per_image[0], per_image[1], per_image[-1], sum(per_image)) == (1, 1, 1, 3)


def test_rows_have_those_of_fld5b_beside_them():
    rows = {(row["type"], row["text"]): row["fld5b"] for row in statistics([])["rows"]}
    assert {key: row for key, row in rows.items() if row} == FLD5B
    # The paper's own sums: 5.4 billion annotations.
    texts = sum(row["num_texts"] for (kind, _), row in FLD5B.items() if kind == "text")
    regions = sum(row.get("num_regions", 0) for row in FLD5B.values())
    assert round((texts + regions) / 1e9, 1) == 5.4


def test_the_tail_is_by_rank():
    counts = BoundedCounts()
    counts.update(["dog"] * 5 + ["cat"] * 3 + ["eel"])
    assert counts.report() == {
        "num_names": 3,
        "num_occurrences": 9,
        "num_dropped": 0,
        "max_error": 0,
        "rank_counts": [[1, 5], [2, 3], [3, 1]],
    }
    many = BoundedCounts()
    many.update(f"{i}" for i in range(5000) for _ in range(1 + 4999 // (i + 1)))
    points = many.report()["rank_counts"]
    assert len(points) <= 120 and points[0] == [1, 5000] and points[-1] == [5000, 1]
    assert BoundedCounts().report()["rank_counts"] == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=40), st.integers(1, 8))
def test_forgetting_keeps_its_promises(batches, limit):
    counts, truth = BoundedCounts(limit), Counter()
    for batch in batches:
        counts.update(map(str, batch))
        truth.update(map(str, batch))
        assert len(counts.most_common()) <= 2 * limit
    kept = dict(counts.most_common())
    assert sum(kept.values()) + counts.dropped == truth.total()
    for name, num in truth.items():
        assert kept.get(name, 0) <= num <= kept.get(name, 0) + counts.max_error
    if len(truth) <= 2 * limit and counts.dropped == 0:
        assert kept == truth
