# SPDX-License-Identifier: Apache-2.0
"""Asking from Python: any image, one question or several, typed answers."""

import functools
import io

import jax
import numpy as np
import pytest
from PIL import Image
from tasks.test_grammar import TEXTS

from florence2_jax import GenerationConfig, Predictor, UserError, draw_answer
from florence2_jax.inference.predictor import Prediction, task_input
from florence2_jax.models.config import Florence2Config
from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training.state import InitConfig, init_params

BOX = (2, 3, 20, 30)
INPUTS = {"none": "", "text": "a red car", "region": BOX}


@pytest.fixture(scope="module")
def make_predictor():
    """Options of a `Predictor` -> one over the same untrained model."""
    tokenizer = Tokenizer.train(TEXTS * 20, vocab_size=420)
    davit = dict(dims=(8, 16), num_heads=(1, 2), depths=(1, 1), window_size=4)
    davit |= dict(patch_kernels=(7, 3), patch_strides=(4, 4), pre_norm=(False, True))
    text = dict(d_model=32, encoder_layers=1, decoder_layers=1, num_heads=2, mlp_dim=64)
    text |= dict(vocab_size=len(tokenizer), max_positions=128)
    config = Florence2Config.create("base", davit=davit, text=text, image_size=64, dtype="float32")
    init = functools.partial(init_params, config, init=InitConfig(scale="fan_in"))
    params = jax.jit(init)(jax.random.key(0))
    greedy = GenerationConfig(num_beams=1, max_new_tokens=24)
    return lambda generation=greedy, **options: Predictor(
        config, params, tokenizer, generation=generation, **options
    )


def picture(seed: int, size=(40, 50)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3)).astype(np.uint8))


def encoded(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def questions() -> list:
    return [(token, INPUTS[task.input]) for token, task in TASKS.items()]


def test_one_or_several_of_either(make_predictor):
    predictor, images = make_predictor(), [picture(0), picture(1), picture(2)]
    one = predictor.ask(images[0], "<OD>")
    assert isinstance(one, Prediction) and one.answer.task == "<OD>"
    assert [p.answer.task for p in predictor.ask(images[0], ["od", "<CAPTION>"])] == [
        "<OD>",
        "<CAPTION>",
    ]
    assert [p.raw for p in predictor.ask(images[:1], "od")] == [one.raw]
    grid = predictor.ask(images, ["od", ("<VQA>", "why?")], batch_size=2)
    assert [[p.answer.task for p in row] for row in grid] == [["<OD>", "<VQA>"]] * 3
    assert predictor.ask(images[0], []) == [] and predictor.ask([], "od") == []


def test_neither_neighbours_nor_batch_sizes_change_an_answer(make_predictor):
    predictor, images = make_predictor(), [picture(i) for i in range(3)]
    asked = ["od", "<CAPTION>", ("region_to_category", BOX)]
    alone = [[predictor.ask(image, q).raw for q in asked] for image in images]
    together = predictor.ask(images, asked, batch_size=2)
    assert [[p.raw for p in row] for row in together] == alone
    assert len({raw for row in alone for raw in row}) > 1


def test_any_way_to_give_an_image_is_the_same(make_predictor, tmp_path):
    predictor, image = make_predictor(), picture(0)
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(image))
    ways = [image, path, str(path), path.read_bytes(), np.asarray(image)]
    assert len({predictor.ask(way, "<OD>").raw for way in ways}) == 1


def test_answers_about_a_turned_photo_are_in_the_upright_frame(make_predictor):
    predictor, exif = make_predictor(is_constrained=True), Image.Exif()
    exif[0x0112] = 6  # Turn it by 90 degrees clockwise.
    stored = picture(0, (50, 40))
    turned = encoded(stored, exif=exif)
    upright = stored.transpose(Image.Transpose.ROTATE_270)
    assert upright.size == (40, 50)
    question = ("region_to_category", (0, 0, 40, 50))  # Not inside of the stored 50 x 40.
    assert predictor.ask(turned, question) == predictor.ask(upright, question)
    regions = predictor.ask(turned, "od").answer
    assert regions == predictor.ask(upright, "od").answer


@pytest.mark.parametrize("beams", [1, 3])
def test_under_the_grammar_every_task_parses_and_draws(make_predictor, beams):
    config = GenerationConfig(num_beams=beams, max_new_tokens=24)
    predictor, image = make_predictor(config, is_constrained=True), picture(3)
    free = make_predictor(config).ask(image, questions())
    assert any(p.answer.unparsed for p in free), "an untrained model should need the grammar"
    for prediction in predictor.ask(image, questions()):
        answer = prediction.answer
        assert answer.unparsed == ()
        assert draw_answer(image, answer).size >= image.size
        for region in getattr(answer, "regions", ()):
            assert 0 < region.score <= 1


def test_names_and_regions_become_prompts():
    ovd, category = TASKS["<OPEN_VOCABULARY_DETECTION>"], TASKS["<REGION_TO_CATEGORY>"]
    assert task_input(ovd, ["cat", " dog"], (9, 9)) == "cat<and>dog"
    assert task_input(category, (0, 0, 50, 100), (100, 100)) == ("<loc_0><loc_0><loc_500><loc_999>")
    assert task_input(category, "<loc_1><loc_2><loc_3><loc_4>", (9, 9)).endswith("<loc_4>")


@pytest.mark.parametrize(
    ("image", "question", "message"),
    [
        ("nowhere.jpg", "od", "nowhere.jpg: No such file"),
        (b"not an image", "od", "no image of a known format"),
        (np.zeros((4, 4), np.uint8), "od", r"uint8 RGB \[Y, X, 3\], not uint8 \[4, 4\]"),
        (picture(0), "odd", "unknown task 'odd'"),
        (picture(0), "vqa", "<VQA> needs a text"),
        (picture(0), ("od", "a cat"), "<OD> takes no input"),
        (picture(0), ("vqa", ["a", "b"]), "<VQA> takes one text, got 2"),
        (picture(0), ("vqa", (1, 2, 3, 4)), "<VQA> takes text, not"),
        (picture(0), ("region_to_ocr", (1, 2, 3)), "four numbers"),
        (picture(0), ("region_to_ocr", (9, 9, 1, 99)), "no box inside 40 x 50 px"),
        (picture(0), ("vqa", "why " * 200), "the model has room for"),
    ],
)
def test_what_cannot_be_asked_is_told(make_predictor, image, question, message):
    with pytest.raises(UserError, match=message):
        make_predictor().ask(image, question)


def test_an_unknown_option_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder, and no hub name"):
        Predictor.load(tmp_path / "nowhere", num_beams=2)
