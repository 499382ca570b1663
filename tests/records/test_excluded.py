# SPDX-License-Identifier: Apache-2.0
"""Images are known again by their looks, and lists are read whole or refused."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from florence2_jax.records import excluded as excluded_lib
from florence2_jax.records.excluded import Excluded, perceptual_hashes, read_excluded
from florence2_jax.typing import UserError


@pytest.fixture(scope="module")
def photos(shared_data) -> list[Image.Image]:
    files = sorted((shared_data / "coco_mini_train2017" / "train2017").glob("*.jpg"))
    assert len(files) == 80
    return [Image.open(path).convert("RGB") for path in files]


def recompressed(image: Image.Image, quality: int, share: float) -> Image.Image:
    out = io.BytesIO()
    size = tuple(round(side * share) for side in image.size)
    image.resize(size).save(out, "JPEG", quality=quality)
    return Image.open(out)


def test_copies_are_known_and_other_photos_are_not(photos):
    half = Excluded(
        hashes={perceptual_hashes(p)[0]: f"photo {i}" for i, p in enumerate(photos[:40])}
    )
    for i, photo in enumerate(photos[:40]):
        for copy in (
            recompressed(photo, 30, 1),
            recompressed(photo, 75, 0.5),
            ImageOps.mirror(photo),
        ):
            assert f"looks like photo {i}," in half.why("another", copy)
    assert not any(half.why("another", photo) for photo in photos[40:])


def test_a_blank_image_looks_like_nothing(photos):
    blank = Image.new("RGB", (64, 48), "white")
    assert perceptual_hashes(blank) == ()
    everything = Excluded(hashes=dict.fromkeys([0, 2**64 - 1, *perceptual_hashes(photos[0])], "a"))
    assert everything.why("b", blank) == ""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert everything.why("b", Image.fromarray(noise)) == ""


def test_a_list_without_hashes_goes_by_ids_alone(tmp_path, photos, monkeypatch):
    path = tmp_path / "list.jsonl"
    path.write_text('{"id": "a"}\n\n{"id": 7, "phash": null}\n')
    monkeypatch.setattr(excluded_lib, "image_hash", None)  # Not needed.
    excluded = read_excluded(path)
    assert excluded == Excluded(frozenset({"a", "7"})) and excluded and not Excluded()
    assert "record a is in the list" in excluded.why("a", photos[0])
    assert excluded.why("b", photos[0]) == ""


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "7",
        '{"id": "a", "phash": "green"}',
        "{",
        '{"id": "a", "phash": "fffffffffffffffff"}',
    ],
)
def test_a_list_of_something_else_is_refused(tmp_path, line):
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps({"id": "b", "phash": "ff" * 8}) + f"\n{line}\n")
    with pytest.raises(UserError, match=r"list\.jsonl: no list of records"):
        read_excluded(path)


def test_a_list_with_hashes_says_that_it_needs_the_library(tmp_path, monkeypatch):
    path = tmp_path / "list.jsonl"
    path.write_text('{"id": "a", "phash": "00ff00ff00ff00ff"}\n')
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(UserError, match=r"list\.jsonl needs ImageHash: pip install"):
        read_excluded(path)
