# SPDX-License-Identifier: Apache-2.0
"""Predictions are merged with what is there by the stated rule, and humans are never touched."""

import dataclasses
import json

import numpy as np
import pytest

from florence2_jax.engine.auditing.matching import Counts, Outcome
from florence2_jax.engine.calibrated import calibrated, fit, fit_maker
from florence2_jax.engine.difference import difference
from florence2_jax.engine.evidence import Evidence, RefineConfig
from florence2_jax.engine.filter import FilterConfig, filter_record
from florence2_jax.engine.refine import merge, refine_store
from florence2_jax.records.ledger import Ledger
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
from florence2_jax.records.store import Plan, RecordStore, write_store
from florence2_jax.typing import UserError

CONFIG = RefineConfig()
BOX, NEAR, FAR = (10.0, 10.0, 50.0, 50.0), (12.0, 11.0, 51.0, 52.0), (60.0, 60.0, 90.0, 90.0)
SQUARE = (12.0, 12.0, 48.0, 12.0, 48.0, 48.0, 12.0, 48.0)


def specialist(score: float | None = 0.6, dropped: str = "") -> Provenance:
    return Provenance(kind="specialist", name="detector@1", score=score, dropped=dropped)


def model(score: float = 0.8, round: int = 0) -> Provenance:
    return Provenance(kind="checkpoint", name="run@1", score=score, round=round)


def region(name: str, box=BOX, maker: Provenance = Provenance(), **values) -> Region:
    return Region(box=box, labels=(Label(text=name),), provenance=maker, **values)


def record(*regions: Region, id: str = "a", **values) -> Record:
    return Record(id=id, image=b"image", width=100, height=100, regions=regions, **values)


def test_what_the_model_finds_again_gains_score_and_what_it_misses_loses():
    before = record(region("fish", BOX, specialist(0.6)), region("tree", FAR, specialist(0.6)))
    after = merge(before, record(region("Fish", NEAR, model())), CONFIG, 1)
    found, missed = after.regions
    assert found.provenance.score > 0.6 > missed.provenance.score
    assert found.box == BOX and found.provenance.name == "detector@1"
    assert (found.provenance.round, found.provenance.dropped, missed.provenance.dropped) == (
        0,
        "",
        "",
    )


def test_the_odds_change_by_what_the_audit_measured_of_the_model():
    evidence = Evidence(config=CONFIG, round=1, recalls={"fish": 0.9, "star": 0.1})
    assert evidence.found(0.5, "fish") == pytest.approx(0.9 / (0.9 + 0.3))
    assert evidence.missed(0.5, "Fish") == pytest.approx(0.1 / (0.1 + 0.7))
    # Found no oftener than errors are repeated: what the model says of it means nothing.
    assert (evidence.found(0.5, "star"), evidence.missed(0.5, "star")) == (0.5, 0.5)
    ignorant = Evidence(config=CONFIG, round=1, recalls={"": 0.0})
    assert (ignorant.found(0.5, "tree"), ignorant.missed(0.5, "tree")) == (0.5, 0.5)
    assert evidence.found(0.5, "tree") == pytest.approx(0.5 / (0.5 + 0.3))  # As configured.
    assert evidence.found(0.98, "fish") == CONFIG.max_score and evidence.found(1.0, "fish") == 1.0


def test_a_hallucination_that_no_round_finds_falls_below_a_threshold():
    now = record(region("fish", BOX, specialist(0.6)))
    for number in (1, 2):
        now = merge(now, record(), CONFIG, number, recalls={"fish": 0.7})
    assert now.regions[0].provenance.score < 0.3


def test_only_sure_additions_enter_with_their_round():
    predicted = record(region("fish", BOX, model(0.7)), region("tree", FAR, model(0.4)))
    after = merge(record(), predicted, CONFIG, 2)
    assert [(r.label("category"), r.provenance.round) for r in after.regions] == [("fish", 2)]


def test_of_a_contradiction_the_higher_score_stays_and_both_are_kept():
    before = record(region("fish", BOX, specialist(0.6)))
    stronger = merge(before, record(region("star", NEAR, model(0.9))), CONFIG, 1)
    marks = {r.label("category"): r.provenance.dropped for r in stronger.regions}
    assert marks == {"fish": "contradicted in round 1", "star": ""}
    sure = record(region("fish", BOX, specialist(0.97)))
    weaker = merge(sure, record(region("star", NEAR, model(0.6))), CONFIG, 1)
    marks = {r.label("category"): r.provenance.dropped for r in weaker.regions}
    assert marks == {"fish": "", "star": "contradicted in round 1"}


