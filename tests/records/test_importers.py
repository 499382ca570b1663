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

from florence2_jax.records.importers import IMPORTERS, plan_import
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
    report = write_store(store, plan_import(format_name, source, **options), name=format_name)
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


# COCO.


def write_coco(folder: Path, subset: str = "train2017", **files) -> Path:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / subset).mkdir(exist_ok=True)
    for kind, content in files.items():
        (folder / "annotations" / f"{kind}_{subset}.json").write_text(json.dumps(content))
    return folder


def image_row(id_: int, name: str, width: int = 40, height: int = 30) -> dict:
    return {"id": id_, "file_name": name, "width": width, "height": height}


def instance(id_: int, image_id: int, bbox, **fields) -> dict:
    return {"id": id_, "image_id": image_id, "bbox": bbox, "category_id": 1} | fields


CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 7, "name": " "}]


def test_coco_mini_comes_in_whole(shared_data, tmp_path):
    source, store = shared_data / "coco_mini_train2017", tmp_path / "s"
    report, records = imported("coco", source, store)
    assert report["splits"] == {"train": 80}
    for kind, num in (("image", 80), ("caption", 400), ("region", 739), ("mask", 8)):
        counts = report["counts"][kind]
        assert (counts["read"], counts["kept"], counts["set_aside"]) == (num, num, {})
    assert (store / "set_aside.jsonl").read_text() == ""
    assert any("person_keypoints" in note for note in report["counts"]["file"]["noted"])
    counted = statistics(records.values())
    assert len(counted["categories"]) == 80
    assert counted["totals"]["crowds"] == 8
    truth = json.loads((source / "annotations/instances_train2017.json").read_text())
    row = truth["images"][0]
    record = records[f"train2017/{row['file_name']}"]
    assert record.image == (source / "train2017" / row["file_name"]).read_bytes()
    assert record.size == (row["width"], row["height"])
    own = [a for a in truth["annotations"] if a["image_id"] == row["id"]]
    boxes = np.array([a["bbox"] for a in own])
    boxes[:, 2:] += boxes[:, :2]
    ours = np.array([region.box for region in record.regions])
    np.testing.assert_allclose(ours, boxes, atol=1e-4)  # float32 of up to 640.
    assert len(record.texts) == 5
    assert check_store(store)["num_problems"] == 0


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


def test_coco_merges_files_and_mends(tmp_path):
    mask = np.zeros((30, 40), np.uint8, order="F")
    mask[2:5, 3:9] = 1
    rle = coco_mask.encode(mask)
    images = [image_row(1, "a.jpg"), image_row(2, "b.jpg"), image_row(3, "gone.jpg")]
    captions = [
        {"id": 1, "image_id": 1, "caption": "A cat. "},
        {"id": 2, "image_id": 1, "caption": ""},
        {"id": 3, "image_id": 99, "caption": "Nowhere."},
        {"id": 4, "image_id": 3, "caption": "A dog."},
    ]
    instances = [
        instance(1, 1, [1, 2, 10, 10], segmentation=[[1, 2, 11, 2, 11, 12], [1, 2, 3, 4]]),
        instance(2, 1, [3, 2, 6, 3], segmentation={**rle, "counts": rle["counts"].decode()}),
        instance(3, 1, [35, 2, 10, 10], iscrowd=1, segmentation={"size": [30, 40], "counts": [9]}),
        instance(4, 1, [9, 9, -5, -5]),
        instance(5, 1, [9, 9, 0, 5]),
        instance(6, 1, [100, 100, 5, 5]),
        instance(7, 1, None),
        instance(8, 1, [1, 1, "x", 2]),
        instance(9, 1, [1, 1, 2, 2], category_id=5),
        instance(10, 1, [1, 1, 2, 2], category_id=7),
        instance(11, 3, [1, 1, 2, 2]),
        "nonsense",
    ]
    source = write_coco(
        tmp_path / "coco",
        captions={"images": images[:1] + images[2:], "annotations": captions},
        instances={"images": images, "annotations": instances, "categories": CATEGORIES},
    )
    (source / "train2017" / "a.jpg").write_bytes(jpeg())
    (source / "train2017" / "b.jpg").write_bytes(jpeg())
    report, records = imported("coco", source, tmp_path / "s")
    assert sorted(records) == ["train2017/a.jpg", "train2017/b.jpg"]
    assert records["train2017/b.jpg"].regions == records["train2017/b.jpg"].texts == ()
    record = records["train2017/a.jpg"]
    assert [text.text for text in record.texts] == ["A cat."]
    assert [region.box for region in record.regions] == [
        (1, 2, 11, 12),
        (3, 2, 9, 5),
        (35, 2, 40, 12),
        (4, 4, 9, 9),
    ]
    assert [region.is_crowd for region in record.regions] == [False, False, True, False]
    assert [region.label("category") for region in record.regions] == ["cat"] * 4
    assert record.regions[0].polygons == ((1, 2, 11, 2, 11, 12),)
    assert record.regions[1].polygons == ((3, 2, 9, 2, 9, 5, 3, 5),)
    assert record.regions[2].polygons == ()
    assert why(tmp_path / "s") == {
        ("image", "its file is missing"): 1,
        ("caption", "empty"): 1,
        ("caption", "its image is not listed"): 1,
        ("caption", "its image was set aside"): 1,
        ("region", "box without area"): 1,
        ("region", "box outside of the image"): 1,
        ("region", "box is not four finite numbers"): 2,
        ("region", "category without a name"): 2,
        ("region", "its image was set aside"): 1,
        ("region", "its image is not listed"): 1,
        ("polygon", "fewer than three points"): 1,
        ("mask", "runs do not add up to the size of the mask"): 1,
    }
    assert report["counts"]["region"]["read"] == 12 and report["counts"]["region"]["kept"] == 4
    assert report["counts"]["region"]["repaired"] == {
        "box clipped to the image": 1,
        "box was turned inside out": 1,
    }


