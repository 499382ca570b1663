# SPDX-License-Identifier: Apache-2.0
"""Whether scores mean what they say: of boxes scored 0.8, are 80 % right?

Right is, by kind of score:

- box: it overlaps some true box of its image by IoU >= 0.5, whatever their labels;
- label: of such boxes, that it has the label of the true box that it overlaps most;
- text: the answer to a question or the name of a region scores full marks.

Source: expected calibration error over bins of equal width (Guo et al., arXiv:1706.04599).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from florence2_jax.evaluation.bootstrap import NUM_RESAMPLES, Draws, percentiles
from florence2_jax.evaluation.detection import detection_metrics
from florence2_jax.evaluation.families import per_example_score
from florence2_jax.evaluation.resampled_ap import resampled_ap
from florence2_jax.evaluation.results import Answered
from florence2_jax.evaluation.scored import Scored, boxes_of
from florence2_jax.geometry import box_iou
from florence2_jax.inference.scores import RegionScore
from florence2_jax.tasks.answers import RegionsAnswer
from florence2_jax.tasks.targets import clean_text

NUM_BINS = 10

Pairs: TypeAlias = list[tuple[float, bool]]
"""(score, whether it is right)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """Scores in `[low, high)` (the last one closed), their mean, and the share that is right."""

    low: float
    high: float
    number: int
    score: float
    accuracy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reliability:
    """Bins that hold scores, and the mean distance of score and accuracy (`ece`)."""

    task: str
    kind: str
    number: int
    ece: float
    bins: tuple[Bin, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def reliability(task: str, kind: str, pairs: Sequence[tuple[float, bool]]) -> Reliability:
    """Sorts scores into bins. `pairs` must not be empty."""
    scores = np.array([score for score, _ in pairs], np.float64)
    is_right = np.array([right for _, right in pairs], np.float64)
    place = np.clip((scores * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    bins = []
    for k in range(NUM_BINS):
        here = place == k
        if here.any():
            bins.append(
                Bin(
                    low=k / NUM_BINS,
                    high=(k + 1) / NUM_BINS,
                    number=int(here.sum()),
                    score=float(scores[here].mean()),
                    accuracy=float(is_right[here].mean()),
                )
            )
    error = sum(one.number * abs(one.accuracy - one.score) for one in bins) / len(pairs)
    return Reliability(task=task, kind=kind, number=len(pairs), ece=error, bins=tuple(bins))


def calibrations(answered: Iterable[Answered]) -> list[Reliability]:
    """Of every kind of score that answers have, by task."""
    pairs: dict[tuple[str, str], Pairs] = {}
    for one in answered:
        task = one.example.task
        if task.grammar in ("boxes", "named_boxes", "phrases", "proposals"):
            found = {"box": _boxes(one)}
            if task.grammar == "boxes":  # Others name what they were asked for, or nothing.
                found["label"] = _labels(one)
        elif task.token in ("<VQA>", "<REGION_TO_CATEGORY>"):
            found = {"text": _text(one)}
        else:
            continue
        for kind, some in found.items():
            pairs.setdefault((task.name, kind), []).extend(some)
    return [reliability(task, kind, some) for (task, kind), some in pairs.items() if some]


def _overlaps(one: Answered) -> tuple[list[float], list[str]]:
    """Of each box the largest IoU with a true box, and that one's label."""
    assert isinstance(one.prediction.answer, RegionsAnswer)
    true = one.example.regions
    if not true:
        return [0.0] * len(one.prediction.answer.regions), [""] * len(one.prediction.answer.regions)
    overlap = box_iou(boxes_of(one.prediction.answer.regions), boxes_of(true))
    labels = [clean_text(true[k].label) for k in overlap.argmax(axis=1).tolist()]
    return overlap.max(axis=1).tolist(), labels


def _boxes(one: Answered) -> Pairs:
    overlaps, _ = _overlaps(one)
    scores = one.prediction.scores.regions
    return [(s.score, iou >= 0.5) for s, iou in zip(scores, overlaps, strict=True)]


def _labels(one: Answered) -> Pairs:
    assert isinstance(one.prediction.answer, RegionsAnswer)
    overlaps, labels = _overlaps(one)
    regions, scores = one.prediction.answer.regions, one.prediction.scores.regions
    return [
        (s.label, clean_text(region.label) == label)
        for region, s, iou, label in zip(regions, scores, overlaps, labels, strict=True)
        if s.label is not None and iou >= 0.5
    ]


def _text(one: Answered) -> Pairs:
    score, worth = one.prediction.scores.text, per_example_score(one.scored)
    return [] if score is None or worth is None else [(score, worth >= 1)]


SCORES: Mapping[str, Callable[[RegionScore], float | None]] = {
    "constant": lambda score: None,
    "box": lambda score: score.score,
    "label": lambda score: score.label if score.label is not None else score.score,
    "box x label": lambda score: score.score * (1.0 if score.label is None else score.label),
}
"""What detections may be ranked by: all alike, in the order of writing, or by how sure the model
was of the place, of the name, of both."""


def ranked_by(
    answered: Sequence[Answered], *, num_resamples: int = NUM_RESAMPLES
) -> dict[str, Any]:
    """Average precision of detections under each of `SCORES`; `box` is what the metrics use.

    Returns:
        `ap`: score -> metric -> value, and `gain`: metric -> what scores of boxes win over constant
        ones, and where that lies in 95 % of the draws (None without draws).
    """
    found, drawn = {}, {}
    draws = Draws.of([one.scored for one in answered], num_resamples) if num_resamples else None
    for name, choose in SCORES.items():
        scored = [_rescored(one, choose) for one in answered]
        metrics = detection_metrics(scored)
        found[name] = {key: metrics[key] for key in ("ap50", "ap", "ap75")}
        if draws is not None and name in ("constant", "box"):
            drawn[name] = resampled_ap(scored, draws, with_labels=True, with_areas=False)
    gain = {}
    for key, value in found["box"].items():
        interval = None
        if drawn and key in drawn["box"]:
            interval = percentiles((drawn["box"][key] - drawn["constant"][key])[1:])
        gain[key] = {"difference": value - found["constant"][key], "interval": interval}
    return {"ap": found, "gain": gain}


def _rescored(one: Answered, choose: Callable[[RegionScore], float | None]) -> Scored:
    answer = one.prediction.answer
    assert isinstance(answer, RegionsAnswer)
    pairs = zip(answer.regions, one.prediction.scores.regions, strict=True)
    regions = tuple(dataclasses.replace(region, score=choose(s)) for region, s in pairs)
    return dataclasses.replace(one.scored, answer=dataclasses.replace(answer, regions=regions))
