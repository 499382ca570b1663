# SPDX-License-Identifier: Apache-2.0
"""The category of a region."""

import math

import pytest

from florence2_jax.evaluation.regions import category_metrics


def test_category_accuracy(ask):
    answers = [(["cat"], " Cat "), (["dog", "puppy"], "puppy"), (["car"], "cars"), (["car"], "")]
    scored = [ask("REGION_TO_CATEGORY", truth, answer) for truth, answer in answers]
    assert category_metrics(scored) == {"accuracy": pytest.approx(0.5)}


def test_degenerate_categories(ask):
    assert math.isnan(category_metrics([])["accuracy"])
    assert math.isnan(category_metrics([ask("REGION_TO_CATEGORY", [], "cat")])["accuracy"])
