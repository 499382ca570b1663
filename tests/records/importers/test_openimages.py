# SPDX-License-Identifier: Apache-2.0
"""Open Images: a small set in its published form comes in exactly, and damage costs only itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from import_helpers import imported, message, why, write_jpegs

from florence2_jax.records.importers import openimages, plan_import
from florence2_jax.records.inspection import check_store

COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
CLICKS = ",XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
PERSON, WOMAN, FACE, CAR = "/m/01g317", "/m/03bt1vf", "/m/0dzct", "/m/0k4j"
NAMES = {PERSON: "Person", WOMAN: "Woman", FACE: "Human face", CAR: "Car"}
HIERARCHY = {
    "LabelName": "/m/0bl9f",
    "Subcategory": [
        {"LabelName": CAR},
        {
            "LabelName": PERSON,
            "Subcategory": [{"LabelName": WOMAN}],
            "Part": [{"LabelName": FACE}],
        },
    ],
}


def row(image: str, label: str, box, *, confidence="1", source="xclick", flags="0,0,0,0,0") -> str:
    """A line of a box file; `box` is x0, y0, x1, y1 in shares of the sides."""
    x0, y0, x1, y1 = box
    return f"{image},{source},{label},{confidence},{x0},{x1},{y0},{y1},{flags}"


def write(folder: Path, files: dict[str, list[str]], *, header: str = COLUMNS, names=NAMES) -> Path:
    """Writes box files, names of classes as V4 has them (without a header) and the hierarchy."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in files.items():
        path = folder / f"{part}-annotations-bbox.csv"
        path.write_text("\n".join([header, *lines, ""]))
    lines = [f"{mid},{name}\n" for mid, name in names.items()]
    (folder / "class-descriptions-boxable.csv").write_text("".join(lines))
    (folder / "bbox_labels_600_hierarchy.json").write_text(json.dumps(HIERARCHY))
    return folder


def test_open_images_comes_in_with_its_flags_and_splits(tmp_path):
    clicks = ",".join(["0.5"] * 8)
    first = [
        row("000a", CAR, (0.25, 0.1, 0.75, 0.5), flags="1,0,0,0,0"),
        row("000a", CAR, (0, 0, 1, 1), flags="0,1,1,1,1", source="activemil"),
        row("b00b", FACE, (0.1, 0.1, 0.2, 0.2)),
    ]
    source = write(tmp_path / "oi", {"validation": [row("000a", CAR, (0, 0, 0.5, 0.5))]})
    (source / "oidv6-train-annotations-bbox.csv").write_text(
        "\r\n".join([COLUMNS + CLICKS, *(f"{line},{clicks}" for line in first), ""])
    )
    (source / "test-annotations-bbox.csv").write_text(COLUMNS)
    (source / "train-images-boxable-with-rotation.csv").write_text(
        "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,"
        "OriginalSize,OriginalMD5,Thumbnail300KURL,Rotation\n"
        'b00b,train,https://farm5.staticflickr.com/b.jpg,https://x,https://y,https://z,A,"B ""C""",'
        "1,x==,,0.0\nffff,train,https://other\n\n"
    )
    (source / "train-annotations-human-imagelabels-boxable.csv").write_text("ImageID\n")
    write_jpegs(source, "train_0/000a.jpg", "train_b/b00b.jpg", "train_b/b00c.jpg")
    write_jpegs(source, "validation/000a.jpg")
    report, records = imported("openimages", source, tmp_path / "s")
    assert report["splits"] == {"train": 2, "val": 1}
    assert sorted(records) == ["train/000a.jpg", "train/b00b.jpg", "validation/000a.jpg"]
    one, two = records["train/000a.jpg"].regions
    assert one.box == (10, 3, 30, 15) and two.box == (0, 0, 40, 30)
    assert (one.label("category"), one.is_crowd, two.is_crowd) == ("Car", False, True)
    assert (one.provenance.kind, one.provenance.name) == ("human", "xclick")
    assert (two.provenance.kind, two.provenance.name) == ("specialist", "activemil")
    assert records["train/b00b.jpg"].origin == "https://farm5.staticflickr.com/b.jpg"
    assert records["train/000a.jpg"].origin == "train/000a.jpg"
    counts = report["counts"]
    assert (counts["image"]["read"], counts["image"]["kept"]) == (3, 3)
    assert (counts["region"]["read"], counts["region"]["kept"]) == (4, 4)
    assert counts["region"]["noted"] == {
        "hidden in part (IsOccluded), kept like others": 1,
        "cut by the border (IsTruncated), kept like others": 1,
        "pictures of the thing (IsDepiction), kept like others": 1,
        "seen from within (IsInside), kept like others": 1,
    }
    assert counts["image"]["noted"] == {"images that no annotation file mentions, not read": 1}
    name = "train-annotations-human-imagelabels-boxable.csv"
    assert counts["file"]["noted"] == {f"{name} not read: holds no boxes": 1}
    assert (tmp_path / "s" / "set_aside.jsonl").read_text() == ""
    assert check_store(tmp_path / "s")["num_problems"] == 0


