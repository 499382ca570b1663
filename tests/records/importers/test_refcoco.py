# SPDX-License-Identifier: Apache-2.0
"""RefCOCO: sentences become phrases of their instances, and no held-out photo is trained on."""

import functools
import json
import os
import pickle
from pathlib import Path

import import_helpers
import numpy as np
import pytest
from import_helpers import counts
from PIL import Image

from florence2_jax.records.importers import detect as detect_format
from florence2_jax.records.importers import plan_import
from florence2_jax.records.importers.refcoco import detect
from florence2_jax.records.store import RecordStore
from florence2_jax.typing import UserError

SQUARE = [1, 2, 11, 2, 11, 12, 1, 12]


imported = functools.partial(import_helpers.imported, "refcoco")


def photo(number: int) -> str:
    return f"COCO_train2014_{number:012d}.jpg"


def ref(ref_id: int, image_id: int, ann_id: int, split: str, *sentences, **fields) -> dict:
    """A row of a refs file, as it was published."""
    sent_ids = [10 * ref_id + i for i in range(len(sentences))]
    listed = [
        {"tokens": text.split(), "raw": text.upper(), "sent_id": sent_id, "sent": text}
        for sent_id, text in zip(sent_ids, sentences, strict=True)
    ]
    row = {"sent_ids": sent_ids, "file_name": photo(image_id).replace(".", f"_{ann_id}.")}
    row |= {"ann_id": ann_id, "ref_id": ref_id, "image_id": image_id, "split": split}
    return row | {"sentences": listed, "category_id": 1} | fields


