# SPDX-License-Identifier: Apache-2.0
"""Task -> its metrics: the table that the runner and the gallery ask."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from florence2_jax.evaluation.captions import caption_metrics, object_color_f1, rouge_metrics
from florence2_jax.evaluation.detection import detection_metrics, match_metrics, proposal_metrics
from florence2_jax.evaluation.grounding import grounding_metrics, referring_iou, referring_metrics
from florence2_jax.evaluation.ocr import (
    reading_metrics,
    region_reading_metrics,
    spotting_metrics,
)
from florence2_jax.evaluation.regions import category_metrics
from florence2_jax.evaluation.scored import Scored, distinct
from florence2_jax.evaluation.segmentation import segmentation_metrics
from florence2_jax.evaluation.vqa import vqa_metrics
from florence2_jax.tasks.registry import Task

Metrics: TypeAlias = Callable[[Sequence[Scored]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Family:
    """How a task is scored: over a corpus, and one answer by itself (in [0, 1]); headline first."""

    corpus: Metrics
    single: Metrics


_CAPTIONS = Family(caption_metrics, rouge_metrics)
_DETECTION = Family(detection_metrics, match_metrics)
_SEGMENTATION = Family(segmentation_metrics, segmentation_metrics)

FAMILIES: dict[str, Family] = {
    "<CAPTION>": _CAPTIONS,
    "<DETAILED_CAPTION>": _CAPTIONS,
    "<MORE_DETAILED_CAPTION>": _CAPTIONS,
    "<OD>": _DETECTION,
    "<DENSE_REGION_CAPTION>": _DETECTION,
    "<REGION_PROPOSAL>": Family(
        proposal_metrics, functools.partial(match_metrics, with_labels=False)
    ),
    "<OCR>": Family(reading_metrics, reading_metrics),
    "<OCR_WITH_REGION>": Family(spotting_metrics, spotting_metrics),
    "<CAPTION_TO_PHRASE_GROUNDING>": Family(grounding_metrics, grounding_metrics),
    "<OPEN_VOCABULARY_DETECTION>": _DETECTION,
    "<REFERRING_EXPRESSION_SEGMENTATION>": _SEGMENTATION,
    "<REGION_TO_SEGMENTATION>": _SEGMENTATION,
    "<REGION_TO_CATEGORY>": Family(category_metrics, category_metrics),
    "<REGION_TO_DESCRIPTION>": _CAPTIONS,
    "<REGION_TO_OCR>": Family(region_reading_metrics, region_reading_metrics),
    "<VQA>": Family(vqa_metrics, vqa_metrics),
    "<REFERRING_EXPRESSION_COMPREHENSION>": Family(referring_metrics, referring_iou),
}


def score_task(
    task: Task, scored: Sequence[Scored], *, content_words: frozenset[str] = frozenset()
) -> dict[str, float]:
    """The metrics of one task over its answers, the headline first; NaN where there is no truth.

    Args:
        scored: answers to questions of this task; a question asked twice counts once, by its first
            answer.
        content_words: object nouns and colours (`captions.content_vocabulary`); with them captions
            also get `object_color_f1`.

    Raises:
        ValueError: if an answer belongs to another task.
    """
    strangers = {one.example.task.token for one in scored} - {task.token}
    if strangers:
        raise ValueError(f"answers to {' '.join(sorted(strangers))} among those to {task.token}")
    family, questions = FAMILIES[task.token], distinct(scored)
    scores = family.corpus(questions)
    if content_words and family is _CAPTIONS:
        scores["object_color_f1"] = object_color_f1(questions, content_words=content_words)
    return scores


def per_example_score(scored: Scored) -> float | None:
    """How good one answer is, in [0, 1], to sort answers by; None if there is no truth to tell.

    Detection is scored by F1 and captions by ROUGE-L: average precision and CIDEr belong to a
    corpus.
    """
    score = next(iter(FAMILIES[scored.example.task.token].single([scored]).values()))
    return None if math.isnan(score) else score
