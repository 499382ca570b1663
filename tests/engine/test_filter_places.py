# SPDX-License-Identifier: Apache-2.0
"""Boxes, writing, masks and phrases are dropped each for a reason, and people's never."""

import dataclasses

import numpy as np
import pytest
from engine_records import record
from hypothesis import given, settings
from hypothesis import strategies as st

from florence2_jax.engine.filter import FilterConfig, filter_record
from florence2_jax.engine.filters.marking import MERGED, cleared, counted, reason_key
from florence2_jax.engine.filters.phrases import PhraseConfig, phrase_drops
from florence2_jax.records.schema import HUMAN, Grounding, Label, Provenance, Region, Span

QUAD = (0.0, 0.0, 30.0, 0.0, 30.0, 10.0, 0.0, 10.0)


def made(name="detector@1", score: float | None = 0.8, kind="specialist") -> Provenance:
    return Provenance(kind=kind, name=name, score=score)


def box(name: str, where, maker: Provenance | None = None, **fields) -> Region:
    labels = (Label(text=name),) if name else ()
    return Region(box=where, labels=labels, provenance=maker or made(), **fields)


def writing(text: str, where=(0, 0, 30, 10), score=0.9, **fields) -> Region:
    return Region(
        box=where, labels=(Label(text=text, kind="text"),), provenance=made(score=score), **fields
    )


def filtered(*regions: Region, **values):
    config = FilterConfig.create({"texts": {"parser": ""}, **values})
    return filter_record(record(regions=regions), config).regions


def drops(*regions: Region, **values) -> list[str]:
    return [region.provenance.dropped for region in filtered(*regions, **values)]


def test_scores_have_thresholds_of_their_class():
    boxes = [
        box("cat", (0, 0, 20, 20), made(score=0.5)),
        box("Dog", (20, 20, 40, 40), made(score=0.5)),
        box("dog", (40, 20, 60, 40), made(score=None)),
        box("cat", (40, 0, 60, 20), made(score=0.2)),
    ]
    found = drops(*boxes, regions={"min_scores": {"DOG": 0.6}})
    assert found == ["", "score under 0.60", "", "score under 0.30"]


def test_a_score_at_its_threshold_passes_after_a_store_has_rounded_it():
    assert drops(box("cat", (0, 0, 20, 20), made(score=float(np.float32(0.3))))) == [""]
    below = float(np.nextafter(np.float32(0.3), np.float32(0)))
    assert drops(box("cat", (0, 0, 20, 20), made(score=below))) == [""]


def test_the_worse_of_two_boxes_of_one_thing_goes():
    boxes = [
        box("cat", (0, 0, 20, 20), made(score=0.6)),
        box("cat", (0, 0, 20, 21), made(score=0.9)),
        box("dog", (0, 0, 20, 21), made(score=0.8)),
        box("", (0, 0, 20, 21), made(score=0.99)),
        box("fox", (0, 0, 20, 17), made(score=0.7)),
    ]
    keys = [reason_key(reason) for reason in drops(*boxes)]
    assert keys == ["NMS, same class", "", "NMS, other class", "NMS, other class", ""]
    assert drops(*boxes, regions={"nms_iou": 1.0, "agnostic_nms_iou": 1.0}) == [""] * 5


def test_crowds_are_not_compared():
    boxes = [
        box("cat", (0, 0, 20, 20), is_crowd=True),
        box("cat", (0, 0, 20, 20), made(score=0.6)),
    ]
    assert drops(*boxes) == ["", ""]


def test_boxes_have_sizes_and_aspects():
    boxes = [
        box("ant", (0, 0, 1, 1)), box("sky", (0, 0, 60, 40)), box("line", (1, 1, 58, 3)),
        box("cat", (30, 10, 50, 30)),
    ]  # fmt: skip
    assert drops(*boxes, regions={"min_area_share": 0.001}) == [
        "area under 0.1 % of the image", "area over 99 % of the image", "sides over 20 to 1", "",
    ]  # fmt: skip


def test_what_people_made_is_never_dropped_and_wins():
    person = Provenance(name="anna", score=0.01)
    labelled = dataclasses.replace(
        box("cat", (30, 0, 50, 20), made(score=0.01)), labels=(Label(text="cat", provenance=HUMAN),)
    )
    boxes = [
        box("dog", (0, 0, 20, 20), made(score=0.99)),
        box("dog", (0, 0, 20, 20), person),
        box("dog", (0, 0, 20, 20), person),
        labelled,
    ]
    assert [reason_key(r) for r in drops(*boxes)] == ["NMS, same class", "", "", ""]


