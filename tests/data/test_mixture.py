# SPDX-License-Identifier: Apache-2.0
"""Stores by weights, tasks by stages: who gives which image, exactly and from its number alone."""

import collections
import copy
import dataclasses
import io
import json
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from rich.console import Console

from florence2_jax.data.mixture import (
    WHOLE_RUN,
    Interleave,
    Mixture,
    Part,
    Stage,
    check_weight,
    parse_weights,
)
from florence2_jax.data.pipeline import DataOrder, check_feeds
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import Plan, write_store
from florence2_jax.training import loop
from florence2_jax.training.config import RunConfig
from florence2_jax.typing import UserError

WEIGHTS = st.floats(0.001, 1000.0)


@pytest.fixture(scope="module")
def store(scenes) -> RecordStore:
    return RecordStore(scenes, "train")


def kept(record: Record, ledger) -> Record:
    return record


def write(folder, records) -> RecordStore:
    write_store(folder, Plan(units={"train": records}, make=kept, job={"test": folder.name}))
    return RecordStore(folder, "train")


def mixture_of(store, weights, stages=(WHOLE_RUN,)) -> Mixture:
    parts = [Part(name=f"s{i}", store=store, weight=w) for i, w in enumerate(weights)]
    return Mixture(parts=tuple(parts), stages=tuple(stages))


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=6), ends=st.sets(st.integers(1, 30)))
def test_every_store_s_images_are_counted_through_in_any_stages(store, weights, ends):
    stages = [
        Stage(name=f"stage{k}", end_step=end, weights={"s0": float(k % 3 + 1)})
        for k, end in enumerate(sorted(ends))
    ]
    order = Interleave(mixture_of(store, weights, stages or [WHOLE_RUN]), batch_size=4)
    given_before = collections.Counter()
    for image in range(160):
        assert order.taken(image) == [given_before[i] for i in range(len(weights))]
        number, count = order[image]
        stage, part = divmod(number, len(weights))
        assert stage == sum(image >= 4 * end for end in sorted(ends)[:-1])
        assert count == given_before[part]
        given_before[part] += 1


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=6), image=st.integers(0, 10**12))
def test_a_store_stays_near_its_share_however_far_the_run(store, weights, image):
    taken = Interleave(mixture_of(store, weights), batch_size=1).taken(image)
    assert sum(taken) == image
    for count, weight in zip(taken, weights, strict=True):
        # What it may be away, and float64's own error in the expected value.
        assert abs(count - image * weight / sum(weights)) <= len(weights) + 1e-9 * image


def test_weights_are_taken_as_written(store):
    order = Interleave(mixture_of(store, [0.7, 0.2, 0.1]), batch_size=1)
    assert order.taken(10**15) == [7 * 10**14, 2 * 10**14, 10**14]


def test_a_store_rests_in_a_stage_and_goes_on_after_it(store):
    stages = [
        Stage(name="a", end_step=10),
        Stage(name="b", end_step=20, weights={"s1": 0.0}),
        Stage(name="c", end_step=30),
    ]
    order = Interleave(mixture_of(store, [1.0, 1.0], stages), batch_size=2)
    assert [order.taken(2 * step) for step in (10, 20, 30)] == [[10, 10], [30, 10], [40, 20]]
    assert {order[image][0] for image in range(20, 40)} == {2}  # Stage 1, part 0.
    assert order[41] == (2 * 2 + 1, 10)


def test_stage_weights_multiply_those_of_the_tasks(store):
    run = parse_weights({"all": 1.0, "od": 2.0})
    part = Part(name="a", store=store, tasks=parse_weights({"od": 3.0, "ocr": 1.0}))
    other = Part(name="b", store=store)
    stage = Stage(name="x", end_step=1, tasks=parse_weights({"all": 0.5, "ocr": 0.0}))
    mixture = Mixture(parts=(part, other), stages=(stage,))
    assert mixture.tasks(WHOLE_RUN, part, run) == part.tasks
    assert mixture.tasks(WHOLE_RUN, other, run) == run
    assert mixture.tasks(stage, part, run) == {"<OD>": 1.5}
    assert mixture.tasks(stage, other, run).get("<OD>") == 1.0
    assert "<OCR>" not in mixture.tasks(stage, other, run)


