# SPDX-License-Identifier: Apache-2.0
"""LVIS v1: a small set in its published form comes in exactly."""

import json
from pathlib import Path

import pytest
from import_helpers import imported, message, why, write_jpegs

from florence2_jax.records.importers import lvis, plan_import
from florence2_jax.records.inspection import check_store

CATEGORIES = [
    {
        "id": 1,
        "name": "bow_(weapon)",
        "synset": "bow.n.04",
        "synonyms": ["bow_(weapon)"],
        "def": "a weapon for shooting arrows",
        "frequency": "r",
        "image_count": 1,
        "instance_count": 1,
    },
    {"id": 2, "name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can"], "frequency": "c"},
    {"id": 3, "name": "cat", "synonyms": ["cat"], "frequency": "f"},
]


def photo(id_: int, folder: str, **fields) -> dict:
    row = {
        "id": id_,
        "coco_url": f"http://images.cocodataset.org/{folder}/{id_:012}.jpg",
        "flickr_url": f"http://farm9.staticflickr.com/{id_}.jpg",
        "width": 40,
        "height": 30,
        "license": 1,
        "date_captured": "2013-11-14 11:18:45",
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
    }
    return row | fields


def instance(id_: int, image_id: int, category: int, box: list, **fields) -> dict:
    x, y, width, height = box
    ring = [x, y, x + width, y, x + width, y + height]
    row = {"id": id_, "image_id": image_id, "category_id": category, "bbox": box}
    return row | {"area": width * height / 2, "segmentation": [ring]} | fields


def write(folder: Path, split: str, images: list, annotations: list, **fields) -> Path:
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    path = folder / "annotations" / f"lvis_v1_{split}.json"
    path.write_text(json.dumps(content | fields))
    return path


def test_lvis_comes_in_with_its_words_splits_and_outlines(tmp_path):
    source = tmp_path / "lvis"
    train = [
        photo(391895, "train2017", neg_category_ids=[2, 3], not_exhaustive_category_ids=[1]),
        photo(7, "val2017"),
    ]
    found = [
        instance(1, 391895, 1, [1.5, 2, 10, 8]),
        instance(2, 391895, 2, [3, 3, 4, 4]),
        instance(3, 7, 3, [0, 0, 5, 5]),
        instance(4, 391895, 9, [0, 0, 5, 5]),
    ]
    write(source, "train", train, found)
    write(
        source,
        "val",
        [photo(22, "train2017"), photo(7, "val2017")],
        [instance(5, 22, 3, [1, 1, 9, 9])],
    )
    (source / "annotations" / "lvis_v1_image_info_test_dev.json").write_text("{}")
    names = ("train2017/000000391895", "train2017/000000000022", "val2017/000000000007")
    write_jpegs(source, *(f"{name}.jpg" for name in names), "train2017/other.jpg")
    report, records = imported("lvis", source, tmp_path / "s")
    assert report["splits"] == {"train": 1, "val": 2}
    assert sorted(records) == sorted(f"{name}.jpg" for name in names)
    first, second = records["train2017/000000391895.jpg"].regions
    assert first.box == (1.5, 2, 11.5, 10)
    assert first.polygons == ((1.5, 2, 11.5, 2, 11.5, 10),)
    assert [r.label("category") for r in (first, second)] == ["bow (weapon)", "aerosol can"]
    origin = "http://images.cocodataset.org/train2017/000000391895.jpg"
    assert records["train2017/000000391895.jpg"].origin == origin
    assert len(records["val2017/000000000007.jpg"].regions) == 1
    counts = report["counts"]
    assert (counts["image"]["read"], counts["image"]["kept"]) == (3, 3)
    assert (counts["region"]["read"], counts["region"]["kept"]) == (5, 4)
    assert why(tmp_path / "s") == {("region", "no label that is a text"): 1}
    assert counts["image"]["repaired"] == {"listed in val and train, is in val": 1}
    assert counts["image"]["noted"] == {"images that no annotation file mentions, not read": 1}
    assert counts["category"]["noted"] == {
        "synonyms, not read": 8,
        "names known to be absent from an image, not read": 2,
        "names of which not all are marked in an image, not read": 1,
    }
    name = "lvis_v1_image_info_test_dev.json"
    assert counts["file"]["noted"] == {f"{name} not read: neither lvis_v1_train nor lvis_v1_val": 1}
    assert check_store(tmp_path / "s")["num_problems"] == 0


@pytest.mark.parametrize("layout", ["images/train2017", "flat"])
def test_lvis_photos_of_coco_elsewhere(tmp_path, layout):
    source = tmp_path / "lvis"
    write(source, "train", [photo(1, "train2017")], [])
    write_jpegs(source / layout, "000000000001.jpg")
    options = {"images": source / "flat"} if layout == "flat" else {}
    _, records = imported("lvis", source, tmp_path / "s", **options)
    assert list(records) == ["train2017/000000000001.jpg"]


def test_lvis_rows_with_faults_cost_only_themselves(tmp_path):
    source = tmp_path / "lvis"
    images = [
        photo(1, "train2017"),
        photo(2, "..", coco_url="http://x/../secret.jpg"),
        photo(3, "train2017", coco_url=None),
        photo(4, "train2017", coco_url="alone.jpg"),
        photo(5, "no_such_folder"),
        photo(6, "train2017", coco_url="http://x/train2017/000000000001.jpg"),
    ]
    found = [instance(1, 1, 3, [1, 1, 5, 5]), instance(2, 2, 3, [1, 1, 5, 5]), None, []]
    write(source, "train", images, found)
    write_jpegs(source / "train2017", "000000000001.jpg")
    (tmp_path / "secret.jpg").write_bytes(b"")
    _, records = imported("lvis", source, tmp_path / "s")
    assert [region.box for region in records["train2017/000000000001.jpg"].regions] == [
        (1, 1, 6, 6)
    ]
    assert why(tmp_path / "s") == {
        ("image", "no id, or no file name within the image folder"): 3,
        ("image", "its file is missing"): 1,
        ("image", "file listed with two image ids"): 1,
        ("region", "its image is not listed"): 3,
    }


def test_what_is_no_lvis_folder_says_so(tmp_path, shared_data):
    assert not lvis.detect(tmp_path / "no")
    assert not lvis.detect(shared_data / "coco_mini_train2017")
    assert message(plan_import, "lvis", tmp_path) == (
        f"{tmp_path}: no lvis_v1_train.json or lvis_v1_val.json in it"
    )
    path = write(tmp_path, "train", [photo(1, "train2017")], [])
    assert lvis.detect(tmp_path)
    assert lvis.detect(path.parent)
    assert message(plan_import, "lvis", tmp_path).startswith(f"{tmp_path}: no folder of images; ")
    path.write_text('{"images": []}')
    assert message(plan_import, "lvis", tmp_path) == (
        f"{path}: no list 'annotations' in it; is it an LVIS v1 annotation file?"
    )
