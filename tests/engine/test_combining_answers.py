# SPDX-License-Identifier: Apache-2.0
"""People's labels win, nothing is doubled, and what is not added is in the books."""

import dataclasses

import pytest
from import_helpers import message

from florence2_jax.engine.combining import (
    HUMAN_BOX,
    HUMAN_LABEL,
    HUMAN_MASK,
    ONE_MASK,
    SAID,
    CombineConfig,
    combine,
)
from florence2_jax.engine.specialists.base import Annotations
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import (
    Grounding,
    Label,
    LabelKind,
    Provenance,
    Record,
    RecordError,
    Region,
    Span,
    Text,
)
from florence2_jax.typing import Box

ANNA = Provenance(kind="human", name="anna")
DETR = Provenance(kind="specialist", name="detr@1", score=0.5)
SAM = Provenance(kind="specialist", name="sam@1")
TRIANGLE = (1.0, 1.0, 5.0, 1.0, 5.0, 5.0)


def region(box: Box, *labels: str, by: Provenance = DETR, kind: LabelKind = "category") -> Region:
    named = tuple(Label(text=label, kind=kind) for label in labels)
    return Region(box=box, labels=named, provenance=by)


def record(*regions: Region, **fields) -> Record:
    return Record(id="a", image=b"-", width=100, height=100, regions=regions, **fields)


def combined(before: Record, **answers: Annotations) -> tuple[Record, dict[str, dict[str, int]]]:
    """The record, and why things were not added."""
    ledger = Ledger()
    after = combine(before, answers, 2, ledger=ledger)
    assert not ledger.unaccounted()
    return after, {kind: dict(t.set_aside) for kind, t in ledger.tallies.items() if t.set_aside}


HUMAN_CAT = region((10, 10, 50, 50), "Cat", by=ANNA)


@pytest.mark.parametrize(
    ("found", "is_added"),
    [
        (region((10, 10, 50, 49), "cat"), False),
        (region((10, 10, 50, 49), "dog"), True),  # Another class: not what the person drew.
        (region((10, 10, 50, 49)), False),  # Without a class, a box and no more.
        (region((10, 10, 30, 50), "cat"), False),  # IoU 1/2, the threshold.
        (region((10, 10, 29, 50), "cat"), True),
        (region((10, 10, 50, 49), "cat", kind="text"), True),
    ],
)
def test_a_box_that_a_person_has_drawn_is_not_added(found, is_added):
    after, why = combined(record(HUMAN_CAT), detr=Annotations(regions=(found,)))
    assert after.regions[0] == HUMAN_CAT
    assert len(after.regions) == 1 + is_added
    assert why == ({} if is_added else {"region": {HUMAN_BOX: 1}})


def test_people_go_first_whatever_their_place():
    answers = {
        "detr": Annotations(regions=(region((10, 10, 50, 49), "cat"),)),
        "reader": Annotations(regions=(HUMAN_CAT,)),
    }
    after, why = combined(record(), **answers)
    assert [one.provenance.name for one in after.regions] == ["anna"]
    assert why == {"region": {HUMAN_BOX: 1}}


def test_boxes_of_two_specialists_stay_both_and_one_maker_is_not_doubled():
    one = region((1, 1, 5, 5), "cup")
    other = dataclasses.replace(one, provenance=SAM)
    later = dataclasses.replace(one, provenance=dataclasses.replace(DETR, score=0.8, round=1))
    nearly = dataclasses.replace(one, box=(1.0, 1.0, 5.0 + 1e-9, 5.0))  # Equal as float32.
    answers = {"a": Annotations(regions=(later, nearly)), "b": Annotations(regions=(other,))}
    after, why = combined(record(one), **answers)
    assert [r.provenance.name for r in after.regions] == ["detr@1", "sam@1"]
    assert after.regions[0] is not None and after.regions[0].provenance.score == 0.5
    assert why == {"region": {SAID: 2}}


def test_texts_and_groundings_are_said_once_by_a_maker():
    text = Text(text="A cat.", provenance=DETR)
    span = Span(start=0, end=5, boxes=((1.0, 1.0, 2.0, 2.0),))
    grounding = Grounding(text="A cat.", spans=(span,), provenance=DETR)
    scored = Grounding(
        text="A cat.", spans=(dataclasses.replace(span, phrase_score=0.3),), provenance=DETR
    )
    human = Text(text="A cat.", provenance=ANNA)
    answer = Annotations(texts=(text, text), groundings=(grounding, scored))
    after, why = combined(record(texts=(human,)), detr=answer)
    assert [t.provenance.kind for t in after.texts] == ["human", "specialist"]
    assert len(after.groundings) == 1
    assert why == {"caption": {SAID: 1}, "grounding": {SAID: 1}}
    again, why = combined(after, detr=answer)
    assert again == after and why == {"caption": {SAID: 2}, "grounding": {SAID: 2}}


def test_labels_and_masks_go_to_the_region_of_their_index_and_people_keep_theirs():
    outlined = dataclasses.replace(HUMAN_CAT, polygons=(TRIANGLE,))
    before = record(outlined, region((1, 1, 9, 9), "cup"), region((1, 1, 8, 8), "pot"))
    answer = Annotations(
        labels=(
            (0, Label(text="dog", provenance=SAM)),
            (0, Label(text="a grey cat", kind="brief", provenance=SAM)),
            (1, Label(text="mug", provenance=SAM)),
        ),
        masks=((0, (TRIANGLE,), SAM), (1, (TRIANGLE,), SAM)),
    )
    other = Annotations(masks=((1, (TRIANGLE,), DETR),))
    after, why = combined(before, sam=answer, detr=other)
    cat, cup, pot = after.regions
    assert [label.text for label in cat.labels] == ["Cat", "a grey cat"]
    assert [label.text for label in cup.labels] == ["cup", "mug"]
    assert cat.mask_provenance is None and cat.polygons == (TRIANGLE,)
    assert cup.mask_provenance == dataclasses.replace(SAM, round=2) and pot == before.regions[2]
    assert cup.labels[1].provenance == dataclasses.replace(SAM, round=2)
    assert why == {"label": {HUMAN_LABEL: 1}, "mask": {HUMAN_MASK: 1, ONE_MASK: 1}}


def test_an_answer_about_another_image_raises():
    with pytest.raises(IndexError, match="no region 0 of 0"):
        combined(record(), sam=Annotations(masks=((0, (TRIANGLE,), SAM),)))
    with pytest.raises(RecordError, match="leaves its 100 x 100 image"):
        combined(record(), detr=Annotations(regions=(region((1, 1, 500, 5)),)))
    with pytest.raises(RecordError, match="does not say who made it"):
        combined(record(HUMAN_CAT), detr=Annotations(labels=((0, Label(text="cat")),)))


def test_the_threshold_is_a_setting():
    config = CombineConfig(human_iou=0.99)
    found = Annotations(regions=(region((10, 10, 50, 49), "cat"),))
    assert len(combine(record(HUMAN_CAT), {"detr": found}, 0, config=config).regions) == 2
    assert "not in (0, 1]" in message(lambda: CombineConfig(human_iou=0))
