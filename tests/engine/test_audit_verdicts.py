# SPDX-License-Identifier: Apache-2.0
"""Verdicts are never lost, and make of the frozen records what people said."""

import dataclasses
import json
import multiprocessing

import pytest

from florence2_jax.engine import audit
from florence2_jax.engine.auditing.items import Item, Verdict, corrected, items_of
from florence2_jax.engine.auditing.queue import Queue, SamplingConfig, sample
from florence2_jax.engine.auditing.verdicts import VerdictLog, summary
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Provenance,
    Question,
    Record,
    Region,
    Span,
    Text,
)
from florence2_jax.typing import UserError
from tests.engine.audit_workdir import frozen_workdir, record, region, said

DETECTOR = Provenance(kind="specialist", name="detector@1", score=0.4)


def full_record() -> Record:
    return record(
        1,
        texts=(Text(text="a cat"), Text(text="a cat sits", granularity="detailed")),
        regions=(
            Region(
                box=(8, 8, 40, 40),
                labels=(Label(text="cat"), Label(text="the grey cat", kind="phrase")),
                polygons=((8, 8, 40, 8, 40, 40),),
            ),
            Region(box=(0, 0, 9, 9), provenance=DETECTOR),
        ),
        groundings=(
            Grounding(
                text="a cat on a mat",
                spans=(
                    Span(start=0, end=5, boxes=((8, 8, 40, 40),), box_scores=(0.3,)),
                    Span(start=9, end=14, boxes=((0, 40, 64, 64), (0, 0, 3, 3))),
                ),
            ),
        ),
        questions=(Question(question="how many?", answers=("one", "1")),),
    )


def find(record: Record, text: str) -> Item:
    [item] = [item for item in items_of(record) if item.text == text]
    return item


def verdict(item: Item, ruling="accept", who="Ada", **change) -> Verdict:
    return Verdict(item=item, ruling=ruling, who=who, when="2030-01-01T00:00:00+00:00", **change)


def test_every_statement_of_a_record_is_an_item():
    items = items_of(full_record())
    assert [(item.kind, item.text) for item in items] == [
        ("text", "a cat"), ("text", "a cat sits"), ("region", "cat"), ("region", "the grey cat"),
        ("region", ""), ("phrase", "a cat"), ("phrase", "a mat"), ("question", "one"),
    ]  # fmt: skip
    assert len({item.key for item in items}) == len(items)
    assert [Item.from_json(json.loads(json.dumps(item.to_json()))) for item in items] == items


def test_the_key_is_of_what_is_said_not_of_who_says_it():
    one, other = find(full_record(), "cat"), find(record(1), "cat")
    assert one.maker != other.maker and one.key == other.key
    assert find(record(1, regions=(region("cat", (8, 8, 40, 41)),)), "cat").key != one.key


def test_accepting_everything_changes_nothing():
    before = full_record()
    assert corrected(before, [verdict(item) for item in items_of(before)]) == before


def test_rejecting_everything_leaves_the_image():
    before = full_record()
    after = corrected(before, [verdict(item, "reject") for item in items_of(before)])
    nothing = dict.fromkeys(("texts", "regions", "groundings", "questions"), ())
    assert after == dataclasses.replace(before, **nothing)


def test_a_region_goes_with_its_last_label():
    before = full_record()
    after = corrected(before, [verdict(find(before, "cat"), "reject")])
    assert [label.text for label in after.regions[0].labels] == ["the grey cat"]


