# SPDX-License-Identifier: Apache-2.0
"""YOLO folders: every layout that tools write, rows of boxes and outlines, ways that lead out."""

import itertools

import pytest
from import_helpers import imported, message, write_jpegs

from florence2_jax.records.importers import detect, plan_import, yolo


def write_rows(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)


def test_boxes_outlines_and_splits(tmp_path):
    source = tmp_path / "y"
    write_jpegs(source, *(f"images/train/{n}.jpg" for n in "abc"), "images/val/v.png")
    rows = "0 0.5 0.5 0.5 0.2\n1 0.1 0.2 0.3 0.2 0.3 0.4\n\n1 0.95 0.5 0.2 0.2\n"
    write_rows(source / "labels/train", a=rows, b="", z="0 0.5 0.5 1 1")
    write_rows(source / "labels/val", v="2 0.05 0.05 0.1 0.1\n")
    (source / "data.yaml").write_text(
        "path: ../datasets/mine  # where it was\ntrain: images/train\nval: images/val\ntest:\n"
        "names:\n  0: person\n  1: no\n  2: 'traffic light'\n"
    )
    assert detect(source) == "yolo"
    report, records = imported("yolo", source, tmp_path / "s")
    assert report["splits"] == {"train": 3, "val": 1}
    counts = report["counts"]
    assert (counts["region"]["read"], counts["region"]["kept"]) == (4, 4)
    assert counts["region"]["repaired"] == {"box clipped to the image": 1}
    assert counts["file"]["noted"] == {"labels without an image, not read": 1}
    person, outline, clipped = records["images/train/a.jpg"].regions
    assert person.box == (10, 12, 30, 18) and person.label("category") == "person"
    assert outline.polygons == (pytest.approx((4, 6, 12, 6, 12, 12)),)
    assert outline.box == pytest.approx((4, 6, 12, 12)) and outline.label("category") == "no"
    assert clipped.box == pytest.approx((34, 12, 40, 18))
    assert records["images/val/v.png"].regions[0].label("category") == "traffic light"
    assert records["images/train/b.jpg"].regions == records["images/train/c.jpg"].regions == ()


def test_export_of_roboflow(tmp_path):
    source = tmp_path / "export"
    write_jpegs(source, "train/images/a.jpg", "valid/images/b.jpg", "test/images/c.jpg")
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        write_rows(source / split / "labels", **{name: "0 0.5 0.5 0.5 0.5"})
    (source / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 1\n"
        "names: ['cat']\n"
    )
    report, records = imported("yolo", source, tmp_path / "s")
    assert report["splits"] == {"train": 1, "val": 1, "test": 1}
    assert all(record.regions[0].box == (10, 7.5, 30, 22.5) for record in records.values())


def test_lists_of_images_and_what_two_splits_list(tmp_path):
    source = tmp_path / "y"
    write_jpegs(source, "images/a.jpg", "images/b.jpg", "images/c.jpg", "images/bare.jpg")
    write_rows(source / "labels", a="0 0.5 0.5 0.5 0.5")
    (source / "train.txt").write_text("./images/a.jpg\n/data/y/images/b.jpg\n../../etc/passwd\n")
    (source / "val.txt").write_text("images/b.jpg\nimages/c.jpg\n\n")
    (source / "my.yaml").write_text("train: [train.txt]\nval: val.txt\nnames: [cat]\n")
    report, _ = imported("yolo", source, tmp_path / "s")
    assert report["splits"] == {"train": 1, "val": 2}
    image = report["counts"]["image"]
    assert image["repaired"] == {"listed in val and train, is in val": 1}
    assert image["set_aside"] == {"listed, but not there": 1}
    assert image["noted"] == {"images of no split, not read": 1}


