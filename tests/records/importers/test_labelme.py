# SPDX-License-Identifier: Apache-2.0
"""labelme: the examples of the tool come in with exact counts, every shape as it should."""

import base64
import io
import json
import math

import numpy as np
import pytest
from import_helpers import imported, jpeg, message, why, write_jpegs
from PIL import Image

from florence2_jax.geometry import polygon_area
from florence2_jax.records.importers import detect, labelme, plan_import
from florence2_jax.records.inspection import check_store
from florence2_jax.records.ledger import Ledger


@pytest.mark.parametrize(
    ("folder", "images", "regions", "polygons"),
    [
        ("bbox_detection/data_annotated", 3, 9, 0),
        ("instance_segmentation/data_annotated", 3, 14, 18),  # 18 shapes, 6 of them in 2 groups.
        ("primitives", 1, 5, 2),  # A mask beside; a line, a strip and a point are no regions.
        ("tutorial", 1, 4, 4),
        ("classification/data_annotated", 2, 0, 0),
        ("video_annotation/data_annotated", 2, 6, 6),
    ],
)
def test_examples_come_in_whole(shared_data, tmp_path, folder, images, regions, polygons):
    source = shared_data / "labelme_examples" / folder
    assert detect(source) == "labelme"
    report, records = imported("labelme", source, tmp_path / "s")
    counts = report["counts"]
    for kind, num in (("image", images), ("region", regions), ("polygon", polygons)):
        if num:
            assert (counts[kind]["read"], counts[kind]["kept"]) == (num, num)
        else:
            assert kind not in counts
    assert len(records) == images
    assert check_store(tmp_path / "s")["num_problems"] == 0


def test_groups_and_what_is_to_be_ignored(shared_data, tmp_path):
    source = shared_data / "labelme_examples/instance_segmentation/data_annotated"
    report, records = imported("labelme", source, tmp_path / "s")
    assert report["counts"]["shape"]["noted"] == {"joined with others of its group": 4}
    regions = records["2011_000006"].regions
    assert [len(r.polygons) for r in regions] == [1, 1, 1, 1, 1, 1, 4]
    sofa = regions[-1]
    assert sofa.label("category") == "sofa"
    assert sofa.box[0] == min(min(p[::2]) for p in sofa.polygons)
    assert [r.is_crowd for r in regions] == [False] * 5 + [True, False]
    assert regions[5].labels == ()
    assert records["2011_000006"].image == (source / "2011_000006.jpg").read_bytes()


def test_shapes_of_the_primitives(shared_data, tmp_path):
    source = shared_data / "labelme_examples/primitives"
    report, records = imported("labelme", source, tmp_path / "s")
    box, circle, _, polygon, mask = records["primitives"].regions
    assert box.box == (32, 35, 132, 135) and box.polygons == ()
    radius = math.hypot(30, 41)
    assert circle.box == pytest.approx((195 - radius, 84 - radius, 195 + radius, 84 + radius))
    assert polygon_area(circle.polygons[0]) == pytest.approx(math.pi * radius**2, rel=2e-3)
    assert len(circle.polygons[0]) == 2 * labelme.CIRCLE_CORNERS
    assert len(polygon.polygons[0]) == 8
    shapes = json.loads((source / "primitives.json").read_text())["shapes"]
    png = next(shape["mask"] for shape in shapes if shape["shape_type"] == "mask")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) > 0
    assert polygon_area(mask.polygons[0]) == pixels.sum()
    assert mask.box == (417, 305, 517, 405)
    assert report["counts"]["shape"]["noted"] == {
        "line not read": 1,
        "point not read": 1,
        "linestrip not read": 1,
    }


def test_image_inside_the_file(shared_data, tmp_path):
    source = shared_data / "labelme_examples/tutorial"
    _, records = imported("labelme", source, tmp_path / "s")
    inside = json.loads((source / "apc2016_obj3.json").read_text())["imageData"]
    assert records["apc2016_obj3"].image == base64.b64decode(inside)


def test_flags_are_noted(shared_data):
    source = shared_data / "labelme_examples/classification"
    plan = plan_import("labelme", source)
    ledger = Ledger()
    for unit in plan.units["train"]:
        plan.make(unit, ledger)
    assert ledger.tallies["image"].noted == {"flags of the whole image not read": 2}


def shape(label, kind, points, **fields):
    return {"label": label, "points": points, "shape_type": kind, "flags": {}} | fields


