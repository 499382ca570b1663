# SPDX-License-Identifier: Apache-2.0
"""Every task has metrics, and they give a perfect answer a perfect score."""

import dataclasses
import math

import pytest

from florence2_jax.data.examples import examples_of, target_of
from florence2_jax.evaluation.captions import content_vocabulary
from florence2_jax.evaluation.families import FAMILIES, per_example_score, score_task
from florence2_jax.evaluation.scored import Scored
from florence2_jax.records.schema import Grounding, Label, Question, Record, Region, Span, Text
from florence2_jax.tasks.answers import RegionsAnswer, TextAnswer, parse_answer
from florence2_jax.tasks.registry import TASKS

SIZE = (640, 480)
PERFECT_CIDER = 10.0


def rectangle(x0, y0, x1, y1):
    return (x0, y0, x1, y0, x1, y1, x0, y1)


def thing(box, category, phrase, brief, text):
    kinds = {"category": category, "phrase": phrase, "brief": brief, "text": text}
    labels = tuple(Label(text=text, kind=kind) for kind, text in kinds.items())
    shape = rectangle(*box)
    return Region(box=box, labels=labels, quad=shape, polygons=(shape,))


def record(number, color, animal):
    """Every kind of annotation, the words different from record to record."""
    box = (40.0, 60.0, 300.0, 400.0)
    animal_thing = thing(box, animal, f"the {animal}", f"{color} {animal} on some grass", animal)
    brief = f"a {color} {animal} sits on the lawn"
    words = len(f"a {color} {animal}")
    grounding = Grounding(text=brief, spans=(Span(start=0, end=words, boxes=(box,)),))
    texts = (
        Text(text=brief),
        Text(text=f"there is one {color} {animal} here"),
        Text(text=f"{brief} and looks at us", granularity="detailed"),
        Text(text=f"{brief} and looks at us. It is noon.", granularity="more_detailed"),
    )
    return Record(
        id=f"{number}",
        image=b"not looked at",
        width=SIZE[0],
        height=SIZE[1],
        texts=texts,
        regions=(animal_thing,),
        groundings=(grounding,),
        questions=(Question(question="what animal?", answers=(animal,)),),
    )


RECORDS = (record(0, "red", "cat"), record(1, "black", "dog"), record(2, "brown", "bear"))


def perfect_answers(task):
    """What a model would be scored by that writes every target."""
    return [
        Scored(
            example=example,
            answer=parse_answer(task, target_of(example, one.size).text, one.size),
            size=one.size,
            image_id=one.id,
        )
        for one in RECORDS
        for example in examples_of(one, task)
    ]


def silenced(scored):
    empty = {"text": ""} if isinstance(scored.answer, TextAnswer) else {"regions": ()}
    return dataclasses.replace(scored, answer=dataclasses.replace(scored.answer, **empty))


def test_every_task_has_a_family():
    assert list(FAMILIES) == list(TASKS)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_perfect_answers_score_full_and_silence_scores_zero(task):
    scored = perfect_answers(task)
    assert len(scored) >= len(RECORDS)
    scores = score_task(task, scored)
    headline = next(iter(scores))
    if headline == "cider":
        assert scores["bleu4"] == pytest.approx(1, abs=1e-6)  # Its tiny terms.
        assert scores["rouge_l"] == 1
        assert 0 < scores["cider"] <= PERFECT_CIDER
    else:  # Masks and boxes move by half a location bin at most.
        assert scores[headline] == pytest.approx(1, abs=0.02)
    assert all(per_example_score(one) == pytest.approx(1, abs=0.02) for one in scored)
    silent = [silenced(one) for one in scored]
    assert score_task(task, silent)[headline] == 0
    assert all(per_example_score(one) == 0 for one in silent)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_without_truth_there_is_no_score(task):
    assert all(map(math.isnan, score_task(task, []).values()))
    some = perfect_answers(task)[0]
    example = dataclasses.replace(some.example, text="", references=(), regions=())
    blank = dataclasses.replace(some, example=example)
    assert all(map(math.isnan, score_task(task, [blank]).values()))
    assert per_example_score(blank) is None


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_question_asked_again_counts_once(task):
    scored = perfect_answers(task)
    again = [silenced(one) for one in scored]
    assert score_task(task, scored + again) == pytest.approx(score_task(task, scored), nan_ok=True)


def test_captions_with_a_vocabulary_tell_objects_and_colors():
    task = TASKS["<CAPTION>"]
    words = content_vocabulary(["cat", "dog", "bear"])
    scores = score_task(task, perfect_answers(task), content_words=words)
    assert scores["object_color_f1"] == 1
    assert list(score_task(TASKS["<VQA>"], [], content_words=words)) == ["accuracy"]


def test_answers_of_another_task_are_refused():
    with pytest.raises(ValueError, match="<CAPTION> among those to <OD>"):
        score_task(TASKS["<OD>"], perfect_answers(TASKS["<CAPTION>"]))


def test_an_answer_of_the_wrong_kind_is_named():
    caption, boxes = (perfect_answers(TASKS[token])[0] for token in ("<CAPTION>", "<OD>"))
    text = TextAnswer(task="<OD>", text="a cat")
    regions = RegionsAnswer(task="<CAPTION>", regions=())
    with pytest.raises(TypeError, match="<OD> of 0: expected regions, got a TextAnswer"):
        per_example_score(dataclasses.replace(boxes, answer=text))
    with pytest.raises(TypeError, match="<CAPTION> of 0: expected text, got a RegionsAnswer"):
        per_example_score(dataclasses.replace(caption, answer=regions))