def test_a_split_of_the_folders_of_train_is_left_out(tmp_path):
    write_jpegs(tmp_path / "y", "images/a.jpg")
    (tmp_path / "y/data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    report, _ = imported("yolo", tmp_path / "y", tmp_path / "s")
    assert report["splits"] == {"train": 1}
    assert report["counts"]["image"]["noted"] == {"val is the same as train, and left out": 1}


def test_names_in_a_file_of_their_own(tmp_path):
    source = tmp_path / "y"
    write_jpegs(source, "a.jpg", "b.jpg")
    write_rows(source, a="1 0.5 0.5 0.5 0.5\n", classes="cat\ndog\n")
    assert yolo.detect(source)
    report, records = imported("yolo", source, tmp_path / "s")
    assert report["splits"] == {"train": 2}
    assert records["a.jpg"].regions[0].label("category") == "dog"


def test_rows_with_faults_cost_only_themselves(tmp_path):
    rows = [
        "0 0.5 0.5 0.5 0.5",
        "0.0 0.5 0.5 0.5 0.5",
        "7 0.5 0.5 0.5 0.5",
        "0.5 0.5 0.5 0.5 0.5",
        "nan 0.5 0.5 0.5 0.5",
        "cat 0.5 0.5 0.5 0.5",
        "0 0.5 0.5 0.5 0.5 0.9",
        "0 0.5 0.5",
        "0 20 15 10 10",
        "0 0.5 0.5 nan 0.5",
        "0 0.5 0.5 0 0.5",
        "0 0.1 0.1 0.1 0.1 0.1 0.1",
        "\x00\xff",
    ]
    write_jpegs(tmp_path / "y", "images/a.jpg", "images/b.jpg")
    write_rows(tmp_path / "y/labels", a="\n".join(rows))
    (tmp_path / "y/labels/b.txt").write_bytes(b"0 0.5 0.5 0.1 0.1\n" + b" " * 2**24)
    (tmp_path / "y/data.yaml").write_text("train: images\nnames: [cat]\n")
    report, records = imported("yolo", tmp_path / "y", tmp_path / "s")
    assert len(records["images/a.jpg"].regions) == 2
    assert report["counts"]["region"]["set_aside"] == {
        "class number without a name": 3,
        "not a row of numbers": 2,
        "neither a box nor an outline": 2,
        "numbers are no shares of the image's sides": 2,
        "box without area": 1,
        "box is not four finite numbers": 1,
    }
    assert report["counts"]["image"]["set_aside"] == {"label file is too long": 1}


def test_keypoints_are_noted(tmp_path):
    write_jpegs(tmp_path / "y", "images/a.jpg")
    write_rows(tmp_path / "y/labels", a="0 0.5 0.5 0.5 0.5 0.1 0.2 2 0.3 0.4 1\n")
    (tmp_path / "y/data.yaml").write_text("train: images\nkpt_shape: [2, 3]\nnames: [cat]\n")
    report, records = imported("yolo", tmp_path / "y", tmp_path / "s")
    assert records["images/a.jpg"].regions[0].box == (10, 7.5, 30, 22.5)
    assert report["counts"]["region"]["noted"] == {"keypoints not read": 1}


LETTERS = "abcdefghijklm"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{c}: &{c} [*{before}, *{before}, *{before}, *{before}]\n"
    for before, c in itertools.pairwise(LETTERS)
)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("names: [cat", "not YAML"),
        ("- 1", "no names of classes in it"),
        ("names: cat", "no names of classes in it"),
        ("[" * 50_000, "not YAML"),
        ("!!python/object/apply:os.system [id]", "no names of classes in it"),
        ("train: /elsewhere/pictures\nnames: [cat]", "is not in this folder"),
        ("train: {a: b}\nnames: [cat]", "is no text"),
        (BOMB + "names: [*m]\ntrain: nowhere", "is not in this folder"),
    ],
)
def test_yaml_that_cannot_be_used_says_so(tmp_path, content, error):
    write_jpegs(tmp_path, "images/a.jpg")
    (tmp_path / "data.yaml").write_text(content)
    assert error in message(plan_import, "yolo", tmp_path)


def test_a_nested_name_is_no_name(tmp_path):
    write_jpegs(tmp_path / "y", "images/a.jpg")
    write_rows(tmp_path / "y/labels", a="0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "y/data.yaml").write_text(BOMB + "names: [*m, cat]\n")
    report, records = imported("yolo", tmp_path / "y", tmp_path / "s")
    assert records["images/a.jpg"].regions[0].label("category") == "cat"
    assert report["counts"]["region"]["set_aside"] == {"class number without a name": 1}


def test_what_is_no_yolo_folder_says_so(tmp_path, shared_data):
    (tmp_path / "a.yaml").write_text("filenames: [a]\n")
    assert not yolo.detect(tmp_path) and not yolo.detect(tmp_path / "no")
    assert not yolo.detect(shared_data / "voc_toyexample_multiformat")  # It has names, no labels.
    assert "no names of classes" in message(plan_import, "yolo", tmp_path)
    (tmp_path / "classes.txt").write_text("cat\n")
    assert "no images in it" in message(plan_import, "yolo", tmp_path)
