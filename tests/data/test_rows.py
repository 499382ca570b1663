# SPDX-License-Identifier: Apache-2.0
"""Views, absent names, excluded records and scaled decoding reach the rows of a batch."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import ImageOps

from florence2_jax.data.augment import AugmentConfig
from florence2_jax.data.loading import BatchSpec, LoadExamples
from florence2_jax.data.mixture import parse_weights
from florence2_jax.data.negatives import NegativesConfig, collect_names
from florence2_jax.data.texts import store_texts
from florence2_jax.data.transforms import decode
from florence2_jax.records.excluded import Excluded, perceptual_hashes
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import Plan, write_store
from florence2_jax.tasks.answers import parse_answer
from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.tokenizer import Tokenizer

SPEC = BatchSpec(
    batch_size=8,
    num_prompts=4,
    prompt_length=40,
    target_length=64,
    image_size=(64, 64),
    weights=parse_weights({"od": 1.0}),
    order="raster",
)


@pytest.fixture(scope="module")
def store(scenes) -> RecordStore:
    return RecordStore(scenes, "train")


@pytest.fixture(scope="module")
def tokenizer(store) -> Tokenizer:
    return Tokenizer.train(store_texts(store), vocab_size=500)


def kept(record: Record, ledger) -> Record:
    return record


def rows(load: LoadExamples, seed: int = 0) -> list[dict]:
    return [load(i, np.random.default_rng([seed, i])) for i in range(len(load.store))]


def text(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    return tokenizer.decode(ids.tolist())


def test_crops_change_pixels_and_boxes_together(store, tokenizer):
    plain = rows(LoadExamples(store=store, tokenizer=tokenizer, spec=SPEC))
    augment = AugmentConfig(crop=1.0, min_area=0.5, max_area=0.7)
    spec = dataclasses.replace(SPEC, augment=augment)
    load = LoadExamples(store=store, tokenizer=tokenizer, spec=spec)
    cropped = rows(load)
    changed = [
        i for i, (a, b) in enumerate(zip(plain, cropped, strict=True))
        if not np.array_equal(a["image"], b["image"])
    ]  # fmt: skip
    assert len(changed) > len(store) / 2  # Writing may leave no crop.
    for i in changed:
        for ids in (plain[i]["target_ids"][0], cropped[i]["target_ids"][0]):
            answer = parse_answer(TASKS["<OD>"], text(tokenizer, ids), (64, 64))
            assert answer.regions and not answer.unparsed
        assert not np.array_equal(plain[i]["target_ids"], cropped[i]["target_ids"])
    again = rows(load)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(cropped, again, strict=True))


def test_absent_names_have_empty_targets(store, tokenizer):
    weights = parse_weights({"open_vocabulary_detection": 1.0})
    negatives = NegativesConfig(share=1.0, alone=1.0)
    spec = dataclasses.replace(SPEC, weights=weights, negatives=negatives, num_prompts=1)
    pool = collect_names(store)
    load = LoadExamples(store=store, tokenizer=tokenizer, spec=spec, pool=pool)
    empty = 0
    for row in rows(load):
        index = int(row["index"])
        asked = text(tokenizer, row["prompt_ids"][0]).casefold()
        names = {label.text for r in store[index].regions for label in r.labels
                 if label.kind == "category"}  # fmt: skip
        if text(tokenizer, row["target_ids"][0]) == "":
            empty += 1
            assert not any(name in asked for name in names)
    assert empty > len(store) / 2


def test_excluded_records_are_replaced_and_listed(store, tokenizer, tmp_path):
    excluded = Excluded(frozenset({store[3].id, store[4].id}))
    set_aside = tmp_path / "set_aside.jsonl"
    load = LoadExamples(
        store=store, tokenizer=tokenizer, spec=SPEC, excluded=excluded, set_aside=set_aside,
        name="excluded here",
    )  # fmt: skip
    indices = [int(row["index"]) for row in rows(load)]
    assert indices[3] == indices[4] == 5
    notes = [json.loads(line) for line in set_aside.read_text().splitlines()]
    assert [(n["store"], n["index"]) for n in notes] == [
        ("excluded here", 3),
        ("excluded here", 4),
    ]
    assert all("input.exclude" in note["reason"] for note in notes)


def test_a_copy_of_an_excluded_image_is_replaced_whatever_its_id(store, tokenizer, tmp_path):
    out = io.BytesIO()
    picture = ImageOps.mirror(decode(store[5].image))
    picture.resize((96, 96)).save(out, "JPEG", quality=60)
    copy = dataclasses.replace(store[5], id="another name", image=out.getvalue())
    plan = Plan(units={"train": [store[0], copy, store[2]]}, make=kept, job={"test": 7})
    write_store(tmp_path / "store", plan)
    excluded = Excluded(
        frozenset({store[5].id}), {perceptual_hashes(decode(store[5].image))[0]: store[5].id}
    )
    load = LoadExamples(
        store=RecordStore(tmp_path / "store", "train"), tokenizer=tokenizer, spec=SPEC,
        excluded=excluded, set_aside=tmp_path / "set_aside.jsonl",
    )  # fmt: skip
    assert [int(row["index"]) for row in rows(load)] == [0, 2, 2]
    (note,) = map(json.loads, (tmp_path / "set_aside.jsonl").read_text().splitlines())
    assert note["reason"].startswith(f"record another name looks like {store[5].id}")


def test_scaled_decoding_of_images_of_the_right_size_changes_nothing(store, tokenizer):
    spec = dataclasses.replace(SPEC, scaled_decode=True)
    for a, b in zip(
        rows(LoadExamples(store=store, tokenizer=tokenizer, spec=SPEC)),
        rows(LoadExamples(store=store, tokenizer=tokenizer, spec=spec)),
        strict=True,
    ):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_colours_change_pixels_alone(store, tokenizer):
    spec = dataclasses.replace(SPEC, augment=AugmentConfig(brightness=0.4, contrast=0.4))
    plain = rows(LoadExamples(store=store, tokenizer=tokenizer, spec=SPEC))
    for a, b in zip(
        plain, rows(LoadExamples(store=store, tokenizer=tokenizer, spec=spec)), strict=True
    ):
        assert not np.array_equal(a["image"], b["image"])
        assert np.array_equal(a["target_ids"], b["target_ids"])