def test_stores_have_seeds_of_their_own_by_their_names(store):
    seeds = {Part(name=name, store=store).seed(0) for name in ("a", "b", "c")}
    assert len(seeds) == 3 and Part(name="", store=store).seed(7) == 7
    assert Part(name="a", store=store).seed(0) != Part(name="a", store=store).seed(1)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_store_without_a_weight_is_refused(store, weight):
    with pytest.raises(UserError, match=r"input\.mixture\.a\.weight: weight "):
        Part(name="a", store=store, weight=weight)


def test_stages_that_give_nothing_are_refused(store):
    with pytest.raises(UserError, match=r"input\.stages\.x\.weights: no store has a weight above"):
        mixture_of(store, [1.0], [Stage(name="x", weights={"s0": 0.0})])
    with pytest.raises(UserError, match=r"stages\.x\.weights\.s9: no such store; .* has s0, s1"):
        mixture_of(store, [1.0, 1.0], [Stage(name="x", weights={"s9": 1.0})])
    with pytest.raises(UserError, match=r"stages\.x\.weights\.s0: weight -1\.0 must not be neg"):
        Stage(name="x", weights={"s0": -1.0})
    with pytest.raises(UserError, match="weight 'much' is not a number"):
        check_weight("input.stages.x.weights.s0", "much")


def test_a_store_that_feeds_none_of_its_tasks_is_named(store, tmp_path):
    records = [store[i] for i in range(6)]
    texts = write(
        tmp_path / "texts",
        [dataclasses.replace(r, regions=(), groundings=(), questions=()) for r in records],
    )
    whole, captions = Part(name="whole", store=store), Part(name="captions", store=texts)
    run = parse_weights({"all": 1.0})
    check_feeds(Mixture(parts=(whole, captions)), run)  # Each takes what it feeds.

    with pytest.raises(UserError, match=r"input\.mixture\.captions: no record of .* any of its"):
        check_feeds(Mixture(parts=(whole, captions)), parse_weights({"od": 1.0}))
    own = dataclasses.replace(captions, tasks=parse_weights({"caption": 1.0, "od": 1.0}))
    with pytest.raises(UserError, match=r"feeds od .*input\.mixture\.captions\.tasks\.od=0"):
        check_feeds(Mixture(parts=(whole, own)), run)
    two = (captions, dataclasses.replace(captions, name="again"))
    with pytest.raises(UserError, match=r"no store of input\.mixture feeds .*ocr"):
        check_feeds(Mixture(parts=two), run)

    regions = Stage(name="regions", tasks=parse_weights({"od": 1.0}))
    with pytest.raises(
        UserError,
        match=r"input\.stages\.regions: .*texts.* \(od\); .*stages\.regions\.weights\.captions=0",
    ):
        check_feeds(Mixture(parts=(whole, captions), stages=(regions,)), run)
    resting = dataclasses.replace(regions, weights={"captions": 0.0})
    check_feeds(Mixture(parts=(whole, captions), stages=(resting,)), run)


def test_a_position_is_a_number_that_means_one_order(store):
    mixture = mixture_of(store, [1.0, 2.0])
    order = DataOrder(mixture, seed=0, batch_size=8)
    position = json.loads(json.dumps(order.position(5)))  # As a checkpoint holds it.
    assert position["images"] == 40
    order.check(position, 5)
    for changed, message in (
        (DataOrder(mixture, seed=1, batch_size=8), "seed was 0 and is 1"),
        (DataOrder(mixture, seed=0, batch_size=4), r"input\.batch_size was 8 and is 4"),
        (
            DataOrder(mixture_of(store, [1.0, 3.0]), seed=0, batch_size=8),
            r"input\.mixture\.s1 \(weight\) was 2\.0 and is 3\.0",
        ),
        (
            DataOrder(mixture_of(store, [1.0]), seed=0, batch_size=8),
            r"input\.mixture\.s1 \(records\) was 40 and is None",
        ),
        (
            DataOrder(mixture_of(store, [1.0, 2.0], [Stage(name="x")]), seed=0, batch_size=8),
            r"input\.stages\.x \(steps\) was None",
        ),
    ):
        with pytest.raises(UserError, match=message):
            changed.check(position, 5)
    with pytest.raises(UserError, match="40 images were seen, but 6 steps of 8 are 48"):
        order.check(position, 6)
    assert order.epochs(15) == {"epochs/s0": 1.0, "epochs/s1": 2.0}