def test_a_contradiction_turns_when_the_next_model_takes_the_other_side():
    before = record(region("fish", BOX, specialist(0.6)))
    one = merge(before, record(region("star", NEAR, model(0.75))), CONFIG, 1)
    two = merge(one, record(region("fish", BOX, model(0.9))), CONFIG, 2, recalls={"star": 0.9})
    marks = {r.label("category"): r.provenance.dropped for r in two.regions}
    assert marks == {"fish": "", "star": "contradicted in round 2"}


def test_what_the_model_names_both_ways_is_no_contradiction():
    before = record(region("person", BOX, specialist()), region("horse", NEAR, specialist()))
    predicted = record(region("person", BOX, model()), region("horse", NEAR, model()))
    assert not any(r.provenance.dropped for r in merge(before, predicted, CONFIG, 1).regions)


def test_human_labels_stay_untouched_whatever_the_model_says():
    human = record(
        region("fish", BOX),
        texts=(Text(text="A fish."),),
        questions=(Question(question="How many?", answers=("one",)),),
        groundings=(Grounding(text="A fish.", spans=(Span(start=2, end=6, boxes=(BOX,)),)),),
    )
    wrong = record(
        region("star", NEAR, model(0.99)),
        questions=(Question(question="how many?", answers=("two",), provenance=model(0.99)),),
        groundings=(
            Grounding(
                text="A fish.",
                spans=(Span(start=2, end=6, boxes=(FAR,), box_scores=(0.9,)),),
                provenance=model(),
            ),
        ),
    )
    for predicted in (wrong, record(), human):
        after = merge(human, predicted, CONFIG, 1)
        assert after.regions[0] == human.regions[0] and after.texts[:1] == human.texts
        assert after.questions[0] == human.questions[0]
        assert after.groundings == human.groundings
        assert all(r.provenance.dropped for r in after.regions[1:])
        assert all(q.provenance.dropped for q in after.questions[1:])


def test_kinds_that_the_model_was_not_asked_for_lose_nothing():
    word = Region(box=FAR, labels=(Label(text="GO", kind="text"),), provenance=specialist())
    before = record(region("fish", BOX, specialist()), word)
    after = merge(before, record(), CONFIG, 1, asked=("boxes",))
    assert after.regions[0].provenance.score < 0.6 and after.regions[1] == word


def test_what_a_filter_dropped_may_come_back_by_its_score():
    before = record(region("fish", BOX, specialist(0.28, "score under 0.30")))
    after = merge(before, record(region("fish", BOX, model())), CONFIG, 1)
    assert after.regions[0].provenance.score > 0.3  # The filter, which runs next, decides.


def test_a_found_region_takes_over_labels_and_an_outline():
    predicted = dataclasses.replace(
        region("fish", NEAR, model(), polygons=(SQUARE,)),
        labels=(Label(text="fish"), Label(text="a red fish", kind="brief")),
    )
    before = record(region("fish"))  # A human's box.
    after = merge(before, record(predicted), CONFIG, 1).regions[0]
    assert after.polygons == (SQUARE,) and after.mask_provenance.round == 1
    assert after.labels[0] == before.regions[0].labels[0]
    assert (after.labels[1].text, after.labels[1].provenance.kind) == ("a red fish", "checkpoint")
    again = dataclasses.replace(
        predicted, labels=(Label(text="fish"), Label(text="a blue fish", kind="brief"))
    )
    later = merge(record(after), record(again), CONFIG, 2).regions[0]
    assert [label.provenance.dropped for label in later.labels[1:]] == ["replaced in round 2", ""]


def test_a_model_s_own_text_is_replaced_and_those_of_others_stay():
    before = record(texts=(Text(text="A fish swims.", provenance=specialist()),))
    one = merge(before, record(texts=(Text(text="A fish.", provenance=model()),)), CONFIG, 1)
    two = merge(one, record(texts=(Text(text="Red fish.", provenance=model()),)), CONFIG, 2)
    assert [t.provenance.dropped for t in two.texts] == ["", "replaced in round 2", ""]
    back = merge(two, record(texts=(Text(text="a  fish.", provenance=model()),)), CONFIG, 3)
    assert back.texts[1].provenance.dropped == "" and len(back.texts) == 3


