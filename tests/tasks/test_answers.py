# SPDX-License-Identifier: Apache-2.0
"""The known parser defects are mended by default and repeated on request."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2_jax.tasks.answers import MaskRegion, parse_answer
from florence2_jax.tasks.compatible import released_dict
from florence2_jax.tasks.registry import TASKS, get_task, prompt_text
from florence2_jax.text.phrases import BANNED_PHRASES
from florence2_jax.text.tokenizer import ADDED_TOKENS, BOS, EOS, PAD
from florence2_jax.typing import UserError

SIZE = (1000, 1000)
FOUR, EIGHT = (
    "<loc_1><loc_2><loc_3><loc_4>",
    "<loc_1><loc_2><loc_9><loc_2><loc_9><loc_8><loc_1><loc_8>",
)


def labels(token: str, text: str, **options) -> list[str]:
    return [r.label for r in parse_answer(TASKS[token], text, SIZE, **options).regions]


@pytest.mark.parametrize(
    ("token", "text", "mended", "released"),
    [
        ("<OD>", f"a<b car{FOUR}", ["a<b car"], ["b car"]),
        ("<OD>", f"café{FOUR}", ["café"], ["caf"]),
        ("<OD>", f"two\nlines{FOUR}", ["two\nlines"], []),
        ("<CAPTION_TO_PHRASE_GROUNDING>", f"it{FOUR}dog{FOUR}", ["it", "dog"], ["dog"]),
        (
            "<OCR_WITH_REGION>",
            f"STOP{EIGHT}<loc_9>GO{EIGHT}",
            ["STOP", "GO"],
            ["STOP", "<loc_9>GO"],
        ),
    ],
)
def test_labels_are_kept_whole(token, text, mended, released):
    assert labels(token, text) == mended
    assert labels(token, text, compatible=True) == released


def test_a_cut_box_is_kept_as_unparsed():
    answer = parse_answer(TASKS["<OD>"], f"car{FOUR}door<loc_7><loc_8>", SIZE)
    assert [r.label for r in answer.regions] == ["car"]
    assert answer.unparsed == ("door<loc_7><loc_8>",)
    assert parse_answer(TASKS["<OD>"], f"car{FOUR}door", SIZE).unparsed == ("door",)
    assert parse_answer(TASKS["<OD>"], f"car{FOUR}<loc_7>", SIZE).unparsed == ("<loc_7>",)


def test_inverted_boxes_are_turned():
    text = "car<loc_30><loc_40><loc_10><loc_20>"
    assert parse_answer(TASKS["<OD>"], text, SIZE).regions[0].box == (10.5, 20.5, 30.5, 40.5)
    released = parse_answer(TASKS["<OD>"], text, SIZE, compatible=True)
    assert released.regions[0].box == (30, 40, 10, 20)


def test_two_points_are_no_polygon():
    answer = parse_answer(TASKS["<REGION_TO_SEGMENTATION>"], FOUR, SIZE)
    assert answer.regions == () and answer.unparsed == (FOUR,)


def test_an_odd_coordinate_is_kept_as_unparsed():
    answer = parse_answer(TASKS["<REGION_TO_SEGMENTATION>"], EIGHT + "<loc_5>", SIZE)
    assert len(answer.regions[0].polygons[0]) == 8 and answer.unparsed == ("<loc_5>",)


def test_one_mask_does_not_turn_boxes_into_polygons():
    text = f"cat{FOUR}dog<poly>{EIGHT}</poly>"
    regions = parse_answer(TASKS["<OPEN_VOCABULARY_DETECTION>"], text, SIZE).regions
    assert [r.label for r in regions] == ["cat", "dog"]
    assert [isinstance(r, MaskRegion) for r in regions] == [False, True]


def test_pads_never_reach_a_caption():
    assert parse_answer(TASKS["<CAPTION>"], "</s><s>a cat</s><pad><pad>", SIZE).text == "a cat"


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda t: t.name)
def test_nothing_at_all_is_an_empty_answer(task):
    answer = parse_answer(task, "", SIZE)
    assert not getattr(answer, "regions", ()) and not getattr(answer, "text", "")
    json.dumps(answer.to_json())


PIECES = st.sampled_from(
    [f"<loc_{k}>" for k in (0, 7, 12, 999)] * 3
    + ["<poly>", "</poly>", "<sep>", "<and>", "<od>", BOS, EOS, PAD]
    + ["cat", " dog", "it", "the image", "a<b", "é", "\n", "<loc_1000>", " "]
)
OUTPUTS = st.lists(PIECES, max_size=30).map("".join)


@pytest.fixture(scope="module")
def released_processor():
    florence2 = pytest.importorskip("transformers.models.florence2.processing_florence2")

    class Tokenizer:
        all_special_tokens = ()

    kinds = ["pure_text", "description_with_bboxes", "description_with_polygons", "polygons"]
    kinds += ["ocr", "bboxes", "description_with_bboxes_or_polygons"]
    config = {kind: {} for kind in kinds}
    config["phrase_grounding"] = {"banned_grounding_tokens": sorted(BANNED_PHRASES)}
    post_processor = florence2.Florence2PostProcessor(config, Tokenizer())

    class Processor:
        # `post_process_generation` needs no more of a processor than these two.
        tasks_answer_post_processing_type = {
            "<OCR>": "pure_text", "<OCR_WITH_REGION>": "ocr", "<CAPTION>": "pure_text",
            "<DETAILED_CAPTION>": "pure_text", "<MORE_DETAILED_CAPTION>": "pure_text",
            "<OD>": "description_with_bboxes",
            "<DENSE_REGION_CAPTION>": "description_with_bboxes",
            "<CAPTION_TO_PHRASE_GROUNDING>": "phrase_grounding",
            "<REFERRING_EXPRESSION_SEGMENTATION>": "polygons",
            "<REGION_TO_SEGMENTATION>": "polygons",
            "<OPEN_VOCABULARY_DETECTION>": "description_with_bboxes_or_polygons",
            "<REGION_TO_CATEGORY>": "pure_text", "<REGION_TO_DESCRIPTION>": "pure_text",
            "<REGION_TO_OCR>": "pure_text", "<REGION_PROPOSAL>": "bboxes",
        }  # fmt: skip

        def __call__(self, task: str, text: str, size):
            run = florence2.Florence2Processor.post_process_generation
            return run(self, text=text, task=task, image_size=size)[task]

    Processor.post_processor = post_processor
    return Processor()


@pytest.mark.parametrize("token", [t.token for t in TASKS.values() if t.is_released])
@given(text=OUTPUTS, size=st.sampled_from([(1000, 1000), (640, 427), (333, 1021)]))
def test_compatible_mode_equals_the_native_processor(released_processor, token, text, size):
    expected = released_processor(token, text, size)
    answer = parse_answer(TASKS[token], text, size, compatible=True)
    assert released_dict(TASKS[token], answer) == expected


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda t: t.name)
@given(text=OUTPUTS)
def test_every_location_is_in_the_answer_or_in_unparsed(task, text):
    answer = parse_answer(task, text, SIZE)
    if task.grammar == "text":
        return
    marks = len(re.findall(r"<loc_\d{1,3}>", text))
    kept = sum(len(re.findall(r"<loc_\d{1,3}>", rest)) for rest in answer.unparsed)
    if task.grammar == "region_text":
        assert kept + 4 * (answer.region is not None) <= marks
        return
    shapes = [getattr(r, "box", getattr(r, "quad", None)) for r in answer.regions]
    used = sum(len(shape) for shape in shapes if shape)
    used += sum(len(p) for r in answer.regions for p in getattr(r, "polygons", ()))
    assert used + kept == marks


def test_banned_phrases_are_the_72_released_ones():
    assert len(BANNED_PHRASES) == 72


def test_the_table_has_the_15_released_tasks_and_two_of_ours():
    released = [t.token for t in TASKS.values() if t.is_released]
    assert len(released) == 15 and len(TASKS) == 17
    assert not set(TASKS) & set(ADDED_TOKENS)  # Tasks are never tokens.


def test_prompts_are_the_released_ones_to_the_letter():
    native = pytest.importorskip("transformers.models.florence2.processing_florence2")
    prompts = native.Florence2Processor.__init__.__code__.co_consts

    def constants(values):
        for value in values:
            yield from constants(value) if isinstance(value, tuple) else [value]

    known = set(constants(prompts))
    for task in TASKS.values():
        assert (task.prompt in known) == task.is_released, task.token


def test_prompts_need_what_they_need():
    assert prompt_text(get_task("od")) == "Locate the objects with category name in the image."
    grounding = get_task("<CAPTION_TO_PHRASE_GROUNDING>")
    assert prompt_text(grounding, "a {b}") == "Locate the phrases in the caption: a {b}"
    with pytest.raises(UserError, match="takes no input"):
        prompt_text(get_task("<OD>"), "cat")
    with pytest.raises(UserError, match="needs a region"):
        prompt_text(get_task("<REGION_TO_OCR>"))
    with pytest.raises(UserError, match="unknown task '<ODD>'"):
        get_task("<ODD>")