def test_coco_image_lists_with_faults(tmp_path):
    rows = [
        image_row(1, "a.jpg"),
        image_row(1, "a.jpg"),
        image_row(2, "a.jpg"),
        image_row(3, "../../secret.jpg"),
        {"file_name": "b.jpg"},
        "nonsense",
    ]
    source = write_coco(tmp_path / "coco", captions={"images": rows, "annotations": []})
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    (source / "train2017" / "a.jpg").write_bytes(jpeg())
    report, records = imported("coco", source, tmp_path / "s")
    assert list(records) == ["train2017/a.jpg"]
    assert report["counts"]["image"]["set_aside"] == {
        "image id listed twice": 1,
        "file listed with two image ids": 1,
        "no id, or no file name within the image folder": 3,
    }


def test_coco_splits_follow_the_names(tmp_path):
    for i, subset in enumerate(("train2014", "train2017", "val2017", "my-set")):
        rows = {"images": [image_row(i, "a.jpg")], "annotations": []}
        write_coco(tmp_path / "coco", subset, captions=rows)
        (tmp_path / "coco" / subset / "a.jpg").write_bytes(jpeg())
    report, records = imported("coco", tmp_path / "coco", tmp_path / "s")
    assert report["splits"] == {"train": 2, "val": 1, "my_set": 1}
    assert "my-set/a.jpg" in records


def test_coco_regions_of_another_size_are_set_aside(tmp_path):
    rows = [image_row(1, "a.jpg", width=80, height=60)]
    source = write_coco(
        tmp_path / "coco",
        captions={"images": rows, "annotations": [{"id": 1, "image_id": 1, "caption": "Hi."}]},
        instances={
            "images": rows,
            "annotations": [instance(1, 1, [1, 1, 5, 5])],
            "categories": CATEGORIES,
        },
    )
    (source / "train2017" / "a.jpg").write_bytes(jpeg())
    _, records = imported("coco", source, tmp_path / "s")
    assert records["train2017/a.jpg"].size == (40, 30)
    assert len(records["train2017/a.jpg"].texts) == 1
    assert why(tmp_path / "s") == {("region", "annotated at another size of the image"): 1}


def test_coco_annotations_of_the_turned_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = [image_row(1, "a.jpg", width=30, height=40)]
    content = {"images": rows, "annotations": [instance(1, 1, [1, 1, 28, 38])]}
    source = write_coco(tmp_path / "coco", instances=content | {"categories": CATEGORIES})
    (source / "train2017" / "a.jpg").write_bytes(jpeg(40, 30, exif=exif))
    _, records = imported("coco", source, tmp_path / "s")
    record = records["train2017/a.jpg"]
    assert record.size == Image.open(io.BytesIO(record.image)).size == (30, 40)
    assert record.regions[0].box == (1, 1, 29, 39)


def test_what_is_no_coco_folder_says_so(tmp_path):
    run = plan_import
    assert message(run, "coco", tmp_path / "no") == (
        f"{tmp_path}/no: no such folder; give the folder that holds the dataset"
    )
    assert message(run, "coco", tmp_path) == (
        f"{tmp_path}: no folder annotations in it; give the folder that holds annotations/ and the "
        "image folders, such as train2017/"
    )
    (tmp_path / "annotations").mkdir()
    assert message(run, "coco", tmp_path) == (
        f"{tmp_path}/annotations: no captions_NAME.json or instances_NAME.json in it"
    )
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text("{")
    assert message(run, "coco", tmp_path) == (
        f"{tmp_path}: no image folder for val2017; looked for val2017/, images/val2017/, images/"
    )
    (tmp_path / "val2017").mkdir()
    assert message(run, "coco", tmp_path).startswith(f"{path}: not JSON (")
    path.write_text("[]")
    assert message(run, "coco", tmp_path) == (
        f"{path}: no list 'images' in it; is it a COCO annotation file?"
    )
    path.write_text('{"images": [], "annotations": []}')
    assert message(write_store, tmp_path / "s", plan_import("coco", tmp_path)) == (
        f"{tmp_path}/s: nothing to write: the source lists no images"
    )
    assert message(run, "coco", tmp_path, one_based=True) == (
        "--one-based says nothing about format 'coco'; leave it out"
    )
    assert message(run, "yolo", tmp_path) == (
        f"format 'yolo' is unknown; there are {sorted(IMPORTERS)}"
    )


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
