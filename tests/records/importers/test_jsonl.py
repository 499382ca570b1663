# SPDX-License-Identifier: Apache-2.0
"""Prompts and answers: what this package writes as targets comes back as the annotations it was."""

import json

import pytest
from import_helpers import imported, message, why, write_jpegs

from florence2_jax.data.examples import examples_of, target_of
from florence2_jax.records.importers import detect, jsonl, plan_import
from florence2_jax.records.scenes import SceneConfig, draw_scene
from florence2_jax.tasks.answers import TextAnswer, parse_answer
from florence2_jax.tasks.registry import TASKS, prompt_text


def write_lines(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n")


def line(image, prefix, suffix):
    return {"image": image, "prefix": prefix, "suffix": suffix}


def read(tmp_path, *lines):
    """The record of one image of 40 x 30, and the report."""
    rows = (line("a.jpg", prefix, suffix) for prefix, suffix in lines)
    write_lines(tmp_path / "j" / "annotations.jsonl", *rows)
    write_jpegs(tmp_path / "j", "a.jpg")
    report, records = imported("jsonl", tmp_path / "j", tmp_path / "s")
    return records["a.jpg"], report


TOLD_APART = [token for token in TASKS if token != "<OCR>"]  # It has no annotation of its own.


def targets(record, token):
    """Prompts and targets of a task; what a target lists, in no order."""
    found = []
    for example in examples_of(record, TASKS[token]):
        answer = parse_answer(TASKS[token], target_of(example, record.size).text, (1000, 1000))
        assert not answer.unparsed
        said = [answer.text] if isinstance(answer, TextAnswer) else map(repr, answer.regions)
        found.append((example.text_input, sorted(said)))
    return sorted(found)


@pytest.mark.parametrize("in_words", [False, True])
def test_targets_of_every_task_come_back(tmp_path, in_words):
    rows, scenes = [], {}
    for i in range(6):
        scene = draw_scene(i, SceneConfig(size_px=128), seed=5)
        (tmp_path / "j").mkdir(exist_ok=True)
        (tmp_path / "j" / f"{i}.png").write_bytes(scene.image)
        scenes[f"{i}.png"] = scene
        for token in TOLD_APART:
            for example in examples_of(scene, TASKS[token]):
                prefix = token + example.text_input
                if in_words and token != "<VQA>":
                    prefix = prompt_text(TASKS[token], example.text_input)
                rows.append(line(f"{i}.png", prefix, target_of(example, scene.size).text))
    write_lines(tmp_path / "j" / "annotations.jsonl", *rows)
    report, records = imported("jsonl", tmp_path / "j", tmp_path / "s")
    assert (tmp_path / "s" / "set_aside.jsonl").read_text() == ""
    assert report["counts"]["line"]["kept"] == len(rows) > 100
    asked = set()
    for name, scene in scenes.items():
        for token in TOLD_APART:
            assert targets(records[name], token) == targets(scene, token), (name, token)
            asked |= {token} if targets(scene, token) else set()
    assert asked == set(TOLD_APART)


def test_export_of_roboflow(tmp_path):
    source = tmp_path / "cards"
    suffix = "10 of clubs<loc_100><loc_200><loc_500><loc_600><loc_0><loc_0><loc_1000><loc_1000>"
    for split in ("train", "valid", "test"):
        write_lines(source / split / "annotations.jsonl", line("a.jpg", "<OD>", suffix))
        write_jpegs(source, f"{split}/a.jpg", f"{split}/bare.jpg")
    assert detect(source) == "jsonl"
    report, records = imported("jsonl", source, tmp_path / "s")
    assert report["splits"] == {"test": 1, "train": 1, "val": 1}
    assert set(records) == {"train/a.jpg", "valid/a.jpg", "test/a.jpg"}
    first, second = records["valid/a.jpg"].regions
    assert first.label("category") == second.label("category") == "10 of clubs"
    assert first.box == pytest.approx((4.02, 6.015, 20.02, 18.015))  # Centres of bins.
    assert second.box == pytest.approx((0.02, 0.015, 39.98, 29.985))
    counts = report["counts"]
    assert counts["line"]["repaired"] == {"<loc_1000> read as the last bin": 3}
    assert counts["image"]["noted"] == {"images that no line mentions, not read": 3}


def test_answers_of_each_kind(tmp_path):
    quad = "".join(f"<loc_{k}>" for k in (100, 100, 200, 100, 200, 150, 100, 150))
    record, report = read(
        tmp_path,
        ("<CAPTION>", "</s><s>A cat.</s>"),
        ("<DETAILED_CAPTION>", "A cat on a mat."),
        ("What does the image describe?", "A brief one."),
        ("<VQA>How many cats?", "one"),
        ("<DocVQA> Who?", "the cat"),
        ("<OD>", "cat<loc_5><loc_7><loc_5><loc_9>"),
        ("<OCR_WITH_REGION>", f"STOP{quad}"),
        ("<REGION_TO_OCR><loc_100><loc_100><loc_200><loc_150>", f"STOP{quad[:32]}"),
        ("<OCR>", "STOP\nNOW"),
        ("<CAPTION_TO_PHRASE_GROUNDING>a cat and a cat", "a cat<loc_1><loc_1><loc_9><loc_9>"),
        (
            "<REFERRING_EXPRESSION_SEGMENTATION>the cat",
            "<loc_0><loc_0><loc_9><loc_0><loc_9><loc_9>",
        ),
        ("<REGION_PROPOSAL>", ""),
    )
    assert [(t.text, t.granularity) for t in record.texts] == [
        ("A cat.", "brief"),
        ("A cat on a mat.", "detailed"),
        ("A brief one.", "brief"),
    ]
    assert [(q.question, q.answers) for q in record.questions] == [
        ("How many cats?", ("one",)),
        ("Who?", ("the cat",)),
    ]
    thin, stop, whole, mask = record.regions
    assert thin.box == pytest.approx((0.21, 0.225, 0.23, 0.285))
    assert stop.label("text") == "STOP" and stop.quad is not None and len(stop.labels) == 1
    assert whole.box == (0, 0, 40, 30) and whole.label("text") == "STOP\nNOW"
    assert mask.label("phrase") == "the cat" and len(mask.polygons) == 1
    (grounding,) = record.groundings
    assert [(s.start, s.end, len(s.boxes)) for s in grounding.spans] == [(0, 5, 1)]
    assert report["counts"]["line"]["noted"] == {"answers that find nothing": 1}
    assert report["counts"]["region"]["noted"] == {
        "within one bin of a side, given half its width": 1,
        "found by several lines, taken once": 1,
    }


CAT = "<loc0256><loc0000><loc0512><loc1023>"  # y before x.


def test_answers_of_paligemma(tmp_path):
    record, report = read(
        tmp_path,
        ("detect cat ; dog", f"{CAT} cat ; <loc0000><loc0000><loc0100><loc0100> dog"),
        ("caption en\n", "a cat"),
        ("answer en how many?", "two"),
        ("segment cat", f"{CAT}<seg001> cat"),
        ("detect cat", "<loc0256><loc0000> cat"),
        ("find cats", f"{CAT} cat"),
        ("detect bird", ""),
    )
    cat, dog = record.regions
    assert cat.label("category") == "cat" and dog.label("category") == "dog"
    # y before x, 1,024 bins.
    assert cat.box == pytest.approx(
        [0.5 / 1024 * 40, 256.5 / 1024 * 30, 1023.5 / 1024 * 40, 512.5 / 1024 * 30]
    )
    assert record.texts[0].text == "a cat" and record.questions[0].question == "how many?"
    assert report["counts"]["line"]["set_aside"] == {
        "masks of PaliGemma are not read": 1,
        "its prefix is no task of PaliGemma that is known": 1,
    }
    assert report["counts"]["rest of an answer"]["set_aside"] == {"no grammar reads it": 1}


def test_lines_that_cannot_be_read_cost_only_themselves(tmp_path):
    good = line("a.jpg", "<CAPTION>", "A cat.")
    write_lines(
        tmp_path / "j" / "train.jsonl",
        good,
        "{",
        "[" * 9999,
        "3",
        line("../a.jpg", "<CAPTION>", "x"),
        line(None, "<CAPTION>", "x"),
        line("a.jpg", "<CAPTION>", 3),
        line("gone.jpg", "<CAPTION>", "x"),
        line("./a.jpg", "<CAPTION>", ""),
        line("a.jpg", "<CAPTION>more", "x"),
        line("a.jpg", "<VQA>", "x"),
        line("a.jpg", "<TABLE>", "x"),
        line("a.jpg", "extract data", "{}"),
        line("a.jpg", "<OD>", "no box at all"),
        line("a.jpg", "<OD>", "<loc_1><loc_2><loc_3><loc_4>cat"),
        line("a.jpg", "<REGION_TO_CATEGORY>the left one", "cat"),
        line("a.jpg", "<REGION_TO_SEGMENTATION><loc_1><loc_2><loc_3><loc_4>", "<loc_1>"),
        line("a.jpg", "<CAPTION_TO_PHRASE_GROUNDING>a dog", "cat<loc_1><loc_2><loc_3><loc_4>"),
        line("a.jpg", "<OCR>", ""),
        line("b.jpg", "<CAPTION>", "In training too."),
    )
    write_lines(tmp_path / "j" / "valid.jsonl", line("b.jpg", "<CAPTION>", "Held out."))
    write_jpegs(tmp_path / "j", "images/a.jpg", "b.jpg")
    report, records = imported("jsonl", tmp_path / "j", tmp_path / "s")
    assert report["splits"] == {"val": 1, "train": 1}
    assert [t.text for t in records["a.jpg"].texts] == ["A cat."]
    assert [t.text for t in records["b.jpg"].texts] == ["Held out."]
    line_counts = report["counts"]["line"]
    assert line_counts["read"] == 21 and line_counts["kept"] == 3
    assert line_counts["set_aside"] == {
        "no JSON object": 3,
        "no file name within the image folder": 2,
        "prefix or suffix is no text": 1,
        "its image is in val": 1,
        "its image was set aside": 1,
        "its answer is empty": 2,
        "its task takes no input": 1,
        "its task needs an input": 1,
        "its prefix is no task that is known": 2,
        "its answer has no region": 1,
        "its prompt has no region": 1,
        "its answer has no mask": 1,
        "its answer has no phrase of the text": 1,
    }
    assert why(tmp_path / "s")["region", "no label that is a text"] == 1
    assert why(tmp_path / "s")["rest of an answer", "no grammar reads it"] == 1


def test_images_elsewhere(tmp_path):
    write_lines(tmp_path / "j" / "annotations.jsonl", line("a.jpg", "<CAPTION>", "A cat."))
    write_jpegs(tmp_path / "photos", "a.jpg")
    _, records = imported("jsonl", tmp_path / "j", tmp_path / "s", images=tmp_path / "photos")
    assert records["a.jpg"].texts[0].text == "A cat."


def test_what_is_no_such_file_says_so(tmp_path, shared_data):
    write_lines(tmp_path / "metadata.jsonl", {"file_name": "a.jpg", "text": "a caption"})
    assert not jsonl.detect(tmp_path) and not jsonl.detect(tmp_path / "no")
    assert not jsonl.detect(shared_data / "mmocr_toy/rec_toy_dataset")
    assert "no annotations.jsonl" in message(plan_import, "jsonl", tmp_path)
