# SPDX-License-Identifier: Apache-2.0
"""`score` on the golden files: published values from the command to its report."""

import json

import pytest

from florence2_jax.cli.main import main
from florence2_jax.evaluation.scoring import RESULT_FAMILIES

GOLDEN = [
    # Family, truth, predictions, what is published, to how many digits, examples.
    (
        "detection",
        "coco_det_fake100/instances_val2014_100.json",
        "coco_det_fake100/instances_val2014_fakebbox100_results.json",
        {"ap": 0.5045806987249628, "ap50": 0.6969727247299577, "ar100": 0.595352982877607},
        1e-12,
        100,
    ),
    (
        "instance_segmentation",
        "coco_det_fake100/instances_val2014_100.json",
        "coco_det_fake100/instances_val2014_fakesegm100_results.json",
        {"ap": 0.3195452758576433, "ap_large": 0.3269339071005138, "ar1": 0.2682297225711534},
        1e-12,
        100,
    ),
    (
        "captions",
        "coco_caption_fakecap/gts.json",
        "coco_caption_fakecap/captions_val2014_fakecap_results.json",
        # CIDEr is published as 0.5997905: one reference of 5,005 ("... ready to bat.") loses its
        # period, which pycocoevalcap 1.2 takes off as well. The rest is as published.
        {"bleu1": 0.57939957, "bleu4": 0.19082904, "cider": 0.5998952, "rouge_l": 0.39625269},
        2e-6,
        1000,
    ),
    (
        "voc_detection",
        "voc_ap_case1/gts",
        "voc_ap_case1/dets",
        {"map50": 0.0222222222, "map50_11_point": 0.0303030303, "map75": 0.0},
        1e-10,
        7,
    ),
    (
        "ocr",
        "cleval_doc_kr/gt/gt_eval_doc_v1_kr_single.zip",
        "cleval_doc_kr/pred/res_eval_doc_v1_kr_single.zip",
        {"precision": 149 / 168, "recall": 149 / 184},
        1e-12,
        1,
    ),
]


@pytest.mark.parametrize(
    ("family", "truth", "predictions", "expected", "tolerance", "num"),
    GOLDEN,
    ids=[row[0] for row in GOLDEN],
)
def test_golden_files(
    shared_data, tmp_path, capsys, family, truth, predictions, expected, tolerance, num
):
    folder, report = shared_data / "metrics_golden", tmp_path / "report.json"
    command = ["score", family, "--truth", f"{folder / truth}"]
    command += ["--predictions", f"{folder / predictions}", "--json", f"{report}"]
    assert main(command) == 0
    read = json.loads(report.read_text())
    assert {name: read["metrics"][name] for name in expected} == pytest.approx(
        expected, abs=tolerance
    )
    assert read["num_examples"] == num and read["family"] == family
    said = " ".join(capsys.readouterr().out.split())
    assert f"{num} {RESULT_FAMILIES[family].examples}" in said
    for name, value in expected.items():
        assert f"{name} │ {value:.4f}" in said


def test_what_nothing_defines_is_null(tmp_path, capsys):
    for name, rows in (("truth", [{"id": 1, "text": " "}]), ("found", [{"id": 1, "text": "a"}])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    command = ["score", "page_text", "--truth", f"{tmp_path / 'truth.json'}"]
    command += ["--predictions", f"{tmp_path / 'found.json'}", "--json", f"{tmp_path / 'r.json'}"]
    assert main(command) == 0
    assert json.loads((tmp_path / "r.json").read_text())["metrics"]["word_f1"] is None
    assert "undefined" in capsys.readouterr().out


def test_help_lists_families_with_their_files(capsys):
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    said = capsys.readouterr().out
    for name, row in RESULT_FAMILIES.items():
        assert f"  {name}: {row.protocol}\n" in said and row.predictions in said


def test_a_user_error_is_one_line(tmp_path, capsys):
    command = ["score", "vqa", "--truth", f"{tmp_path / 'no.json'}", "--predictions", "no.json"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no.json: no such file" in error
