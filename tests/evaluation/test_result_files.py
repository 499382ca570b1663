# SPDX-License-Identifier: Apache-2.0
"""Result files: what is read, what each protocol gives, and what bad files are told."""

import json
import math
import pickle
import statistics
from typing import Any

import numpy as np
import pycocotools.mask
import pytest

from florence2_jax.evaluation.result_files.run_lengths import run_lengths
from florence2_jax.evaluation.scoring import RESULT_FAMILIES, score_files
from florence2_jax.typing import UserError

encode: Any = pycocotools.mask.encode  # Its annotations say text for bytes.
CAT = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 40]}
SQUARE = [[0, 0, 40, 0, 40, 40, 0, 40]]
INSTANCES = {
    "images": [{"id": 1, "width": 100, "height": 80}, {"id": 2, "width": 100, "height": 80}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "traffic light"}],
    "annotations": [
        CAT | {"id": 1, "area": 1600, "iscrowd": 0, "segmentation": SQUARE},
        {"id": 2, "image_id": 2, "category_id": 4, "bbox": [5, 5, 40, 40], "segmentation": SQUARE},
    ],
}
VQA = {"annotations": [{"question_id": i, "answers": [{"answer": "a"}] * 10} for i in (1, 2)]}
CAPTIONS = {"annotations": [{"image_id": i, "caption": f"a dog {i}"} for i in (1, 2)]}
SENTENCES = [{"sent_id": i, "bbox": [0, 0, 10, 10]} for i in (1, 2)]
MASKS = [
    {"sent_id": i, "width": 100, "height": 80, "segmentation": [[0, 0, w, 0, w, 10, 0, 10]]}
    for i, w in ((1, 10), (2, 40))
]
DOCVQA = {"data": [{"questionId": i, "answers": ["nokia"]} for i in (1, 2)]}
DENSE = [{"id": 1, "regions": [{"phrase": "a dog", "x": 0, "y": 0, "width": 9, "height": 9}]}]
TEXTS = [{"id": i, "text": f"STOP {i}"} for i in (1, 2)]


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    """METEOR has tests of its own, and takes seconds to start."""
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def score(tmp_path):
    def run(family, truth, predictions, split=""):
        paths = []
        for name, content in (("truth.json", truth), ("predictions.json", predictions)):
            path = tmp_path / name
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            paths.append(path)
        return score_files(family, *paths, split=split)

    return run


def answers(*texts, key="question_id"):
    return [{key: i, "answer": text} for i, text in enumerate(texts, 1)]


def test_perfect_predictions_score_one(score):
    found = [one | {"score": 0.5} for one in INSTANCES["annotations"]]
    for family in ("detection", "instance_segmentation", "proposals"):
        scores = score(family, INSTANCES, found)
        assert next(iter(scores.metrics.values())) == pytest.approx(1)
        assert (scores.num_examples, scores.notes) == (2, ())
    assert score("vqa", VQA, answers("a", "a")).metrics == {"accuracy": 1}
    assert score("anls", DOCVQA, answers("Nokia", "nokia", key="questionId")).metrics["anls"] == 1
    assert score("referring", SENTENCES, SENTENCES).metrics["accuracy"] == 1
    assert score("referring_segmentation", MASKS, MASKS).metrics == {"miou": 1, "oiou": 1}
    captions = CAPTIONS["annotations"]
    assert score("captions", CAPTIONS, captions).metrics["bleu1"] == pytest.approx(1)
    regions = [{"region_id": i, "caption": "a dog"} for i in (1, 2)]
    scores = score("region_to_text", {"annotations": regions}, regions)
    assert scores.metrics["rouge_l"] == 1
    assert score("region_to_category", TEXTS, TEXTS).metrics == {"accuracy": 1}
    assert score("page_text", TEXTS, TEXTS).metrics["cer"] == 0
    dense = [{"image_id": 1, "bbox": [0, 0, 9, 9], "caption": "a dog", "score": 1}]
    assert score("dense_captions", DENSE, dense).metrics["map_boxes"] == pytest.approx(1)


def test_a_category_may_be_given_by_name(score):
    found = [{"image_id": 1, "category": "cat", "bbox": [0, 0, 40, 40], "score": 0.5}]
    scores = score("detection", INSTANCES, found)
    assert scores.metrics["ap"] == pytest.approx(1 / 2)
    assert scores.notes == ("1 of 2 images without a prediction, counted as empty",)


def test_no_detections_at_all_are_counted(score):
    scores = score("detection", INSTANCES, [])
    assert (scores.metrics["ap"], scores.num_examples) == (0, 2)
    assert scores.notes == ("2 of 2 images without a prediction, counted as empty",)
    nothing = score("detection", INSTANCES | {"annotations": []}, [CAT | {"score": 1}])
    assert math.isnan(nothing.metrics["ap"])


