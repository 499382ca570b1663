# SPDX-License-Identifier: Apache-2.0
"""COCO: real samples come in whole; captions, instances and segments meet and are mended."""

import io
import json
from pathlib import Path

import numpy as np
from import_helpers import imported, jpeg, message, why, write_jpegs
from PIL import Image
from pycocotools import mask as coco_mask

from florence2_jax.records.importers import coco, plan_import
from florence2_jax.records.inspection import check_store, statistics
from florence2_jax.records.store import write_store


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
    noted = {kind: counts["noted"] for kind, counts in report["counts"].items()}
    name = "person_keypoints_train2017.json"
    assert noted["file"] == {f"{name} not read: records hold no keypoints": 1}
    assert noted["keypoints"] == {"annotations of people, not read": 172}
    assert noted["image"] == {}
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
        ("region", "no label that is a text"): 2,
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
        f"{tmp_path}/annotations: no captions_NAME.json, instances_NAME.json or "
        "panoptic_NAME.json in it"
    )
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text('{"images": [], "annotations": []}')
    assert message(run, "coco", tmp_path) == (
        f"{tmp_path}: no image folder for val2017; looked for val2017/, images/val2017/, images/"
    )
    (tmp_path / "val2017").mkdir()
    path.write_text("{")
    assert message(run, "coco", tmp_path).startswith(f"{path}: not JSON (")
    path.write_text("[]")
    assert message(run, "coco", tmp_path) == (
        f"{path}: no list 'images' in it; is it a COCO annotation file?"
    )
    path.write_text('{"images": [], "annotations": []}')
    assert message(write_store, tmp_path / "s", plan_import("coco", tmp_path)) == (
        f"{tmp_path}/s: nothing to write: the source lists no images"
    )
    assert message(run, "coco", tmp_path, {"images": f"{tmp_path}/no"}) == (
        f"{tmp_path}/no: no such folder; give the folder of the images, or of val2017/"
    )


def test_coco_is_detected_by_the_names_of_its_files(shared_data, tmp_path):
    assert coco.detect(shared_data / "coco_mini_train2017")
    assert coco.detect(shared_data / "coco_panoptic_sample" / "sample_data")
    assert not coco.detect(shared_data / "bccd_voc")
    assert not coco.detect(tmp_path / "no")
    (tmp_path / "instances.json").write_text("{}")
    assert not coco.detect(tmp_path)


def test_coco_images_elsewhere(tmp_path):
    rows = {"images": [image_row(1, "a.jpg"), image_row(2, "sub/b.jpg")], "annotations": []}
    source = write_coco(tmp_path / "coco", captions=rows)
    (source / "train2017").rmdir()
    for images, root in (("one", "one"), ("two", "two/train2017")):
        write_jpegs(tmp_path / root, "a.jpg", "sub/b.jpg", "other.jpg")
        report, records = imported(
            "coco", source, tmp_path / f"store_{images}", images=tmp_path / images
        )
        assert sorted(records) == ["train2017/a.jpg", "train2017/sub/b.jpg"]
        assert report["counts"]["image"]["noted"] == {
            "images that no annotation file mentions, not read": 1
        }


def test_coco_ids_written_differently_and_rows_given_twice(tmp_path):
    rows = [image_row(1, "a.jpg")]
    names = [*CATEGORIES, {"id": 3, "name": "dog"}, {"id": 3, "name": "elk"}, {"id": "4"}, 5]
    instances = [
        instance(1, "1", [1, 1, 5, 5], category_id="1"),
        instance(1, "1", [1, 1, 5, 5], category_id="1"),
        instance(1, 1.0, [2, 1, 5, 5], iscrowd="0", segmentation=[2, 1, 7, 1, 7, 6]),
        instance(2, 1, [3, 1, "5", 5], iscrowd="1", segmentation=7),
        instance(3, 1, [4, 1, 5, 5], category_id=3),
        instance(4, 1, [4, 1, 5, 5], category_id=[4]),
        instance(5, True, [4, 1, 5, 5]),
        instance(6, None, [4, 1, 5, 5]),
        instance(7, 1, [10**400, 1, 5, 5], segmentation=[["x"]]),
        instance(8, 1, [float("nan"), 1, 5, 5]),
        {"id": "\ud800", "image_id": 1, "category_id": "\ud800"},
    ]
    content = {"images": rows, "annotations": instances, "categories": names}
    source = write_coco(tmp_path / "coco", instances=content)
    write_jpegs(source / "train2017", "a.jpg")
    report, records = imported("coco", source, tmp_path / "s")
    regions = records["train2017/a.jpg"].regions
    assert [region.box for region in regions] == [(1, 1, 6, 6), (2, 1, 7, 6), (3, 1, 8, 6)]
    assert [region.is_crowd for region in regions] == [False, False, True]
    assert regions[1].polygons == ((2, 1, 7, 1, 7, 6),)
    assert why(tmp_path / "s") == {
        ("region", "listed twice"): 1,
        ("region", "no label that is a text"): 3,
        ("region", "its image is not listed"): 2,
        ("region", "box is not four finite numbers"): 2,
        ("polygon", "not pairs of finite numbers"): 2,
    }
    assert report["counts"]["region"]["noted"]["annotation ids given twice"] == 1
    assert report["counts"]["category"]["noted"] == {"ids with two names, taken for nameless": 1}


