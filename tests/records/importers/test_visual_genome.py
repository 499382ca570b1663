# SPDX-License-Identifier: Apache-2.0
"""Visual Genome: regions, objects and questions of an image in one record."""

import functools
import json
from pathlib import Path

import import_helpers
import numpy as np
import pytest
from import_helpers import counts
from PIL import Image

from florence2_jax.records.importers import detect as detect_format
from florence2_jax.records.importers import plan_import
from florence2_jax.records.importers.visual_genome import detect
from florence2_jax.typing import UserError

SIZE = (40, 30)


imported = functools.partial(import_helpers.imported, "visual_genome")


def write(folder: Path, **files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SIZE[::-1], 3), np.uint8)).save(path)


def image_row(number, **fields) -> dict:
    row = {"image_id": number, "width": SIZE[0], "height": SIZE[1], "flickr_id": None}
    return row | {"url": f"https://example.org/VG_100K/{number}.jpg", "coco_id": None} | fields


def region(number, phrase="red cup", box=(1, 2, 10, 20), **fields) -> dict:
    x, y, width, height = box
    place = {"x": x, "y": y, "width": width, "height": height}
    return {"region_id": number, "phrase": phrase} | place | fields


def thing(number, *names, box=(1, 2, 10, 20)) -> dict:
    x, y, w, h = box
    return {
        "object_id": number,
        "names": list(names),
        "synsets": [],
        "x": x,
        "y": y,
        "w": w,
        "h": h,
    }


def question(number, text="Who?", answer="Me.") -> dict:
    return {"qa_id": number, "question": text, "answer": answer, "a_objects": []}


def test_sample_of_questions_comes_in_whole(shared_data, tmp_path):
    sample = shared_data / "vqa_gqa_vg_samples"
    images = sample / "images/vgqa"
    assert detect(sample / "vgqa")
    report, records = imported(sample / "vgqa", tmp_path / "s", images=images)
    assert report["splits"] == {"train": 2}
    assert counts(report, "image") == (2, 2, {}) and counts(report, "question") == (8, 8, {})
    assert report["counts"]["image"]["repaired"] == {}  # No size is stated: none is missing.
    noted = report["counts"]["image"]["noted"]
    assert noted == {"images that no annotation file mentions, not read": 4}
    assert {id_: len(record.questions) for id_, record in records.items()} == {
        "visual_genome/4.jpg": 5,
        "visual_genome/5.jpg": 3,
    }
    record = records["visual_genome/4.jpg"]
    assert record.image == (images / "4.jpg").read_bytes()
    assert record.questions[0].question == "What is on the curtains?"
    assert record.questions[0].answers == ("Sailboats.",)


def test_all_files_become_one_record_per_image(tmp_path):
    source = write(
        tmp_path / "vg",
        image_data=[image_row(1, coco_id=77), image_row(2), image_row(3)],
        region_descriptions=[{"id": 1, "regions": [region(10), region(11, "a dog", (0, 0, 9, 9))]}],
        objects_v1_2=[{"image_id": 1, "objects": [thing(20, "cup"), thing(21, "man", "person")]}],
        question_answers=[{"id": 2, "qas": [question(30)]}],
        attributes=[],
    )
    write_image(source / "VG_100K" / "1.jpg")
    write_image(source / "VG_100K_2" / "2.jpg")
    report, records = imported(source, tmp_path / "s")
    assert detect_format(source) == "visual_genome"
    record = records["visual_genome/1.jpg"]
    assert record.origin == "https://example.org/VG_100K/1.jpg"
    assert [(r.box, r.label("brief"), r.label("category")) for r in record.regions] == [
        ((1, 2, 11, 22), "red cup", None),
        ((0, 0, 9, 9), "a dog", None),
        ((1, 2, 11, 22), None, "cup"),
        ((1, 2, 11, 22), None, "man"),
    ]
    assert records["visual_genome/2.jpg"].questions[0].answers == ("Me.",)
    assert counts(report, "image") == (3, 2, {"its file is missing": 1})
    assert counts(report, "region") == (4, 4, {}) and counts(report, "question") == (1, 1, {})
    assert report["counts"]["region"]["noted"] == {
        "objects with more than one name, the first is read": 1
    }
    assert report["counts"]["image"]["noted"] == {
        "also a photo of COCO: mind what that holds out": 1
    }
    assert report["counts"]["file"]["noted"] == {
        "attributes.json not read: records have no place for it": 1
    }