def test_masks_come_in_three_spellings(score):
    mask = np.zeros((80, 100), np.uint8, order="F")
    mask[:40, :40] = 1
    code = encode(mask)
    code = {"size": [80, 100], "counts": code["counts"].decode()}
    runs = {"size": [80, 100], "counts": run_lengths(code["counts"])}
    assert sum(runs["counts"]) == 8000 and sum(runs["counts"][1::2]) == 1600
    for spelling in (SQUARE, code, runs):
        found = [one | {"score": 1, "segmentation": spelling} for one in INSTANCES["annotations"]]
        scores = score("instance_segmentation", INSTANCES, found)
        assert scores.metrics["ap"] == pytest.approx(1)


def test_run_lengths_equal_pycocotools():
    rng = np.random.default_rng(0)
    for share in (0.01, 0.5, 0.97):
        mask = np.asfortranarray(rng.random((67, 301)) < share).astype(np.uint8, order="F")
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
        expected = np.diff([0, *edges, flat.size]).tolist()
        assert run_lengths(encode(mask)["counts"].decode()) == expected


def test_referring_by_hand(score):
    found = [{"sent_id": 2, "bbox": None}, {"sent_id": 1, "bbox": [0, 0, 10, 5]}]
    assert score("referring", SENTENCES, found).metrics == {"accuracy": 0.5, "mean_iou": 0.25}
    masks = [MASKS[0], {"sent_id": 2, "segmentation": None}]
    scores = score("referring_segmentation", MASKS, masks).metrics
    assert scores == pytest.approx({"miou": 0.5, "oiou": 100 / 500})


