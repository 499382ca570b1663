# SPDX-License-Identifier: Apache-2.0
"""Task -> its metrics: the table that the runner and the gallery ask."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from numpy.typing import NDArray

from florence2_jax.evaluation import shares
from florence2_jax.evaluation.bootstrap import Draws, by_question
from florence2_jax.evaluation.captions import caption_metrics, object_color_f1, rouge_metrics
from florence2_jax.evaluation.detection import detection_metrics, match_metrics, proposal_metrics
from florence2_jax.evaluation.grounding import grounding_metrics, referring_iou, referring_metrics
from florence2_jax.evaluation.ocr import (
    reading_metrics,
    region_reading_metrics,
    spotting_metrics,
)
from florence2_jax.evaluation.regions import category_metrics
from florence2_jax.evaluation.resampled_ap import resampled_ap
from florence2_jax.evaluation.resampled_captions import resampled_captions
from florence2_jax.evaluation.scored import Scored, distinct
from florence2_jax.evaluation.segmentation import segmentation_metrics
from florence2_jax.evaluation.vqa import vqa_metrics
from florence2_jax.tasks.registry import Task

Metrics: TypeAlias = Callable[[Sequence[Scored]], dict[str, float]]
Resampling: TypeAlias = Callable[[Sequence[Scored], Draws], dict[str, NDArray]]


@dataclasses.dataclass(frozen=True)
class Family:
    """How a task is scored: a corpus, one answer by itself (in [0, 1]), resampled records.

    Metrics come headline first. What `resampled` leaves out is worked out anew for each draw.
    """

    corpus: Metrics
    single: Metrics
    resampled: Resampling


def _detection(*, with_labels: bool) -> Resampling:
    matches = functools.partial(match_metrics, with_labels=with_labels)
    f1 = by_question(matches, shares.REGIONS)

    def resampled(scored: Sequence[Scored], draws: Draws) -> dict[str, NDArray]:
        return resampled_ap(scored, draws, with_labels=with_labels) | f1(scored, draws)

    return resampled


def _means(metrics: Metrics, single: Metrics | None = None) -> Family:
    """Metrics that are means over questions, each of which counts the same."""
    return Family(metrics, single or metrics, by_question(metrics))


_CAPTIONS = Family(caption_metrics, rouge_metrics, resampled_captions)
_DETECTION = Family(detection_metrics, match_metrics, _detection(with_labels=True))
_PROPOSALS = Family(
    proposal_metrics,
    functools.partial(match_metrics, with_labels=False),
    _detection(with_labels=False),
)
_SEGMENTATION = Family(
    segmentation_metrics, segmentation_metrics, by_question(segmentation_metrics, shares.MASKS)
)
_GROUNDING = Family(
    grounding_metrics, grounding_metrics, by_question(grounding_metrics, shares.PHRASES)
)

FAMILIES: dict[str, Family] = {
    "<CAPTION>": _CAPTIONS,
    "<DETAILED_CAPTION>": _CAPTIONS,
    "<MORE_DETAILED_CAPTION>": _CAPTIONS,
    "<OD>": _DETECTION,
    "<DENSE_REGION_CAPTION>": _DETECTION,
    "<REGION_PROPOSAL>": _PROPOSALS,
    "<OCR>": Family(reading_metrics, reading_metrics, by_question(reading_metrics, shares.WORDS)),
    "<OCR_WITH_REGION>": Family(
        spotting_metrics, spotting_metrics, by_question(spotting_metrics, shares.REGIONS)
    ),
    "<CAPTION_TO_PHRASE_GROUNDING>": _GROUNDING,
    "<OPEN_VOCABULARY_DETECTION>": _DETECTION,
    "<REFERRING_EXPRESSION_SEGMENTATION>": _SEGMENTATION,
    "<REGION_TO_SEGMENTATION>": _SEGMENTATION,
    "<REGION_TO_CATEGORY>": _means(category_metrics),
    "<REGION_TO_DESCRIPTION>": _CAPTIONS,
    "<REGION_TO_OCR>": _means(region_reading_metrics),
    "<VQA>": _means(vqa_metrics),
    "<REFERRING_EXPRESSION_COMPREHENSION>": _means(referring_metrics, referring_iou),
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
