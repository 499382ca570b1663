# SPDX-License-Identifier: Apache-2.0
"""Every row of the paper's tables is a recipe that loads, with the figure the paper prints."""

import re
from pathlib import Path

import pytest

from florence2_jax.cli.train import load_config
from florence2_jax.evaluation.recipes import Recipe
from florence2_jax.typing import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = ("evaluate_zero_shot", "evaluate_finetuned")


def rows_of(name):
    with pytest.raises(UserError, match="no row 'odd'; there are") as told:
        load_config(f"{CONFIGS}/{name}.py:odd", [])
    return re.findall(r"\w+", str(told.value).partition("there are")[2])


def recipe(name, row):
    return Recipe.create(load_config(f"{CONFIGS}/{name}.py:{row}", []))


@pytest.mark.parametrize("name", FILES)
def test_every_row_loads(name):
    rows = rows_of(name)
    assert len(rows) >= 14
    for row in rows:
        found = recipe(name, row)
        assert found.paper and all(0 < value < 160 for value in found.paper.values())
        assert found.source.startswith("Florence-2, Table")


def test_figures_are_those_of_the_tables():
    assert recipe(FILES[0], "coco_detection").paper == {"base": 34.7, "large": 37.5}
    assert recipe(FILES[0], "flickr30k_grounding").paper == {"base": 83.6, "large": 84.4}
    tuned = recipe(FILES[1], "textvqa")
    assert tuned.paper == {"base-ft": 63.6, "large-ft": 73.5}  # Not the 81.5 of the text.
    assert "test-dev" in tuned.note
    assert recipe(FILES[1], "refcoco_plus_testB").paper["base-ft"] == 82.2


def test_the_figure_that_repeats_another_cell_is_no_target():
    assert recipe(FILES[1], "refcocog_test").paper == {"large-ft": 91.7}


def test_expressions_are_asked_by_a_released_prompt():
    found = recipe(FILES[0], "refcoco_val")
    assert found.asking() == {
        "<REFERRING_EXPRESSION_COMPREHENSION>": "<CAPTION_TO_PHRASE_GROUNDING>"
    }


def test_what_keeps_a_figure_from_being_compared_is_said():
    found = recipe(FILES[0], "coco_caption")
    assert found.notes("test", 5_000, None) == []
    (note,) = found.notes("test", 4_990, None)
    assert "4,990 images, the published split has 5,000 (the store has no more)" in note
    assert "--max-records 10" in found.notes("test", 10, 10)[0]
    assert "measured on split val" in found.notes("val", 5_000, None)[0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("metric", "ap", "metric: no key of a recipe; did you mean metrics"),
        ("metrics", ["app"], "metrics: od has no 'app'; there are ap50, ap"),
        ("task", "odd", "unknown task 'odd'"),
        ("paper", {}, "paper: the recipe must say it"),
        ("decoding", {"num_beams": 0}, "num_beams=0 must be at least 1"),
        ("asked_as", "nothing", "unknown task 'nothing'"),
    ],
)
def test_a_wrong_recipe_is_named(key, value, message):
    values = load_config(f"{CONFIGS}/evaluate_zero_shot.py:coco_detection", [])
    with pytest.raises(UserError, match=message):
        Recipe.create(values | {key: value})
