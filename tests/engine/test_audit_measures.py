# SPDX-License-Identifier: Apache-2.0
"""Rounds are counted rightly, and the guard stops those that forget and no others."""

import dataclasses
import json
import math

import pytest

from florence2_jax.data.examples import Example
from florence2_jax.engine import audit
from florence2_jax.engine.auditing.measures import divergence_bits, entropy_bits
from florence2_jax.evaluation.detection import match_metrics
from florence2_jax.evaluation.scored import Scored
from florence2_jax.records.scenes import draw_scene
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
from florence2_jax.tasks.answers import BoxRegion, RegionsAnswer
from florence2_jax.tasks.registry import get_task
from florence2_jax.typing import UserError
from tests.engine.audit_workdir import frozen_workdir, record, region, said

Counts = audit.Counts


def judged(true: Record, found: Record, **options) -> audit.RoundAudit:
    return audit.judge_round([true], [found], **options)


def counts(one: Counts) -> tuple[int, int, int]:
    return one.num_true, one.num_found, one.num_matched


@pytest.fixture(scope="module")
def scenes() -> list[Record]:
    return [draw_scene(k) for k in range(12)]


def test_a_round_that_says_the_truth_is_perfect_in_every_kind(scenes):
    one = audit.judge_round(scenes, scenes)
    kinds = {"boxes", "masks", "text_regions", "region_texts", "groundings", "texts", "questions"}
    assert one.kinds.keys() == kinds
    assert all(c.f1 == c.precision == c.recall == 1 for c in one.kinds.values())
    assert one.label_divergence_bits == 0
    assert one.label_entropy_bits == one.true_label_entropy_bits > 1


def test_a_round_that_says_nothing_finds_nothing(scenes):
    one = audit.judge_round(scenes, [])
    assert all(c.recall == 0 and c.precision is None for c in one.kinds.values())
    assert one.num_images == 12


def test_boxes_are_matched_by_class_overlap_and_score():
    true = record(0, regions=(region("cat"), region("dog", (50, 50, 60, 60))))
    found = record(
        0,
        regions=(
            region("cat", (8, 8, 40, 38), 0.5),
            region("cat", (8, 8, 40, 40), 0.9),  # The same cat again: only one may be right.
            region("cat", (50, 50, 60, 60), 0.9),  # The dog's place.
            region("dog", (50, 50, 54, 60), 0.9),  # Overlaps by 0.4.
        ),
    )
    one = judged(true, found)
    assert counts(one.classes["cat"]) == (1, 3, 1)
    assert counts(one.classes["dog"]) == (1, 1, 0)
    assert counts(one.kinds["boxes"]) == (2, 4, 1)
    half, sure = one.calibration["boxes"].bins
    assert (half.number, half.accuracy) == (1, 0)
    assert (sure.number, sure.accuracy) == (3, pytest.approx(1 / 3))
    assert one.calibration["boxes"].ece == pytest.approx((0.5 + 3 * (0.9 - 1 / 3)) / 4)


def test_boxes_agree_with_the_metric_of_the_evaluation(scenes):
    """A second implementation: greedy by numpy there, pycocotools here."""
    found = [
        dataclasses.replace(
            scene,
            regions=tuple(
                dataclasses.replace(
                    one, box=(one.box[0], one.box[1], one.box[2], (one.box[1] + 3 * one.box[3]) / 4)
                )
                for one in scene.regions[1:]
            ),
        )
        for scene in scenes
    ]
    one = audit.judge_round(scenes, found).kinds["boxes"]

    def boxes(record: Record) -> tuple[BoxRegion, ...]:
        named = [(r, r.label("category")) for r in record.regions]
        return tuple(BoxRegion(label=name, box=r.box) for r, name in named if name)

    def scored(true: Record, predicted: Record) -> Scored:
        task = get_task("<OD>")
        example = Example(task=task, regions=boxes(true))
        answer = RegionsAnswer(task=task.token, regions=boxes(predicted))
        return Scored(example=example, answer=answer, size=true.size, image_id=true.id)

    assert match_metrics(list(map(scored, scenes, found))) == pytest.approx(
        {"f1": one.f1, "precision": one.precision, "recall": one.recall}
    )


def test_a_crowd_counts_neither_for_nor_against():
    crowd = dataclasses.replace(region("cat", (0, 0, 60, 60)), is_crowd=True)
    one = judged(record(0, regions=(crowd,)), record(0, regions=(region("cat"),)))
    assert counts(one.kinds["boxes"]) == (0, 0, 0)
    assert one.kinds["boxes"].f1 is None


