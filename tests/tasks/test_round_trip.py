# SPDX-License-Identifier: Apache-2.0
"""annotations -> target -> answer, for every task: equal up to half a bin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence2_jax.tasks.answers import BoxRegion, MaskRegion, QuadRegion, parse_answer
from florence2_jax.tasks.registry import TASKS
from florence2_jax.tasks.targets import (
    Budget,
    clean_text,
    region_area,
    write_region_text,
    write_regions,
    write_text,
)
from florence2_jax.text.locations import NUM_BINS, coordinates_text

SIZE = (640, 427)
LABELS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("<>\n<"), max_size=12
) | st.sampled_from(["", "car", "a<b car", "line\nbreak", "café", "<loc_5>", "<poly>", "t-shirt"])
X, Y = st.floats(0, SIZE[0]), st.floats(0, SIZE[1])
POINTS = st.tuples(X, Y)


@st.composite
def boxes(draw):
    (x0, y0), (x1, y1) = draw(POINTS), draw(POINTS)
    box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    return BoxRegion(label=draw(LABELS), box=box)


@st.composite
def quads(draw):
    points = draw(st.lists(POINTS, min_size=4, max_size=4))
    return QuadRegion(label=draw(LABELS), quad=tuple(v for p in points for v in p))


@st.composite
def masks(draw):
    rings = draw(st.lists(st.lists(POINTS, min_size=3, max_size=9), min_size=1, max_size=3))
    return tuple(tuple(v for p in ring for v in p) for ring in rings)


REGIONS = {"quads": quads(), "masks": masks()}
REGION_TASKS = [t for t in TASKS.values() if t.grammar not in ("text", "region_text")]
TEXT_TASKS = [t for t in TASKS.values() if t.grammar in ("text", "region_text")]


def draw_regions(task, data, **sizes) -> list:
    regions = data.draw(st.lists(REGIONS.get(task.grammar, boxes()), max_size=6, **sizes))
    # Made outside the strategy: the run-time type checker samples long tuples at random.
    return [MaskRegion(polygons=r) if isinstance(r, tuple) else r for r in regions]


def coordinates(region) -> list[float]:
    match region:
        case BoxRegion():
            return list(region.box)
        case QuadRegion():
            return list(region.quad)
        case MaskRegion():
            return [v for polygon in region.polygons for v in polygon]


def close(a: list[float], b: list[float]) -> bool:
    half_bin = np.resize(np.array(SIZE) / NUM_BINS / 2, len(a))
    return len(a) == len(b) and bool((np.abs(np.subtract(a, b)) <= half_bin * (1 + 1e-9)).all())


@pytest.mark.parametrize("task", REGION_TASKS, ids=lambda t: t.name)
@settings(deadline=None)
@given(data=st.data())
def test_regions_come_back(task, data):
    regions = draw_regions(task, data)
    target = write_regions(task, regions, SIZE)
    answer = parse_answer(task, f"</s><s>{target.text}</s><pad><pad>", SIZE)
    assert answer.unparsed == () and target.num_dropped == 0
    has_labels = task.grammar not in ("proposals", "masks")
    expected = sorted(regions, key=lambda r: bool(clean_text(r.label)))
    expected = expected if task.grammar in ("boxes", "named_boxes", "phrases") else regions
    assert len(answer.regions) == len(expected)
    for found, region in zip(answer.regions, expected, strict=True):
        assert found.label == (clean_text(region.label) if has_labels else "")
        assert close(coordinates(found), coordinates(region))


@pytest.mark.parametrize("task", TEXT_TASKS, ids=lambda t: t.name)
@settings(deadline=None)
@given(text=LABELS, region=boxes())
def test_texts_come_back(task, text, region):
    if task.grammar == "text":
        target = write_text(text)
        assert parse_answer(task, f"<s>{target.text}</s>", SIZE).text == clean_text(text)
        return
    target = write_region_text(text, region.box, SIZE)
    answer = parse_answer(task, f"<s>{target.text}</s>", SIZE)
    assert answer.text == clean_text(text) and answer.unparsed == ()
    assert close(list(answer.region), list(region.box))


@pytest.mark.parametrize("task", REGION_TASKS, ids=lambda t: t.name)
@settings(deadline=None)
@given(data=st.data())
def test_a_budget_drops_whole_smallest_regions(task, data):
    regions = draw_regions(task, data, min_size=1)
    budget = Budget(
        count=lambda text: text.count("<loc_"), max_tokens=data.draw(st.integers(0, 40))
    )
    target = write_regions(task, regions, SIZE, budget=budget)
    answer = parse_answer(task, target.text, SIZE)
    assert target.text.count("<loc_") <= budget.max_tokens and answer.unparsed == ()
    assert len(answer.regions) + target.num_dropped == len(regions)
    if task.grammar != "masks" and target.num_dropped:
        areas = sorted(map(region_area, regions), reverse=True)
        kept = sorted((min(region_area(r), areas[0]) for r in answer.regions), reverse=True)
        slack = 2 * max(SIZE) ** 2 / NUM_BINS  # Each side moves by up to a bin.
        assert all(abs(a - b) <= slack for a, b in zip(kept, areas, strict=False))


def test_long_text_loses_sentences_then_words():
    words = Budget(count=lambda text: len(text.split()), max_tokens=5)
    assert write_text("One two. Three four. Five six.", budget=words).text == "One two. Three four."
    assert write_text("one two three four five six", budget=words).text == "one two three four five"
    assert write_text("One two. Three four. Five six.", budget=words).num_dropped == 1


def test_orders():
    task = TASKS["<OD>"]
    low = BoxRegion(label="low", box=(0, 300, 50, 350))
    high = BoxRegion(label="high", box=(300, 10, 320, 30))
    large = BoxRegion(label="large", box=(10, 100, 400, 400))
    regions = [low, high, large]

    def labels(**options):
        text = write_regions(task, regions, SIZE, **options).text
        return [r.label for r in parse_answer(task, text, SIZE).regions]

    assert labels(order="raster") == ["high", "large", "low"]
    assert labels(order="area") == ["large", "low", "high"]
    rng = np.random.default_rng(0)
    assert {tuple(labels(order="random", rng=rng)) for _ in range(60)} >= {
        ("low", "high", "large"), ("large", "high", "low"), ("high", "low", "large"),
    }  # fmt: skip
    with pytest.raises(ValueError, match="needs an rng"):
        write_regions(task, regions, SIZE, order="random")


def test_observed_targets_of_the_released_models():  # Facts 3.2.
    size = (1000, 1000)
    text = (
        "car<loc_53><loc_333><loc_933><loc_774>wheel<loc_709><loc_576><loc_865><loc_772>"
        "<loc_150><loc_584><loc_309><loc_773>"
    )
    answer = parse_answer(TASKS["<OD>"], text, size)
    assert [r.label for r in answer.regions] == ["car", "wheel", "wheel"]
    assert write_regions(TASKS["<OD>"], answer.regions, size).text == text
    described = "turquoise Volkswagen Beetle<loc_52><loc_332><loc_932><loc_774>"
    region = parse_answer(TASKS["<REGION_TO_DESCRIPTION>"], described, size)
    assert region.text == "turquoise Volkswagen Beetle"
    assert write_region_text(region.text, region.region, size).text == described
    wheels = "wheels<loc_1><loc_2><loc_3><loc_4>wheels<loc_7><loc_8><loc_9><loc_10>"
    named = parse_answer(TASKS["<OPEN_VOCABULARY_DETECTION>"], wheels, size)
    assert write_regions(TASKS["<OPEN_VOCABULARY_DETECTION>"], named.regions, size).text == wheels


def test_echo_is_the_box_of_the_prompt():
    box = (33.0, 142.0, 597.0, 331.0)
    assert write_region_text("car", box, SIZE).text == "car" + coordinates_text(box, SIZE)


def test_a_long_outline_is_drawn_with_fewer_points_before_it_is_left_out():
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    ring = np.stack([32 + 20 * np.cos(angles), 32 + 20 * np.sin(angles)], axis=1).ravel()
    budget = Budget(count=lambda text: text.count("<loc_"), max_tokens=26)
    task = TASKS["<REGION_TO_SEGMENTATION>"]
    mask = MaskRegion(polygons=(tuple(ring.tolist()),))
    target = write_regions(task, [mask], (64, 64), budget=budget)
    (drawn,) = parse_answer(task, target.text, (64, 64)).regions
    assert target.num_dropped == 0 and 12 <= len(drawn.polygons[0]) <= 26
    assert region_area(drawn) > 0.85 * region_area(mask)
