# SPDX-License-Identifier: Apache-2.0
"""MMOCR lists: the toy sets come in whole; older forms and faults are told apart."""

import json

from import_helpers import imported, message, write_jpegs

from florence2_jax.records.importers import detect, mmocr, plan_import
from florence2_jax.records.inspection import check_store


def test_detection_toy_set(shared_data, tmp_path):
    source = shared_data / "mmocr_toy/det_toy_dataset"
    assert detect(source) == "mmocr"
    report, records = imported("mmocr", source, tmp_path / "s")
    assert report["splits"] == {"test": 10}
    for kind, num in (("image", 10), ("region", 82), ("quad", 82)):
        counts = report["counts"][kind]
        assert (counts["read"], counts["kept"], counts["set_aside"]) == (num, num, {})
    assert sum(r.is_crowd for record in records.values() for r in record.regions) == 61
    first = records["imgs/test/img_10.jpg"]
    assert first.image == (source / "imgs/test/img_10.jpg").read_bytes()
    assert first.regions[1].quad == (288, 138, 417, 140, 416, 161, 290, 157)
    assert first.regions[1].labels == ()
    assert check_store(tmp_path / "s")["num_problems"] == 0


def test_recognition_toy_set(shared_data, tmp_path):
    source = shared_data / "mmocr_toy/rec_toy_dataset"
    report, records = imported("mmocr", source, tmp_path / "s")
    assert report["splits"] == {"train": 10}
    assert report["counts"]["file"]["noted"] == {"older lists beside those of 1.x, not read": 1}
    texts = {id_: record.regions[0].label("text") for id_, record in records.items()}
    assert texts["1223729.jpg"] == "PACIFIC" and texts["1036169.jpg"] == "03/09/2009"
    record = records["1223729.jpg"]
    assert record.regions[0].box == (0, 0, record.width, record.height)


def test_key_information_toy_set(shared_data, tmp_path):
    source = shared_data / "mmocr_toy/kie_toy_dataset/wildreceipt"
    assert detect(source) == "mmocr"
    report, records = imported("mmocr", source, tmp_path / "s")
    assert {id_: len(record.regions) for id_, record in records.items()} == {
        "1.jpeg": 60,
        "2.jpeg": 26,
    }
    assert report["counts"]["quad"]["kept"] == 86
    # wildreceipt begins at the lower left and goes right: against the clock.
    assert report["counts"]["quad"]["repaired"] == {"ran against the clock, turned": 86}
    first = records["1.jpeg"].regions[0]
    assert first.quad == (550, 104, 937, 104, 937, 190, 550, 190)
    assert (first.label("text"), first.label("category")) == ("SAFEWAY", "Store_name_value")
    crowds = [r for record in records.values() for r in record.regions if r.is_crowd]
    assert [r.label("text") for r in crowds] == [""] * 4
    assert all(r.label("category") is None for r in crowds)


def write_list(path, images, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metainfo": {"dataset_type": "x"}, "data_list": images} | fields))


def row(name, *instances, **fields):
    return {"img_path": name, "height": 30, "width": 40, "instances": list(instances)} | fields


def test_spotting_lists_of_two_splits(tmp_path):
    curved = {"polygon": [1, 1, 9, 1, 12, 5, 9, 9, 1, 9], "text": "five", "ignore": False}
    boxed = {"bbox": [2, 3, 12, 9], "text": "box", "bbox_label": 0}
    rows = [
        row("imgs/a.jpg", curved, boxed, {"polygon": [1, 2], "text": "x"}, "nonsense"),
        row("imgs/a.jpg", curved),
        row("../a.jpg"),
        row("imgs/b.jpg", instances=None),
        row("imgs/gone.jpg", boxed),
        7,
    ]
    write_list(tmp_path / "m" / "textspotting_train.json", rows)
    write_list(tmp_path / "m" / "textdet_train.json", rows)
    write_list(tmp_path / "m" / "textspotting_test.json", [row("imgs/t.jpg")])
    (tmp_path / "m" / "notes.json").write_text("{}")
    write_jpegs(tmp_path / "m", "imgs/a.jpg", "imgs/b.jpg", "imgs/t.jpg")
    report, records = imported("mmocr", tmp_path / "m", tmp_path / "s")
    assert report["splits"] == {"test": 1, "train": 1}
    five, box = records["imgs/a.jpg"].regions
    assert five.polygons and five.quad is not None and five.label("text") == "five"
    assert box.box == (2, 3, 12, 9) and box.quad == (2, 3, 12, 3, 12, 9, 2, 9)
    assert report["counts"]["file"]["noted"] == {
        "lists of detection beside those of spotting, not read": 1
    }
    assert report["counts"]["image"]["set_aside"] == {
        "listed twice": 1,
        "no file name within the image folder": 2,
        "no list of instances": 1,
        "its file is missing": 1,
    }
    assert report["counts"]["region"]["set_aside"] == {
        "box is not four finite numbers": 2,
        "its image was set aside": 1,
    }


def test_older_lists(tmp_path):
    lines = [
        {"file_name": "a.jpg", "annotations": [
            {"iscrowd": 1, "category_id": 1, "bbox": [1, 1, 8, 8],
             "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}]},
        {"file_name": "b.jpg", "text": "Word"},
    ]  # fmt: skip
    text = "\n".join([*map(json.dumps, lines), '{"file_name": ', ""])
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "train.txt").write_text(text)
    write_jpegs(tmp_path / "m", "a.jpg", "imgs/b.jpg")
    assert mmocr.detect(tmp_path / "m")
    report, records = imported("mmocr", tmp_path / "m", tmp_path / "s")
    assert records["a.jpg"].regions[0].is_crowd
    assert records["a.jpg"].regions[0].quad == (1, 1, 9, 1, 9, 9, 1, 9)
    assert records["b.jpg"].regions[0].label("text") == "Word"
    assert report["counts"]["image"]["set_aside"] == {"not JSON": 1}
    # The file itself may be given.
    assert len(plan_import("mmocr", tmp_path / "m" / "train.txt").units["train"]) == 2


def test_what_is_no_list_says_so(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "a caption"}\n')
    (tmp_path / "a.json").write_text('{"images": []}')
    assert not mmocr.detect(tmp_path) and not mmocr.detect(tmp_path / "no")
    assert "no list of MMOCR" in message(plan_import, "mmocr", tmp_path)
    (tmp_path / "b.json").write_text('{"data_list": 3}')
    assert "no list 'data_list'" in message(plan_import, "mmocr", tmp_path)
