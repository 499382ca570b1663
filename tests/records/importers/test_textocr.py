# SPDX-License-Identifier: Apache-2.0
"""TextOCR: a file in the published form comes in exactly; what is wrong in it is set aside."""

import json

import numpy as np
import pytest
from import_helpers import imported, message, why, write_jpegs

from florence2_jax.records.importers import detect, plan_import, textocr
from florence2_jax.records.importers.words import clockwise, reading_quad

ARCH = [5, 20, 5, 12, 15, 5, 25, 5, 35, 12, 35, 20, 29, 20, 23, 11, 17, 11, 11, 20]


def word(id_, image_id, points, text, **fields):
    xs, ys = points[::2], points[1::2]
    bbox = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    row = {"id": id_, "image_id": image_id, "bbox": bbox, "utf8_string": text}
    return row | {"points": points, "area": bbox[2] * bbox[3]} | fields.get("but", {})


def photo(id_, name, **fields):
    row = {"id": id_, "width": 40, "height": 30, "set": "train", "file_name": name}
    return row | fields


def write_file(folder, split, photos, words):
    folder.mkdir(parents=True, exist_ok=True)
    of_image = {p["id"]: [w["id"] for w in words if w["image_id"] == p["id"]] for p in photos}
    content = {"imgs": {p["id"]: p for p in photos}, "anns": {w["id"]: w for w in words}}
    content["imgToAnns"] = of_image
    (folder / f"TextOCR_0.1_{split}.json").write_text(json.dumps(content))
    return folder


def test_words_become_quads(tmp_path):
    words = [
        word("a_1", "a", [2, 3, 12, 3, 12, 9, 2, 9], "Open"),
        word("a_2", "a", ARCH, "PIZZERIA"),
        word("a_3", "a", [20, 22, 30, 22, 30, 28, 20, 28], "."),
        word("12_1", "12", [1, 1, 9, 1, 9, 9, 1, 9], "é"),
    ]
    photos = [photo("a", "train/a.jpg", flickr_url="http://x/a.jpg"), photo("12", "train/12.jpg")]
    source = write_file(tmp_path / "t", "train", photos, words)
    write_file(source, "val", [photo("v", "train/v.jpg", set="val")], [])
    write_jpegs(source, "train/a.jpg", "train_images/12.jpg", "train_images/v.jpg")
    assert detect(source) == "textocr"
    report, records = imported("textocr", source, tmp_path / "s")
    assert report["splits"] == {"val": 1, "train": 2}
    counts = report["counts"]
    assert [counts[k]["kept"] for k in ("image", "region", "quad", "polygon")] == [3, 4, 4, 1]
    assert all(not kind["set_aside"] for kind in counts.values())
    straight, arch, illegible = records["train/a.jpg"].regions
    assert straight.quad == (2, 3, 12, 3, 12, 9, 2, 9) and straight.polygons == ()
    assert straight.label("text") == "Open" and straight.box == (2, 3, 12, 9)
    assert arch.polygons == (tuple(map(float, ARCH)),) and arch.box == (5, 5, 35, 20)
    assert arch.quad == pytest.approx((5, 5, 35, 5, 35, 20, 5, 20))
    assert illegible.is_crowd and illegible.label("text") == ""
    assert records["train/a.jpg"].origin == "http://x/a.jpg"
    assert records["train/12.jpg"].regions[0].label("text") == "é"


def test_what_is_wrong_costs_only_itself(tmp_path):
    square = [2, 3, 12, 3, 12, 9, 2, 9]
    words = [
        word("1", "a", square, "good"),
        word("2", "gone", square, "lost"),
        word("3", "a", square, None),
        word("4", "a", square, "box", but={"points": None}),
        word("5", "a", square, "x", but={"points": ["a", 1, 2, 3, 4, 5]}),
        word("6", "a", square, "x", but={"points": None, "bbox": float("nan")}),
        {"id": "7", "image_id": "a"},
        word("8", "a", [2, 3, 2, 9, 12, 9, 12, 3], "down first"),
        word("9", "a", square, "numbers as texts", but={"points": [str(v) for v in square]}),
    ]
    photos = [photo("a", "a.jpg"), photo("b", "../a.jpg"), photo("c", "a.jpg"), photo("d", "d.jpg")]
    source = write_file(tmp_path / "t", "train", photos, words)
    write_jpegs(source, "a.jpg", "bare.jpg")
    report, records = imported("textocr", source, tmp_path / "s")
    texts = [region.label("text") for region in records["a.jpg"].regions]
    assert texts == ["good", "box", "down first", "numbers as texts"]
    assert records["a.jpg"].regions[2].quad == (2, 3, 12, 3, 12, 9, 2, 9)
    assert report["counts"]["quad"]["repaired"] == {"ran against the clock, turned": 1}
    assert report["counts"]["image"]["set_aside"] == {
        "no file name within the image folder": 1,
        "file listed twice": 1,
        "its file is missing": 1,
    }
    assert report["counts"]["region"]["set_aside"] == {
        "its image is not listed": 1,
        "no label that is a text": 2,
        "box is not four finite numbers": 2,
    }
    assert why(tmp_path / "s")["polygon", "not pairs of finite numbers"] == 2


def test_what_is_held_out_stays_out_of_training(tmp_path):
    for split in ("train", "val"):
        write_file(tmp_path / "t", split, [photo("a", "a.jpg")], [])
    write_jpegs(tmp_path / "t", "a.jpg")
    report, _ = imported("textocr", tmp_path / "t", tmp_path / "s")
    assert report["splits"] == {"val": 1}


def test_what_is_no_textocr_says_so(tmp_path):
    assert not textocr.detect(tmp_path) and not textocr.detect(tmp_path / "no")
    assert "no TextOCR_*.json" in message(plan_import, "textocr", tmp_path)
    path = tmp_path / "TextOCR_0.1_val.json"
    path.write_text("{")
    assert "not JSON" in message(plan_import, "textocr", tmp_path)
    path.write_text("[]")
    assert "no object 'imgs'" in message(plan_import, "textocr", tmp_path)


@pytest.mark.parametrize("turn", range(0, 360, 30))
def test_quads_read_as_their_outlines_do(turn):
    # An arch, which begins at its lower left, turned by any angle.
    angle = np.deg2rad(turn)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    ring = np.reshape(ARCH, (-1, 2)) @ rotation
    quad = np.reshape(reading_quad(ring.ravel().tolist()), (4, 2))
    expected = np.array([[5, 5], [35, 5], [35, 20], [5, 20]]) @ rotation
    np.testing.assert_allclose(quad, expected, atol=1e-9)


def test_quads_run_clockwise():
    right = [0, 0, 4, 0, 4, 2, 0, 2]
    assert clockwise(right) == right
    assert clockwise([0, 0, 0, 2, 4, 2, 4, 0]) == right  # Down first.
    assert clockwise([0, 2, 4, 2, 4, 0, 0, 0]) == right  # From the lower left.
    assert reading_quad([3, 3, 3, 3, 3, 3]) is None
    assert reading_quad([0, 0, 4, 0, 8, 0]) is not None  # A line: mending refuses it.
