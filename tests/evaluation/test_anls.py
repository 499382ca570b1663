# SPDX-License-Identifier: Apache-2.0
"""ANLS, counted by hand."""

import math

import pytest

from florence2_jax.evaluation.anls import anls, anls_metrics


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("Nokia  3310", ["nokia 3310"], 1),  # Case and blanks are alike.
        ("nokio", ["nokia"], 4 / 5),
        ("ab", ["ax"], 1 / 2),  # A half still counts, as in the released code.
        ("abc", ["axy"], 0),
        ("yes", ["no", "yess"], 3 / 4),  # The best of several.
        ("", ["no"], 0),
        ("", [""], 1),
    ],
)
def test_by_hand(answer, references, expected):
    assert anls(answer, references) == pytest.approx(expected)


def test_degenerate_input(ask):
    assert math.isnan(anls_metrics([])["anls"])
    assert math.isnan(anls_metrics([ask("VQA", [], "a")])["anls"])
    assert anls_metrics([ask("VQA", ["nokia"], "nokio"), ask("VQA", ["a"], "")])["anls"] == 0.4
    with pytest.raises(ValueError, match="without a reference"):
        anls("a", [])