def test_coco_what_is_nested_deeply_costs_nothing_else(tmp_path):
    deep = "[" * 400 + "]" * 400
    text = json.dumps(
        {
            "images": [image_row(1, "a.jpg"), {"id": "DEEP", "file_name": "DEEP"}],
            "annotations": [
                instance(1, 1, [1, 1, 5, 5], segmentation=["DEEP"]),
                instance(2, 1, "DEEP"),
                instance("DEEP", "DEEP", [1, 1, 5, 5]),
                "DEEP",
            ],
            "categories": [*CATEGORIES, "DEEP"],
        }
    )
    source = write_coco(tmp_path / "coco")
    path = source / "annotations" / "instances_train2017.json"
    path.write_text(text.replace('"DEEP"', deep))
    write_jpegs(source / "train2017", "a.jpg")
    _, records = imported("coco", source, tmp_path / "s")
    assert [region.box for region in records["train2017/a.jpg"].regions] == [(1, 1, 6, 6)]
    assert why(tmp_path / "s") == {
        ("image", "no id, or no file name within the image folder"): 1,
        ("region", "box is not four finite numbers"): 1,
        ("region", "its image is not listed"): 2,
        ("polygon", "not pairs of finite numbers"): 1,
    }
    path.write_text("[" * 10**6)
    assert message(plan_import, "coco", source) == (
        f"{path}: not JSON (nested too deeply); fetch or export it again"
    )
    path.write_bytes(b'{"images": [], "annotations": ["\xe4"]}')
    assert message(plan_import, "coco", source).startswith(f"{path}: not JSON ('utf-8' codec")


# Panoptic segments.


def test_coco_panoptic_sample_comes_in_whole(shared_data, tmp_path):
    source, store = shared_data / "coco_panoptic_sample" / "sample_data", tmp_path / "s"
    report, records = imported("coco", source, store, images=source / "input_images")
    assert report["splits"] == {"examples": 2}
    assert (store / "set_aside.jsonl").read_text() == ""
    for kind, num in (("image", 2), ("segment map", 2), ("region", 50), ("mask", 50)):
        counts = report["counts"][kind]
        assert (counts["read"], counts["kept"]) == (num, num)
    assert report["counts"]["region"]["noted"] == {"stuff, marked as crowd: out of targets": 7}
    truth = json.loads((source / "panoptic_examples.json").read_text())
    names = {row["id"]: row for row in truth["categories"]}
    for number, row in enumerate(truth["annotations"]):
        record = records[f"examples/{row['file_name'][:-3]}jpg"]
        assert len(record.regions) == len(row["segments_info"]) == (18, 32)[number]
        for region, segment in zip(record.regions, row["segments_info"], strict=True):
            x, y, width, height = segment["bbox"]
            category = names[segment["category_id"]]
            assert region.box == (x, y, x + width, y + height)
            assert region.label("category") == category["name"]
            assert region.is_crowd == bool(segment["iscrowd"] or not category["isthing"])
            # Outlines reach as far as the box says, and enclose the area given or more (holes).
            points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in region.polygons])
            assert (*points.min(0), *points.max(0)) == region.box
            assert sum(map(area, region.polygons)) >= segment["area"]
    holes = report["counts"]["mask"]["noted"]["holes filled"]
    exact = sum(
        sum(map(area, region.polygons)) == segment["area"]
        for row in truth["annotations"]
        for region, segment in zip(
            records[f"examples/{row['file_name'][:-3]}jpg"].regions,
            row["segments_info"],
            strict=True,
        )
    )
    assert exact >= 50 - holes
    assert report["counts"]["file"]["noted"] == {
        "images_info_examples.json not read: no captions_, instances_ or panoptic_ file": 1,
        "panoptic_coco_detection_format.json not read: no segments_info in it": 1,
    }
    assert check_store(store)["num_problems"] == 0


def area(ring) -> float:
    x, y = np.reshape(ring, (-1, 2)).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


PANOPTIC_CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 2, "name": "grass", "isthing": 0},
]


def write_panoptic(source: Path, annotations: list, images: list, **pngs) -> Path:
    content = {"images": images, "annotations": annotations, "categories": PANOPTIC_CATEGORIES}
    write_coco(source, panoptic=content)
    folder = source / "annotations" / "panoptic_train2017"
    folder.mkdir()
    for name, image in pngs.items():
        image.save(folder / f"{name}.png", "PNG")
    return source