def test_labels_and_masks_go_without_their_box():
    ring = (0.0, 0.0, 20.0, 0.0, 20.0, 20.0)
    similar = made("similarity@1", score=0.1)
    labels = (Label(text="cat"), Label(text="a red cat", kind="brief", provenance=similar))
    region = Region(
        box=(0, 0, 20, 20), labels=labels, polygons=(ring,), provenance=made(),
        mask_provenance=made("sam@1", 0.2),
    )  # fmt: skip
    (found,) = filtered(region, regions={"min_label_score": 0.2})
    assert [label.provenance and label.provenance.dropped for label in found.labels] == [
        None, "label score under 0.20",
    ]  # fmt: skip
    assert found.mask_provenance.dropped == "mask score under 0.50"
    (thin,) = filtered(box("cat", (0, 0, 20, 20), polygons=((0.0, 0, 5, 0, 5, 5),)))
    assert thin.mask_provenance.dropped == "mask under 5% of its box"
    assert not thin.provenance.dropped
    assert cleared(record(regions=(found, thin))).regions == (
        region, box("cat", (0, 0, 20, 20), polygons=((0.0, 0, 5, 0, 5, 5),)),
    )  # fmt: skip


def test_boxes_of_several_makers_become_their_weighted_average():
    boxes = [
        box("cat", (0, 0, 20, 20), made("a@1", 0.9)),
        box("cat", (4, 0, 24, 20), made("b@1", 0.3)),
        box("cat", (0, 4, 20, 24), made("a@1", 0.4)),  # The same maker: another thing to it.
        box("cat", (30, 20, 50, 40), made("b@1", 0.5)),
    ]
    *parts, merged = filtered(*boxes, regions={"merge_iou": 0.5, "nms_iou": 0.95})
    assert merged.box == pytest.approx((1, 0, 21, 20))
    assert (merged.provenance.name, merged.provenance.score) == (MERGED, pytest.approx(0.6))
    assert merged.labels == (Label(text="cat"),)  # Said by all, with the box's score.
    merging = "merged into one box: of a@1, b@1"
    assert [part.provenance.dropped for part in parts] == [merging, merging, "", ""]


def test_writing_is_looked_at_by_its_own_measures():
    regions = [
        writing("HELLO"),
        writing("HELLO", (0, 0, 30, 11), score=0.5),
        writing("WORLD", (30, 20, 60, 30), score=0.3),
        writing("~|_/", (0, 20, 30, 30)),
        writing("A\ufffdB", (0, 30, 30, 40)),
        writing("tiny", (30, 0, 50, 3)),
        writing("x" * 40, (40, 30, 50, 40)),
        writing("", (50, 0, 60, 10)),
        writing("up", (52, 10, 60, 18), quad=(52.0, 10, 60, 10, 60, 18, 52, 18)),
    ]
    assert drops(*regions) == [
        "", "same words in one place: IoU 0.91", "OCR score under 0.40",
        "letters and digits under 50%", "characters to be seen under 100%",
        "writing under 4 px high", "more characters than fit", "", "",
    ]  # fmt: skip


def test_a_sign_and_what_is_written_on_it_both_stay():
    assert drops(box("sign", (*QUAD[:2], 30, 10)), writing("STOP", quad=QUAD)) == ["", ""]


# Phrases.

TEXT = "it shows a red kite and the background of a dog"
KITE, DOG = (9, 19), (42, 47)


def span(where, *boxes, score=None, scores=()) -> Span:
    return Span(
        start=where[0], end=where[1], boxes=boxes, phrase_score=score, box_scores=tuple(scores)
    )


def grounded(*spans: Span, provenance=None, **values):
    grounding = Grounding(text=TEXT, spans=spans, provenance=provenance or made())
    config = FilterConfig.create({"texts": {"parser": ""}, **values})
    return filter_record(record(groundings=(grounding,)), config).groundings[0]


def test_phrases_need_both_scores_and_a_thing():
    found = grounded(
        span((0, 2), (0, 0, 9, 9)),
        span(KITE, (0, 0, 20, 20), score=0.2),
        span((24, 38), (0, 0, 9, 9)),
        span(DOG, (30, 0, 50, 20), score=0.9, scores=[0.8]),
    )
    assert [s.dropped for s in found.spans] == [
        "phrase names no thing: it", "phrase score under 0.25",
        "phrase names no thing: background", "",
    ]  # fmt: skip


