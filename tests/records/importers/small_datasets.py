# SPDX-License-Identifier: Apache-2.0
"""A small valid dataset of every format: four images, each with something said about it.

Every image has its own number, which stands in its name and in whatever speaks of it, so that from
any change of the files it can be told which images it touches (`mutating.py`).
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path

from import_helpers import jpeg, write_jpegs
from PIL import Image

from . import (
    test_coco,
    test_flickr30k,
    test_icdar,
    test_jsonl,
    test_labelme,
    test_lvis,
    test_mmocr,
    test_objects365,
    test_openimages,
    test_refcoco,
    test_textocr,
    test_visual_genome,
    test_voc,
    test_vqa,
    test_webdataset,
    test_yolo,
)

NUMBERS = (7101, 7102, 7103, 7104)
_BOX, _RING = [1, 2, 10, 8], [1, 2, 11, 2, 11, 10]
_QUAD = [2, 3, 12, 3, 12, 9, 2, 9]


def _coco(folder: Path) -> None:
    images = [test_coco.image_row(n, f"{n}.jpg") for n in NUMBERS]
    instances = [
        test_coco.instance(2 * i + k, n, _BOX, segmentation=[_RING], iscrowd=0)
        for i, n in enumerate(NUMBERS)
        for k in (0, 1)
    ]
    instances[0]["segmentation"] = {"size": [30, 40], "counts": [300, 60, 840]}
    captions = [{"id": i, "image_id": n, "caption": f"Cat {n}."} for i, n in enumerate(NUMBERS)]
    test_coco.write_coco(
        folder,
        captions={"images": images, "annotations": captions},
        instances={
            "images": images,
            "annotations": instances,
            "categories": test_coco.CATEGORIES[:1],
        },
    )
    write_jpegs(folder / "train2017", *(f"{n}.jpg" for n in NUMBERS))


def _coco_panoptic(folder: Path) -> None:
    rows = [
        {
            "image_id": n,
            "file_name": f"{n}.png",
            "segments_info": test_coco.segments(test_coco.CAT, test_coco.GRASS),
        }
        for n in NUMBERS
    ]
    pngs = {str(n): Image.fromarray(test_coco.colours()) for n in NUMBERS}
    images = [test_coco.image_row(n, f"{n}.jpg") for n in NUMBERS]
    test_coco.write_panoptic(folder, rows, images, **pngs)
    write_jpegs(folder / "train2017", *(f"{n}.jpg" for n in NUMBERS))


def _voc(folder: Path) -> None:
    test_voc.write_xmls(folder / "Annotations", *(f"{n}.xml" for n in NUMBERS))
    write_jpegs(folder / "JPEGImages", *(f"{n}.jpg" for n in NUMBERS))
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, numbers in (("train", NUMBERS[:3]), ("val", NUMBERS[3:])):
        text = "".join(f"{n}\n" for n in numbers)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(text)


def _lvis(folder: Path) -> None:
    photos = [test_lvis.photo(n, "train2017", neg_category_ids=[2]) for n in NUMBERS]
    rows = [test_lvis.instance(i, n, 1 + i % 3, _BOX) for i, n in enumerate(NUMBERS)]
    test_lvis.write(folder, "train", photos[:3], rows[:3])
    test_lvis.write(folder, "val", photos[3:], rows[3:])
    write_jpegs(folder / "train2017", *(f"{n:012}.jpg" for n in NUMBERS))


def _objects365(folder: Path) -> None:
    photos = [test_objects365.photo(n, f"images/v1/patch8/{n}.jpg") for n in NUMBERS]
    rows = [test_objects365.box(i, n, 1, _BOX) for i, n in enumerate(NUMBERS)]
    test_objects365.write(folder, "train", photos[:3], rows[:3])
    test_objects365.write(folder, "val", photos[3:], rows[3:])
    write_jpegs(folder / "train" / "patch8", *(f"{n}.jpg" for n in NUMBERS[:3]))
    write_jpegs(folder / "val" / "patch8", f"{NUMBERS[3]}.jpg")


def _openimages(folder: Path) -> None:
    box = (0.1, 0.1, 0.5, 0.5)
    labels = (test_openimages.CAR, test_openimages.FACE)
    lines = [test_openimages.row(f"{n}ab", label, box) for n in NUMBERS for label in labels]
    test_openimages.write(folder, {"train": lines[:6], "validation": lines[6:]})
    write_jpegs(folder / "train", *(f"{n}ab.jpg" for n in NUMBERS[:3]))
    write_jpegs(folder / "validation", f"{NUMBERS[3]}ab.jpg")


def _visual_genome(folder: Path) -> None:
    vg = test_visual_genome
    vg.write(
        folder,
        image_data=[vg.image_row(n) for n in NUMBERS],
        region_descriptions=[
            {"id": n, "regions": [vg.region(2 * i), vg.region(2 * i + 1)]}
            for i, n in enumerate(NUMBERS)
        ],
        objects=[{"image_id": n, "objects": [vg.thing(i, "cup")]} for i, n in enumerate(NUMBERS)],
        question_answers=[{"id": n, "qas": [vg.question(i)]} for i, n in enumerate(NUMBERS)],
    )
    for n in NUMBERS:
        vg.write_image(folder / "VG_100K" / f"{n}.jpg")


def _refcoco(folder: Path) -> None:
    splits = ("train", "train", "val", "testA")
    rows = [
        test_refcoco.ref(i, n, 10 * n, split, f"cup {n}", "left one")
        for i, (n, split) in enumerate(zip(NUMBERS, splits, strict=True))
    ]
    test_refcoco.write(folder, NUMBERS, unc=rows)


def _flickr30k(folder: Path) -> None:
    for n in NUMBERS:
        lines = "[/EN#1/people A man] sees [/EN#2/other a cup] .\nA [/EN#1/people man] .\n"
        boxes = (test_flickr30k.box_of(1), test_flickr30k.box_of(2, corners=(1, 1, 9, 9)))
        test_flickr30k.add_photo(folder, str(n), lines, *boxes)
    (folder / "train.txt").write_text("".join(f"{n}\n" for n in NUMBERS[:3]))
    (folder / "val.txt").write_text(f"{NUMBERS[3]}\n")


def _vqa_v2(folder: Path) -> None:
    questions = [test_vqa.vqa_question(10 * n + k, n) for n in NUMBERS for k in (0, 1)]
    answers = [
        test_vqa.vqa_answers(10 * n + k, "red", "red", "blue", image_id=n)
        for n in NUMBERS
        for k in (0, 1)
    ]
    stem = "v2_OpenEnded_mscoco_train2014_questions.json"
    test_vqa.write_json(folder / stem, {"questions": questions, "data_subtype": "train2014"})
    test_vqa.write_json(
        folder / "v2_mscoco_train2014_annotations.json",
        {"annotations": answers, "data_subtype": "train2014"},
    )
    for n in NUMBERS:
        test_vqa.write_image(folder / "train2014" / f"COCO_train2014_{n:012}.jpg")


def _textvqa(folder: Path) -> None:
    rows = [test_vqa.textvqa(i, f"{n}ab", ["nokia"] * 3 + ["x"]) for i, n in enumerate(NUMBERS)]
    test_vqa.write_json(folder / "TextVQA_0.5.1_train.json", {"data": rows[:3]})
    test_vqa.write_json(folder / "TextVQA_0.5.1_val.json", {"data": rows[3:]})
    for n in NUMBERS:
        test_vqa.write_image(folder / "train_images" / f"{n}ab.jpg")


def _gqa(folder: Path) -> None:
    rows = {str(i): test_vqa.gqa(f"n{n}") for i, n in enumerate(NUMBERS)}
    test_vqa.write_json(folder / "train_balanced_questions.json", rows)
    for n in NUMBERS:
        test_vqa.write_image(folder / "images" / f"n{n}.jpg")


def _textocr(folder: Path) -> None:
    names = {n: f"ab{n}" for n in NUMBERS}
    photos = [test_textocr.photo(name, f"train/{name}.jpg") for name in names.values()]
    points = (_QUAD, test_textocr.ARCH)
    words = [
        test_textocr.word(f"{name}_{k}", name, points[k], f"Word {k}")
        for name in names.values()
        for k in (0, 1)
    ]
    test_textocr.write_file(folder, "train", photos, words)
    write_jpegs(folder / "train_images", *(f"{name}.jpg" for name in names.values()))


def _icdar(folder: Path) -> None:
    row = "2,3,12,3,12,9,2,9,Café\n1,1,9,1,9,5,1,5,###\n"
    texts = {f"gt_img_{n}": row for n in NUMBERS}
    test_icdar.write_texts(folder / "ch4_training_gt", **texts)
    write_jpegs(folder / "ch4_training_images", *(f"img_{n}.jpg" for n in NUMBERS))


def _total_text(folder: Path) -> None:
    row = (
        "x: [[10 20 30 30 20 10]], y: [[5 4 5 9 8 9]], ornt: [u'c'], transcriptions: [u'PIZZA']\n"
        "x: [[1 9 9 1]], y: [[1 1 5 5]], ornt: [u'#'], transcriptions: [u'#']\n"
    )
    texts = {f"poly_gt_img{n}": row for n in NUMBERS}
    test_icdar.write_texts(folder / "Groundtruth" / "Train", **texts)
    write_jpegs(folder / "Images" / "Train", *(f"img{n}.jpg" for n in NUMBERS))


def _mmocr(folder: Path) -> None:
    curved = {"polygon": [1, 1, 9, 1, 12, 5, 9, 9, 1, 9], "text": "five", "ignore": False}
    boxed = {"bbox": [2, 3, 12, 9], "text": "box", "bbox_label": 0}
    rows = [test_mmocr.row(f"imgs/{n}.jpg", curved, boxed) for n in NUMBERS]
    test_mmocr.write_list(folder / "textspotting_train.json", rows[:3])
    test_mmocr.write_list(folder / "textspotting_test.json", rows[3:])
    write_jpegs(folder / "imgs", *(f"{n}.jpg" for n in NUMBERS))


def _labelme(folder: Path) -> None:
    ring = [[1, 2], [11, 2], [11, 10]]
    kinds = {"polygon": ring, "circle": ring[:2], "point": ring[:1]}
    shapes = [test_labelme.BOX]
    shapes += [test_labelme.shape("dog", kind, points) for kind, points in kinds.items()]
    shapes.append(test_labelme.shape("cup", "mask", [[3, 4], [6, 7]]))
    shapes[-1]["mask"] = test_labelme.png([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]])
    for n in NUMBERS:
        test_labelme.write_json(folder / f"{n}.json", shapes)
    inside = base64.b64encode(jpeg()).decode()
    test_labelme.write_json(folder / f"{NUMBERS[0]}.json", shapes, imageData=inside)
    write_jpegs(folder, *(f"{n}.jpg" for n in NUMBERS[1:]))


def _yolo(folder: Path) -> None:
    write_jpegs(folder / "images" / "train", *(f"{n}.jpg" for n in NUMBERS[:3]))
    write_jpegs(folder / "images" / "val", f"{NUMBERS[3]}.jpg")
    (folder / "images" / "val" / "LICENSE").write_text("")  # Else the folder goes with its image.
    rows = "0 0.5 0.5 0.5 0.2\n1 0.1 0.2 0.3 0.2 0.3 0.4\n"
    test_yolo.write_rows(folder / "labels" / "train", **{str(n): rows for n in NUMBERS[:3]})
    test_yolo.write_rows(folder / "labels" / "val", **{str(NUMBERS[3]): rows})
    (folder / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: 'hot dog'\n"
    )


def _jsonl(folder: Path) -> None:
    asked = {
        "<OD>": "cat<loc_100><loc_200><loc_500><loc_600>",
        "<CAPTION>": "A cat.",
        "<VQA>How many?": "one",
        "<REFERRING_EXPRESSION_SEGMENTATION>cat": "<loc_0><loc_0><loc_9><loc_0><loc_9><loc_9>",
    }
    for split, numbers in (("train", NUMBERS[:3]), ("valid", NUMBERS[3:])):
        lines = [test_jsonl.line(f"{n}.jpg", *pair) for n in numbers for pair in asked.items()]
        test_jsonl.write_lines(folder / split / "annotations.jsonl", *lines)
        write_jpegs(folder / split, *(f"{n}.jpg" for n in numbers))


def _webdataset(folder: Path) -> None:
    for shard, numbers in enumerate((NUMBERS[:2], NUMBERS[2:])):
        samples = [test_webdataset.sample(str(n), f"photo {n}") for n in numbers]
        members = {name: data for sample in samples for name, data in sample.items()}
        test_webdataset.write_tar(folder / f"{shard:05d}.tar", members)


def _hf_rows() -> list[dict]:
    from . import test_hugging_face  # Skips without pyarrow.

    return [
        test_hugging_face.row(i, image={"bytes": jpeg(), "path": f"{n}.jpg"})
        for i, n in enumerate(NUMBERS)
    ]


def _hf_arrow(folder: Path) -> None:
    from . import test_hugging_face

    test_hugging_face.save_to_disk(folder, _hf_rows())


def _hf_parquet(folder: Path) -> None:
    from . import test_hugging_face as hf

    folder.mkdir(parents=True)
    for i, rows in enumerate((_hf_rows()[:2], _hf_rows()[2:])):
        hf.pq.write_table(hf.table(rows), folder / f"train-{i:05d}-of-00002.parquet")


def _images(folder: Path) -> None:
    write_jpegs(folder, *(f"{n}.jpg" for n in NUMBERS[:2]))
    write_jpegs(folder / "more", *(f"{n}.jpg" for n in NUMBERS[2:]))
    for n, place in zip(NUMBERS, (folder, folder, folder / "more", folder / "more"), strict=True):
        (place / f"{n}.txt").write_text(f"photo {n}")
    (folder / "notes.json").write_text(json.dumps({"author": "somebody"}))


DATASETS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "coco": ("coco", _coco),
    "coco_panoptic": ("coco", _coco_panoptic),
    "voc": ("voc", _voc),
    "lvis": ("lvis", _lvis),
    "objects365": ("objects365", _objects365),
    "openimages": ("openimages", _openimages),
    "visual_genome": ("visual_genome", _visual_genome),
    "refcoco": ("refcoco", _refcoco),
    "flickr30k": ("flickr30k", _flickr30k),
    "vqa_v2": ("vqa", _vqa_v2),
    "textvqa": ("vqa", _textvqa),
    "gqa": ("vqa", _gqa),
    "textocr": ("textocr", _textocr),
    "icdar": ("icdar", _icdar),
    "total_text": ("icdar", _total_text),
    "mmocr": ("mmocr", _mmocr),
    "labelme": ("labelme", _labelme),
    "yolo": ("yolo", _yolo),
    "jsonl": ("jsonl", _jsonl),
    "webdataset": ("webdataset", _webdataset),
    "hf_arrow": ("hf", _hf_arrow),
    "hf_parquet": ("hf", _hf_parquet),
    "images": ("images", _images),
}
"""Name of a dataset -> its format among `IMPORTERS`, and what writes it into a new folder."""
