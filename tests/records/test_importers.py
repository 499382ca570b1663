# SPDX-License-Identifier: Apache-2.0
"""Importers: real datasets come in whole, small hand-written ones show every mending."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from florence2_jax.records.importers import plan_import
from florence2_jax.records.importers.drawn import plan_scenes
from florence2_jax.records.importers.masks import MaskError, decode_rle, trace_mask
from florence2_jax.records.inspection import check_store, statistics
from florence2_jax.records.scenes import SceneConfig, draw_scene
from florence2_jax.records.store import RecordStore, as_stored, splits_of, write_store
from florence2_jax.typing import UserError


def jpeg(width: int = 40, height: int = 30, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **options)
    return out.getvalue()


def message(function, *args, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def imported(format_name: str, source: Path, store: Path, **options):
    """The report of an import and its records by id."""
    texts = {name: str(value) for name, value in options.items()}
    report = write_store(store, plan_import(format_name, source, texts), name=format_name)
    records = {r.id: r for split in splits_of(store) for r in RecordStore(store, split)}
    return report, records


def why(store: Path) -> Counter:
    """Reasons of the quarantine file."""
    counts: Counter = Counter()
    for entry in map(json.loads, (store / "set_aside.jsonl").read_text().splitlines()):
        counts[entry["kind"], entry["why"]] += entry.get("count", 1)
    return counts


# Masks.


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**81 - 1), st.booleans())
def test_rle_of_the_coco_api_is_decoded(height, width, bits, is_compressed):
    rows = [[bool(bits >> (y * width + x) & 1) for x in range(width)] for y in range(height)]
    mask = np.asfortranarray(rows, np.uint8)
    rle = coco_mask.encode(mask)
    if is_compressed:
        rle = {"size": rle["size"], "counts": rle["counts"].decode()}
    else:
        flat = mask.reshape(-1, order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *edges.tolist(), flat.size]).tolist()
        rle = {"size": [height, width], "counts": [0, *runs] if flat[0] else runs}
    np.testing.assert_array_equal(decode_rle(rle), mask.astype(bool))


@pytest.mark.parametrize(
    ("rle", "error"),
    [
        ({"size": [2, 2], "counts": [1, 2]}, "do not add up"),
        ({"size": [2, 2], "counts": [5, -1]}, "do not add up"),
        ({"size": [100_000, 100_000], "counts": [10**10]}, "too many pixels"),
        ({"size": [2, 2], "counts": "\x01"}, "cannot be read"),
        ({"size": [2, 2], "counts": "o"}, "cannot be read"),  # A number that goes on.
        ({"size": [2, 2], "counts": "o" * 99}, "cannot be read"),
        ({"counts": [4]}, "cannot be read"),
        ({"size": None, "counts": [4]}, "cannot be read"),
    ],
)
def test_senseless_rle_is_refused(rle, error):
    with pytest.raises(MaskError, match=error):
        decode_rle(rle)


def inside(polygon, height: int, width: int) -> np.ndarray:
    """Pixels whose centre lies in a polygon: crossings to the left of it, counted one by one."""
    points = np.reshape(polygon, (-1, 2))
    y, x = np.mgrid[:height, :width] + 0.5
    crossings = np.zeros((height, width), int)
    for (x0, y0), (_, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:  # Edges of pixels are upright or level.
            crossings += (min(y0, y1) < y) & (y < max(y0, y1)) & (x0 < x)
    return crossings % 2 == 1


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**49 - 1))
def test_traced_polygons_are_the_mask_with_its_holes_filled(height, width, bits):
    rows = [[bool(bits >> (y * width + x) & 1) for x in range(width)] for y in range(height)]
    mask = np.array(rows, bool)
    polygons, num_holes = trace_mask(mask)
    painted = np.zeros_like(mask)
    for polygon in polygons:
        painted |= inside(polygon, height, width)
    assert not (mask & ~painted).any()
    # A hole is background that no way over sides or corners leads out of.
    outside = np.pad(~mask, 1, constant_values=True)
    reached = np.zeros_like(outside)
    reached[0, 0] = True
    for _ in range(outside.size):
        grown = np.pad(reached, 1)
        shifts = [
            grown[i : i + reached.shape[0], j : j + reached.shape[1]]
            for i in range(3)
            for j in range(3)
        ]
        reached = np.logical_or.reduce(shifts) & outside
    np.testing.assert_array_equal(painted, ~reached[1:-1, 1:-1])
    assert (num_holes > 0) == bool((painted & ~mask).any())


def test_parts_that_touch_at_a_corner_are_two():
    polygons, num_holes = trace_mask(np.eye(2, dtype=bool))
    assert polygons == [(0, 0, 1, 0, 1, 1, 0, 1), (1, 1, 2, 1, 2, 2, 1, 2)]
    assert num_holes == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools.
def test_coco_crowds_of_the_real_set_keep_their_area(shared_data):
    path = shared_data / "coco_mini_train2017/annotations/instances_train2017.json"
    crowds = [a for a in json.loads(path.read_text())["annotations"] if a["iscrowd"]]
    assert len(crowds) == 8
    for annotation in crowds:
        height, width = annotation["segmentation"]["size"]
        rle = coco_mask.frPyObjects(annotation["segmentation"], height, width)
        mask = decode_rle(annotation["segmentation"])
        np.testing.assert_array_equal(mask, coco_mask.decode(rle).astype(bool))
        polygons, _ = trace_mask(mask)
        painted = np.logical_or.reduce([inside(p, height, width) for p in polygons])
        assert not (mask & ~painted).any()


# Pascal VOC.


def voc_object(name: str, box, **flags) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    values = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
    tags = "".join(f"<{flag}>{value}</{flag}>" for flag, value in flags.items())
    return f"<object><name>{name}</name>{tags}<bndbox>{values}</bndbox></object>"


def write_voc(folder: Path, annotations: dict[str, str], lists: dict[str, str] | None = None):
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    for stem, body in annotations.items():
        size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
        text = body if body.startswith("<?") else f"<annotation>{size}{body}</annotation>"
        (folder / "Annotations" / f"{stem}.xml").write_text(text)
        (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(jpeg())
    if lists is not None:
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        for name, text in lists.items():
            (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return folder


def test_bccd_comes_in_whole(shared_data, tmp_path):
    report, records = imported("voc", shared_data / "bccd_voc", tmp_path / "s")
    assert report["splits"] == {"train": 205, "val": 87, "test": 72}
    regions = report["counts"]["region"]
    assert (regions["read"], regions["kept"]) == (4888, 4886)
    assert regions["set_aside"] == {"box without area": 2}
    lines = (tmp_path / "s" / "set_aside.jsonl").read_text().splitlines()
    assert [(e["where"], e["value"]) for e in map(json.loads, lines)] == [
        ("BloodImage_00338.xml object 12", ["504", "337", "504", "337"]),
        ("BloodImage_00343.xml object 3", ["181", "329", "181", "329"]),
    ]
    counted = statistics(records.values())["categories"]
    aside = Counter({"RBC": 4155, "WBC": 372, "Platelets": 361}) - Counter(counted)
    assert aside.total() == 2
    names = (shared_data / "bccd_voc/BCCD/ImageSets/Main/test.txt").read_text().split()
    assert {r.id for r in RecordStore(tmp_path / "s", "test")} == set(names)
    first = records["BloodImage_00000"]
    assert first.regions[0].box == (260, 177, 491, 376)
    assert first.regions[0].label("category") == "WBC"
    path = shared_data / "bccd_voc/BCCD/JPEGImages/BloodImage_00000.jpg"
    assert first.image == path.read_bytes()
    assert check_store(tmp_path / "s")["num_problems"] == 0


def test_voc_flags_values_and_one_based(tmp_path):
    body = (
        voc_object("cat", (1, 1, 40, 30), difficult=1)
        + voc_object("dog", ("2.5", 3, 9, 9), truncated=1, difficult=0)
        + voc_object("cow", ("x", 3, 9, 9))
        + voc_object("", (1, 1, 9, 9))
        + "<object><name>elk</name></object>"
    )
    source = write_voc(tmp_path / "voc", {"a": body})
    report, records = imported("voc", source, tmp_path / "s")
    boxes = [region.box for region in records["a"].regions]
    assert boxes == [(1, 1, 40, 30), (2.5, 3, 9, 9)]
    assert [region.is_crowd for region in records["a"].regions] == [True, False]
    assert report["counts"]["region"]["set_aside"] == {
        "box is not four finite numbers": 2,
        "empty": 1,
    }
    _, records = imported("voc", source, tmp_path / "t", one_based=True)
    boxes = [region.box for region in records["a"].regions]
    assert boxes == [(0, 0, 40, 30), (1.5, 2, 9, 9)]


def test_voc_lists_make_the_splits(tmp_path):
    body = voc_object("cat", (1, 1, 9, 9))
    lists = {
        "train": "a\nb\nno_such\n",
        "val": "c  1\n",
        "test": "b\n",
        "trainval": "a\nb\nc\nd\n",
        "cat_train": "d 1\n",
    }
    source = write_voc(tmp_path / "voc", dict.fromkeys("abcd", body), lists)
    report, _ = imported("voc", source, tmp_path / "s")
    assert report["splits"] == {"train": 1, "test": 1, "val": 1}
    image = report["counts"]["image"]
    assert image["repaired"] == {"listed in test and train, is in test": 1}
    assert image["set_aside"] == {
        "in no list of ImageSets/Main": 1,
        "listed, but has no annotation file": 1,
    }


def test_voc_without_lists_splits_by_hash(tmp_path):
    body = voc_object("cat", (1, 1, 9, 9))
    source = write_voc(tmp_path / "voc", {f"image{i}": body for i in range(30)})
    report, records = imported("voc", source, tmp_path / "s")
    assert sum(report["splits"].values()) == len(records) == 30
    assert set(report["splits"]) == {"train", "val"}


BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""


def test_voc_files_that_are_not_read_are_set_aside(tmp_path):
    body = voc_object("cat", (1, 1, 9, 9))
    annotations = {
        "bomb": BOMB,
        "broken": "<?xml version='1.0'?><annotation>",
        "other": "<?xml version='1.0'?><html/>",
        "encoding": "<?xml version='1.0' encoding='none'?><annotation/>",
        "gone": body,
        "good": body,
        "text": body,
    }
    source = write_voc(tmp_path / "voc", annotations)
    (source / "JPEGImages" / "gone.jpg").unlink()
    (source / "JPEGImages" / "text.jpg").write_bytes(b"no image")
    (source / "JPEGImages" / "bare.jpg").write_bytes(jpeg())
    report, records = imported("voc", source, tmp_path / "s")
    assert list(records) == ["good"]
    assert report["counts"]["image"]["set_aside"] == {
        "annotation file holds a document type": 1,
        "annotation file is not XML": 2,
        "annotation file has no <annotation>": 1,
        "its file is missing": 1,
        "no image of a known format, or cut off": 1,
    }
    assert report["counts"]["region"]["set_aside"] == {"its image was set aside": 2}
    assert report["counts"]["image"]["noted"] == {"images without an annotation file, not read": 1}


def test_what_is_no_voc_folder_says_so(tmp_path):
    assert message(plan_import, "voc", tmp_path) == (
        f"{tmp_path}: no folders Annotations and JPEGImages in it; is it Pascal VOC?"
    )
    write_voc(tmp_path / "VOC2007", {})
    write_voc(tmp_path / "VOC2012", {})
    assert message(plan_import, "voc", tmp_path) == (
        f"{tmp_path}: holds more than one dataset, ['VOC2007', 'VOC2012']; give one of them"
    )


# Drawn scenes.


def test_scenes_are_drawn_into_a_store(tmp_path):
    config = SceneConfig(size_px=64)
    plan = plan_scenes(12, config, seed=3, num_validation=4)
    report = write_store(tmp_path / "s", plan, examples_per_shard=4)
    assert report["splits"] == {"train": 8, "validation": 4}
    validation = RecordStore(tmp_path / "s", "validation")
    assert list(validation) == [as_stored(draw_scene(i, config, 3)) for i in range(4)]
    assert check_store(tmp_path / "s")["num_problems"] == 0


def test_scenes_are_held_out_by_the_hash_of_their_split_key():
    config = SceneConfig()
    units = plan_scenes(1000, config).units
    assert sorted([*units["train"], *units["validation"]]) == list(range(1000))
    assert 60 < len(units["validation"]) < 140  # Four standard deviations around 100.
    assert set(plan_scenes(500, config).units["validation"]) <= set(units["validation"])
    assert draw_scene(7, config).split_key == "scene-000007"  # What the hash was taken of.
    assert "hold out 0 or more of 5" in message(plan_scenes, 5, config, num_validation=5)