def test_referring_takes_the_published_files(tmp_path):
    refs = [
        {"ref_id": i, "ann_id": i, "image_id": 1, "split": split, "sentences": [{"sent_id": i}]}
        for i, split in ((1, "val"), (2, "testA"))
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    found = tmp_path / "found.jsonl"
    found.write_text('{"sent_id": 2, "bbox": [5, 5, 40, 40], "segmentation": []}\n')
    truth = tmp_path / "refs(unc).p"
    scores = score_files("referring", truth, found, split="testA")
    assert (scores.metrics["accuracy"], scores.num_examples) == (1, 1)
    assert score_files("referring_segmentation", truth, found, split="testA").metrics["miou"] == 0
    with pytest.raises(UserError, match=r"which split\?; give --split, one of testA, val"):
        score_files("referring", truth, found)


XML = """<annotation><size><width>99</width><height>99</height></size>
<object><name>1</name><name>2</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>11</xmax>
<ymax>11</ymax></bndbox></object>
<object><name>1</name><bndbox><xmin>31</xmin><ymin>1</ymin><xmax>41</xmax><ymax>11</ymax></bndbox>
</object><object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>"""


@pytest.fixture
def flickr(tmp_path):
    folder = tmp_path / "flickr30k"
    for name, text in (("Sentences/7.txt", FLICKR), ("Annotations/7.xml", XML), ("test.txt", "7")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


FLICKR = (
    "[/EN#1/people Two men] by [/EN#3/scene the sea] .\nIt rains .\n[/EN#2/people He] waits .\n"
)


def test_flickr_phrases_under_both_protocols(flickr, tmp_path):
    found = tmp_path / "found.json"
    rows = [
        {"image_id": "7", "sentence_id": 0, "boxes": [[[1, 1, 41, 11], [1, 1, 11, 11]]]},
        {"image_id": "7", "sentence_id": 1, "boxes": []},
        {"image_id": "7", "sentence_id": 2, "boxes": [[]]},
    ]
    found.write_text(json.dumps(rows))
    scores = score_files("phrase_grounding", flickr, found, split="test")
    assert scores.metrics["r1_merged"] == 0.5 and scores.metrics["r1_any"] == 0
    assert scores.metrics["r5_any"] == scores.metrics["upper_bound_any"] == 0.5
    assert (scores.num_examples, scores.notes) == (2, ("2 phrases in 2 sentences",))
    for rows_given, split, why in (
        (rows[:2], "test", "1 of 2 sentences have no prediction .*7, 2.*answer each"),
        ([*rows, rows[0]], "test", "entry 3: sentence 0 of image 7 again; keep one"),
        ([rows[0] | {"boxes": []}, rows[2]], "test", "entry 0: 0 lists of boxes for 1 phrases"),
        ([*rows, rows[0] | {"image_id": 8}], "test", "1 sentences that the truth does not have"),
        ([rows[0] | {"boxes": [[[9, 0, 1, 1]]]}], "test", "a box ends before it begins"),
        (rows, "val", "no list 'val'; --split is one of test"),
        (rows, "", "no list ''; --split is one of test"),
    ):
        found.write_text(json.dumps(rows_given))
        with pytest.raises(UserError, match=why):
            score_files("phrase_grounding", flickr, found, split=split)


BOX = CAT | {"score": 0.5}
RUNS = {"size": [80, 100], "counts": [8000]}
BAD_FILES = [
    ("detection", INSTANCES, [BOX | {"image_id": 9}], "entry 0: image_id 9 is not among"),
    ("detection", INSTANCES, [BOX, BOX | {"score": math.nan}], "entry 1: score is not finite"),
    ("detection", INSTANCES, [BOX | {"bbox": [0, 0, math.inf, 1]}], "bbox is not finite"),
    ("detection", INSTANCES, [BOX | {"bbox": [0, 0, -1, 1]}], "bbox has a negative side"),
    ("detection", INSTANCES, [BOX | {"bbox": [0, 0, 1]}], r"bbox is not 4 numbers"),
    ("detection", INSTANCES, [CAT], r"entry 0: score is not a number \(None\)"),
    ("detection", INSTANCES, [BOX | {"category_id": 5}], r"1 category ids .* not have \(5\)"),
    ("detection", INSTANCES, {"a": 1}, "predictions.json: holds no list of entries"),
    ("detection", INSTANCES, "[1", "predictions.json: not JSON"),
    ("detection", INSTANCES, ["x"], r"entry 0: no image_id \(None\)"),
    ("detection", [], [BOX], "truth.json: no list 'images' in it"),
    ("instance_segmentation", INSTANCES, [BOX], "neither polygons nor a run-length code"),
    (
        "instance_segmentation",
        INSTANCES,
        [BOX | {"segmentation": RUNS | {"counts": [8001]}}],
        "runs that do not add up to 80 x 100 pixels",
    ),
    (
        "instance_segmentation",
        INSTANCES,
        [BOX | {"segmentation": RUNS | {"counts": "\xff0"}}],
        "runs that do not add up",
    ),
    (
        "instance_segmentation",
        INSTANCES,
        [BOX | {"segmentation": RUNS | {"size": [100, 80]}}],
        r"is of size \[100, 80\], its image is \[80, 100\]",
    ),
    ("captions", CAPTIONS, CAPTIONS["annotations"][:1], "1 of 2 images have no prediction"),
    ("captions", CAPTIONS, CAPTIONS["annotations"] * 2, "image_id 1 again, first in entry 0"),
    ("captions", CAPTIONS, {"1": ["a", "b"], "2": ["c"]}, "key '1': has 2 captions"),
    ("captions", CAPTIONS, {"1": ["a"], "2": ["b"], "5": ["c"]}, "1 images that the truth does"),
    ("captions", CAPTIONS, [{"image_id": 1, "caption": 5}], "caption is no list of texts"),
    ("vqa", VQA, answers("a"), r"1 of 2 questions have no prediction \(2\); answer each"),
    ("vqa", VQA, answers("a", "a", "a"), "1 questions that the truth does not have"),
    ("vqa", VQA, answers("a") * 2, "question_id 1 again, first in entry 0"),
    ("vqa", VQA, answers("a", None), "entry 1: answer is no text"),
    ("vqa", {"questions": []}, answers("a"), "holds questions; give the file of annotations"),
    ("textvqa", {"data": [{"question_id": 1}]}, answers("a"), "answers is no list of texts"),
    ("anls", {"data": []}, [], "truth.json: no questions in it to score"),
    ("referring", SENTENCES, SENTENCES[:1], "1 of 2 sentences have no prediction"),
    ("referring", SENTENCES, [{"sent_id": 1}], "no bbox in it; write null"),
    ("dense_captions", [{"id": 1}], [], "no list 'regions' in it"),
    (
        "dense_captions",
        DENSE,
        [{"image_id": 1, "bbox": [0, 0, 9, 9], "caption": "a"}],
        "score is not a number",
    ),
    ("page_text", TEXTS, TEXTS[:1], "1 of 2 ids have no prediction"),
    ("page_text", TEXTS, [{"id": True, "text": ""}], r"no id \(True\)"),
]


@pytest.mark.parametrize(("family", "truth", "predictions", "why"), BAD_FILES)
def test_a_bad_file_is_told_in_one_line(score, family, truth, predictions, why):
    with pytest.raises(UserError, match=why) as error:
        score(family, truth, predictions)
    assert "\n" not in str(error.value)
    assert ".json: " in str(error.value)


def test_a_label_without_a_category_is_told_with_the_nearest(score):
    labels = ("kat", "traffic lights", "cat", "zebra")
    found = [{"image_id": 1, "category": x, "bbox": [0, 0, 1, 1], "score": 1} for x in labels]
    why = r"3 label\(s\).*'kat' \(nearest: 'cat'\), 'traffic lights' \(nearest: 'traffic light'\)"
    with pytest.raises(UserError, match=f"{why}, 'zebra' .nearest: none.; rename or remove"):
        score("detection", INSTANCES, found)


def test_folders_of_boxes(tmp_path):
    truth, found = tmp_path / "truth", tmp_path / "found"
    truth.mkdir()
    found.mkdir()
    (truth / "1.txt").write_text("cat 0 0 9 9\n\ndog 20 20 9 9\n")
    box = "<xmin>0</xmin><ymin>0</ymin><xmax>9</xmax><ymax>9</ymax>"
    thing = f"<object><name>cat</name><bndbox>{box}</bndbox></object>"
    (truth / "2.xml").write_text(f"<annotation>{thing}</annotation>")
    (found / "1.txt").write_text("cat 0.9 0 0 9 9\n")
    scores = score_files("voc_detection", truth, found)
    assert scores.metrics["ap50/cat"] == pytest.approx(1 / 2) and scores.metrics["ap50/dog"] == 0
    assert scores.metrics["map50"] == pytest.approx(1 / 4)
    assert scores.notes == ("1 of 2 images without a prediction, counted as empty",)
    for text, why in (
        ("cat 0 0 9 9", r"line 1: 5 fields, not 6 \(class score x y width height\)"),
        ("cat nan 0 0 9 9", "line 1: score and box is not finite"),
        ("cat x 0 0 9 9", "holds what is no number"),
        ("cta 0.9 0 0 9 9", r"1 class\(s\) that are no category.*'cta' \(nearest: 'cat'"),
    ):
        (found / "1.txt").write_text(text)
        with pytest.raises(UserError, match=why):
            score_files("voc_detection", truth, found)
    (found / "3.txt").write_text("")
    with pytest.raises(UserError, match=r"1 images that the truth does not have \('3'\)"):
        score_files("voc_detection", truth, found)


def test_damaged_zips_and_rows_of_words(tmp_path):
    truth, found = tmp_path / "truth", tmp_path / "found.zip"
    truth.mkdir()
    (truth / "gt_1.txt").write_text("0,0,9,0,9,5,0,5,a\n")
    found.write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"found\.zip: no zip that can be read"):
        score_files("ocr", truth, found)
    with pytest.raises(UserError, match=r"none\.zip: no such file"):
        score_files("ocr", truth, tmp_path / "none.zip")
    (truth / "gt_2.txt").write_text("nan,0,9,0,9,5,0,5,a\n")
    with pytest.raises(UserError, match=r"gt_2\.txt word 1: does not begin with coordinates"):
        score_files("ocr", truth, truth)


def test_a_split_is_for_families_that_have_them(score):
    with pytest.raises(UserError, match="--split val: vqa scores all"):
        score("vqa", VQA, answers("a", "a"), split="val")
    with pytest.raises(UserError, match="family 'vqaa' is unknown; one of captions"):
        score("vqaa", VQA, [])


def test_vqa_accuracy_by_kind_of_answer(score):
    kinds = ("number", "yes/no")
    rows = [row | {"answer_type": k} for row, k in zip(VQA["annotations"], kinds, strict=True)]
    scores = score("vqa", {"annotations": rows}, answers("a", "b"))
    assert scores.metrics == {"accuracy": 0.5, "accuracy/number": 1, "accuracy/yes/no": 0}
    rows[0]["answers"] = rows[0]["answers"][:3]
    (note,) = score("vqa", {"annotations": rows}, answers("a", "b")).notes
    assert note.startswith("1 questions have not 10 answers of people")


def test_real_vqa_annotations(shared_data, tmp_path):
    folder = shared_data / "vqa_gqa_vg_samples" / "vqav2"
    rows = json.loads((folder / "annotations.json").read_text())["annotations"]
    path = tmp_path / "results.json"
    common = [statistics.mode(one["answer"] for one in row["answers"]) for row in rows]
    found = [
        {"question_id": row["question_id"], "answer": answer}
        for row, answer in zip(rows, common, strict=True)
    ]
    path.write_text(json.dumps(found))
    scores = score_files("vqa", folder / "annotations.json", path)
    assert scores.num_examples == len(rows) == 3
    assert scores.metrics["accuracy"] > 0.6
    with pytest.raises(UserError, match="holds questions"):
        score_files("vqa", folder / "questions.json", path)


def test_every_family_says_what_it_reads():
    for row in RESULT_FAMILIES.values():
        assert row.protocol and row.examples and row.truth and row.predictions
