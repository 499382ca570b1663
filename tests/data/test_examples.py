# SPDX-License-Identifier: Apache-2.0
"""Every task learns from the annotations it says, and from nothing else."""

import dataclasses

import numpy as np
import pytest

from florence2_jax.data.examples import Example, examples_of, feeds, target_of
from florence2_jax.data.mixture import draw_examples, parse_weights
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Question,
    Record,
    Region,
    Span,
    Text,
)
from florence2_jax.tasks.answers import BoxRegion, parse_answer
from florence2_jax.tasks.registry import TASKS, get_task
from florence2_jax.tasks.targets import Budget
from florence2_jax.typing import UserError

SIZE = (100, 200)
CAR, DOG, SIGN, CROWD = (
    (10.0, 20, 50, 100),
    (60.0, 100, 90, 180),
    (0.0, 0, 20, 10),
    (0.0, 0, 99, 99),
)
MASK = (10.0, 20.0, 50.0, 20.0, 50.0, 100.0)


@pytest.fixture
def record() -> Record:
    return Record(
        id="1",
        image=b"unused",
        width=SIZE[0],
        height=SIZE[1],
        texts=(
            Text(text="A car."),
            Text(text="A dog and a car."),
            Text(text="A red car stands. A dog sits.", granularity="detailed"),
        ),
        regions=(
            Region(
                box=CAR,
                labels=(Label(text="car"), Label(text="the red one", kind="phrase")),
                polygons=(MASK,),
            ),
            Region(
                box=DOG,
                labels=(Label(text="dog"), Label(text="a brown dog", kind="brief")),
            ),
            Region(
                box=SIGN,
                quad=(0.0, 0, 20, 0, 20, 10, 0, 10),
                labels=(Label(text="STOP", kind="text"),),
            ),
            Region(box=CROWD, labels=(Label(text="car"),), is_crowd=True),
        ),
        groundings=(Grounding(text="A red car", spans=(Span(start=0, end=9, boxes=(CAR,)),)),),
        questions=(Question(question="what is red?", answers=("car", "the car")),),
    )


def of(record: Record, name: str) -> list[tuple[str, str]]:
    """(prompt, target) of every example of a task."""
    examples = examples_of(record, get_task(name))
    return [(e.prompt, target_of(e, record.size).text) for e in examples]


def test_crowds_are_no_targets_and_known_to_the_metrics(record):
    by_task = {name: examples_of(record, get_task(name)) for name in ("od", "region_proposal")}
    assert [one.crowds for one in by_task["od"]] == [(BoxRegion(label="car", box=CROWD),)]
    assert [one.crowds for one in by_task["region_proposal"]] == [(BoxRegion(box=CROWD),)]
    named = examples_of(record, get_task("open_vocabulary_detection"))
    assert [len(one.crowds) for one in named] == [1, 0, 1]  # car, dog, both