@pytest.fixture
def mixed_run(small_run, store, scenes, tmp_path) -> dict:
    """`small_run` on two stores in two stages."""
    write(tmp_path / "few", [store[i] for i in range(10)])
    run = copy.deepcopy(small_run)
    del run["input"]["records"]
    run["input"]["mixture"] = {
        "scenes": dict(records=str(scenes), weight=3.0),
        "few": dict(records=str(tmp_path / "few"), tasks={"od": 1.0, "ocr": 1.0}),
    }
    run["input"]["stages"] = {
        "whole": dict(until=1, tasks={"all": 1.0}),  # Named so that names do not order them.
        "image": dict(until=0.5, tasks={"caption": 1.0}, weights={"few": 0}),
    }
    return run


def test_the_run_file_says_stores_and_stages(mixed_run):
    run = RunConfig.create(mixed_run)
    image, whole = run.stages()
    assert (image.name, image.end_step, whole.name, whole.end_step) == ("image", 3, "whole", 6)
    mixed_run["input"]["stages"]["image"]["until"] = 2
    assert RunConfig.create(mixed_run).stages()[0].end_step == 2


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("records",), "/x", r"input\.records, input\.mixture: .* give one of them"),
        (("mixture",), {}, r"input\.records, input\.mixture: .* give one of them"),
        (("split",), "val", r"input\.split: 'val' is that of input\.records"),
        (("mixture", "few"), "/x", r"input\.mixture\.few: '/x' is not a mapping"),
        (("mixture", "few", "record"), "x", r"mixture\.few\.record: no such key; did you mean rec"),
        (("mixture", "few", "weight"), 0, r"input\.mixture\.few\.weight: .* must be above 0"),
        (("mixture", "few", "tasks"), {"odd": 1}, r"input\.mixture\.few\.tasks\.odd: no such task"),
        (("stages", "image", "until"), 0.0, r"input\.stages\.image\.until: 0\.0 is neither"),
        (("stages", "image", "until"), 2.5, r"input\.stages\.image\.until: 2\.5 is neither"),
        (("stages", "image", "until"), float("inf"), r"image\.until: inf is neither"),
        (("stages", "image", "until"), 1.0, r"until: 1\.0 is step 6, but the stage starts after"),
        (("stages", "whole", "until"), 0.9, r"stages\.whole\.until: the last stage ends with st"),
        (("stages", "image", "tasks"), {"odd": 1}, r"input\.stages\.image\.tasks\.odd: no such"),
        (("stages", "image", "weights"), {"few": -1}, r"image\.weights\.few: .* not be negative"),
    ],
)
def test_a_wrong_store_or_stage_is_named_with_its_place(mixed_run, place, value, message):
    target = mixed_run["input"]
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    with pytest.raises(UserError, match=message):
        RunConfig.create(mixed_run)


def rows(workdir) -> dict[int, dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines) if "loss" in row}


def test_a_run_on_a_mixture_in_stages_goes_on_exactly(mixed_run, tmp_path):
    quiet = Console(file=io.StringIO(), width=200)
    loop.run(mixed_run, tmp_path / "a", console=quiet)
    for stop in (2, None):  # The stage ends at 3.
        loop.run(mixed_run, tmp_path / "b", console=quiet, stop_after=stop)
    straight, stopped = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert [straight[i]["loss"] for i in range(1, 7)] == [stopped[i]["loss"] for i in range(1, 7)]
    assert {name for name in straight[2] if name.startswith("loss/")} == {"loss/caption"}
    assert "loss/od" in straight[6]
    assert straight[3]["epochs/few"] == 0 and straight[6]["epochs/few"] == 6 / 10
    assert straight[6]["epochs/scenes"] == (24 + 18) / 40


def test_a_store_that_grew_since_the_checkpoint_stops_the_run(small_run, store, tmp_path):
    for number in (16, 12):
        folder = tmp_path / f"of{number}"
        write(folder, [store[i] for i in range(number)])
    (tmp_path / "records").symlink_to(tmp_path / "of16")
    small_run["input"]["records"] = str(tmp_path / "records")
    quiet = Console(file=io.StringIO(), width=200)
    loop.run(small_run, tmp_path / "a", console=quiet, stop_after=1)
    (tmp_path / "records").unlink()
    (tmp_path / "records").symlink_to(tmp_path / "of12")
    with pytest.raises(UserError, match=r"input\.records \(records\) was 16 and is 12"):
        loop.run(small_run, tmp_path / "a", console=quiet)


def test_the_last_stage_has_no_end(store):
    order = Interleave(mixture_of(store, [1.0], [Stage(name="x", end_step=3)]), batch_size=2)
    assert order[10**9] == (0, 10**9) and len(order) < sys.maxsize
