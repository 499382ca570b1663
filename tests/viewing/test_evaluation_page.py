# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation holds its numbers and answers as text, and asks for nothing else."""

import io

import pytest
from PIL import Image

from florence2_jax.data.examples import Example
from florence2_jax.tasks.answers import BoxRegion, RegionsAnswer
from florence2_jax.tasks.registry import get_task
from florence2_jax.viewing import plots
from florence2_jax.viewing.evaluation_page import Cases, write_evaluation_page
from florence2_jax.viewing.prediction_card import PredictionRow

ATTACK = "<script>alert(1)</script>\" onmouseover='x'"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    interval = [0.3, 0.5]
    report = {
        "model": ATTACK,
        "records": "store",
        "split": "val",
        "num_records": 5_000,
        "paper": [
            {"task": "od", "metric": "ap", "paper": {"base": 34.7}, "measured": 35.25}
            | {"interval": [34.0, 36.5]}
        ],
        "tasks": [
            {"task": "od", "num_examples": 4_990, "metrics": {"ap50": 0.4321, "f1": None}}
            | {"intervals": {"ap50": interval}, "blind": {"ap50": 0.0123}},
            {"task": "ocr", "num_examples": 7, "metrics": {"cer": 104.0}}
            | {"intervals": {}, "blind": {}},
        ],
        "warnings": [f"record 3 was set aside: {ATTACK}"],
        "ranking": {
            "ap": {"constant": {"ap50": 0.25}, "box": {"ap50": 0.4321}},
            "gain": {"ap50": {"difference": 0.1821, "interval": [0.1, 0.2]}},
        },
        "calibration": [
            {"task": "od", "kind": "box", "number": 300, "ece": 0.0789}
            | {"bins": [{"score": 0.85, "accuracy": 0.6, "number": 300}]}
        ],
    }
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "green").save(buffer, "PNG")
    task = get_task("od")
    region = BoxRegion(label=ATTACK, box=(1.0, 2.0, 20.0, 15.0), score=0.5)
    row = PredictionRow(
        id=ATTACK,
        image=buffer.getvalue(),
        size=(30, 20),
        example=Example(task=task, regions=(region,)),
        answer=RegionsAnswer(task=task.token, regions=(region,), unparsed=(ATTACK,)),
        raw=ATTACK,
        score=0.75,
    )
    cases = [
        Cases(task=task, which=which, rows=[row], num_all=4_990) for which in ("worst", "best")
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_evaluation_page(report, cases, path)
    return path.read_text(encoding="utf-8")


def test_numbers_stand_with_their_intervals(page):
    for text in ("0.432", "0.300 .. 0.500", "0.012", "4,990", "34.7", "35.2", "34.0 .. 36.5"):
        assert text in page, text
    for text in ("+0.182", "(+0.100 .. +0.200)", "0.079 over 300 scores", "104.0"):
        assert text in page, text
    assert "&lt;OD&gt;: the worst answers" in page and "&lt;OD&gt;: the best answers" in page


def test_nothing_from_data_is_markup_and_nothing_is_fetched(page):
    assert "<script>alert" not in page and "' onmouseover" not in page
    assert page.count("set aside: &lt;script&gt;alert(1)") == 1
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('src="data:image/png') == 1  # An image that two cards show is there once.


def test_a_reliability_plot_draws_the_gap_between_score_and_accuracy():
    drawing = plots.reliability([(0.5, 0.5, 100), (1.0, 0.0, 25)], x="score", y="right")
    assert 'aria-label="score 0.50: 0.50 of 100; score 1.00: 0.00 of 25"' in drawing
    low, high = f"{plots._y(0):.2f}", f"{plots._y(1):.2f}"
    assert f'y1="{high}" y2="{low}"' in drawing  # From the line down to the point.
    assert 'r="9.00"' in drawing and 'r="5.75"' in drawing  # Areas, not radii.
