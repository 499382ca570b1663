# SPDX-License-Identifier: Apache-2.0
"""Questions: the real samples come in whole, and of many answers none is lost."""

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
from florence2_jax.records.importers.vqa import detect, ranked
from florence2_jax.typing import UserError

imported = functools.partial(import_helpers.imported, "vqa")


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)


def test_vqa_v2_sample_comes_in_whole(shared_data, tmp_path):
    sample = shared_data / "vqa_gqa_vg_samples"
    images = sample / "images/vqav2"
    assert detect(sample / "vqav2")
    report, records = imported(sample / "vqav2", tmp_path / "s", images=images)
    assert report["splits"] == {"train": 1}
    assert counts(report, "image") == (1, 1, {}) and counts(report, "question") == (3, 3, {})
    noted = report["counts"]["image"]["noted"]
    assert noted == {"images that no annotation file mentions, not read": 2}
    (record,) = records.values()
    assert record.id == "train2014/COCO_train2014_000000458752.jpg"
    assert record.image == (images / "COCO_train2014_000000458752.jpg").read_bytes()
    first = record.questions[0]
    assert first.question == "What is this photo taken looking through?"
    assert first.answers == ("net",) * 6 + ("netting", "mesh", "pitcher", "orange")
    assert [len(question.answers) for question in record.questions] == [10] * 3
    assert record.questions[1].answers[:9] == ("pitcher",) * 9


@pytest.mark.parametrize(
    ("name", "num", "expected"),
    [
        ("questions.json", 1, {"gqa/n578564.jpg": ["picture"]}),
        ("question_dir", 2, {"gqa/n578564.jpg": ["picture"], "gqa/n166008.jpg": ["yes"]}),
        (".", 3, {"gqa/n578564.jpg": ["picture"], "gqa/n166008.jpg": ["yes"]}),
    ],
)
def test_gqa_samples_come_in_whole(shared_data, tmp_path, name, num, expected):
    sample = shared_data / "vqa_gqa_vg_samples"
    assert detect(sample / "gqa" / name)
    images = sample / "images/gqa"
    report, records = imported(sample / "gqa" / name, tmp_path / "s", images=images)
    again = {"listed twice": 1} if name == "." else {}
    assert counts(report, "question") == (num, len(expected), again)
    assert counts(report, "image") == (len(expected), len(expected), {})
    answers = {id_: [q.answers[0] for q in r.questions] for id_, r in records.items()}
    assert answers == expected


def test_answers_are_ranked():
    assert ranked(["b", "a", "c", "a", "b"]) == ["b", "b", "a", "a", "c"]
    assert ranked(["a", "b", "b", "c"], "c") == ["c", "b", "b", "a"]
    assert ranked(["a", "b", "b"], "d") == ["d", "b", "b", "a"]
    assert ranked([], "d") == ["d"]


def vqa_question(number: int, image: int, text: str = "What?") -> dict:
    return {"question_id": number, "image_id": image, "question": text}


def vqa_answers(number: int, *answers, **fields) -> dict:
    listed = [{"answer": a, "answer_confidence": "yes", "answer_id": 1} for a in answers]
    return {"question_id": number, "answers": listed} | fields