def test_texts_are_counted_in_words_and_questions_in_answers():
    true = record(
        0,
        texts=(Text(text="A cat sits."), Text(text="two red dogs")),
        questions=(Question(question="How many?", answers=("two", "2 cats")),),
    )
    found = record(
        0,
        texts=(Text(text="a CAT, a cat"), Text(text="long", granularity="detailed")),
        questions=(
            Question(question="how  many?", answers=("2",)),
            Question(question="what?", answers=("cats",)),
        ),
    )
    one = judged(true, found)
    assert counts(one.kinds["texts"]) == (6, 5, 2)
    assert counts(one.kinds["questions"]) == (1, 2, 1)


def test_phrases_and_writing_are_matched_in_their_places():
    def grounded(*boxes) -> Grounding:
        return Grounding(text="a Cat", spans=(Span(start=2, end=5, boxes=boxes),))

    word = Region(box=(0, 0, 20, 10), labels=(Label(text="EXIT", kind="text"),))
    wrong = dataclasses.replace(word, labels=(Label(text="exit", kind="text"),))
    true = record(0, regions=(word,), groundings=(grounded((0, 0, 9, 9), (20, 20, 40, 40)),))
    found = record(0, regions=(wrong,), groundings=(grounded((0, 0, 9, 9)),))
    one = judged(true, found)
    assert counts(one.kinds["groundings"]) == (2, 1, 1)
    assert counts(one.kinds["text_regions"]) == (1, 1, 0)
    assert "boxes" not in one.kinds


def test_what_a_filter_dropped_is_not_predicted():
    dropped = dataclasses.replace(
        region("cat"), provenance=Provenance(kind="specialist", dropped="score under 0.3")
    )
    one = judged(record(0), record(0, regions=(dropped,)))
    assert counts(one.kinds["boxes"]) == (1, 0, 0)


