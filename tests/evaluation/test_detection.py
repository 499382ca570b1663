# SPDX-License-Identifier: Apache-2.0
"""Detection metrics equal COCO's published numbers and toys counted by hand."""

import json
import math

import pytest

from florence2_jax.evaluation.detection import (
    COCO_SCORES,
    coco_scores,
    detection_metrics,
    match_metrics,
    proposal_metrics,
    proposal_scores,
)
from florence2_jax.tasks.answers import BoxRegion, MaskRegion

CAT, DOG = ("cat", (0, 0, 40, 40)), ("dog", (50, 50, 90, 90))

GOLDEN = {  # Documented with the files, all digits.
    "bbox": """0.5045806987249628 0.6969727247299577 0.5729816669904824 0.5856257209410443
    0.5193996948036719 0.5013978986347466 0.38681277964578054 0.5936795762842003 0.595352982877607
    0.6398109626113442 0.5664205978994309 0.5642905982905982""",
    "segm": """0.3195452758576433 0.5622883972521636 0.29892653412086784 0.3873740315997838
    0.31018272403369485 0.3269339071005138 0.2682297225711534 0.41544868114906375 0.4168394992198818
    0.4694498622754236 0.37675922666197265 0.3814715099715099""",
}


@pytest.mark.parametrize(("iou_type", "name"), [("bbox", "fakebbox100"), ("segm", "fakesegm100")])
def test_hundred_coco_images(shared_data, capsys, iou_type, name):
    folder = shared_data / "metrics_golden" / "coco_det_fake100"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    found = json.loads((folder / f"instances_val2014_{name}_results.json").read_text())
    before = json.dumps([truth, found])
    scores = coco_scores(truth, found, iou_type=iou_type)
    assert tuple(scores) == COCO_SCORES
    expected = [float(value) for value in GOLDEN[iou_type].split()]
    assert list(scores.values()) == pytest.approx(expected, abs=1e-12)
    assert json.dumps([truth, found]) == before
    assert capsys.readouterr() == ("", "")


def test_answers_give_the_scores_of_coco_files(ask, shared_data):
    """The way over typed answers loses nothing: the golden set with its crowds."""
    folder = shared_data / "metrics_golden" / "coco_det_fake100"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    found = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    # In COCO's order of images, which decides between equal scores.
    numbers = sorted(image["id"] for image in truth["images"])
    images: dict[int, tuple[list, list, list]] = {number: ([], [], []) for number in numbers}

    def region(entry):
        x, y, width, height = entry["bbox"]
        label = names[entry["category_id"]]
        return BoxRegion(label=label, box=(x, y, x + width, y + height), score=entry.get("score"))

    for entry in truth["annotations"]:
        images[entry["image_id"]][2 * entry["iscrowd"]].append(region(entry))
    for entry in found:
        images[entry["image_id"]][1].append(region(entry))
    assert sum(len(crowds) for _, _, crowds in images.values()) == 9
    scored = [
        ask("OD", true, answer, crowds=tuple(crowds)) for true, answer, crowds in images.values()
    ]
    scores = detection_metrics(scored)
    expected = coco_scores(truth, found)
    # Sizes differ: COCO's are those of masks. Boxes move by a rounding error.
    shared = ("ap", "ap50", "ap75", "ar100")
    assert {k: scores[k] for k in shared} == pytest.approx(
        {k: expected[k] for k in shared}, abs=1e-6
    )


def test_ap_by_hand(ask):
    """Two images, cats found in one; the false dog of higher score halves the precision of dogs."""
    wrong = BoxRegion(label="dog", box=(0, 50, 40, 90), score=0.9)
    right = BoxRegion(label="dog", box=DOG[1], score=0.8)
    scored = [ask("OD", [CAT, DOG], [CAT, wrong, right]), ask("OD", [CAT], [])]
    scores = detection_metrics(scored)
    assert next(iter(scores)) == "ap50"
    # Cat: precision 1 at recalls 0 ... 0.5, which are 51 of 101 points. Dog: precision 0.5 at all.
    assert scores["ap50"] == scores["ap"] == pytest.approx((51 / 101 + 0.5) / 2)
    assert scores["ar100"] == pytest.approx((0.5 + 1) / 2)
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert math.isnan(scores["ap_small"])  # No box is small.


def test_perfect_and_empty_answers(ask):
    perfect = detection_metrics([ask("OD", [CAT, DOG], [DOG, CAT])])
    names = ("ap50", "ap", "ap75", "ap_medium", "ar100", "f1", "precision", "recall")
    defined = {name: value for name, value in perfect.items() if not math.isnan(value)}
    assert defined == pytest.approx(dict.fromkeys(names, 1.0))
    empty = detection_metrics([ask("OD", [CAT, DOG], [])])
    assert (empty["ap50"], empty["ap"], empty["ar100"], empty["f1"]) == (0, 0, 0, 0)


