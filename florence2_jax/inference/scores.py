# SPDX-License-Identifier: Apache-2.0
"""Scores of boxes, quads, polygons and labels, from the log-probabilities of their tokens.

A score is the geometric mean of token probabilities, `exp(mean(log_probs))`: of a box over its four
locations (Microsoft's definition for detections), of a quad over eight, of a polygon over all of
its points, of a label over its tokens. Where the log-probabilities come from beam search they are
those Microsoft's code is handed, `compute_transition_scores(..., normalize_logits=False)`.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from florence2_jax.tasks.answers import (
    Answer,
    AnyRegion,
    BoxRegion,
    MaskRegion,
    RegionsAnswer,
    parse_answer,
)
from florence2_jax.tasks.registry import Task
from florence2_jax.text.locations import NUM_BINS
from florence2_jax.text.tokenizer import ADDED_TOKENS, BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer

_LOCATION = re.compile(r"<loc_(?:0|[1-9][0-9]{0,2})>")
_MARK = re.compile(rf"{_LOCATION.pattern}|<poly>|</poly>|<sep>")
_CONTROL = frozenset((BOS_ID, PAD_ID, EOS_ID, UNK_ID))
_ADDED = frozenset(ADDED_TOKENS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of the decoded text, `text[start:end]`, and the tokens it was written with.

    One added token (`<loc_5>`, `<poly>`), or everything between two of them: tokens of words need
    not end where characters do.
    """

    start: int
    end: int
    is_text: bool
    log_probs: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionScore:
    """Scores in [0, 1] of one region: of its locations, its label if it has one, each polygon."""

    score: float
    label: float | None = None
    polygons: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """Scores of an answer: its regions in the answer's order, or the box it echoes; its words."""

    regions: tuple[RegionScore, ...] = ()
    text: float | None = None


def token_spans(
    ids: Int[NDArray, "T"], log_probs: Float[NDArray, "T"], tokenizer: Tokenizer
) -> tuple[str, tuple[Span, ...]]:
    """The decoded text of one answer, and which tokens wrote which part of it.

    `<s>`, `</s>`, `<pad>` and `<unk>` write nothing and are in no span; the rest of the text is
    covered without a gap.
    """
    spans: list[Span] = []
    words: list[tuple[int, float]] = []
    text = ""

    def close(written: str, tokens: Sequence[tuple[int, float]], *, is_text: bool) -> None:
        nonlocal text
        if tokens:
            start, text = len(text), text + written
            scores = tuple(score for _, score in tokens)
            spans.append(Span(start=start, end=len(text), is_text=is_text, log_probs=scores))

    for token in zip(ids.tolist(), log_probs.tolist(), strict=True):
        name = "" if token[0] in _CONTROL else tokenizer.decode([token[0]])
        if token[0] in _CONTROL or name in _ADDED:
            close(tokenizer.decode([index for index, _ in words]), words, is_text=True)
            words = []
            close(name, [] if token[0] in _CONTROL else [token], is_text=False)
        else:
            words.append(token)
    close(tokenizer.decode([index for index, _ in words]), words, is_text=True)
    return text, tuple(spans)


def score_answer(
    task: Task,
    ids: Int[NDArray, "T"],
    log_probs: Float[NDArray, "T"],
    tokenizer: Tokenizer,
    *,
    compatible: bool = False,
) -> AnswerScores:
    """Scores of what `parse_answer` reads from the same tokens, region by region.

    The parser itself says which tokens a region is made of: it reads the answer once more, with
    locations that are numbered in place of their bins.

    Args:
        ids: one generated answer, and `log_probs` of its tokens, as `generate` returns them.
        compatible: as for `parse_answer`.
    """
    text, spans = token_spans(ids, log_probs, tokenizer)
    places = [match.span() for match in _LOCATION.finditer(text)]
    numbers = iter(range(len(places)))
    numbered = _LOCATION.sub(lambda _: f"<loc_{next(numbers) % NUM_BINS}>", text)
    # In an image of 1000 x 1000 pixels, bin k is pixel k.
    answer = parse_answer(task, numbered, (NUM_BINS, NUM_BINS), compatible=compatible)
    if not isinstance(answer, RegionsAnswer):
        words = _mean(x for span in spans if span.is_text for x in span.log_probs)
        box = () if answer.region is None else (BoxRegion(box=answer.region),)
        return AnswerScores(regions=_score(box, text, places, spans), text=words)
    return AnswerScores(regions=_score(answer.regions, text, places, spans))


def with_scores(answer: Answer, scores: AnswerScores) -> Answer:
    """The answer with the score of its locations at each region; text answers as they are."""
    if not isinstance(answer, RegionsAnswer):
        return answer
    pairs = zip(answer.regions, scores.regions, strict=True)
    regions = tuple(dataclasses.replace(region, score=s.score) for region, s in pairs)
    return dataclasses.replace(answer, regions=regions)


def _score(
    regions: Sequence[AnyRegion],
    text: str,
    places: Sequence[tuple[int, int]],
    spans: Sequence[Span],
) -> tuple[RegionScore, ...]:
    """Scores of regions whose coordinates are the numbers of their locations."""
    per_place = [_within(start, end, spans) for start, end in places]
    scores, behind = [], 0  # Numbers start again at 1000: only those from here on are meant.
    for region in regions:
        outlines = [
            [behind + (int(number) - behind) % NUM_BINS for number in outline]
            for outline in _outlines(region)
        ]
        used = [number for outline in outlines for number in outline]
        label = _label_tokens(text, places[min(used)][0], spans) if region.label else []
        each = [_mean(x for number in o for x in per_place[number]) or 0.0 for o in outlines]
        scores.append(
            RegionScore(
                score=_mean(x for number in used for x in per_place[number]) or 0.0,
                label=_mean(label),
                polygons=tuple(each) if isinstance(region, MaskRegion) else (),
            )
        )
        behind = max(used) + 1
    return tuple(scores)


def _outlines(region: AnyRegion) -> tuple[Sequence[float], ...]:
    if isinstance(region, MaskRegion):
        return region.polygons
    return (region.box,) if isinstance(region, BoxRegion) else (region.quad,)


def _label_tokens(text: str, start: int, spans: Sequence[Span]) -> list[float]:
    """Log-probabilities of the words before the marks that lead to a location at `start`."""
    marks = [match.span() for match in _MARK.finditer(text, 0, start)]
    while marks and marks[-1][1] == start:
        start = marks.pop()[0]
    return _within(marks[-1][1] if marks else 0, start, spans)


def _within(start: int, end: int, spans: Sequence[Span]) -> list[float]:
    """Log-probabilities of the tokens that write some of `text[start:end]`."""
    return [x for span in spans if span.start < end and start < span.end for x in span.log_probs]


def _mean(log_probs: Iterable[float]) -> float | None:
    """The geometric mean of probabilities, None of nothing."""
    values = list(log_probs)
    return math.exp(float(np.mean(values))) if values else None