def test_phrases_that_no_grounding_places_are_added():
    def grounding(maker, *spans):
        return Grounding(text="A fish and a tree.", spans=spans, provenance=maker)

    fish = Span(start=2, end=6, boxes=(BOX,), box_scores=(0.6,))
    tree = Span(start=13, end=17, boxes=(FAR,), box_scores=(0.7,))
    before = record(groundings=(grounding(specialist(), fish),))
    predicted = record(
        groundings=(grounding(model(), dataclasses.replace(fish, boxes=(NEAR,)), tree),)
    )
    old, new = merge(before, predicted, CONFIG, 1).groundings
    assert old.spans[0].box_scores[0] > 0.6 and old.spans[0].boxes == (BOX,)
    assert new.spans == (tree,) and new.provenance.round == 1


def test_merging_twice_by_the_same_predictions_adds_nothing():
    rng = np.random.default_rng(0)

    def some(maker):
        boxes = np.sort(rng.uniform(0, 100, (5, 2, 2)), axis=1).reshape(5, 4).tolist()
        names = rng.choice(["fish", "star"], 5)
        return [region(str(n), tuple(b), maker) for n, b in zip(names, boxes, strict=True)]

    for _ in range(20):
        before, predicted = record(*some(specialist())), record(*some(model()))
        once = merge(before, predicted, CONFIG, 1)
        twice = merge(once, predicted, CONFIG, 1)
        assert len(twice.regions) == len(once.regions) <= 10


def _write(folder, records, images=None):
    units = {"train": [("train", i) for i in range(len(records))]}
    made = {("train", i): record for i, record in enumerate(records)}
    job = {"records": [repr(record) for record in records]}
    write_store(folder, Plan(units=units, make=lambda unit, _: made[unit], job=job, images=images))
    return folder


def test_a_round_s_store_shares_images_and_its_differences_are_told(tmp_path):
    before = [
        record(region("fish", BOX, specialist(0.6)), id="a"),
        record(region("fish", BOX, specialist(0.6)), id="b"),
        record(region("tree", FAR, specialist(0.6)), id="c"),
    ]
    predicted = [
        record(region("fish", NEAR, model()), region("tree", FAR, model()), id="a"),
        record(region("star", NEAR, model(0.9)), id="b"),
        record(id="c"),
    ]
    old, new = tmp_path / "old", tmp_path / "new"
    _write(old, before)
    by_model = _write(tmp_path / "predicted", predicted, images=old)
    report = refine_store(old, by_model, new, CONFIG, round=1, failed=("c",))
    store = RecordStore(new, "train")
    assert [r.id for r in store] == ["a", "b", "c"] and store[1].image == b"image"
    assert json.loads((new / "store.json").read_text())["images"] == "../old"
    assert report["merged"]["image"] == {"left as it was: the model failed": 1}
    assert report["merged"]["region"]["added"] == 2
    assert refine_store(old, by_model, new, CONFIG, round=1, failed=("c",)) == report
    told = difference(old, new)
    assert told["kinds"]["regions"]["counts"] == {
        **{"added": 1, "gone": 0, "relabelled": 1},
        **{"score up": 1, "score down": 0, "same": 1},
    }
    assert told["kinds"]["regions"]["classes"]["fish -> star"] == {"relabelled": 1}
    assert told["kinds"]["regions"]["samples"]["added"] == ["a"] and told["changed"] == 2


def test_stores_of_other_records_are_refused(tmp_path):
    old = _write(tmp_path / "old", [record(id="a"), record(id="b")])
    turned = _write(tmp_path / "turned", [record(id="b"), record(id="a")])
    short = _write(tmp_path / "short", [record(id="a")])
    with pytest.raises(UserError, match="record 0 of split 'train' is 'b', but 'a'"):
        refine_store(old, turned, tmp_path / "new", CONFIG, round=1)
    with pytest.raises(UserError, match="1 records in split 'train', but 2"):
        refine_store(old, short, tmp_path / "new", CONFIG, round=1)
    with pytest.raises(UserError, match=r"refine\.echo: 1\.0 must lie between 0 and 1"):
        RefineConfig(echo=1.0)
    with pytest.raises(UserError, match=r"refine\.new_iou: 0\.6 must not exceed refine\.iou 0\.5"):
        RefineConfig(new_iou=0.6)


