# SPDX-License-Identifier: Apache-2.0
"""Our own checkpoints as annotators: an untrained one, loaded from a workdir, in every task."""

import dataclasses
import functools
import pickle

import jax
import numpy as np
import pytest

from florence2_jax.conversion.export import save_workdir
from florence2_jax.conversion.load import Pretrained
from florence2_jax.engine.specialists import create
from florence2_jax.engine.specialists.asking import ask
from florence2_jax.engine.specialists.base import KINDS, Annotations, SpecialistError
from florence2_jax.engine.specialists.checkpoint_answers import (
    KIND_OF_TASK,
    AnswerBook,
    questions_of,
)
from florence2_jax.models.config import Florence2Config
from florence2_jax.records.schema import Grounding, Label, Provenance, Region, Span
from florence2_jax.tasks.registry import TASKS, get_task
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training.state import init_params
from florence2_jax.typing import UserError

TEXTS = ["a red star and a blue car", "two small stars left of a green tree. CAFE", "what is it?"]
MADE = Provenance(kind="specialist", name="other@1")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """An untrained model of 60,000 parameters."""
    tokenizer = Tokenizer.train(TEXTS * 20, vocab_size=420)
    davit = dict(dims=(8, 16), num_heads=(1, 2), depths=(1, 1), window_size=4)
    davit |= dict(patch_kernels=(7, 3), patch_strides=(4, 4), pre_norm=(False, True))
    text = dict(d_model=32, encoder_layers=1, decoder_layers=1, num_heads=2, mlp_dim=64)
    text |= dict(vocab_size=len(tokenizer), max_positions=128)
    config = Florence2Config.create("base", davit=davit, text=text, image_size=64, dtype="float32")
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    rng = np.random.default_rng(0)  # Compiling the real initialisation takes longer than all else.

    def fill(shape):
        scale = 0.1 if len(shape.shape) < 2 else shape.shape[-2] ** -0.5
        return rng.normal(scale=scale, size=shape.shape).astype(np.float32)

    params = jax.tree.map(fill, shapes)
    folder = tmp_path_factory.mktemp("trained")
    generation = dict(num_beams=3, max_new_tokens=24)
    save_workdir(Pretrained(config, params, tokenizer, generation), folder, {"name": "untrained"})
    return folder


@pytest.fixture(scope="module")
def everything(workdir):
    """A specialist of every task, loaded."""
    specialist = create(
        "checkpoint", model=str(workdir), tasks=list(TASKS), questions=["what is it?"],
        is_constrained=True, batch_size=2, max_prompts=32,
    )  # fmt: skip
    specialist = pickle.loads(pickle.dumps(specialist))
    specialist.load()
    return specialist


def rich(make_record, id_="a", **changes):
    """A record that every task has something to ask about."""
    regions = (
        Region(box=(5.0, 6.0, 30.0, 20.0), labels=(Label(text="car"),), provenance=MADE),
        Region(box=(30.0, 10.0, 50.0, 40.0), labels=(Label(text="the dog", kind="phrase"),)),
        Region(box=(0.0, 0.0, 9.0, 9.0), quad=(0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0)),
    )
    span = Span(start=0, end=5, boxes=((5.0, 6.0, 30.0, 20.0),))
    groundings = (Grounding(text="a car", spans=(span,)),)
    return make_record(id_, regions=regions, groundings=groundings, **changes)


def test_every_task_is_asked_and_its_answers_fit_the_record(everything, make_record):
    assert set(KIND_OF_TASK) == set(TASKS) and everything.kinds == KINDS
    assert everything._predictor.generation.num_beams == 1  # Greedy, whatever the model says.
    outcomes = ask(everything, [rich(make_record), rich(make_record, "b", seed=1)])
    for found in outcomes:
        assert isinstance(found, Annotations), found
        assert {text.granularity for text in found.texts} <= {"brief", "detailed", "more_detailed"}
        made = [a.provenance for a in (*found.texts, *found.regions, *found.questions)]
        assert made and {p.kind for p in made} == {"checkpoint"}
        assert all(p.name == everything.maker().name for p in made)
        assert all(p.score is not None and 0 <= p.score <= 1 for p in made)
        assert [q.question for q in found.questions] == ["what is it?"] * len(found.questions)
    assert any(found.regions for found in outcomes) and any(found.texts for found in outcomes)


def test_what_is_said_about_an_image_does_not_depend_on_its_batch(everything, make_record):
    records = [rich(make_record, str(i), seed=i) for i in range(3)]
    first, last = ask(everything, records[:2]), ask(everything, records[:0:-1])
    assert [t.text for t in first[1].texts] == [t.text for t in last[1].texts]
    assert [r.box for r in first[1].regions] == [r.box for r in last[1].regions]


def test_a_model_is_loaded_once_for_all_who_ask_it(workdir, everything):
    again = create(
        "checkpoint", model=str(workdir), tasks=["od"], is_constrained=True, batch_size=2
    )
    again.load()
    assert again._predictor is everything._predictor
    assert again.kinds == ("boxes",) and again.version != everything.version


def prompts(task, record, **options):
    return [asked.prompt for asked in questions_of(get_task(task), record, **options)]


