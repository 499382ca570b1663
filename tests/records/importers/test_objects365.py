# SPDX-License-Identifier: Apache-2.0
"""Objects365 v2: a small set in its published form comes in exactly, however it is unpacked."""

import json
from pathlib import Path

import pytest
from import_helpers import imported, message, why, write_jpegs

from florence2_jax.records.importers import objects365, plan_import
from florence2_jax.records.inspection import check_store

CATEGORIES = [{"name": "Person", "id": 1}, {"name": "Cabinet/shelf", "id": 18}]


def photo(id_: int, name: str, **fields) -> dict:
    row = {"height": 30, "id": id_, "license": 5, "width": 40, "file_name": name, "url": ""}
    return row | fields


def box(id_: int, image_id: int, category: int, bbox: list, **fields) -> dict:
    flags = {"iscrowd": 0, "isfake": 0, "isreflected": 0}
    row = {"id": id_, "area": 1.0, "category_id": category, "image_id": image_id, "bbox": bbox}
    return row | flags | fields


def write(folder: Path, split: str, images: list, annotations: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"zhiyuan_objv2_{split}.json"
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    path.write_text(json.dumps(content | {"licenses": [{"name": "CC BY", "id": 5}]}))
    return path


OLD, NEW = "images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_01.jpg"


def test_objects365_comes_in_with_its_flags(tmp_path):
    source = tmp_path / "objects365"
    url = "http://farm1.static.flickr.com/1.jpg"
    annotations = [
        box(1, 1, 1, [1.5, 2.25, 10, 8]),
        box(2, 1, 18, [3, 3, 4, 4], iscrowd=1, isreflected=1),
        box(3, 1, 1, [30, 20, 20, 20], isfake=1),
        box(4, 2, 1, [0, 0, 5, 5]),
        box(5, 2, 1, [0, 0, 5, 0]),
        box(6, 3, 1, [0, 0, 5, 5]),
    ]
    write(source / "train", "train", [photo(1, OLD, url=url), photo(2, NEW)], annotations[:5])
    write(source / "val", "val", [photo(3, OLD)], annotations[5:])
    names = ("train/patch8/objects365_v1_00420917.jpg", "train/patch16/objects365_v2_01.jpg")
    write_jpegs(source, *names, f"val/{OLD}", "train/patch8/other.jpg")
    report, records = imported("objects365", source, tmp_path / "s")
    assert report["splits"] == {"train": 2, "val": 1}
    assert sorted(records) == sorted([*names, "val/patch8/objects365_v1_00420917.jpg"])
    record = records[names[0]]
    assert [region.box for region in record.regions] == [
        (1.5, 2.25, 11.5, 10.25),
        (3, 3, 7, 7),
        (30, 20, 40, 30),
    ]
    labels = [region.label("category") for region in record.regions]
    assert labels == ["Person", "Cabinet/shelf", "Person"]
    assert [region.is_crowd for region in record.regions] == [False, True, False]
    assert (record.origin, records[names[1]].origin) == (url, names[1])
    counts = report["counts"]["region"]
    assert (counts["read"], counts["kept"]) == (6, 5)
    assert counts["set_aside"] == {"box without area": 1}
    assert counts["repaired"] == {"box clipped to the image": 1}
    assert counts["noted"] == {
        "pictures of the thing (isfake), kept like others": 1,
        "mirror images (isreflected), kept like others": 1,
    }
    assert report["counts"]["image"]["noted"] == {
        "images that no annotation file mentions, not read": 1
    }
    assert check_store(tmp_path / "s")["num_problems"] == 0


@pytest.mark.parametrize(
    "layout",
    [
        "train/images/v1/patch8",
        "train/v1/patch8",
        "train/patch8",
        "images/train/v1/patch8",
        "images/train/patch8",
        "images/v1/patch8",
        "images/patch8",
        "v1/patch8",
        "patch8",
        "images/train",
        "train",
        "images",
    ],
)
def test_objects365_images_are_found_where_archives_put_them(tmp_path, layout):
    write(tmp_path / "o" / "annotations", "train", [photo(1, OLD)], [])
    write_jpegs(tmp_path / "o" / layout, "objects365_v1_00420917.jpg")
    _, records = imported("objects365", tmp_path / "o", tmp_path / "s")
    assert list(records) == ["train/patch8/objects365_v1_00420917.jpg"]


def test_objects365_images_elsewhere_and_a_patch_that_is_missing(tmp_path):
    rows = [photo(1, OLD), photo(2, NEW), photo(3, "../../x.jpg"), photo(4, OLD)]
    found = [box(1, 1, 1, [0, 0, 5, 5]), box(2, 2, 1, [0, 0, 5, 5]), box(3, 3, 1, [0, 0, 5, 5])]
    write(tmp_path / "o", "val", rows, found)
    write_jpegs(tmp_path / "elsewhere" / "patch8", "objects365_v1_00420917.jpg")
    _, records = imported(
        "objects365", tmp_path / "o", tmp_path / "s", images=tmp_path / "elsewhere"
    )
    assert list(records) == ["val/patch8/objects365_v1_00420917.jpg"]
    assert why(tmp_path / "s") == {
        ("image", "its file is missing"): 1,
        ("region", "its image was set aside"): 1,
        ("image", "no id, or no file name within the image folder"): 1,
        ("image", "file listed with two image ids"): 1,
        ("region", "its image is not listed"): 1,
    }


def test_what_is_no_objects365_folder_says_so(tmp_path, shared_data):
    assert not objects365.detect(tmp_path / "no")
    assert not objects365.detect(shared_data / "coco_mini_train2017")
    assert message(plan_import, "objects365", tmp_path) == (
        f"{tmp_path}: no zhiyuan_objv2_train.json or zhiyuan_objv2_val.json in it"
    )
    first = write(tmp_path / "train", "train", [photo(1, OLD)], [])
    assert objects365.detect(tmp_path)
    write(tmp_path, "train", [], [])
    assert message(plan_import, "objects365", tmp_path) == (
        f"{first}: the second {first.name} in {tmp_path}; remove one of them"
    )
    (tmp_path / first.name).write_text("[]")
    assert message(plan_import, "objects365", tmp_path) == (
        f"{tmp_path / first.name}: no list 'images' in it; is it an Objects365 annotation file?"
    )