def test_vqa_v2_joins_files_and_mends(tmp_path):
    source = tmp_path / "vqa"
    train = [
        vqa_question(10, 1, "Is it? "),
        vqa_question(11, 1),
        vqa_question(12, 2, ""),
        vqa_question(13, 3),
        vqa_question(14, 4),
        vqa_question(15, 4),
        vqa_question(16, 4),
        vqa_question(10, 1, "Is it? "),
        vqa_question(11, 2),
        {"question_id": "17", "image_id": "4", "question": "Who?"},
        {"question_id": 18, "question": "Where?"},
        {"question_id": 19, "image_id": -4, "question": "Where?"},
        "nonsense",
    ]
    answers = [
        vqa_answers(10, "yes", "no", "yes ", "no", "no", multiple_choice_answer="yes"),
        vqa_answers(11, multiple_choice_answer="red"),
        vqa_answers(12, "no"),
        vqa_answers(13, "no"),
        vqa_answers(14, 5, None),
        vqa_answers(15, "no", image_id=77),
        vqa_answers(17, "me", image_id="4"),
        vqa_answers(99, "lost"),
        vqa_answers(10, "no"),
        vqa_answers(11, multiple_choice_answer="red"),
        {"answers": []},
        "nonsense",
    ]
    name = "v2_OpenEnded_mscoco_train2014_questions.json"
    write_json(source / name, {"questions": train, "data_subtype": "train2014"})
    write_json(source / "v2_mscoco_train2014_annotations.json", {"annotations": answers})
    test = {"questions": [vqa_question(50, 9), vqa_question(51, 9)], "data_subtype": "test-dev2015"}
    write_json(source / "v2_OpenEnded_mscoco_test-dev2015_questions.json", test)
    write_json(source / "v2_mscoco_train2014_complementary_pairs.json", [[10, 11]])
    write_json(source / "question_answers.json", [])
    for image in ("train2014_000000000001", "train2014_000000000002", "train2014_000000000004"):
        write_image(source / "images" / f"COCO_{image}.jpg")
    report, records = imported(source, tmp_path / "s")
    questions = {id_: [(q.question, q.answers) for q in r.questions] for id_, r in records.items()}
    assert questions == {
        "train2014/COCO_train2014_000000000001.jpg": [
            ("Is it?", ("yes", "yes", "no", "no", "no")),
            ("What?", ("red",)),
        ],
        "train2014/COCO_train2014_000000000002.jpg": [],
        "train2014/COCO_train2014_000000000004.jpg": [("Who?", ("me",))],
    }
    assert counts(report, "question") == (
        20,
        3,
        {
            "empty": 1,
            "its image was set aside": 1,  # 13.
            "no answer that is a text": 1,  # 14.
            "without answers, as in test sets": 4,  # 15 (of another image), 16, 50, 51.
            "listed twice": 1,
            "its number is that of another question": 1,
            "no number of an image": 3,
            "answers to a question that is not listed": 1,
            "answers that differ from others given": 1,
            "answers listed twice": 1,
            "answers without the number of a question": 2,
        },
    )
    assert counts(report, "image") == (
        5,
        3,
        {"its file is missing": 1, "no question with an answer": 1},
    )
    assert report["counts"]["question"]["noted"] == {
        "answers left out: empty, or not a text": 2,
        "answers of another image, not taken": 1,
    }
    assert sorted(report["counts"]["file"]["noted"]) == [
        "question_answers.json not read: its name speaks of no questions",
        "v2_mscoco_train2014_complementary_pairs.json not read: its name speaks of no questions",
    ]


def textvqa(number: int, image: str, answers, **fields) -> dict:
    row = {"question_id": number, "image_id": image, "question": f"What {number}?"}
    return row | {"answers": answers, "image_width": 1024, "image_height": 683} | fields


def test_textvqa_comes_in(tmp_path):
    source, url = tmp_path / "textvqa", "https://example.org/0a_o.jpg"
    said = ["nokia"] * 4 + ["nokia 3310", "phone"] * 2 + ["", "toshiba"]
    rows = [
        textvqa(1, "0a", said, flickr_original_url=url),
        textvqa(2, "0b", ["unanswerable"] * 10),
        textvqa(3, "0a", said[::-1]),
        textvqa(4, "../0a", said),
        textvqa(5, "", said),
    ]
    val = [textvqa(7, "0c", ["x"], set_name="val"), textvqa(8, "0b", ["x"], set_name="val")]
    test = [textvqa(9, "0d", None, set_name="test") for _ in range(2)]
    train = {"dataset_type": "train", "data": rows}
    write_json(source / "TextVQA_0.5.1_train.json", train)
    write_json(source / "TextVQA_0.5.1_val.json", {"data": val})
    write_json(source / "TextVQA_0.5.1_test.json", {"data": test})
    for name in ("0a", "0b", "0c", "0d"):
        write_image(source / "train_images" / f"{name}.jpg")
    report, records = imported(source, tmp_path / "s")
    assert report["splits"] == {"train": 1, "val": 2}
    record = records["textvqa/0a.jpg"]
    assert record.origin == url
    ranked_answers = ("nokia",) * 4 + ("nokia 3310",) * 2 + ("phone",) * 2 + ("toshiba",)
    assert record.questions[0].answers == ranked_answers
    assert record.questions[1].answers[:4] == ("nokia",) * 4
    assert [q.question for q in records["textvqa/0b.jpg"].questions] == ["What 8?"]
    assert counts(report, "question") == (
        9,
        4,
        {
            "of train, but its image is held out for val": 1,
            "no id of an image": 2,
            "without answers, as in test sets": 1,
            "listed twice": 1,
        },
    )
    assert counts(report, "image") == (4, 3, {"no question with an answer": 1})