def write_json(path, shapes, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imageData": None}
    content |= {"imagePath": f"{path.stem}.jpg", "imageHeight": 30, "imageWidth": 40}
    path.write_text(json.dumps(content | fields))


BOX = shape("cat", "rectangle", [[9, 8], [1, 2]])


def png(mask) -> str:
    out = io.BytesIO()
    Image.fromarray(np.array(mask, np.uint8) * 255).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def test_images_are_found_and_no_way_leads_out(tmp_path):
    source = tmp_path / "l"
    write_json(source / "train/a.json", [BOX])
    write_json(source / "val/b.json", [BOX], imagePath="..\\images\\b.jpg")
    write_json(source / "c.json", [BOX], imagePath="../../outside.jpg")
    write_json(source / "d.json", [BOX], imagePath="/etc/d.jpg")
    write_json(source / "e.json", [BOX], imagePath=None)
    write_json(source / "f.json", [BOX], imageData="***")
    write_json(source / "g.json", [BOX], imageData=base64.b64encode(jpeg()).decode())
    write_jpegs(source, "train/a.jpg", "images/b.jpg", "d.jpg", "e.jpg", "f.jpg")
    write_jpegs(tmp_path, "outside.jpg")
    report, records = imported("labelme", source, tmp_path / "s")
    assert report["splits"] == {"train": 3, "val": 1}
    assert set(records) == {"train/a", "val/b", "d", "g"}
    assert records["train/a"].regions[0].box == (1, 2, 9, 8)
    assert report["counts"]["region"]["repaired"] == {}
    assert report["counts"]["image"]["set_aside"] == {
        "its file is missing": 1,
        "no image in it, nor the name of one": 1,
        "its file cannot be read": 1,
    }


def test_shapes_with_faults_cost_only_themselves(tmp_path):
    mask = [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    shapes = [
        BOX,
        "nonsense",
        shape("", "rectangle", [[1, 1], [2, 2]]),
        shape("x", "ellipse", [[1, 1], [2, 2]]),
        shape("x", "polygon", [[1, 1], ["a", 2], [3, 3]]),
        shape("x", "polygon", [[1, 1], [5, 5]]),
        shape("x", "polygon", None),
        shape("_background_", "polygon", [[1, 1], [5, 5], [1, 5]]),
        shape("ring", "mask", [[38.6, 2], [40.6, 4]], mask=png(mask)),
        shape("x", "mask", [[1, 1], [3, 3]], mask="bad"),
        shape("far", "mask", [[1e9, 1], [3, 3]], mask=png(mask)),
        shape("x", None, [[1, 1], [5, 1], [5, 5]], description="a thing"),
        shape("pair", "rectangle", [[10, 10], [12, 12]], group_id=1),
        shape("pair", "polygon", [[20, 20], [22, 20], [22, 22]], group_id=1),
        shape("other", "rectangle", [[10, 10], [12, 12]], group_id=1),
        shape("big", "circle", [[20, 15], [20, float("1e308")]]),
    ]
    write_json(tmp_path / "l/a.json", shapes)
    write_jpegs(tmp_path / "l", "a.jpg")
    (tmp_path / "l/broken.json").write_text("{")
    (tmp_path / "l/other.json").write_text('{"images": []}')
    (tmp_path / "l/deep.json").write_text("[" * 100_000)
    report, records = imported("labelme", tmp_path / "l", tmp_path / "s")
    cat, ring, thing, pair, other = records["a"].regions
    assert cat.label("category") == "cat" and ring.box == (38, 2, 40, 5)
    assert (thing.label("category"), thing.label("brief")) == ("x", "a thing")
    assert pair.box == (10, 10, 22, 22) and len(pair.polygons) == 2
    assert other.box == (10, 10, 12, 12) and other.polygons == ()
    assert report["counts"]["region"]["set_aside"] == {
        "a shape of no known type": 2,
        "no label that is a text": 1,
        "box is not four finite numbers": 6,
    }
    assert report["counts"]["region"]["read"] == 14
    assert why(tmp_path / "s")["mask", "neither polygons nor a mask"] == 1
    assert why(tmp_path / "s")["mask", "no pixel of the mask is in the image"] == 1
    assert report["counts"]["image"]["set_aside"] == {
        "annotation file is not JSON": 2,
        "annotation file has no list of shapes": 1,
    }


def test_detect_says_no(tmp_path, shared_data):
    (tmp_path / "a.json").write_text('{"images": [], "annotations": []}')
    assert not labelme.detect(tmp_path) and not labelme.detect(tmp_path / "no")
    assert not labelme.detect(shared_data / "mmocr_toy/det_toy_dataset")
    (tmp_path / "empty").mkdir()
    assert "no .json in it" in message(plan_import, "labelme", tmp_path / "empty")