def test_open_images_leaf_labels_stand_for_their_ancestors(tmp_path):
    place, near, far = (0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.5, 0.51), (0.1, 0.1, 0.5, 0.6)
    lines = [
        row("a", PERSON, near),  # The woman's box once more.
        row("a", WOMAN, place),
        row("a", PERSON, far),  # Another place: an overlap of 0.8.
        row("a", PERSON, near, flags="0,0,1,0,0"),  # A group says something else.
        row("b", PERSON, place),
        row("b", FACE, place),  # A part is none of its kind.
        row("b", CAR, place),
        row("b", WOMAN, ("x", 0, 1, 1)),
    ]
    source = write(tmp_path / "oi", {"train": lines})
    write_jpegs(source / "train", "a.jpg", "b.jpg")
    report, records = imported("openimages", source, tmp_path / "s")
    found = {id_: [r.label("category") for r in record.regions] for id_, record in records.items()}
    assert found == {
        "train/a.jpg": ["Woman", "Person", "Person"],
        "train/b.jpg": ["Person", "Human face", "Car"],
    }
    counts = report["counts"]["region"]
    assert counts["noted"] == {"box repeated with an upper label, not read": 1}
    assert (counts["read"], counts["kept"]) == (7, 6)
    (source / "bbox_labels_600_hierarchy.json").unlink()
    report, records = imported("openimages", source, tmp_path / "t")
    assert len(records["train/a.jpg"].regions) == 4
    assert report["counts"]["file"]["noted"] == {
        "no hierarchy of labels: boxes with upper labels are kept": 1
    }


def test_open_images_lines_with_faults_cost_only_themselves(tmp_path):
    good = row("a", CAR, (0, 0, 0.5, 0.5))
    lines = [
        good,
        row("a", CAR, (0, 0, 0.4, 0.5), confidence="0"),
        row("a", CAR, (0, 0, 0.4, 0.5), confidence="often"),
        row("a", "/m/unknown", (0, 0, 0.4, 0.5)),
        row("a", CAR, (0.5, 0.5, 0.5, 0.9)),
        row("a", CAR, ("nan", 0, 0.4, 0.5)),
        row("a", CAR, (0.75, 0.5, 0.5, 1.5)),
        good + ",1",
        "a,b",
        good,
        row("../secret", CAR, (0, 0, 0.5, 0.5)),
        row("", CAR, (0, 0, 0.5, 0.5)),
        '"',
        "",
        row("gone", CAR, (0, 0, 0.5, 0.5)),
        row("a", CAR, (0, 0, 0.25, 0.5)),  # Not beside the others of its image.
        "x" * 200_000,
    ]
    source = write(tmp_path / "oi", {"train": lines})
    path = source / "train-annotations-bbox.csv"
    path.write_bytes(path.read_bytes() + b"a,\xff\x00")
    write_jpegs(source / "train", "a.jpg")
    report, records = imported("openimages", source, tmp_path / "s")
    boxes = [region.box for region in records["train/a.jpg"].regions]
    assert boxes == [(0, 0, 20, 15), (20, 15, 30, 30), (0, 0, 10, 15)]
    assert why(tmp_path / "s") == {
        ("region", "confidence 0 or none: it is not there"): 2,
        ("region", "no label that is a text"): 1,
        ("region", "box without area"): 1,
        ("region", "box is not four finite numbers"): 1,
        ("region", "another number of columns than the header"): 3,
        ("region", "listed twice"): 1,
        ("region", "no image id"): 7,  # The long line is read in four pieces.
        ("image", "its file is missing"): 1,
        ("region", "its image was set aside"): 1,
    }
    assert report["counts"]["region"]["repaired"] == {
        "box was turned inside out": 1,
        "box clipped to the image": 1,
    }


