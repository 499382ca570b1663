# SPDX-License-Identifier: Apache-2.0
"""A measured sample says what more images take, or that it cannot say."""

import copy

import pytest
from import_helpers import message

from florence2_jax.engine.accounts import ratio_error
from florence2_jax.engine.extrapolation import COLUMNS, extrapolate, table


def row(name: str, stage: int, s_per_image: float, num_gpus: float, load_s: float | None) -> dict:
    return {
        "name": name,
        "stage": stage,
        "stage_name": "boxes",
        "images": 1000,
        "failures": {"time-out": 2},
        "s_per_image": s_per_image,
        "s_per_image_error": s_per_image / 20,
        "money": None,
        "bytes": 500_000,
        "resources": {"num_cpus": 2.0, "num_gpus": num_gpus, "memory_bytes": 0},
        "workers": {"mean_load_s": load_s},
    }


@pytest.fixture
def report() -> dict:
    detector, texts = row("detector", 2, 0.36, 1.0, 36.0), row("texts", 2, 0.72, 0.0, 36.0)
    masks = row("masks", 6, 1.08, 1.0, 0.0) | {"money": 4.0}
    return {
        "images": 1000,
        "specialists": [detector, texts, masks],
        "store_bytes": 2_000_000,
        "source_bytes_per_image": 30_000.0,
    }


def test_hours_are_work_over_workers_and_stages_add_up(report):
    found = extrapolate(report, 100_000, workers={"detector": 10, "texts": 10, "masks": 20})
    detector, texts, masks = found["specialists"]
    assert detector["hours"] == pytest.approx(0.01 + 1)  # 36 s to load, 100,000 * 0.36 s / 10.
    assert texts["hours"] == pytest.approx(0.01 + 2) and masks["hours"] == pytest.approx(1.5)
    assert found["hours"] == pytest.approx(2.01 + 1.5)  # The slower one of the first stage.
    assert detector["hours_low"] == pytest.approx(0.01 + 0.9)  # Two standard errors: a tenth.
    assert (detector["accelerators"], texts["accelerators"]) == (10, 0)
    assert found["accelerators"] == 20 and found["cpus"] == 40
    assert found["money"] == pytest.approx(400) and detector["money"] is None
    assert detector["failures"] == 200
    storage = found["storage"]
    assert storage["annotations_bytes"] == 200_000_000 and storage["parts_bytes"] == 150_000_000
    assert storage["images_bytes"] == 3_000_000_000


@pytest.mark.parametrize("hours", [1.0, 3.0, 40.0])
def test_workers_for_given_hours_are_enough_and_one_less_is_not(report, hours):
    found = extrapolate(report, 1_000_000, hours=hours)
    assert 0.8 * hours < found["hours"] <= hours
    counts = {one["name"]: one["workers"] for one in found["specialists"]}
    for name in ("texts", "masks"):
        fewer = {name: counts[name] - max(1, counts[name] // 20)}
        assert extrapolate(report, 1_000_000, workers=counts | fewer)["hours"] > found["hours"]


def test_what_cannot_be_computed_is_refused_or_left_out(report):
    small = copy.deepcopy(report)
    small["specialists"][1]["images"] = 50
    said = message(lambda: extrapolate(small, 10**6, workers=1))
    assert said == "texts: a sample of 50 images says too little; annotate 200 or more"
    uneven = copy.deepcopy(report)
    uneven["specialists"][0]["s_per_image_error"] = 0.2
    assert "standard error that is 0.2 s" in message(lambda: extrapolate(uneven, 9, workers=1))
    uneven["specialists"][0]["s_per_image_error"] = None
    assert "unknown" in message(lambda: extrapolate(uneven, 9, workers=1))
    assert "either" in message(lambda: extrapolate(report, 9))
    assert "too few" in message(lambda: extrapolate(report, 9, hours=0.01))
    assert "workers of texts" in message(lambda: extrapolate(report, 9, workers={"detector": 1}))
    rows = table(extrapolate(report, 10**6, workers=4))
    assert all(len(one) == len(COLUMNS) for one in rows)
    assert [one[COLUMNS.index("money")] for one in rows] == ["-", "-", "4,000.00", "4,000.00"]


def test_the_error_of_a_ratio_is_that_of_a_mean_where_parts_are_alike():
    seconds = [1.0, 3.0, 2.0, 6.0]
    pairs = [(1.0, s) for s in seconds]
    assert ratio_error(pairs) == pytest.approx(1.0801234497)  # Their deviation 2.1602 / sqrt(4).
    assert ratio_error(pairs[:1]) is None
    assert ratio_error([(4.0, 8.0), (2.0, 4.0)]) == 0.0  # Longer parts take longer.