def test_corrections_reach_words_and_boxes():
    before = full_record()
    after = corrected(
        before,
        [
            verdict(find(before, "a cat sits"), "correct", text="a dog sits"),
            verdict(find(before, "cat"), "correct", text="dog", box=(9.0, 9.0, 30.0, 30.0)),
            verdict(find(before, ""), "correct", text="mouse"),
            verdict(find(before, "one"), "correct", text="two"),
            verdict(items_of(before)[5], "correct", box=(1.0, 1.0, 2.0, 2.0)),
        ],
    )
    assert [text.text for text in after.texts] == ["a cat", "a dog sits"]
    assert after.texts[1].provenance == Provenance(kind="human", name="Ada")
    first, second = after.regions
    assert first.box == (9, 9, 30, 30) and first.labels[0].text == "dog"
    assert not first.polygons  # They were drawn for the other box.
    assert second.label("category") == "mouse"
    assert after.questions[0].answers == ("two",)
    assert after.groundings[0].spans[0].boxes == ((1, 1, 2, 2),)
    assert after.groundings[0].spans[1] == before.groundings[0].spans[1]


def test_the_last_verdict_counts():
    before = full_record()
    item = find(before, "a cat sits")
    after = corrected(before, [verdict(item, "reject"), verdict(item, "accept", who="Bob")])
    assert after == before


def test_what_only_a_prediction_says_is_added_once_accepted():
    before = full_record()
    dog = Item(id=before.id, kind="region", what="category", text="dog", boxes=((50, 50, 60, 60),))
    assert corrected(before, [verdict(dog, "reject")]) == before
    after = corrected(before, [verdict(dog)])
    assert after.regions[-1].label("category") == "dog"
    # A second box around an object that is there adds nothing.
    cat = dataclasses.replace(find(before, "cat"), boxes=((9, 9, 40, 40),))
    assert corrected(before, [verdict(cat)]) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"ruling": "maybe"},
        {"who": " "},
        {"ruling": "correct"},
        {"ruling": "accept", "text": "dog"},
        {"ruling": "reject", "box": (1.0, 1.0, 2.0, 2.0)},
    ],
)
def test_a_verdict_that_makes_no_sense_is_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        verdict(find(full_record(), "cat"), **wrong)
    with pytest.raises(ValueError, match="one box"):
        verdict(find(full_record(), "a mat"), "correct", box=(1.0, 1.0, 2.0, 2.0))
    with pytest.raises(ValueError, match="part of their text"):
        verdict(find(full_record(), "a mat"), "correct", text="a rug")


def _write_many(directory: str, who: str, number: int) -> None:
    item = items_of(record(0))[0]
    log = VerdictLog(directory)
    for k in range(number):
        log.add(verdict(item, "correct", who=who, text=f"{k} " + "x" * 5000))


def test_two_processes_lose_no_verdict(tmp_path):
    (tmp_path / "audit").mkdir()
    context = multiprocessing.get_context("spawn")
    args = [(str(tmp_path), who, 60) for who in ("Ada", "Bob")]
    writers = [context.Process(target=_write_many, args=one) for one in args]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    log = VerdictLog(tmp_path)
    verdicts = log.read()
    assert log.num_damaged == 0 and len(verdicts) == 120
    for who in ("Ada", "Bob"):
        own = [int((one.text or "").split()[0]) for one in verdicts if one.who == who]
        assert own == list(range(60))


