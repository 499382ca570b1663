# SPDX-License-Identifier: Apache-2.0
"""Equality with transformers at the released sizes; `benchmarks/parity.py` writes the whole table.

224 x 352 px is not square, and its maps of 56 x 88, 28 x 44, 14 x 22 and 7 x 11 tokens leave
windows of 12 incomplete in every stage.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "parity.py"
    spec = importlib.util.spec_from_file_location("benchmark_parity", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "gradients"), [("base", True), ("large", False)])
def test_the_released_sizes_compute_what_transformers_does(parity, variant, gradients):
    config = parity.make_config(variant, (224, 352))
    row = parity.compare(config, seed=0, gradients=gradients)
    assert row["largest_logits"] > 1, "the limits are for logits of unit scale"
    assert not parity.misses(row), row
    if gradients:  # Rounding alone: the equation has none for biases of keys.
        assert row["null_gradients"] < 1e-4
        assert row["gradients"] > 400


def test_a_wrong_gradient_is_found(parity):
    rng = np.random.default_rng(0)
    theirs = {name: rng.normal(size=(8, 8)) for name in ("a.weight", "b.weight")}
    row = parity.compare_gradients(theirs, theirs)
    assert row["cosine"] == pytest.approx(1, abs=1e-12) and not row["largest_relative_error"]
    row = parity.compare_gradients(theirs | {"b.weight": theirs["b.weight"].T}, theirs)
    assert row["cosine_of"] == "b.weight" and row["cosine"] < 0.9
    logits = {"logits": 2e-4, "loss_difference": 0.0, "cosine": 1.0}
    assert parity.misses(logits) == ["logits"]
    assert parity.misses({"logits": float("nan"), "loss_difference": 0.0}) == ["logits"]