def test_faults_cost_no_neighbours(tmp_path):
    source = write(
        tmp_path / "vg",
        image_data=[image_row(1), image_row(1), {"width": 3}, "nonsense", image_row(-2)],
        region_descriptions=[
            {
                "id": "1",
                "regions": [
                    region(10),
                    region(10),
                    region(10, "another"),
                    region(11, ""),
                    region(12, 5),
                    region(13, box=(1, 2, float("nan"), 3)),
                    region(14, box=("1", "2", "3", "4")),
                    region(15, box=(35, 2, 10, 10)),
                    region(16, box=(1, 2, 0, 4)),
                    {"region_id": 17},
                    "nonsense",
                ],
            },
            {"id": 5, "regions": [region(18), region(19)]},
            {"regions": [region(18)]},
            {"id": 1, "regions": None},
            7,
        ],
        objects=[{"image_id": 1, "objects": [thing(1), thing(2, "", "tree"), thing(3, 4)]}] * 2,
        question_answers=[{"id": 1, "qas": [question(1, ""), question(2, answer=None), None]}],
    )
    write_image(source / "VG_100K" / "1.jpg")
    report, records = imported(source, tmp_path / "s")
    (record,) = records.values()
    assert [(r.box, r.labels[0].text) for r in record.regions] == [
        ((1, 2, 11, 22), "red cup"),
        ((1, 2, 11, 22), "another"),
        ((1, 2, 4, 6), "red cup"),
        ((35, 2, 40, 12), "red cup"),
        ((1, 2, 11, 22), "tree"),
    ]
    assert counts(report, "image") == (5, 1, {"image id listed twice": 1, "no image id": 3})
    assert counts(report, "region") == (
        22,
        5,
        {
            "listed twice": 1 + 3,
            "no label that is a text": 2 + 1 + 2,
            "box is not four finite numbers": 1,
            "box without area": 1,
            "not an object": 1,
            "its image is not listed": 2,
            "no image id": 1,
            "no list 'regions'": 2,
        },
    )
    assert report["counts"]["region"]["repaired"] == {"box clipped to the image": 1}
    assert counts(report, "question") == (
        3,
        0,
        {"empty": 1, "no answer that is a text": 1, "not an object": 1},
    )


def message(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        plan_import("visual_genome", source)
    return str(caught.value)


def test_what_is_none_says_so(tmp_path):
    write(tmp_path, image_data=[])
    assert message(tmp_path) == (
        f"{tmp_path}: none of region_descriptions.json, objects.json, question_answers.json in it; "
        "is it Visual Genome?"
    )
    write(tmp_path, objects={})
    assert message(tmp_path).endswith("no image in it; say where they are: images=FOLDER")
    write_image(tmp_path / "1.jpg")
    assert message(tmp_path).endswith("objects.json: no list in it; is it a file of Visual Genome?")
    assert detect(tmp_path)  # By image_data.
    (tmp_path / "image_data.json").unlink()
    assert not detect(tmp_path)
    write(tmp_path, objects_v1_2=[])
    assert detect(tmp_path)
    assert message(tmp_path).endswith("holds objects.json and objects_v1_2.json; keep one of them")
    assert not detect(tmp_path / "no")


def test_other_formats_are_not_detected(shared_data):
    for name in ("coco_mini_train2017", "bccd_voc", "vqa_gqa_vg_samples/gqa"):
        assert not detect(shared_data / name)
