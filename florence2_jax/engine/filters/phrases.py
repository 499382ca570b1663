# SPDX-License-Identifier: Apache-2.0
"""Phrases and their boxes: both scores, words that name no thing, boxes said twice.

Source: Florence-2 §4 for a threshold on both scores and a blacklist of pronouns and abstract nouns;
neither its values nor its words are published. The words here are ours, on top of those that the
released processors drop from answers (`text.phrases`).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from florence2_jax.engine.filters.limits import check_counts, check_shares
from florence2_jax.engine.filters.marking import Drop
from florence2_jax.engine.filters.texts import words_of
from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import Grounding, Record, Span
from florence2_jax.text.phrases import BANNED_PHRASES
from florence2_jax.typing import Box

DETERMINERS = frozenset(
    """a an the this that these those my your his her its our their some any each every no both all
    another other several many few one two three various""".split()
)

ABSTRACT_NOUNS = frozenset(
    """image picture photo photograph photography drawing painting illustration screenshot close-up
    shot frame scene view background foreground backdrop left right front back top bottom middle
    center centre side sides corner corners edge edges end distance area areas part parts portion
    section piece group groups set sets series number numbers pair variety range lot lots kind kinds
    type sort way ways thing things something nothing object objects item items element elements
    time day night morning evening afternoon moment season weather atmosphere mood feeling sense
    impression focus attention color colour colors colours shape shapes size style design pattern
    texture light lighting brightness contrast detail details quality beauty nature environment
    setting space place location position direction motion movement action activity activities pose
    arrangement composition addition presence appearance use life idea event front-view""".split()
)
"""Nouns of no thing that a box can hold: parts of the picture, amounts, times, qualities."""

_NO_THING = {" ".join(words_of(phrase)) for phrase in BANNED_PHRASES} | ABSTRACT_NOUNS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhraseConfig:
    """Thresholds on phrases and their boxes. What has no score passes those on scores.

    Attributes:
        min_phrase_score: that the phrase names something in the image.
        min_box_score: that it is in the box.
        blacklist: more phrases that name no thing, in any case, without "the" and the like.
        max_words: of a phrase.
        max_boxes: of a phrase; the surest ones stay.
        duplicate_iou: of two boxes of a phrase that are one.
        min_area_share: of the image that a box covers.
    """

    min_phrase_score: float = 0.25
    min_box_score: float = 0.3
    blacklist: tuple[str, ...] = ()
    max_words: int = 12
    max_boxes: int = 20
    duplicate_iou: float = 0.9
    min_area_share: float = 0.0001

    def __post_init__(self):
        check_shares(self, "min_phrase_score", "min_box_score", "duplicate_iou", "min_area_share")
        check_counts(self, max_words=1, max_boxes=1)


def phrase_drops(record: Record, config: PhraseConfig) -> Iterator[Drop]:
    """Boxes of phrases that go, all of a phrase's where the phrase itself fails."""
    blacklist = _NO_THING | {_core(phrase) for phrase in config.blacklist}
    area = record.width * record.height
    for g, grounding in enumerate(record.groundings):
        for s, span in enumerate(grounding.spans):
            if reason := _judge_phrase(grounding, span, config, blacklist):
                yield from (Drop("phrase box", (g, s, b), reason) for b in range(len(span.boxes)))
                continue
            for b, reason in _judge_boxes(span, config, area).items():
                yield Drop("phrase box", (g, s, b), reason)


def _judge_phrase(
    grounding: Grounding, span: Span, config: PhraseConfig, blacklist: frozenset[str] | set[str]
) -> str:
    score = span.phrase_score
    if score is not None and score < config.min_phrase_score - 1e-6:  # float32 in stores.
        return f"phrase score under {config.min_phrase_score:.2f}"
    phrase = grounding.phrase(span)
    if (core := _core(phrase)) in blacklist:
        return f"phrase names no thing: {core or phrase.strip()}"
    if len(words_of(phrase)) > config.max_words:
        return f"phrase over {config.max_words} words"
    return ""


def _core(phrase: str) -> str:
    """A phrase without what comes before its noun and says nothing of the thing."""
    words = words_of(phrase)
    while len(words) > 1 and words[0] in DETERMINERS:
        del words[0]
    return " ".join(words)


def _judge_boxes(span: Span, config: PhraseConfig, area: float) -> dict[int, str]:
    """Why boxes go, by their number; the surest are looked at first."""
    scores = span.box_scores or (1.0,) * len(span.boxes)
    reasons: dict[int, str] = {}
    kept: list[Box] = []
    for b in sorted(range(len(span.boxes)), key=lambda b: -scores[b]):
        x0, y0, x1, y1 = span.boxes[b]
        if scores[b] < config.min_box_score - 1e-6:
            reasons[b] = f"box score under {config.min_box_score:.2f}"
        elif (x1 - x0) * (y1 - y0) < config.min_area_share * area:
            reasons[b] = f"area under {100 * config.min_area_share:g} % of the image"
        elif kept and _largest_iou(span.boxes[b], kept) >= config.duplicate_iou < 1:
            reasons[b] = "same box twice"
        elif len(kept) >= config.max_boxes:
            reasons[b] = f"phrase of over {config.max_boxes} boxes"
        else:
            kept.append(span.boxes[b])
    return reasons


def _largest_iou(box: Box, others: list[Box]) -> float:
    return float(box_iou(np.array([box], np.float64), np.array(others, np.float64)).max())