def test_boxes_of_a_phrase_part_ways_and_join_again():
    boxes = ((0, 0, 20, 20), (30, 0, 50, 20), (0, 0, 20, 20.5), (0, 30, 0.4, 30.4))
    whole = span(KITE, *boxes, score=0.9, scores=[0.9, 0.1, 0.8, 0.7])
    other = span(DOG, (30, 0, 50, 20))
    found = grounded(whole, other)
    assert [(s.boxes, s.box_scores, s.dropped) for s in found.spans] == [
        ((boxes[0],), (0.9,), ""),
        ((boxes[1],), (0.1,), "box score under 0.30"),
        ((boxes[2],), (0.8,), "same box twice"),
        ((boxes[3],), (0.7,), "area under 0.01 % of the image"),
        ((boxes[1],), (), ""),
    ]
    lenient = {"phrases": {"min_box_score": 0.0, "duplicate_iou": 1.0, "min_area_share": 0.0}}
    again = filter_record(
        record(groundings=(found,)), FilterConfig.create({"texts": {"parser": ""}, **lenient})
    )
    assert again.groundings[0].spans == (whole, other)


def test_the_surest_boxes_of_a_phrase_stay():
    many = span(KITE, *((i, 0, i + 1, 1) for i in range(4)), scores=[0.5, 0.9, 0.6, 0.8])
    found = grounded(many, phrases={"max_boxes": 2})
    assert [(s.box_scores, s.dropped) for s in found.spans] == [
        ((0.9, 0.8), ""), ((0.5, 0.6), "phrase of over 2 boxes"),
    ]  # fmt: skip


def test_a_grounding_without_phrases_counts_as_dropped():
    found = grounded(span((0, 2), (0, 0, 9, 9), (9, 9, 20, 20)))
    assert not found.provenance.dropped and not record(groundings=(found,)).kept().groundings
    assert list(counted(record(groundings=(found,)))) == [
        ("grounding", "detector@1", "no phrase is left", 1),
        ("phrase box", "detector@1", "phrase names no thing", 2),
    ]


def test_people_ground_what_they_like():
    assert grounded(span((0, 2), (0, 0, 9, 9)), provenance=HUMAN).spans[0].dropped == ""


@pytest.mark.parametrize(
    ("phrase", "names_a_thing"),
    [("the image", False), ("This picture", False), ("They", False), ("a group", False),
     ("some lots", False), ("close-up", False), ("a red kite", True), ("couple", True),
     ("the light bulb", True), ("one", False), ("my dog", True), ("the kites", False)],
)  # fmt: skip
def test_what_names_a_thing(phrase, names_a_thing):
    whole = Span(start=0, end=len(phrase), boxes=((0, 0, 9, 9),))
    made_of = record(groundings=(Grounding(text=phrase, spans=(whole,), provenance=made()),))
    found = list(phrase_drops(made_of, PhraseConfig(blacklist=("the Kites",))))
    assert (not found) == names_a_thing


# Marks.

side = st.integers(0, 5).map(lambda k: 6.0 * k)
MAKERS = (made("a@1", 0.2), made("b@1", 0.7), made("c@1", None), Provenance(name="anna"))
drawn = st.tuples(
    side, side, st.sampled_from([0.5, 9.0, 12.0]), st.sampled_from(MAKERS),
    st.sampled_from(["cat", "dog", "", "A1", "~~"]),
)  # fmt: skip


def region_of(x: float, y: float, width: float, maker: Provenance, said: str) -> Region:
    where = (x, y, min(x + width, 60.0), min(y + 10.0, 40.0))
    if said in ("A1", "~~"):
        return dataclasses.replace(writing(said, where), provenance=maker)
    return box(said, where, maker)


@settings(max_examples=25, deadline=None)
@given(st.lists(drawn, max_size=6))
def test_filtering_loses_nothing_and_may_be_done_again(rows):
    regions = [region_of(*row) for row in rows]
    strict = FilterConfig.create(
        {"texts": {"parser": ""}, "regions": {"merge_iou": 0.4, "min_score": 0.6}}
    )
    loose = FilterConfig.create({"texts": {"parser": ""}})
    source = record(regions=tuple(regions))
    once = filter_record(source, strict)
    assert cleared(once) == source
    assert filter_record(once, strict) == once
    assert filter_record(once, loose) == filter_record(source, loose)
    for region in once.regions:
        assert not (region.provenance.kind == "human" and region.provenance.dropped)