CAR_LOC = "<loc_100><loc_100><loc_500><loc_500>"
DOG_LOC = "<loc_600><loc_500><loc_900><loc_900>"
SIGN_LOC = "<loc_0><loc_0><loc_200><loc_50>"
EXPECTED = {
    "caption": [
        ("What does the image describe?", "A car."),
        ("What does the image describe?", "A dog and a car."),
    ],
    "detailed_caption": [
        ("Describe in detail what is shown in the image.", "A red car stands. A dog sits.")
    ],
    "more_detailed_caption": [],
    "od": [("Locate the objects with category name in the image.", f"car{CAR_LOC}dog{DOG_LOC}")],
    "dense_region_caption": [
        ("Locate the objects in the image, with their descriptions.", f"a brown dog{DOG_LOC}")
    ],
    "region_proposal": [
        ("Locate the region proposals in the image.", CAR_LOC + DOG_LOC + SIGN_LOC)
    ],
    "ocr": [("What is the text in the image?", "STOP")],
    "ocr_with_region": [
        (
            "What is the text in the image, with regions?",
            "STOP<loc_0><loc_0><loc_200><loc_0><loc_200><loc_50><loc_0><loc_50>",
        )
    ],
    "caption_to_phrase_grounding": [
        ("Locate the phrases in the caption: A red car", f"A red car{CAR_LOC}")
    ],
    "open_vocabulary_detection": [
        ("Locate car in the image.", f"car{CAR_LOC}"),
        ("Locate dog in the image.", f"dog{DOG_LOC}"),
        ("Locate car<and>dog in the image.", f"car{CAR_LOC}dog{DOG_LOC}"),
    ],
    "referring_expression_segmentation": [
        (
            "Locate the red one in the image with mask",
            "<loc_100><loc_100><loc_500><loc_100><loc_500><loc_500>",
        )
    ],
    "region_to_segmentation": [
        (
            f"What is the polygon mask of region {CAR_LOC}",
            "<loc_100><loc_100><loc_500><loc_100><loc_500><loc_500>",
        )
    ],
    "region_to_category": [
        (f"What is the region {CAR_LOC}?", f"car{CAR_LOC}"),
        (f"What is the region {DOG_LOC}?", f"dog{DOG_LOC}"),
    ],
    "region_to_description": [
        (f"What does the region {DOG_LOC} describe?", f"a brown dog{DOG_LOC}")
    ],
    "region_to_ocr": [(f"What text is in the region {SIGN_LOC}?", f"STOP{SIGN_LOC}")],
    "vqa": [("what is red?", "car")],
    "referring_expression_comprehension": [
        ("Which region does the red one refer to?", CAR_LOC)
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", [task.name for task in TASKS.values()])
def test_prompts_and_targets_of_every_task(record, name):
    assert of(record, name) == EXPECTED[name]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda t: t.name)
def test_an_empty_record_feeds_nothing(task):
    assert examples_of(Record(id="1", image=b"x", width=1, height=1), task) == ()


def test_all_references_come_with_each_caption(record):
    first, second = examples_of(record, get_task("caption"))
    assert first.references == second.references == ("A car.", "A dog and a car.")


def test_a_target_stays_within_its_task_s_own_budget(record):
    budget = Budget(count=len, max_tokens=10_000)  # Characters; the task's own limit is 32.
    example = examples_of(record, get_task("vqa"))[0]
    long = dataclasses.replace(example, text="word " * 20)
    target = target_of(long, record.size, budget=budget)
    assert len(target.text) <= 32 and target.num_dropped == 1


def test_draws_do_not_repeat_and_end_when_nothing_is_left(record):
    weights = parse_weights({"all": 1.0})
    rng = np.random.default_rng(0)
    total = sum(len(examples) for examples in EXPECTED.values())
    drawn = draw_examples(record, weights, 100, rng)
    assert len(drawn) == total == len({(e.prompt, e.text) for e in drawn})
    assert draw_examples(record, {"<MORE_DETAILED_CAPTION>": 1.0}, 3, rng) == []


def test_draws_follow_the_weights(record):
    weights = parse_weights({"od": 3.0, "ocr": 1.0})
    rng = np.random.default_rng(0)
    tokens = [draw_examples(record, weights, 1, rng)[0].task.name for _ in range(2000)]
    assert abs(tokens.count("od") / 2000 - 0.75) < 0.04  # Four standard deviations.


def test_weights_name_every_task_once():
    assert set(parse_weights({"all": 1.0})) == set(TASKS)
    assert parse_weights({"all": 1.0, "od": 0.0}).keys() == TASKS.keys() - {"<OD>"}
    with pytest.raises(UserError, match="must not be negative"):
        parse_weights({"od": -1.0})
    with pytest.raises(UserError, match="did you mean od"):
        parse_weights({"odd": 1.0})


def test_a_record_feeds_what_it_has_examples_of(record):
    assert feeds(record, ["<MORE_DETAILED_CAPTION>", "<OD>"])
    assert not feeds(record, ["<MORE_DETAILED_CAPTION>"])
    assert not feeds(record, [])


# --- Order and dropping ---------------------------------------------------------------------------

BOXES = (
    BoxRegion(label="dog", box=(0, 60, 90, 150)),
    BoxRegion(label="car", box=(50, 90, 60, 100)),
    BoxRegion(label="ant", box=(5, 5, 6, 6)),
    BoxRegion(label="car", box=(10, 20, 50, 100)),
)
DETECTION = Example(task=get_task("od"), regions=BOXES)


def locations(text: str) -> int:
    return text.count("<loc_")


def written(max_boxes: int = 9, **options) -> list[tuple[str, float]]:
    """Labels and upper sides of the boxes in a target of at most so many boxes."""
    budget = Budget(count=locations, max_tokens=4 * max_boxes)
    target = target_of(DETECTION, (1000, 1000), budget=budget, **options)
    answer = parse_answer(DETECTION.task, target.text, (1000, 1000))
    assert target.num_dropped == len(BOXES) - len(answer.regions)
    return [(region.label, region.box[1] - 0.5) for region in answer.regions]


def test_label_order_puts_boxes_of_one_label_side_by_side():
    assert written(order="label") == [("ant", 5), ("car", 20), ("car", 90), ("dog", 60)]
    text = target_of(DETECTION, (1000, 1000), order="label").text
    assert text.count("car") == 1  # One label owns both boxes.
    assert target_of(DETECTION, (1000, 1000)).text.count("car") == 2


def test_what_is_left_out_first():
    assert written(2, drop="smallest") == [("dog", 60), ("car", 20)]
    assert written(2, drop="last") == [("dog", 60), ("car", 90)]
    assert written(2, order="label", drop="last") == [("ant", 5), ("car", 20)]
    draws = [written(2, drop="random", rng=np.random.default_rng(seed)) for seed in range(60)]
    assert draws == [written(2, drop="random", rng=np.random.default_rng(s)) for s in range(60)]
    order = [(region.label, region.box[1]) for region in BOXES]
    assert all(draw == sorted(draw, key=order.index) for draw in draws)
    assert len({tuple(draw) for draw in draws}) == 6  # All pairs of the four.


def test_random_dropping_needs_an_rng_and_a_rule_a_name():
    with pytest.raises(ValueError, match="needs an rng"):
        written(2, drop="random")
    # Past the type checker, as a run file would.
    with pytest.raises(Exception, match="drop"):
        written(2, drop="largest")
