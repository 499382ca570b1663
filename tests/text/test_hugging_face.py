# SPDX-License-Identifier: Apache-2.0
"""Exports open in transformers and compute the same."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from token_samples import random_texts

from florence2_jax.text.hugging_face import save_hugging_face
from florence2_jax.text.tokenizer import Tokenizer

SIZE, NUM_IMAGE_TOKENS = (96, 64), 7


@pytest.fixture
def exported(tokenizer, tmp_path):
    save_hugging_face(
        tokenizer, tmp_path, image_size=SIZE, num_image_tokens=NUM_IMAGE_TOKENS, max_length=1024
    )
    return tmp_path


@pytest.fixture
def warned():
    """What transformers logs at WARNING or above."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield records
    logging.getLogger("transformers").removeHandler(handler)


def open_processor(folder):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("with_model_config", [False, True])
def test_transformers_opens_it_without_a_warning(exported, tokenizer, warned, with_model_config):
    from transformers import Florence2Config, Florence2Processor

    if with_model_config:
        Florence2Config().save_pretrained(exported)
    processor = open_processor(exported)
    # Where torchvision is absent, transformers says so of every CLIP processor.
    assert [text for text in warned if "requires torchvision" not in text] == []
    assert isinstance(processor, Florence2Processor)
    inner = processor.tokenizer
    assert len(inner) == len(tokenizer) and inner.model_max_length == 1024
    assert processor.image_token_id == inner.convert_tokens_to_ids("<image>") == len(tokenizer) - 1
    ids = inner.bos_token_id, inner.pad_token_id, inner.eos_token_id, inner.unk_token_id
    assert ids == (0, 1, 2, 3)


def test_ids_and_texts_are_those_of_transformers(exported, tokenizer):
    inner = open_processor(exported).tokenizer
    fast = tokenizer.to_fast()
    texts = list(random_texts(10_000))
    theirs = inner(texts)["input_ids"]
    assert len({len(ids) for ids in theirs}) > 50 and theirs[0] == [0, 2]
    for text, ids in zip(texts, theirs, strict=True):
        own = tokenizer.encode(text)
        assert [0, *own, 2] == ids, repr(text)
        assert fast.encode(text, add_special_tokens=False).ids == own, repr(text)
        assert inner.decode(ids) == tokenizer.decode(ids, keep_control=True), repr(text)


def test_any_ids_decode_alike(exported, tokenizer):
    inner = open_processor(exported).tokenizer
    rng = np.random.default_rng(0)
    for _ in range(2000):  # What an untrained model writes: broken characters, bytes, specials.
        ids = rng.integers(0, len(tokenizer), 30) % rng.choice([260, len(tokenizer)])
        assert inner.decode(ids) == tokenizer.decode(ids.tolist(), keep_control=True)
        base = ids[ids < len(tokenizer) - 1025]
        if "<mask>" not in (text := tokenizer.decode(base.tolist())):
            assert inner.decode(base, skip_special_tokens=True) == text


def test_long_texts_of_one_word_agree(exported, tokenizer):
    inner = open_processor(exported).tokenizer
    for text in ("ab" * 5000, " " * 3000, "banana" * 2000 + "日本" * 500, "a" * 9999):
        assert inner(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)


def test_the_export_loads_here_as_the_same_tokenizer(exported, tokenizer, tmp_path):
    loaded = Tokenizer.load(exported)
    assert loaded == tokenizer
    loaded.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again") == tokenizer
    for text in random_texts(500, seed=2):
        assert loaded.encode(text) == tokenizer.encode(text)


def test_the_processor_resizes_exactly_and_places_image_tokens(exported, tokenizer):
    processor = open_processor(exported)
    picture = np.random.default_rng(0).integers(0, 255, (50, 200, 3), np.uint8)
    inputs = processor(text="<OD>", images=Image.fromarray(picture), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 96)
    resized = Image.fromarray(picture).resize(SIZE, Image.Resampling.BICUBIC)
    expected = np.asarray(resized) / 255 - np.array([0.485, 0.456, 0.406])
    expected = (expected / np.array([0.229, 0.224, 0.225])).transpose(2, 0, 1)
    # 0.02 is one level of 8 bits: torchvision, where installed, rounds its own way.
    np.testing.assert_allclose(inputs["pixel_values"][0], expected, atol=0.02)
    prompt = tokenizer.encode("Locate the objects with category name in the image.")
    images = [len(tokenizer) - 1] * NUM_IMAGE_TOKENS
    assert inputs["input_ids"][0].tolist() == [*images, 0, *prompt, 2]
    grey = processor(text="<CAPTION>", images=Image.new("L", (9, 9)), return_tensors="pt")
    assert grey["pixel_values"].shape == (1, 3, 64, 96)


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("<CAPTION>", "a red car", "a red car"),
        (
            "<OD>",
            "red car<loc_0><loc_0><loc_999><loc_499>",
            {"bboxes": [[0, 0, 199, 49]], "labels": ["red car"]},
        ),
        (
            "<CAPTION_TO_PHRASE_GROUNDING>",
            "it<loc_0><loc_0><loc_9><loc_9>A car<loc_0><loc_0><loc_999><loc_499>",
            {"bboxes": [[0, 0, 199, 49]], "labels": ["A car"]},
        ),
        (
            "<OCR_WITH_REGION>",
            "STOP" + "<loc_0>" * 8,
            {"quad_boxes": [[0] * 8], "labels": ["STOP"]},
        ),
        (
            "<REFERRING_EXPRESSION_SEGMENTATION>",
            "<loc_0><loc_0><loc_999><loc_0><loc_999><loc_999>",
            {"polygons": [[[0, 0, 199, 0, 199, 99]]], "labels": [""]},
        ),
        (
            "<OPEN_VOCABULARY_DETECTION>",
            "car<poly><loc_0><loc_0><loc_999><loc_0><loc_999><loc_999></poly>",
            {
                "bboxes": [],
                "bboxes_labels": [],
                "polygons": [[[0, 0, 199, 0, 199, 99]]],
                "polygons_labels": ["car"],
            },
        ),
        (
            "<REGION_PROPOSAL>",
            "<loc_0><loc_0><loc_999><loc_499>",
            {"bboxes": [[0, 0, 199, 49]], "labels": [""]},
        ),
    ],
)
def test_post_processing_reads_generated_ids(exported, tokenizer, task, text, answer):
    processor = open_processor(exported)
    ids = [2, 0, *tokenizer.encode(text), 2, 1, 1]
    (decoded,) = processor.batch_decode([ids], skip_special_tokens=False)
    parsed = processor.post_process_generation(decoded, task=task, image_size=(200, 100))
    assert json.dumps(parsed).replace("<pad>", "") == json.dumps({task: answer})


@pytest.mark.parametrize("change", [dict(image_size=(0, 9)), dict(max_length=0)])
def test_sizes_must_be_positive(tokenizer, tmp_path, change):
    sizes = dict(image_size=SIZE, num_image_tokens=7, max_length=9) | change
    with pytest.raises(ValueError, match="must be positive"):
        save_hugging_face(tokenizer, tmp_path / "x", **sizes)
    assert not (tmp_path / "x").exists()


def test_writing_needs_no_transformers():
    code = (
        "import sys, florence2_jax.text.hugging_face\n"
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