def write(folder: Path, images, annotations=None, protocol: int = 2, **refs) -> Path:
    """A folder as it is published; of each image two instances, 10 * id and one more."""
    folder.mkdir(parents=True, exist_ok=True)
    instance = {"bbox": [1, 2, 10, 10], "segmentation": [SQUARE], "category_id": 1, "iscrowd": 0}
    if annotations is None:
        annotations = [
            instance | {"id": 10 * image + i, "image_id": image} for image in images for i in (0, 1)
        ]
    content = {
        "images": [
            {
                "id": n,
                "file_name": photo(n),
                "width": 40,
                "height": 30,
                "coco_url": f"https://c/{n}",
            }
            for n in images
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    for by, rows in refs.items():
        (folder / f"refs({by}).p").write_bytes(pickle.dumps(rows, protocol))
    (folder / "train2014").mkdir(exist_ok=True)
    for n in images:
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "train2014" / photo(n))
    return folder


def phrases(record) -> list[list[str]]:
    return [[b.text for b in r.labels if b.kind == "phrase"] for r in record.regions]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_sentences_become_phrases_of_their_instances(tmp_path, protocol):
    rows = [
        ref(1, 1, 10, "train", "the lady", "lady in blue"),
        ref(2, 1, 11, "train", "the man "),
        ref(3, 2, 20, "val", "left one", "left one"),
        ref(4, 3, 30, "testA", "a boy"),
        ref(5, 4, 41, "testB", "a cat"),
    ]
    source = write(tmp_path / "refcoco", [1, 2, 3, 4, 5], unc=rows, protocol=protocol)
    assert detect_format(source) == "refcoco"
    report, records = imported(source, tmp_path / "s")
    assert report["splits"] == {"train": 1, "val": 1, "testA": 1, "testB": 1}
    record = records[f"train2014/{photo(1)}"]
    assert phrases(record) == [["the lady", "lady in blue"], ["the man"]]
    assert record.origin == "https://c/1"
    region = record.regions[0]
    assert region.box == (1, 2, 11, 12) and region.polygons == (tuple(SQUARE),)
    assert region.label("category") == "person" and not region.is_crowd
    assert phrases(records[f"train2014/{photo(2)}"]) == [["left one"], []]
    assert counts(report, "image") == (4, 4, {}) and counts(report, "region") == (8, 8, {})
    assert counts(report, "phrase") == (7, 6, {"said of its region before": 1})
    noted = report["counts"]["image"]["noted"]
    assert noted == {"listed without a sentence that is kept, not read": 1}


def test_a_photo_of_several_splits_is_held_out(tmp_path):
    rows = [
        ref(1, 1, 10, "train", "one", "two"),
        ref(2, 1, 11, "val", "three"),
        ref(3, 2, 20, "train", "four"),
        ref(4, 2, 21, "train", "five"),
        ref(5, 3, 30, "val", "six"),
        ref(6, 3, 31, "test", "seven"),
        ref(7, 4, 40, "train", "eight"),
        ref(8, 4, 99, "val", "of no instance, yet it holds its photo out"),
    ]
    source = write(tmp_path / "refcoco", [1, 2, 3, 4], google=rows)
    report, _ = imported(source, tmp_path / "s")
    assert report["splits"] == {"train": 1, "val": 1, "test": 1}
    found = {split: [phrases(r) for r in RecordStore(tmp_path / "s", split)] for split in
             ("train", "val", "test")}  # fmt: skip
    assert found == {
        "train": [[["four"], ["five"]]],
        "val": [[[], ["three"]]],
        "test": [[[], ["seven"]]],
    }
    assert counts(report, "phrase") == (
        9,
        4,
        {
            "of train, but its photo is held out for val": 3,
            "of val, but its photo is held out for test": 1,
            "its instance is not listed, or on another image": 1,
        },
    )


def test_by_chooses_the_file(tmp_path):
    unc, google = [ref(1, 1, 10, "train", "one")], [ref(1, 1, 10, "val", "two")]
    source = write(tmp_path / "refcoco", [1], unc=unc, google=google)
    with pytest.raises(UserError, match="holds refs of google, unc; choose one: by=NAME"):
        plan_import("refcoco", source)
    with pytest.raises(UserError, match=r"no refs\(umd\)\.p in it; by may be google or unc"):
        plan_import("refcoco", source, {"by": "umd"})
    report, _ = imported(source, tmp_path / "s", by="google")
    assert report["splits"] == {"val": 1}
    assert report["counts"]["file"]["noted"] == {"refs(unc).p not read: by=google was chosen": 1}


def test_faults_cost_no_neighbours(tmp_path):
    good = ref(1, 1, 10, "train", "one")
    fault = {"tokens": []}
    rows = [
        good,
        good,
        ref(2, 9, 10, "train", "of no image"),
        ref(3, 1, 99, "train", "of no instance"),
        ref(4, 2, 10, "train", "of another image", "twice"),
        ref(5, 1, 11, "dev", "of no split"),
        ref(6, 1, 11, "train", sentences=None),
        ref(7, 1, 11, "train", sentences=[fault, "x", {"sent": 5}, {"raw": "RAW"}, {"sent": " "}]),
        ref(8, 1, 12, "train", "as texts", "na\udcefve") | {"image_id": "1", "ann_id": "12"},
        ref(9, 1, 13, "train", "without area"),
        ref(10, 3, 30, "train", "no file"),
        ref(11, 1, 14, "train", "nameless"),
        "nonsense",
        None,
    ]
    square = {"bbox": [1, 2, 10, 10], "segmentation": [SQUARE], "category_id": 1}
    annotations = [square | {"id": n, "image_id": 1} for n in (10, 11, 12, 13, 14)]
    annotations[3] |= {"bbox": [1, 2, 0, 10]}
    annotations[4] |= {"category_id": 7}
    annotations += [square | {"id": 30, "image_id": 3}, square | {"id": 31, "image_id": 77}]
    source = write(tmp_path / "refcoco", [1, 2, 3], annotations, unc=[], protocol=2)
    data = pickle.dumps(rows, 2)
    # As Python 2 wrote a text in Latin-1.
    text = b"X" + len("na\udcefve".encode("utf-8", "surrogatepass")).to_bytes(4, "little")
    text += "na\udcefve".encode("utf-8", "surrogatepass")
    assert text in data
    (source / "refs(unc).p").write_bytes(data.replace(text, b"U\x05na\xefve"))
    (source / "train2014" / photo(3)).unlink()
    report, records = imported(source, tmp_path / "s")
    (record,) = records.values()
    assert phrases(record) == [["one"], ["RAW"], ["as texts", "nave"], ["nameless"]]
    assert counts(report, "phrase") == (
        20,
        5,
        {
            "listed twice": 1,
            "its image is not listed": 1,
            "its instance is not listed, or on another image": 3,
            "of a split that is not known": 1,
            "no list of sentences": 3,
            "not a text": 3,
            "its region was set aside, or it is no text": 2,
            "its image was set aside": 1,
        },
    )
    assert counts(report, "region") == (
        7,
        4,
        {"its image is not listed": 1, "box without area": 1, "its image was set aside": 1},
    )


def test_nothing_in_a_refs_file_is_run(tmp_path):
    class Call:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    source = write(tmp_path / "refcoco", [1], unc=[Call()])
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: refused: it has the instruction GLOBAL"):
        plan_import("refcoco", source)
    assert not (tmp_path / "marker").exists()


def test_what_is_none_says_so(tmp_path, shared_data):
    with pytest.raises(UserError, match=r"no refs\(BY\)\.p in it; give the folder that holds it"):
        plan_import("refcoco", tmp_path)
    source = write(tmp_path / "refcoco", [1], unc={"refs": []})
    assert detect(source) and not detect(tmp_path) and not detect(tmp_path / "no")
    assert not detect(shared_data / "coco_mini_train2017")
    with pytest.raises(UserError, match="no list in it; is it a file of RefCOCO"):
        plan_import("refcoco", source)
    (source / "instances.json").unlink()
    with pytest.raises(UserError, match=r"instances\.json: no such file"):
        plan_import("refcoco", source)