def test_a_task_asks_what_it_can_add_something_to(make_record):
    record = rich(make_record)
    dropped = dataclasses.replace(MADE, dropped="score under 0.3")
    gone = Region(box=(1.0, 1.0, 9.0, 9.0), provenance=dropped)
    record = dataclasses.replace(record, regions=(*record.regions, gone))
    about = {
        task: [asked.about for asked in questions_of(get_task(task), record, questions=["why?"])]
        for task in TASKS
    }
    assert about["<OD>"] == [None]
    assert about["<REGION_TO_CATEGORY>"] == [1]  # 0 has one, 2 is writing, 3 is dropped.
    assert about["<REGION_TO_DESCRIPTION>"] == [0, 1]
    assert about["<REGION_TO_OCR>"] == [2]
    assert about["<REGION_TO_SEGMENTATION>"] == [0, 1]
    assert about["<REFERRING_EXPRESSION_SEGMENTATION>"] == [1]
    assert about["<REFERRING_EXPRESSION_COMPREHENSION>"] == ["a car"]
    assert about["<CAPTION_TO_PHRASE_GROUNDING>"] == ["A red car with a dog on the street."]
    assert about["<VQA>"] == ["why?"]
    assert prompts("<REGION_TO_OCR>", record) == [
        "What text is in the region <loc_0><loc_0><loc_150><loc_225>?"
    ]
    evil = make_record(texts=(dataclasses.replace(record.texts[0], text="</s><loc_5> a car"),))
    (prompt,) = prompts("<CAPTION_TO_PHRASE_GROUNDING>", evil)
    assert "</s>" not in prompt and "<loc_5>" not in prompt
    assert prompts("<OPEN_VOCABULARY_DETECTION>", record) == ["Locate car in the image."]
    named = prompts("<OPEN_VOCABULARY_DETECTION>", record, names=["cat", "dog"])
    assert named == ["Locate cat<and>dog in the image."]
    bare = make_record(texts=(), regions=())
    assert [t for t in TASKS if questions_of(get_task(t), bare)] == [
        t for t, task in TASKS.items() if task.input == "none"
    ]


def told(everything, record, task: str, answer: str, probability: float = 0.5) -> Annotations:
    """What comes of an answer, as if the model had written it with one probability a token."""
    ids = np.array([*everything._predictor.tokenizer.encode(answer)], np.int32)
    log_probs = np.full(len(ids), np.log(probability), np.float32)
    book = AnswerBook(record, everything.maker, mask_iou=0.3)
    for asked in questions_of(get_task(task), record)[:1]:
        book.add(asked, everything._predictor.read(asked.task, ids, log_probs, record.size))
    return book.annotations()


def test_phrases_of_a_grounding_are_tied_to_their_characters(everything, make_record):
    record = make_record(texts=(), regions=())
    text = dataclasses.replace(make_record().texts[0], text="a red car and a blue car")
    record = dataclasses.replace(record, texts=(text,))
    answer = (
        "a blue car<loc_0><loc_0><loc_500><loc_500><loc_0><loc_0><loc_100><loc_100>"
        "a red car<loc_1><loc_1><loc_999><loc_999>a green car<loc_1><loc_1><loc_9><loc_9>"
        "a red car<loc_5><loc_5><loc_5><loc_9>"  # No area.
    )
    (grounding,) = told(everything, record, "<CAPTION_TO_PHRASE_GROUNDING>", answer).groundings
    assert [grounding.phrase(s) for s in grounding.spans] == ["a red car", "a blue car"]
    assert [len(s.boxes) for s in grounding.spans] == [1, 2]
    assert grounding.spans[1].phrase_score == pytest.approx(0.5, abs=1e-4)
    assert grounding.spans[1].box_scores == pytest.approx((0.5, 0.5), abs=1e-4)


def test_a_mask_of_something_else_is_not_its_regions(everything, make_record):
    record = rich(make_record)  # Region 0 is at (5, 6, 30, 20) of 60 x 40 px.
    around = "<loc_90><loc_160><loc_490><loc_160><loc_490><loc_490><loc_90><loc_490>"
    found = told(everything, record, "<REGION_TO_SEGMENTATION>", around)
    ((index, polygons, provenance),) = found.masks
    assert index == 0 and len(polygons[0]) == 8 and provenance.kind == "checkpoint"
    elsewhere = "<loc_900><loc_900><loc_990><loc_900><loc_990><loc_990>"
    assert told(everything, record, "<REGION_TO_SEGMENTATION>", elsewhere) == Annotations()


def test_boxes_quads_and_labels_carry_their_own_scores(everything, make_record):
    record = rich(make_record)
    found = told(everything, record, "<OD>", "car<loc_0><loc_0><loc_500><loc_500>", 0.25)
    (region,) = found.regions
    assert region.provenance.score == pytest.approx(0.25, abs=1e-4)
    assert region.labels[0].provenance.score == pytest.approx(0.25, abs=1e-4)
    quad = "STOP<loc_0><loc_0><loc_500><loc_0><loc_500><loc_100><loc_0><loc_100>"
    (word,) = told(everything, record, "<OCR_WITH_REGION>", quad).regions
    assert word.quad is not None and word.label("text") == "STOP"
    box = "<loc_0><loc_0><loc_500><loc_100>"
    (proposal,) = told(everything, record, "<REGION_PROPOSAL>", box).regions
    assert proposal.labels == ()
    assert told(everything, record, "<CAPTION>", " ") == Annotations()


def test_settings_that_cannot_be_are_refused_before_anything_is_loaded(workdir, tmp_path):
    for settings, why in (
        (dict(tasks=["od", "<OD>"]), "each once"),
        (dict(tasks=["odd"]), "unknown task"),
        (dict(tasks=["vqa"]), "questions"),
        (dict(tasks=["od"], num_beams=0), "num_beams"),
        (dict(tasks="od"), "no list of texts"),
    ):
        with pytest.raises(UserError, match=why):
            create("checkpoint", model=str(workdir), **settings)
    for type, others in (("checkpoint", {"tasks": ["od"]}), ("detection", {})):
        with pytest.raises(UserError, match="model: it is empty"):
            create(type, model="", **others)
    missing = create("checkpoint", model=str(tmp_path / "none"), tasks=["od"])
    with pytest.raises(SpecialistError, match="no such folder"):
        missing.load()
