# SPDX-License-Identifier: Apache-2.0
"""Copies of evaluation images in a training store are found; other photos are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from florence2_jax.records.excluded import Excluded, read_excluded
from florence2_jax.records.overlap import find_overlap, write_list
from florence2_jax.records.schema import Record
from florence2_jax.typing import UserError
from tests.records.test_combining import store


def crop(image: Image.Image, rng: np.random.Generator, share: float) -> Image.Image:
    width, height = (round(side * share) for side in image.size)
    x = int(rng.integers(image.width - width + 1))
    y = int(rng.integers(image.height - height + 1))
    return image.crop((x, y, x + width, y + height))


CHANGES = {
    "recompressed": lambda image, rng: image,
    "half the size": lambda image, rng: image.resize((image.width // 2, image.height // 2)),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "brighter": lambda image, rng: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image, rng: image.convert("L").convert("RGB"),
    "cropped to 90 %": lambda image, rng: crop(image, rng, 0.9),
    "cropped to 75 %": lambda image, rng: crop(image, rng, 0.75),
}
LEAST_FOUND = {"cropped to 90 %": 0.9, "cropped to 75 %": 0.8}
"""Crops lie anywhere, views do not: some are missed. Of all others, all are found."""


def as_record(id_: str, image: Image.Image, quality: int = 60) -> Record:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Record(id=id_, image=out.getvalue(), width=image.width, height=image.height)


@pytest.fixture(scope="module")
def photos(shared_data) -> list[Image.Image]:
    files = sorted((shared_data / "coco_mini_train2017" / "train2017").glob("*.jpg"))
    assert len(files) == 80
    return [Image.open(path).convert("RGB") for path in files]


@pytest.fixture(scope="module")
def evaluation(photos, tmp_path_factory) -> Path:
    """Half of the photos."""
    records = [as_record(f"photo {i}", photo, 90) for i, photo in enumerate(photos[:40])]
    return store(tmp_path_factory.mktemp("overlap") / "evaluation", test=records)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(change, photos, evaluation, tmp_path):
    rng = np.random.default_rng(0)
    copies = [
        as_record(f"copy {i}", CHANGES[change](photo, rng)) for i, photo in enumerate(photos[:20])
    ]
    others = [as_record(f"other {i}", photo) for i, photo in enumerate(photos[40:])]
    training = store(tmp_path / "training", train=copies + others)
    matches = find_overlap(training, [evaluation])
    right = {m.id for m in matches if m.id.replace("copy", "photo") == m.evaluation_id}
    assert len(right) >= LEAST_FOUND.get(change, 1.0) * len(copies), sorted(right)
    wrong = [m for m in matches if m.id not in right]
    assert not wrong


def test_a_photo_of_which_training_has_more_is_found(photos, evaluation, tmp_path):
    rng = np.random.default_rng(1)
    crops = [as_record(f"photo {i}", crop(photo, rng, 0.9)) for i, photo in enumerate(photos[:20])]
    part = store(tmp_path / "part", test=crops)
    whole = store(tmp_path / "whole", train=[as_record(f"{i}", p) for i, p in enumerate(photos)])
    matches = find_overlap(whole, [part])
    assert len({m.evaluation_id for m in matches}) >= 18
    assert all(m.evaluation_id == f"photo {m.id}" for m in matches)


def test_equal_bytes_are_found_even_where_nothing_is_to_be_seen(tmp_path):
    blank = Image.new("RGB", (64, 64), "white")
    training = store(
        tmp_path / "training",
        train=[as_record("a", blank), as_record("b", Image.new("RGB", (64, 60), "white"))],
        val=[as_record("c", blank)],
    )
    [match] = find_overlap(training, [])  # Other splits of the store itself are evaluation.
    assert (match.id, match.evaluation_id, match.how) == ("a", "c", "same bytes")
    write_list([match], tmp_path / "list.jsonl")
    assert read_excluded(tmp_path / "list.jsonl") == Excluded(frozenset({"a"}))


def test_processes_find_the_same(photos, evaluation, tmp_path):
    records = [as_record(f"{i}", photo) for i, photo in enumerate(photos[30:50])]
    training = store(tmp_path / "training", train=records)
    assert find_overlap(training, [evaluation], num_workers=2) == find_overlap(
        training, [evaluation]
    )


def test_what_cannot_be_compared_is_refused(evaluation, tmp_path, photos):
    with pytest.raises(UserError, match="no split 'train'"):
        find_overlap(evaluation, [evaluation])
    alone = store(tmp_path / "alone", train=[as_record("a", photos[0])])
    with pytest.raises(UserError, match="has one split only"):
        find_overlap(alone, [])
    (tmp_path / "list.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no list of records"):
        read_excluded(tmp_path / "list.jsonl")
