# SPDX-License-Identifier: Apache-2.0
"""Specialists with known faults have exactly these faults, and the same ones every time."""

import pickle
import re

import numpy as np
import pytest

from florence2_jax.engine.specialists import create
from florence2_jax.engine.specialists.imperfect import three
from florence2_jax.geometry import box_iou
from florence2_jax.records.importers.drawn import plan_scenes
from florence2_jax.records.scene_config import EASY
from florence2_jax.records.store import RecordStore, write_store
from florence2_jax.typing import UserError

NUM = 150


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth") / "store"
    write_store(folder, plan_scenes(NUM, EASY, num_validation=1), name="scenes")
    return folder


@pytest.fixture(scope="module")
def records(truth):
    return list(RecordStore(truth, "train"))


def asked(truth, records, **settings):
    specialist = create("imperfect", truth=str(truth), **settings)
    specialist.load()
    return specialist.annotate(records)


def objects(record):
    return [region for region in record.regions if region.label("category")]


def boxes(regions):
    return np.array([region.box for region in regions]).reshape(-1, 4)


def test_small_objects_are_missed_and_nothing_else(truth, records):
    faultless = dict(jitter=0.0, hallucinated=0.0, wrong_colors=0.0)
    answers = asked(truth, records, missed_small=0.4, **faultless)
    found = {True: [0, 0], False: [0, 0]}
    for record, answer in zip(records, answers, strict=True):
        for region in objects(record):
            x0, y0, x1, y1 = region.box
            is_small = ((x1 - x0) * (y1 - y0)) ** 0.5 / 64 < 0.42
            found[is_small][0] += any(one.box == region.box for one in answer.regions)
            found[is_small][1] += 1
    assert found[False][0] == found[False][1] > 30
    assert 0.45 < found[True][0] / found[True][1] < 0.75 and found[True][1] > 50


def test_two_with_the_same_hard_seed_miss_the_same_and_imagine_different_things(truth, records):
    first, second = (asked(truth, records, seed=seed, jitter=0.0) for seed in (1, 2))
    true = {record.id: {region.box for region in objects(record)} for record in records}
    for a, b, boxes_ in zip(first, second, true.values(), strict=True):
        assert {r.box for r in a.regions} & boxes_ == {r.box for r in b.regions} & boxes_
    imagined = [
        {r.box for answer in answers for r in answer.regions} - set().union(*true.values())
        for answers in (first, second)
    ]
    assert imagined[0] and imagined[1] and not imagined[0] & imagined[1]


def test_a_tenth_of_the_boxes_is_imagined_and_others_are_askew(truth, records):
    answers = asked(truth, records, missed_small=0.0)
    far = near = 0
    for record, answer in zip(records, answers, strict=True):
        overlaps = box_iou(boxes(answer.regions), boxes(objects(record))).max(axis=1, initial=0)
        far += int((overlaps <= 0.2).sum())
        near += int((overlaps > 0.2).sum())
        assert all(0 < (region.provenance.score or 0) < 1 for region in answer.regions)
    assert 0.04 < far / (far + near) < 0.18


def test_what_it_is_blind_to_it_neither_boxes_nor_speaks_of(truth, records):
    kinds = ("texts", "boxes", "groundings", "questions")
    answers = asked(truth, records, makes=kinds, blind_to=("star",))
    assert not any(re.search(r"\bstars?\b", repr(answer)) for answer in answers)
    assert any(re.search(r"\bstars?\b", repr(record.texts)) for record in records)


def test_wrong_colors_keep_phrases_where_they_are(truth, records):
    answers = asked(truth, records, makes=("texts", "groundings"), wrong_colors=0.9)
    changed = 0
    for record, answer in zip(records, answers, strict=True):
        for grounding, true in zip(answer.groundings, record.groundings, strict=True):
            changed += grounding.text != true.text
            for span, other in zip(grounding.spans, true.spans, strict=True):
                said, meant = grounding.phrase(span).split(), true.phrase(other).split()
                assert len(said) == len(meant) and said[0] == meant[0] and said[-1] == meant[-1]
    assert changed > NUM


def test_answers_depend_on_the_image_alone_and_survive_pickling(truth, records):
    for settings in three(str(truth), seed=3, blind_to=("star",)):
        specialist = pickle.loads(pickle.dumps(create(**settings)))
        specialist.load()
        together = specialist.annotate(records[:6])
        assert list(together) == [specialist.annotate([record])[0] for record in records[:6]]


def test_a_share_out_of_range_is_named(truth):
    with pytest.raises(UserError, match="jitter"):
        create("imperfect", truth=str(truth), jitter=2.0)