def gqa(image, answer="yes", **fields) -> dict:
    return {"question": "Is it?", "imageId": image, "answer": answer} | fields


def test_gqa_of_several_files(tmp_path):
    source = tmp_path / "gqa"
    shard = {"1": gqa("n1"), "2": gqa("n2"), "3": gqa("n3"), "4": "nonsense", "5": gqa(["n1"])}
    write_json(source / "train_all_questions" / "train_all_questions_0.json", shard)
    write_json(source / "train_balanced_questions.json", {"1": gqa("n1", isBalanced=True)})
    submission = {"7": gqa("n2", None), "8": gqa("n4", None)}
    write_json(source / "submission_all_questions.json", submission)
    write_json(source / "val_all_questions.json", {"7": gqa("n2", "no"), "3": gqa("n3")})
    write_json(source / "train_sceneGraphs.json", {"n1": {"objects": {}}})
    write_json(source / "empty_questions.json", {})
    for name in ("n1", "n2", "n3", "n4"):
        write_image(source / "images" / f"{name}.jpg")
    report, records = imported(source, tmp_path / "s")
    assert report["splits"] == {"train": 1, "val": 2}
    assert [q.answers for q in records["gqa/n2.jpg"].questions] == [("no",)]
    # In train and val alike: a question of val.
    assert [q.answers for q in records["gqa/n3.jpg"].questions] == [("yes",)]
    assert counts(report, "question") == (
        10,
        3,
        {
            "listed twice": 3,
            "no id of an image": 2,
            "of train, but its image is held out for val": 1,
            "without answers, as in test sets": 1,
        },
    )
    assert (
        "empty_questions.json not read: neither questions nor answers in it"
        in (report["counts"]["file"]["noted"])
    )


def message(source: Path, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        plan_import("vqa", source, options)
    return str(caught.value)


def test_what_cannot_be_read_says_so(tmp_path):
    assert message(tmp_path) == f"{tmp_path}: no image in it; say where they are: images=FOLDER"
    write_image(tmp_path / "a.jpg")
    assert message(tmp_path).startswith(f"{tmp_path}: no question with an answer in 0 files")
    path = write_json(tmp_path / "questions.json", {"questions": [vqa_question(1, 1)]})
    assert message(tmp_path).startswith(f"{tmp_path}: no question with an answer in 1 files")
    path.write_text("{")
    assert message(tmp_path).startswith(f"{path}: not JSON (")


def test_other_formats_are_not_detected(shared_data, tmp_path):
    sample = shared_data / "vqa_gqa_vg_samples"
    assert detect_format(sample / "vqav2") == detect_format(sample / "gqa") == "vqa"
    assert detect_format(sample / "vgqa") == "visual_genome"
    assert not detect(sample / "vgqa") and not detect(sample / "images")
    assert not detect(shared_data / "coco_mini_train2017")
    assert not detect(tmp_path) and not detect(tmp_path / "no")
    write_json(tmp_path / "my_questions.json", [1])
    assert not detect(tmp_path)
    write_json(tmp_path / "my_questions.json", {"questions": []})
    assert detect(tmp_path)