def test_a_torn_line_costs_itself_alone(tmp_path):
    (tmp_path / "audit").mkdir()
    item = items_of(record(0))[0]
    log = VerdictLog(tmp_path)
    log.add(verdict(item))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[: len(whole) // 2])  # A writer was killed.
    log.add(verdict(item, "reject"))
    log.path.write_bytes(log.path.read_bytes() + b'{"id": 3}\n[]\n\xff\n')
    assert [one.ruling for one in log.read()] == ["accept", "reject"]
    assert log.num_damaged == 4


def test_the_truth_is_the_frozen_split_as_people_see_it(tmp_path):
    workdir = frozen_workdir(tmp_path)
    first = audit.truth(workdir)[0]
    log = VerdictLog(workdir)
    log.add(verdict(find(first, "cat"), "correct", text="dog"))
    log.add(verdict(find(first, "cat"), "correct", who="Bob", text="fox"))
    names = [one.regions[0].label("category") for one in audit.truth(workdir)]
    assert names == ["fox", "cat", "cat", "cat"]
    told = summary(workdir)
    assert told["people"] == {"Ada": 1, "Bob": 1} and told["num_items"] == 1
    assert [row["id"] for row in told["disputed"]] == [first.id]


def test_disagreement_rare_classes_and_low_scores_come_first():
    """By their mean places over 25 seeds; of 42 statements one is at 20 by chance."""
    regions = {k: [region("cat", score=0.95)] for k in range(40)}
    regions[5] = [region("cat", score=0.02)]
    regions[7].append(region("bee", (0, 0, 9, 9), 0.95))
    records = [record(k, texts=(), regions=tuple(some)) for k, some in regions.items()]
    newest = [*records[:3], record(3, texts=(), regions=(region("dog"),)), *records[4:]]
    watched = [("photo 3", "cat"), ("photo 7", "bee"), ("photo 5", "cat"), ("photo 9", "cat")]
    places = dict.fromkeys(watched, 0.0)
    for seed in range(25):
        asked = sample(records, {"1": newest}, SamplingConfig(seed=seed, rare_share=0.03))
        assert len(asked) == 42  # 41 statements, and the dog that only a prediction has.
        for place, one in enumerate(asked):
            if (one.item.id, one.item.text) in places:
                places[one.item.id, one.item.text] += place / 25
    assert sorted(places, key=places.__getitem__) == watched
    assert places[watched[0]] < 8 and places[watched[3]] > 20
    [dog] = [one for one in asked if one.item.text == "dog"]
    assert dog.is_added and dog.reasons == ("another maker says: cat", "rare class: new")


def test_the_order_of_a_statement_depends_on_no_other():
    records = [record(k) for k in range(30)]
    all_ = [one.item.id for one in sample(records, {}) if one.item.kind == "region"]
    few = [one.item.id for one in sample(records[::2], {}) if one.item.kind == "region"]
    assert few == [id_ for id_ in all_ if id_ in few]
    again = sample(records, {}, SamplingConfig(seed=1))
    assert [one.item.id for one in again if one.item.kind == "region"] != all_


def test_nobody_gets_what_somebody_has():
    now = [0.0]
    asked = sample([record(k, texts=()) for k in range(3)], {})
    queue = Queue(asked, (), lease_s=10, clock=lambda: now[0])
    ada, bob = queue.take("ada"), queue.take("bob")
    assert ada and bob and ada.item != bob.item
    assert queue.take("ada") == ada  # A page that was loaded again goes on where it was.
    place = ada.item.id, ada.item.key
    assert not queue.keep("bob", place)
    queue.judged("bob", (bob.item.id, bob.item.key))
    third = queue.take("bob")
    assert third and third.item not in (ada.item, bob.item)
    queue.skip("bob", (third.item.id, third.item.key))
    assert queue.take("bob") == third  # Nothing else is left.
    now[0] = 11.0  # Ada went away.
    assert queue.keep("bob", place) and not queue.keep("ada", place)
    assert queue.num_judged() == 1


def test_what_was_judged_before_is_not_asked_again(tmp_path):
    workdir = frozen_workdir(tmp_path)
    records = audit.truth(workdir)
    places = [(item.id, item.key) for one in records for item in items_of(one)]
    queue = Queue(sample(records, {}), places[1:])
    left = queue.take("ada")
    assert left and (left.item.id, left.item.key) == places[0]


def test_predictions_of_other_images_are_refused(tmp_path):
    workdir = frozen_workdir(tmp_path)
    audit.write_predictions(workdir, 1, said(workdir, region("cat")))
    audit.write_predictions(workdir, 1, said(workdir, region("cat")))  # The same again.
    with pytest.raises(UserError, match="another job"):
        audit.write_predictions(workdir, 1, said(workdir, region("dog")))
    with pytest.raises(UserError, match="no frozen record, first 'photo 99'"):
        audit.write_predictions(workdir, 2, [record(99)])
    assert list(audit.predictions(workdir)) == [1]