def test_no_truth_is_nan_and_an_empty_image_adds_false_positives(ask):
    for scored in ([], [ask("OD", [], [CAT])]):
        assert all(map(math.isnan, detection_metrics(scored).values()))
        assert all(map(math.isnan, proposal_metrics(scored).values()))
    scores = detection_metrics([ask("OD", [], [CAT]), ask("OD", [CAT], [CAT])])
    assert scores["ap50"] == pytest.approx(0.5)  # Equal scores: the first image comes first.
    assert scores["f1"] == pytest.approx(2 / 3)


def test_a_box_said_twice_counts_once(ask):
    scores = detection_metrics([ask("OD", [CAT], [CAT, CAT])])
    assert scores["ap50"] == pytest.approx(1)  # Behind the hit, where recall is complete.
    assert scores["precision"] == 0.5


def test_labels_match_letter_by_letter(ask):
    kitten = ("Cat", CAT[1])
    scores = detection_metrics([ask("OD", [CAT], [kitten])])
    assert (scores["ap50"], scores["f1"]) == (0, 0)
    # A label outside the categories costs no AP, but F1.
    scores = detection_metrics([ask("OD", [CAT], [kitten, CAT])])
    assert scores["ap50"] == pytest.approx(1)
    assert scores["f1"] == pytest.approx(2 / 3)
    # Truth is spelled as targets spell it: a label cannot look like a special token.
    spelled = detection_metrics([ask("OD", [(" <loc_5> ", CAT[1])], [("‹loc_5>", CAT[1])])])
    assert (spelled["ap50"], spelled["f1"]) == pytest.approx((1, 1))


def test_each_prompt_is_its_own_image(ask):
    """The boxes of another prompt about the same image are not false positives."""
    prompts = [
        ask("OPEN_VOCABULARY_DETECTION", [CAT], [CAT], text_input="cat"),
        ask("OPEN_VOCABULARY_DETECTION", [CAT, DOG], [CAT, DOG], text_input="cat<and>dog"),
    ]
    assert detection_metrics(prompts)["ap50"] == pytest.approx(1)


def test_a_mask_answer_counts_by_its_box(ask):
    mask = MaskRegion(label="cat", polygons=((0, 0, 40, 0, 40, 20), (0, 20, 0, 40, 20, 40)))
    assert detection_metrics([ask("OPEN_VOCABULARY_DETECTION", [CAT], [mask])])[
        "ap"
    ] == pytest.approx(1)


def test_proposals_ignore_labels(ask):
    scores = proposal_metrics([ask("REGION_PROPOSAL", [CAT, DOG], [CAT[1], (60, 0, 90, 30)])])
    assert next(iter(scores)) == "ar100"
    assert scores["ar100"] == scores["f1"] == 0.5


def test_better_scored_boxes_choose_first(ask):
    near = BoxRegion(label="cat", box=(0, 0, 40, 30), score=0.9)
    exact = BoxRegion(label="cat", box=CAT[1], score=0.1)
    other = ("cat", (0, 5, 40, 25))  # Meets `near` at IoU 2/3 and `exact` at 1/2.
    scores = match_metrics([ask("OD", [CAT, other], [exact, near])])
    assert scores["f1"] == 1


def test_proposal_recall_by_hand():
    """Twelve objects, eleven found exactly, the wrong category among them."""
    boxes = [[50.0 * i, 0.0, 40.0, 40.0] for i in range(12)]
    truth = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": box, "area": 1600, "iscrowd": 0}
            for box in boxes
        ],
    }
    found = [
        {"image_id": 1, "category_id": 2, "bbox": box, "score": 0.5 - i / 100}
        for i, box in enumerate(boxes[:11])
    ]
    scores = proposal_scores(truth, found)
    assert next(iter(scores)) == "ar100"
    assert scores["ar10"] == pytest.approx(10 / 12)
    assert scores["ar100"] == scores["ar1000"] == scores["ar_medium"] == pytest.approx(11 / 12)
    assert math.isnan(scores["ar_small"])
    assert proposal_scores(truth, [])["ar100"] == 0
    twice = proposal_scores(truth, [found[0], found[0] | {"score": 0.4}])
    assert twice["ar100"] == pytest.approx(1 / 12)
    assert math.isnan(proposal_scores(truth | {"annotations": []}, found)["ar100"])


@pytest.mark.parametrize("odd", [{"score": math.nan}, {"bbox": [0.0, 0.0, math.inf, 1.0]}])
def test_what_is_not_finite_is_an_error(odd, ask):
    entry = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 9.0, 9.0], "score": 0.5}
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}]}
    truth["annotations"] = [entry | {"area": 81, "iscrowd": 0}]
    for metric in (coco_scores, proposal_scores):
        with pytest.raises(ValueError, match="image 1: a box or score is not finite"):
            metric(truth, [entry | odd])
    with pytest.raises(ValueError, match="OD> of image: not finite"):
        ask("OD", [CAT], [BoxRegion(label="cat", box=CAT[1], score=math.nan)])
    with pytest.raises(ValueError, match="OD> of image: not finite"):
        ask("OD", [("cat", (0, 0, math.inf, 9))], [])