def test_filters_leave_what_merging_set_aside():
    before = record(
        region("fish", BOX, specialist(0.6)), texts=(Text(text="A fish.", provenance=model()),)
    )
    by_model = record(
        region("star", NEAR, model(0.9)), texts=(Text(text="A red star.", provenance=model()),)
    )
    merged = merge(before, by_model, CONFIG, 1)
    filtered = filter_record(merged, FilterConfig.create({"regions": {"min_score": 0.95}}))
    marks = {r.label("category"): r.provenance.dropped for r in filtered.regions}
    assert marks["fish"] == "contradicted in round 1" and marks["star"].startswith("score under")
    assert filtered.texts[0].provenance.dropped == "replaced in round 1"
    again = filter_record(filtered, FilterConfig.create({"regions": {"min_score": 0.1}}))
    marks = {r.label("category"): r.provenance.dropped for r in again.regions}
    assert marks == {"fish": "contradicted in round 1", "star": ""}


def test_scores_of_a_model_become_the_share_that_is_right():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 0.1, 2000)  # As small models with smoothed locations have them.
    knots = fit([(s, bool(rng.random() < 10 * s)) for s in scores.tolist()])
    known = {"run@1": {"all": {"boxes": knots}}}
    predicted = record(region("fish", BOX, model(0.08)), region("tree", FAR, model(0.01)))
    high, low = (r.provenance.score for r in calibrated(predicted, known).regions)
    assert abs(high - 0.8) < 0.1 and abs(low - 0.1) < 0.1
    untouched = record(region("fish", BOX))
    assert calibrated(untouched, known) == untouched and fit([]) == []
    assert calibrated(predicted, {}) == predicted
    others = record(region("fish", BOX, specialist(0.08)))
    assert calibrated(others, known) == others


def test_a_poorer_box_of_what_is_there_is_nothing_new():
    poorer = region("fish", (10.0, 10.0, 50.0, 26.0), model(0.9))  # An IoU of 0.4.
    before, books = record(region("fish", BOX, specialist(0.6))), Ledger()
    merged = merge(before, record(poorer), CONFIG, 1, ledger=books)
    assert [one.box for one in merged.regions] == [BOX]
    assert books.counts()["region"]["noted"]["predicted beside one of its name"] == 1
    other = merge(before, record(region("tree", poorer.box, model(0.9))), CONFIG, 1)
    assert len(other.regions) == 2  # Another name is another claim.


def test_what_nobody_else_saw_has_a_mapping_and_odds_of_its_own():
    def outcome(right: dict[str, tuple[int, int]]) -> Outcome:
        classes = {n: Counts(num_found=f, num_matched=m) for n, (f, m) in right.items()}
        scored = [(0.9, i < m) for f, m in right.values() for i in range(f)]
        return Outcome(classes=classes, scored=scored)

    judged, new = outcome({"fish": (100, 90)}), outcome({"fish": (20, 4), "tree": (20, 16)})
    known = {"run@1": fit_maker({"boxes": judged}, {"boxes": new})}
    said = record(*(region(name, FAR, model(0.9)) for name in ("fish", "tree")))
    there = (region("fish", FAR),)
    scores = [
        [one.provenance.score for one in calibrated(said, known, **beside).regions]
        for beside in ({}, {"beside": there, "new_iou": 0.3}, {"beside": (), "new_iou": 0.3})
    ]
    assert scores[0] == pytest.approx([0.9, 0.9]) and scores[1][0] == pytest.approx(0.9)
    without = {"run@1": {**known["run@1"], "new": {}}}  # Nothing new was drawn there.
    alone = calibrated(said, without, beside=(), new_iou=0.3).regions
    assert [one.provenance.score for one in alone] == pytest.approx([0.9, 0.9])
    fish, tree = scores[2]
    assert tree == scores[1][1]
    assert fish == pytest.approx((4 + 2 * 0.5) / 22) and tree == pytest.approx((16 + 1) / 22)


def test_a_model_s_box_is_judged_by_the_score_of_its_name():
    """Its locations share their probability with their neighbours: that score is always low."""
    sure, unsure = (
        Region(
            box=box,
            labels=(Label(text="fish", provenance=model(score)),),
            provenance=model(0.01),
        )
        for box, score in ((BOX, 0.9), (FAR, 0.1))
    )
    config = FilterConfig.create({"regions": {"min_score": 0.3}})
    kept, dropped = filter_record(record(sure, unsure), config).regions
    assert (kept.provenance.dropped, dropped.provenance.dropped) == ("", "score under 0.30")
    twice = record(dataclasses.replace(unsure, box=NEAR), sure)
    low = FilterConfig.create({"regions": {"min_score": 0.0, "nms_iou": 0.5}})
    marks = [region.provenance.dropped for region in filter_record(twice, low).regions]
    assert marks[0].startswith("NMS, same class") and not marks[1]