def test_open_images_names_with_a_header_and_quotes(tmp_path):
    lines = [row("a", CAR, (0, 0, 0.5, 0.5)), row("a", "/m/1", (0, 0, 0.5, 0.6))]
    source = write(tmp_path / "oi", {"train": lines}, names={})
    (source / "oidv7-class-descriptions-boxable.csv").write_bytes(
        f'\ufeffLabelName,DisplayName\r\n{CAR},Car\r\n/m/1,"Cup, ""mug"""\r\n/m/2,"'.encode()
    )
    write_jpegs(source / "images" / "train", "a.jpg")
    _, records = imported("openimages", source, tmp_path / "s")
    labels = [region.label("category") for region in records["train/a.jpg"].regions]
    assert labels == ["Car", 'Cup, "mug"']


@pytest.mark.parametrize(
    "hierarchy",
    [
        None,
        [1],
        {"LabelName": 3, "Subcategory": {"LabelName": CAR}, "Part": [None, [], 1]},
        {
            "LabelName": CAR,
            "Subcategory": [{"LabelName": WOMAN, "Subcategory": [{"LabelName": CAR}]}],
        },
    ],
)
def test_open_images_hierarchies_without_sense_drop_nothing(tmp_path, hierarchy):
    lines = [row("a", label, (0, 0, 0.5, 0.5)) for label in (CAR, WOMAN)]
    source = write(tmp_path / "oi", {"train": lines})
    (source / "bbox_labels_600_hierarchy.json").write_text(json.dumps(hierarchy))
    write_jpegs(source / "train", "a.jpg")
    _, records = imported("openimages", source, tmp_path / "s")
    assert len(records["train/a.jpg"].regions) == 2


def test_open_images_rows_in_any_order_are_grouped_by_image(tmp_path):
    rng = np.random.default_rng(0)
    lines = [row(f"i{i % 20}", CAR, (0, 0, (i + 1) / 400, 0.5)) for i in range(400)]
    wanted = {f"i{k}": {(i + 1) / 10 for i in range(400) if i % 20 == k} for k in range(20)}
    source = write(tmp_path / "oi", {"test": [lines[i] for i in rng.permutation(400)]})
    write_jpegs(source / "test", *(f"{name}.jpg" for name in wanted))
    report, records = imported("openimages", source, tmp_path / "s")
    assert report["splits"] == {"test": 20}
    for name, widths in wanted.items():
        found = sorted(region.box[2] for region in records[f"test/{name}.jpg"].regions)
        np.testing.assert_allclose(found, sorted(widths), rtol=1e-6)  # float32.


def test_what_is_no_open_images_folder_says_so(tmp_path, shared_data):
    assert not openimages.detect(tmp_path / "no")
    assert not openimages.detect(shared_data / "coco_mini_train2017")
    assert message(plan_import, "openimages", tmp_path) == (
        f"{tmp_path}: no train-, validation- or test-annotations-bbox.csv in it"
    )
    write(tmp_path, {"train": [row("a", CAR, (0, 0, 1, 1))]})
    assert openimages.detect(tmp_path)
    (tmp_path / "class-descriptions-boxable.csv").unlink()
    write_jpegs(tmp_path, "train/a.jpg")
    assert message(plan_import, "openimages", tmp_path) == (
        f"{tmp_path}: no class-descriptions-boxable.csv in it; without it labels have no names"
    )
    path = tmp_path / "train-annotations-bbox.csv"
    path.write_text("ImageID,LabelName\n")
    assert message(plan_import, "openimages", tmp_path) == (
        f"{path}: no column Confidence; fetch the file of boxes again"
    )
    path.write_text("Source," + COLUMNS)
    assert message(plan_import, "openimages", tmp_path) == (
        f"{path}: its first column is not ImageID; fetch it again"
    )
    path.rename(tmp_path / "oidv6-train-annotations-bbox.csv")
    write(tmp_path, {"train": []})
    assert "first column" in message(plan_import, "openimages", tmp_path)
    (tmp_path / "oidv6-train-annotations-bbox.csv").write_text(COLUMNS)
    assert message(plan_import, "openimages", tmp_path) == (
        f"{path}: a second file of boxes of train; remove one of them"
    )
