# SPDX-License-Identifier: Apache-2.0
"""What a question calls absent is absent, and the answer lists what is there."""

import collections
import dataclasses

import numpy as np
import pytest

from florence2_jax.data.examples import examples_of, target_of
from florence2_jax.data.negatives import (
    NamePool,
    NegativesConfig,
    collect_names,
    draw_absent,
    name_key,
    vary_names,
)
from florence2_jax.records.schema import Label, Question, Record, Region, Text
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.answers import parse_answer
from florence2_jax.tasks.registry import TASKS, get_task
from florence2_jax.tasks.targets import clean_text
from florence2_jax.typing import UserError

OPEN = get_task("open_vocabulary_detection")


def record_of(*names: str, crowds: tuple[str, ...] = (), **fields) -> Record:
    regions = [
        Region(box=(i, 0.0, i + 1.0, 9.0), labels=(Label(text=name),), is_crowd=name in crowds)
        for i, name in enumerate((*names, *crowds))
    ]
    return Record(id="1", image=b"x", width=100, height=10, regions=tuple(regions), **fields)


POOL = NamePool.of(
    [
        record_of("car", "car", "dog", "sofa"),
        record_of("car", "Dogs", "fire truck"),
        record_of("cars", "zebra"),
    ]
)


def vary(record, index, config, seed, pool=POOL):
    example = examples_of(record, OPEN)[index]
    return vary_names(example, record, pool, np.random.default_rng(seed), config)


def names_in(example) -> list[str]:
    return example.text_input.split("<and>")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("car", "Cars"), ("fire truck", "Fire-Trucks"), ("firetruck", "fire trucks"),
        ("bus", "buses"), ("box", "boxes"), ("house", "houses"), ("person", "people"),
        ("cookie", "cookies"), ("lady", "ladies"), ("glass", "glasses"), ("knife", "knives"),
        ("wine glass", "wine glasses"), ("shoe", "shoes"),
        ("dish", "Dishes"), ("tomato", "tomatoes"),
    ],
)  # fmt: skip
def test_spellings_of_one_name_share_a_key(a, b):
    assert name_key(a) == name_key(b)


def test_different_names_have_different_keys():
    names = "car cat cow bus boat bear bird bed book boy bicycle tennis glass grass".split()
    assert len({name_key(name) for name in names}) == len(names)


def test_a_pool_counts_records_and_keeps_the_most_frequent():
    counts = np.diff([0, *POOL.totals]).tolist()
    rows = dict(zip(POOL.names, counts, strict=True))
    assert rows == {"car": 3, "dog": 2, "fire truck": 1, "sofa": 1, "zebra": 1}
    assert POOL.names[:2] == ("car", "dog")
    records = [record_of("car", "dog"), record_of("car")]
    assert NamePool.of(records, max_names=1).names == ("car",)
    assert NamePool.of([record_of("", "...")]).names == ()


def test_names_are_drawn_as_often_as_they_occur():
    rng = np.random.default_rng(0)
    draws = collections.Counter(POOL.names[POOL.draw(rng)] for _ in range(4000))
    assert draws["car"] / 4000 == pytest.approx(3 / 8, abs=0.031)  # Four standard deviations.
    assert draws["zebra"] / 4000 == pytest.approx(1 / 8, abs=0.021)
    assert set(draws) == set(POOL.names)


def absent_of(record: Record, pool: NamePool = POOL) -> set[str]:
    """All that a hundred draws call absent."""
    return {
        name
        for seed in range(100)
        for name in draw_absent(record, pool, 3, np.random.default_rng(seed))
    }


def test_absent_is_what_no_region_and_no_text_names():
    assert absent_of(record_of("bird")) == set(POOL.names)
    assert absent_of(record_of("sports car")) == set(POOL.names) - {"car"}  # Held by it.
    assert absent_of(record_of("truck")) == set(POOL.names) - {"fire truck"}  # Holds it.
    assert absent_of(record_of("FireTrucks", "DOG")) == {"car", "sofa", "zebra"}
    assert absent_of(record_of("bird", crowds=("dog",))) == set(POOL.names) - {"dog"}
    assert absent_of(record_of("bird", texts=(Text(text="A bird, two Zebras."),))) == set(
        POOL.names
    ) - {"zebra"}
    asked = (Question(question="is the fire-truck red?", answers=("no, the dogs are",)),)
    assert absent_of(record_of("bird", questions=asked)) == {"car", "sofa", "zebra"}
    said = (Text(text="A cart, a dogma."),)  # Other words.
    assert absent_of(record_of("bird", texts=said)) == set(POOL.names)


def test_absent_names_differ_from_each_other_and_may_run_out():
    pool = NamePool.of([record_of("car", "sports car", "cable car")])
    for seed in range(20):
        assert len(draw_absent(record_of("bird"), pool, 2, np.random.default_rng(seed))) <= 2
        first, *others = draw_absent(record_of("bird"), pool, 3, np.random.default_rng(seed))
        assert "car" not in others and (first != "car" or not others)
    assert draw_absent(record_of("car", "car park"), pool, 3, np.random.default_rng(0)) == []
    record, always = record_of("car"), NegativesConfig(share=1.0, alone=1.0)
    assert vary(record, 0, always, 0, pool) == examples_of(record, OPEN)[0]