def colours(width: int = 40, height: int = 30) -> np.ndarray:
    """A cat, of id 5 + 256 * 2 = 517 with a second part, on grass of id 65536."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[15:] = (0, 0, 1)
    pixels[2:6, 3:9] = pixels[20:22, 3:5] = (5, 2, 0)
    return pixels


def segments(*rows) -> list[dict]:
    return [
        {"id": id_, "category_id": category, "bbox": box, "iscrowd": 0}
        for id_, category, box in rows
    ]


CAT, GRASS = (517, 1, [3, 2, 6, 20]), (65536, 2, [0, 15, 40, 15])


def test_coco_segments_are_read_from_colours(tmp_path):
    rows = [
        {"image_id": 1, "file_name": "a.png", "segments_info": segments(CAT, GRASS)},
        {"image_id": 2, "file_name": "gone.png", "segments_info": segments(CAT)},
        {"image_id": 3, "file_name": "small.png", "segments_info": segments(CAT)},
        {"image_id": 4, "file_name": "grey.png", "segments_info": segments(CAT)},
        {
            "image_id": 5,
            "file_name": "a.png",
            "segments_info": [*segments((9, 1, [1, 1, 2, 2])), 7],
        },
        {"image_id": 6, "file_name": "../a.png", "segments_info": segments(CAT)},
        {"image_id": 99, "file_name": "a.png", "segments_info": segments(CAT, GRASS)},
        {"image_id": 1, "file_name": "a.png", "segments_info": segments(CAT)},
        "nonsense",
    ]
    source = write_panoptic(
        tmp_path / "coco",
        rows,
        [image_row(i, f"{i}.jpg") for i in range(1, 7)],
        a=Image.fromarray(colours()),
        small=Image.fromarray(colours(30, 30)),
        grey=Image.fromarray(colours()).convert("L"),
    )
    write_jpegs(source / "train2017", *(f"{i}.jpg" for i in range(1, 7)))
    report, records = imported("coco", source, tmp_path / "s")
    cat, grass = records["train2017/1.jpg"].regions
    assert (cat.box, cat.label("category"), cat.is_crowd) == ((3, 2, 9, 22), "cat", False)
    assert cat.polygons == ((3, 2, 9, 2, 9, 6, 3, 6), (3, 20, 5, 20, 5, 22, 3, 22))
    assert (grass.label("category"), grass.is_crowd) == ("grass", True)
    assert report["counts"]["mask"]["noted"]["holes filled"] == 1  # Where the cat's paw is.
    for i in (2, 3, 4, 5):
        (region,) = records[f"train2017/{i}.jpg"].regions
        assert region.polygons == ()
    assert records["train2017/6.jpg"].regions == ()
    assert why(tmp_path / "s") == {
        ("segment map", "its file is missing: boxes only"): 1,
        ("segment map", "of another size than its image: boxes only"): 1,
        ("segment map", "no PNG of RGB colours: boxes only"): 1,
        ("segment map", "no file name within the folder of segment maps"): 1,
        ("segment map", "second segment map of an image"): 1,
        ("segment map", "its image is not listed"): 2,
        ("region", "no segment"): 1,
        ("region", "no file name within the folder of segment maps"): 1,
        ("region", "second segment map of an image"): 1,
        ("region", "its image is not listed"): 2,
    }
    noted = report["counts"]["segment map"]["noted"]
    assert noted == {"segments without a pixel: boxes only": 1}
    assert (report["counts"]["region"]["read"], report["counts"]["region"]["kept"]) == (11, 6)


def test_coco_instances_win_over_segments_of_the_same_photo(tmp_path):
    images = [image_row(1, "a.jpg"), image_row(2, "b.jpg")]
    rows = [
        {"image_id": 1, "file_name": "a.png", "segments_info": segments(CAT, GRASS)},
        {"image_id": 2, "file_name": "a.png", "segments_info": segments(CAT, GRASS)},
    ]
    source = write_panoptic(tmp_path / "coco", rows, images, a=Image.fromarray(colours()))
    found = [instance(1, 1, [3, 2, 6, 4])]
    content = {"images": images[:1], "annotations": found, "categories": CATEGORIES}
    write_coco(source, instances=content)
    write_jpegs(source / "train2017", "a.jpg", "b.jpg")
    report, records = imported("coco", source, tmp_path / "s")
    assert [region.box for region in records["train2017/a.jpg"].regions] == [(3, 2, 9, 6)]
    assert len(records["train2017/b.jpg"].regions) == 2
    noted = report["counts"]["region"]["noted"]
    assert noted["panoptic segments not read: the image has instances"] == 2


def test_coco_segments_need_their_colours(tmp_path):
    rows = [{"image_id": 1, "file_name": "a.png", "segments_info": segments(CAT)}]
    source = write_panoptic(tmp_path / "coco", rows, [image_row(1, "a.jpg")])
    folder = source / "annotations" / "panoptic_train2017"
    folder.rmdir()
    assert message(plan_import, "coco", source) == (
        f"{folder}: no such folder; unpack the archive of PNG files that came with "
        "panoptic_train2017.json"
    )
