# SPDX-License-Identifier: Apache-2.0
"""What several makers say alike supports it; what is said too often says little."""

import random

import pytest
from engine_records import record

from florence2_jax.engine.filter import FilterConfig, filter_record
from florence2_jax.engine.filters.agreement import AgreementConfig, agreements
from florence2_jax.engine.filters.duplicates import DuplicateConfig, near_groups, shard_of
from florence2_jax.records.schema import Grounding, Label, Provenance, Region, Span, Text

PRECISION = {"a@1": 0.6, "b@1": 0.8}


def made(name: str, score: float | None = 0.8) -> Provenance:
    return Provenance(kind="specialist", name=name, score=score)


def box(name: str, where, maker: str, kind="category") -> Region:
    provenance = Provenance(name="anna") if maker == "anna" else made(maker)
    return Region(box=where, labels=(Label(text=name, kind=kind),), provenance=provenance)


def support(*regions: Region, **settings) -> list[tuple[set[str], float]]:
    config = AgreementConfig(precision=PRECISION, **settings)
    found = agreements(record(regions=regions), config)
    return [(set(one.others), pytest.approx(one.support)) for one in found]


def test_support_is_the_chance_that_one_of_those_who_say_it_is_right():
    boxes = (
        box("cat", (0, 0, 20, 20), "a@1"),
        box("Cat", (0, 0, 20, 22), "b@1"),
        box("cat", (0, 0, 20, 21), "c@1"),
        box("dog", (0, 0, 20, 20), "d@1"),
        box("cat", (40, 0, 60, 20), "b@1"),
    )
    everyone = 1 - 0.4 * 0.2 * 0.5
    assert support(*boxes) == [
        ({"b@1", "c@1"}, everyone), ({"a@1", "c@1"}, everyone), ({"a@1", "b@1"}, everyone),
        (set(), 0.5), (set(), 0.8),
    ]  # fmt: skip


def test_a_person_is_certain_and_nobody_agrees_with_himself():
    boxes = (
        box("cat", (0, 0, 20, 20), "anna"),
        box("cat", (0, 0, 20, 20), "a@1"),
        box("cat", (0, 0, 20, 20), "a@1"),
    )
    assert support(*boxes) == [({"a@1"}, 1), ({"human anna"}, 1), ({"human anna"}, 1)]


def test_writing_agrees_by_its_words_and_texts_by_theirs():
    signs = (box("STOP", (0, 0, 20, 20), "a@1", "text"), box("stop", (0, 0, 20, 20), "b@1", "text"))
    texts = (
        Text(text="a red kite flies in the sky", provenance=made("a@1")),
        Text(text="A red kite in the blue sky.", provenance=made("b@1")),
        Text(text="a dog on a beach", provenance=made("c@1")),
        Text(text="a red kite flies in the sky", granularity="detailed", provenance=made("d@1")),
    )
    found = agreements(record(regions=signs, texts=texts), AgreementConfig(precision=PRECISION))
    assert [(one.kind, set(one.others)) for one in found] == [
        ("writing", {"b@1"}), ("writing", {"a@1"}),
        ("text", {"b@1"}), ("text", {"a@1"}), ("text", set()), ("text", set()),
    ]  # fmt: skip


def test_what_too_few_support_is_dropped_if_asked():
    boxes = (
        box("cat", (0, 0, 20, 20), "a@1"),
        box("cat", (30, 0, 50, 20), "a@1"),
        box("cat", (30, 0, 50, 21), "c@1"),
        box("cat", (0, 20, 20, 40), "anna"),
    )
    agreement = {"precision": PRECISION, "min_support": 0.7}
    values = {"texts": {"parser": ""}, "agreement": agreement, "regions": {"nms_iou": 1.0}}
    found = filter_record(record(regions=boxes), FilterConfig.create(values)).regions
    drops = [region.provenance.dropped for region in found]
    assert drops == ["support under 0.70: 0.60 by 1", "", "", ""]


# Duplicates.


def text(words: str, maker="a@1", score=0.8, **fields) -> Text:
    return Text(text=words, provenance=made(maker, score), **fields)


def filtered(*texts: Text, worn=None, **fields):
    config = FilterConfig.create({"texts": {"parser": ""}})
    return filter_record(record(texts=texts, **fields), config, worn=worn)


def test_of_near_duplicates_in_a_record_the_surest_stays():
    long = "two brown dogs play with a red ball on the green grass of a large park"
    texts = (
        text(long, score=0.5),
        text(f"{long}."),
        text(long.replace("large", "small"), score=0.6),
        text("two dogs with a ball"),
        text(long, granularity="detailed"),
    )
    span = Span(start=0, end=14, boxes=((0, 0, 20, 20),))
    groundings = (
        Grounding(text=long, spans=(span,), provenance=made("g@1")),
        Grounding(text=texts[2].text, spans=(span,), provenance=made("g@1")),
    )
    found = filtered(*texts, groundings=groundings)
    near = "near-duplicate text in the record"
    assert [t.provenance.dropped for t in found.texts] == [near, "", "", "", ""]
    # The detailed text still says what the dropped brief one said.
    assert [g.provenance.dropped for g in found.groundings] == ["", ""]
    found = filtered(*texts[:4], groundings=groundings)
    assert [g.provenance.dropped for g in found.groundings] == [near, ""]


def test_worn_texts_go_with_their_groundings():
    span = Span(start=2, end=5, boxes=((0, 0, 20, 20),))
    grounding = Grounding(text="a dog on grass", spans=(span,), provenance=made("g@1"))
    found = filtered(
        text("a dog on grass"), text("a red ball"), worn={0: 90}, groundings=(grounding,)
    )
    assert found.texts[0].provenance.dropped == "near the same text in a shard: 90 images"
    assert found.texts[1].provenance.dropped == ""
    assert found.groundings[0].provenance.dropped == found.texts[0].provenance.dropped


@pytest.mark.parametrize("least", [0.2, 0.5, 0.7, 1.0])
def test_groups_agree_with_comparing_every_pair(least):
    rng = random.Random(0)
    told = ["".join(rng.choices("abc", k=rng.randint(1, 12))) for _ in range(120)]
    texts = [text(" ".join(letters)) for letters in told]
    groups = near_groups(texts, DuplicateConfig(min_overlap=least))

    def shingles(letters: str) -> set:
        return {letters[k : k + 3] for k in range(max(len(letters) - 2, 1))}

    founders: list[set] = []
    expected = []
    for one in map(shingles, told):
        near = [g for g, f in enumerate(founders) if len(one & f) / len(one | f) >= least]
        if not near:
            founders.append(one)
        expected.append(near[0] if near else len(founders) - 1)
    assert groups == expected and 1 < len(founders) < len(texts)


def test_a_record_is_in_its_shard():
    assert [shard_of((2, 0, 3), i) for i in range(5)] == [0, 0, 2, 2, 2]
    with pytest.raises(IndexError):
        shard_of((2, 3), 5)
