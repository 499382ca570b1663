# SPDX-License-Identifier: Apache-2.0
"""Options that contradict each other are refused by name; lengths count as transformers counts."""

import re

import pytest

from florence2_jax.inference.generation_config import DEFAULT_NEW_TOKENS, GenerationConfig
from florence2_jax.typing import UserError


def test_defaults_are_those_of_the_released_models():
    config = GenerationConfig()
    released = dict(
        num_beams=3, no_repeat_ngram_size=3, early_stopping=True, length_penalty=1.0,
        forced_bos_token_id=0, forced_eos_token_id=2, do_sample=False, num_return_sequences=1,
    )  # fmt: skip
    assert {name: getattr(config, name) for name in released} == released


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(num_beams=0), "num_beams=0"),
        (dict(num_return_sequences=0), "num_return_sequences=0"),
        (dict(num_beams=2, num_return_sequences=3), "num_return_sequences=3 is more than"),
        (dict(num_beams=1, num_return_sequences=2), "num_return_sequences=2: greedy"),
        (dict(early_stopping="always"), "early_stopping='always'"),
        (dict(temperature=0.0, do_sample=True), "temperature=0.0"),
        (dict(temperature=0.5), "temperature=0.5 does nothing without do_sample"),
        (dict(top_p=0.9), "top_p=0.9 does nothing without do_sample"),
        (dict(top_k=5), "top_k=5 does nothing without do_sample"),
        (dict(top_p=0.0, do_sample=True), "top_p=0.0"),
        (dict(top_k=-1, do_sample=True), "top_k=-1"),
        (dict(no_repeat_ngram_size=-1), "no_repeat_ngram_size=-1"),
        (dict(task_ngram_sizes={"<OCR>": -1}), "task_ngram_sizes[<OCR>]=-1"),
        (dict(task_ngram_sizes={"<OCD>": 0}), "unknown task '<OCD>'"),
        (dict(max_new_tokens=9, max_length=9), "max_new_tokens=9 and max_length=9"),
        (dict(min_new_tokens=3, min_length=3), "min_new_tokens=3 and min_length=3"),
        (dict(max_new_tokens=5, min_new_tokens=5), "an answer of 5 tokens before </s>"),
        (dict(max_length=1), "max_length=1"),
        (dict(length_penalty=float("nan")), "length_penalty=nan"),
        (dict(forced_bos_token_id=-2), "forced_bos_token_id=-2"),
        (dict(seed=-1), "seed=-1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, named):
    with pytest.raises(UserError, match=re.escape(named)):
        GenerationConfig(**options)


def test_lengths_count_the_start_token_or_not():
    assert GenerationConfig().num_new_tokens == DEFAULT_NEW_TOKENS
    assert GenerationConfig(max_length=9).num_new_tokens == 8
    assert GenerationConfig(max_new_tokens=8, max_length=9).num_new_tokens == 8
    assert GenerationConfig(min_length=4).fewest_new_tokens == 3
    assert GenerationConfig(min_length=0).fewest_new_tokens == 0


def test_the_ngram_rule_of_single_tasks():
    config = GenerationConfig(task_ngram_sizes={"ocr": 5})
    assert config.ngram_size("<OCR>") == config.largest_ngram_size == 5
    assert config.ngram_size("<OD>") == 3
    assert config == GenerationConfig(task_ngram_sizes={"<OCR>": 5})
    assert hash(config) == hash(GenerationConfig(task_ngram_sizes={"<OCR>": 5}))


def test_structured_answers_may_repeat_themselves_prose_may_not():
    config = GenerationConfig(task_ngram_sizes={"<OD>": 7}).exempt_structured()
    free = ("<OCR>", "<OCR_WITH_REGION>", "<REGION_PROPOSAL>", "<REGION_TO_OCR>")
    assert [config.ngram_size(task) for task in free] == [0, 0, 0, 0]
    assert config.ngram_size("<OD>") == 7  # What was said before stays.
    assert config.ngram_size("<MORE_DETAILED_CAPTION>") == config.ngram_size("<VQA>") == 3
