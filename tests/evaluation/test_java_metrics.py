# SPDX-License-Identifier: Apache-2.0
"""METEOR equals its published values, where Java and pycocoevalcap are."""

import json
import math

import pytest

from florence2_jax.evaluation.java_metrics import meteor, why_no_meteor
from florence2_jax.typing import UserError

needs_meteor = pytest.mark.skipif(bool(why_no_meteor()), reason=f"METEOR: {why_no_meteor()}")


@needs_meteor
def test_published_single_case_and_degenerate_captions():
    assert math.isnan(meteor([], [])[0])
    captions = ["this is a good test", "...", "a dog", "a dog a dog"]
    references = [["this is a test", "this is also a test"], *[["a dog"]] * 3]
    _, (published, silent, said_once, said_twice) = meteor(captions, references)
    assert published == pytest.approx(0.44434387, abs=5e-9)
    assert silent == 0
    assert said_once > said_twice > 0


@needs_meteor
def test_thousand_coco_captions(shared_data):
    folder = shared_data / "metrics_golden" / "coco_caption_fakecap"
    truth, found = (json.loads((folder / f"{name}.json").read_text()) for name in ("gts", "res"))
    score, each = meteor([found[key][0] for key in truth], list(truth.values()))
    assert score == pytest.approx(0.195254671778, abs=5e-13)
    assert len(each) == 1000


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"METEOR: Java .*not installed; install"):
        meteor(["a dog"], [["a dog"]])