def test_nothing_varies_by_default():
    record = record_of("bird", "cat", "mouse")
    for index, example in enumerate(examples_of(record, OPEN)):
        assert all(vary(record, index, NegativesConfig(), seed) == example for seed in range(20))
    rng = np.random.default_rng(0)
    vary_names(example, record, NamePool(), rng, NegativesConfig())
    assert rng.random() == np.random.default_rng(0).random()  # Runs without it do not change.
    assert vary(record, 0, NegativesConfig(share=1.0), 0, NamePool()).text_input == "bird"


def test_other_tasks_are_left_alone():
    record = record_of("bird", texts=(Text(text="A bird."),))
    always = NegativesConfig(share=1.0)
    rng = np.random.default_rng(0)
    others = [e for t in TASKS.values() if t is not OPEN for e in examples_of(record, t)]
    assert len(others) == 4
    assert [vary_names(e, record, POOL, rng, always) for e in others] == others


def test_absent_names_come_in_their_share_and_alone_in_theirs():
    record = record_of("bird", "cat")
    config = NegativesConfig(share=0.4, alone=0.25, max_absent=2)
    plain, mixed, alone, numbers = 0, 0, 0, collections.Counter()
    for seed in range(2000):
        example = vary(record, 0, config, seed)
        absent = set(names_in(example)) - {"bird"}
        assert absent <= set(POOL.names)
        numbers[len(absent)] += 1
        plain += not absent
        mixed += bool(absent) and "bird" in names_in(example)
        alone += bool(absent) and "bird" not in names_in(example)
    assert plain / 2000 == pytest.approx(0.6, abs=0.044)  # Four standard deviations.
    assert alone / (alone + mixed) == pytest.approx(0.25, abs=0.062)
    assert numbers[1] == pytest.approx(numbers[2], abs=120)


def test_the_answer_lists_what_is_there():
    record = record_of("bird", "cat", "bird")
    mixed = vary(record, 0, NegativesConfig(share=1.0, alone=0.0, max_absent=3), 4)
    assert {"bird"} < set(names_in(mixed)) and len(mixed.regions) == 2
    assert mixed.prompt == f"Locate {mixed.text_input} in the image."
    target = target_of(mixed, record.size)
    read = parse_answer(OPEN, target.text, record.size)
    assert [region.label for region in read.regions] == ["bird", "bird"]


def test_what_is_absent_alone_has_an_empty_target_that_reads_as_none():
    record = record_of("bird", "cat")
    alone = vary(record, 0, NegativesConfig(share=1.0, alone=1.0), 0)
    assert set(names_in(alone)) <= set(POOL.names) and alone.regions == ()
    for order in ("given", "random", "raster", "area", "label"):
        target = target_of(alone, record.size, order=order, rng=np.random.default_rng(0))
        assert target.text == "" and target.num_dropped == 0
    read = parse_answer(OPEN, "<s></s>", record.size)
    assert read.regions == () and read.unparsed == ()
    assert parse_answer(OPEN, "</s>", record.size, compatible=True).regions == ()


def test_some_of_many_names_are_asked_for_in_random_order():
    names = tuple(f"thing {c}" for c in "abcdefghij")
    record = record_of(*names)
    index = len(names)  # Behind the single ones: all together.
    seen = set()
    for seed in range(300):
        example = vary(record, index, NegativesConfig(max_names=4), seed)
        asked = names_in(example)
        assert 1 <= len(asked) <= 4 and len(set(asked)) == len(asked)
        assert {region.label for region in example.regions} == set(asked)
        seen.add(tuple(asked))
    assert {len(asked) for asked in seen} == {1, 2, 3, 4}
    firsts = collections.Counter(asked[0] for asked in seen)
    assert len(firsts) == 10


def test_absent_names_are_not_told_by_their_place():
    record = record_of("bird")
    config = NegativesConfig(share=1.0, alone=0.0, max_absent=1)
    places = [names_in(vary(record, 0, config, seed)).index("bird") for seed in range(400)]
    assert np.mean(places) == pytest.approx(0.5, abs=0.1)  # Four standard deviations.


def test_a_store_gives_its_names(scenes):
    store = RecordStore(scenes, "train")
    pool = collect_names(store)
    labels = {
        clean_text(label.text)
        for record in store
        for region in record.regions
        for label in region.labels
        if label.kind == "category"
    }
    assert set(pool.names) <= labels
    assert set(pool.keys) == {name_key(label) for label in labels}
    config = NegativesConfig(share=1.0, alone=0.5, max_names=3)
    num_alone = 0
    for record in store:
        there = {name_key(label.text) for region in record.regions for label in region.labels}
        for example in examples_of(record, OPEN):
            varied = vary_names(example, record, pool, np.random.default_rng(0), config)
            boxed = {region.label for region in varied.regions}
            for name in set(names_in(varied)) - boxed:
                assert name_key(name) not in there
            num_alone += not boxed
    assert num_alone


def test_a_store_without_names_is_refused():
    with pytest.raises(UserError, match="no category names"):
        collect_names([record_of()])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(share=1.5), r"negatives.share: 1.5 is not in \[0, 1\]"),
        (dict(alone=-0.1), "negatives.alone"),
        (dict(max_absent=0), "negatives.max_absent: 0"),
        (dict(max_names=-1), "negatives.max_names: -1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values, message):
    with pytest.raises(UserError, match=message):
        NegativesConfig(**values)
    assert dataclasses.asdict(NegativesConfig())["share"] == 0