def test_the_tail_is_what_is_rarely_true():
    common = tuple(region("cat", (k % 10 * 6, k // 10 * 3, k % 10 * 6 + 5, k // 10 * 3 + 2))
                   for k in range(199))  # fmt: skip
    true = record(0, regions=(*common, region("bee", (0, 62, 3, 64))))
    one = judged(true, record(0, regions=common))
    assert one.tail_classes == ("bee",)
    assert counts(one.tail) == (1, 0, 0)
    assert judged(true, true, tail_share=0.001).tail_classes == ()


def test_an_ontology_makes_synonyms_one_class():
    names = audit.Ontology(version=3, names=(_name("cat", "kitty"),))
    true, found = record(0), record(0, regions=(region("Kitty"), region("wug", (0, 0, 5, 5))))
    assert counts(judged(true, found).kinds["boxes"]) == (1, 2, 0)
    one = judged(true, found, ontology=names)
    assert counts(one.kinds["boxes"]) == (1, 2, 1)
    assert one.ontology_version == 3
    assert [row["label"] for row in one.unknown_labels] == ["wug"]


def test_an_audit_is_the_same_after_json(scenes):
    worse = [dataclasses.replace(one, regions=one.regions[1:]) for one in scenes]
    scored_ = [dataclasses.replace(one, regions=(*one.regions, region("cat", score=0.3)))
               for one in worse]  # fmt: skip
    one = audit.judge_round(
        scenes, scored_, round=2, ontology=audit.Ontology(version=1, names=(_name("cat"),))
    )
    text = json.dumps(one.to_json(), allow_nan=False)
    assert audit.RoundAudit.from_json(json.loads(text)) == one
    assert one.calibration and one.unknown_labels


def test_predictions_of_strangers_are_refused():
    with pytest.raises(UserError, match="no frozen record, first 'photo 1'"):
        judged(record(0), record(1))
    with pytest.raises(UserError, match="no records"):
        audit.judge_round([], [])


def test_entropy_and_divergence_of_known_shares():
    assert entropy_bits([1, 1, 1, 1, 0]) == 2
    assert entropy_bits([]) == entropy_bits([7]) == 0
    assert divergence_bits([1, 0], [0, 3]) == 1
    assert divergence_bits([1, 2], [2, 4]) == pytest.approx(0)
    expected = 0.5 * math.log2(1 / 0.75) + 0.25 * math.log2(0.5 / 0.75) + 0.25 * math.log2(2)
    assert divergence_bits([1, 0], [1, 1]) == pytest.approx(expected)
    assert divergence_bits([], []) == 0


# The guard.


def _name(name: str, *synonyms: str, parent: str = ""):
    from florence2_jax.engine.auditing.ontology import Name

    return Name(name=name, synonyms=synonyms, parent=parent)


def rounds(**series: list[tuple[int, int, int]]) -> list[audit.RoundAudit]:
    """Audits of (true, found, right) per class and round."""
    length = len(next(iter(series.values())))
    audits = []
    for k in range(length):
        classes = {
            name: Counts(num_true=row[k][0], num_found=row[k][1], num_matched=row[k][2])
            for name, row in series.items()
        }
        audits.append(
            audit.RoundAudit(
                round=k,
                num_images=50,
                kinds={"boxes": sum(classes.values(), Counts())},
                classes=classes,
                calibration={},
            )
        )
    return audits


COMMON = [(500, 500, 400), (500, 510, 420), (500, 505, 430)]


def test_a_loop_that_gets_better_goes_on():
    audits = rounds(cat=COMMON, bee=[(10, 6, 4), (10, 8, 5), (10, 9, 6)])
    assert all(audit.guard(audits[: k + 1]).ok for k in range(3))


def test_a_rare_class_that_falls_stops_the_loop():
    audits = rounds(cat=COMMON, bee=[(20, 18, 16), (20, 18, 16), (20, 6, 5)])
    assert audit.guard(audits[:2]).ok
    [reason] = audit.guard(audits).reasons
    assert "recall of class 'bee' fell from 0.80 in round 0 to 0.25 (16 of 20" in reason


def test_a_fall_that_chance_explains_does_not_stop_the_loop():
    assert audit.guard(rounds(cat=COMMON, bee=[(6, 5, 4), (6, 5, 4), (6, 4, 2)])).ok
    assert audit.guard(rounds(cat=COMMON, bee=[(4, 4, 4), (4, 4, 4), (4, 1, 0)])).ok


def test_rare_classes_are_told_from_common_ones():
    falling = [(500, 500, 400), (500, 500, 400), (500, 500, 250)]
    audits = rounds(cat=falling, dog=COMMON)
    config = audit.GuardConfig(max_share=0.1, max_recall_drop=0.2)
    assert "class 'cat'" in audit.guard(audits).reasons[0]
    assert audit.guard(audits, config).ok  # Half of all boxes is not rare, and all fell by 0.12.


def test_the_tail_together_tells_what_no_class_can():
    tail = {f"rare {k}": [(4, 4, 3), (4, 4, 3), (4, 2, 1)] for k in range(12)}
    audits = rounds(cat=[(5000, 5000, 4000)] * 3, **tail)
    [reason] = audit.guard(audits).reasons
    assert "recall of the tail fell from 0.75 in round 0 to 0.25 (36 of 48, now 12 of 48" in reason


def test_a_class_that_vanished_stops_the_loop_though_it_was_rarely_right():
    audits = rounds(cat=COMMON, bee=[(9, 5, 2), (9, 4, 2), (9, 0, 0)])
    [reason] = audit.guard(audits).reasons
    assert "class 'bee' vanished: round 1 had it 4 times (2 right)" in reason
    never_right = rounds(cat=COMMON, wug=[(0, 7, 0), (0, 7, 0), (0, 0, 0)])
    assert audit.guard(never_right).ok  # A hallucination that goes is no loss.


def test_labels_that_drift_from_the_truth_stop_the_loop():
    away = rounds(
        cat=[(100, 100, 80), (100, 190, 85)], dog=[(100, 100, 80), (100, 70, 70)],
        fox=[(100, 100, 80), (100, 70, 70)], wug=[(0, 0, 0), (0, 150, 0)],
    )  # fmt: skip
    [reason] = audit.guard(away).reasons
    assert "the labels drift" in reason
    towards = rounds(
        cat=[(100, 190, 80), (100, 100, 85)], dog=[(100, 10, 9), (100, 100, 80)]
    )  # fmt: skip
    assert audit.guard(towards).ok


def test_rounds_of_other_truths_are_not_compared():
    first, second = rounds(cat=COMMON[:2])
    with pytest.raises(UserError, match="judge both again"):
        audit.guard([first, dataclasses.replace(second, ontology_version=2)])
    with pytest.raises(UserError, match="no round"):
        audit.guard([])


def test_bounds_are_checked():
    with pytest.raises(UserError, match="significance"):
        audit.GuardConfig(significance=0)


# All together.


def test_a_report_judges_by_the_truth_of_today(tmp_path):
    workdir = frozen_workdir(tmp_path)
    with pytest.raises(UserError, match="no round has been audited"):
        audit.report(workdir)
    audit.write_predictions(workdir, 0, said(workdir, region("cat", score=0.9)))
    audit.write_predictions(workdir, 1, said(workdir, region("dog", score=0.9)))
    first = audit.report(workdir)
    assert [one.kinds["boxes"].recall for one in first.audits] == [1, 0]
    assert not first.decisions[1].ok and "vanished" in " ".join(first.decisions[1].reasons)
    assert [one.names for one in first.unstable] == [("cat", "dog")]
    # People say that they are dogs: now round 1 was right.
    from tests.engine.test_audit_verdicts import VerdictLog, find, verdict

    for one in audit.truth(workdir):
        VerdictLog(workdir).add(verdict(find(one, "cat"), "correct", text="dog"))
    second = audit.report(workdir)
    assert [one.kinds["boxes"].recall for one in second.audits] == [0, 1]
    assert second.decisions[1].ok
    json.dumps(second.to_json(), allow_nan=False)
