# SPDX-License-Identifier: Apache-2.0
"""Intervals of metrics: what they would have been on other records of the same kind.

Records, not questions, are drawn with replacement (the questions about one image fall and rise
together), by a fixed seed, so that two evaluations of the same questions are drawn alike and can be
compared draw by draw (`comparison.py`). What a draw costs depends on the metric:

- A mean or a ratio of sums is the mean of its values for single questions, weighted by their share
  of the denominator: an F1 by answers plus truths, a recall by truths. All draws are one product of
  matrices.
- Average precision is accumulated anew from matches that are found once (`resampled_ap.py`); BLEU
  from counts of n-grams.
- CIDEr-D is averaged with the inverse document frequencies of all references: those are taken as
  given, not drawn.
- Anything else is worked out anew for each draw, if `MIN_RESAMPLES` of them fit into `BUDGET_S`.

The first "draw" is every record once. Its value must be the metric's own; if it is not, the metric
gets no interval rather than a wrong one.

Source: the percentile bootstrap (Efron, 1979).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from florence2_jax.evaluation.captions import object_color_f1
from florence2_jax.evaluation.scored import Scored

if TYPE_CHECKING:
    from florence2_jax.evaluation.families import Family

NUM_RESAMPLES = 500
SEED = 0
LEVEL = 0.95
MIN_RESAMPLES = 100
BUDGET_S = 60.0

Corpus: TypeAlias = Callable[[Sequence[Scored]], dict[str, float]]
Share: TypeAlias = Callable[[Scored], float]


@dataclasses.dataclass(frozen=True)
class Draws:
    """How often each record was drawn, the first time once each, and whose questions are.

    `weights` is float64[draws, records], `record_of` int[questions].
    """

    weights: Float[NDArray, "B R"]
    record_of: Int[NDArray, "Q"]

    @classmethod
    def of(cls, scored: Sequence[Scored], num: int) -> "Draws":
        """Draws of the records behind some questions; the same for the same number of records."""
        places: dict[str, int] = {}
        record_of = np.array([places.setdefault(s.image_id, len(places)) for s in scored], np.int64)
        size = max(len(places), 1)
        drawn = np.random.default_rng(SEED).multinomial(size, np.full(size, 1 / size), num)
        return cls(np.concatenate([np.ones((1, size)), drawn]), record_of)

    def sums(self, values: Float[NDArray, "Q"]) -> Float[NDArray, "B"]:
        """The sum over the questions of each draw."""
        totals = np.zeros(self.weights.shape[1])
        np.add.at(totals, self.record_of, values)
        return self.weights @ totals

    def ratio(self, above: Float[NDArray, "Q"], below: Float[NDArray, "Q"]) -> Float[NDArray, "B"]:
        """A ratio of sums in each draw, NaN over nothing."""
        return divide(self.sums(above), self.sums(below))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampled:
    """Values of metrics in each draw, and why others have none."""

    values: Mapping[str, Float[NDArray, "B"]] = dataclasses.field(default_factory=dict)
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Where the metric lies in `LEVEL` of the draws; None if it was not drawn."""
        values = self.values.get(metric)
        return None if values is None else percentiles(values)

    def intervals(self) -> dict[str, list[float]]:
        """All of them, as JSON has them."""
        found = {name: self.interval(name) for name in self.values}
        return {name: list(interval) for name, interval in found.items() if interval}

    def to_json(self) -> dict[str, list[float | None]]:
        """Every draw, to six digits: what a comparison needs."""
        return {
            name: [None if math.isnan(v) else float(f"{v:.6g}") for v in values.tolist()]
            for name, values in self.values.items()
        }


def percentiles(values: Float[NDArray, "B"]) -> tuple[float, float] | None:
    """The interval that holds `LEVEL` of some draws; None if most of them have no value."""
    known = values[np.isfinite(values)]
    if 2 * len(known) <= len(values):
        return None
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def resample(
    family: "Family",
    scored: Sequence[Scored],
    metrics: Mapping[str, float],
    *,
    content_words: frozenset[str] = frozenset(),
    num: int = NUM_RESAMPLES,
) -> Resampled:
    """Draws for every metric of a task.

    Args:
        scored: its answers, each question once.
        metrics: what `families.score_task` gave for them.
        num: of draws; 0 for none.
    """
    if not num:
        return Resampled()
    draws = Draws.of(scored, num)
    if draws.weights.shape[1] < 2:
        return Resampled(missing=dict.fromkeys(metrics, "one record cannot be drawn from"))
    values = {
        name: drawn
        for name, drawn in family.resampled(scored, draws).items()
        if name in metrics and _agrees(drawn[0], metrics[name])
    }
    missing: dict[str, str] = {}
    left = [name for name in metrics if name not in values]

    def add(corpus: Corpus, names: Sequence[str]) -> None:
        anew, reason = _anew(corpus, scored, draws)
        for name in names:
            if name in anew and _agrees(anew[name][0], metrics[name]):
                values[name] = anew[name]
            else:
                missing[name] = reason or "its draws do not agree with its value"

    if "object_color_f1" in left:
        left.remove("object_color_f1")
        add(
            lambda some: {"object_color_f1": object_color_f1(some, content_words=content_words)},
            ["object_color_f1"],
        )
    if left:
        add(family.corpus, left)
    return Resampled(
        values={name: values[name][1:] for name in metrics if name in values}, missing=missing
    )


def _agrees(drawn: float, value: float) -> bool:
    return bool(np.isclose(drawn, value, rtol=1e-6, atol=1e-9, equal_nan=True))


def _anew(corpus: Corpus, scored: Sequence[Scored], draws: Draws) -> tuple[dict[str, NDArray], str]:
    """Metrics of every draw worked out in full; else nothing, and why."""
    started_s = time.perf_counter()
    rows = [corpus(scored)]
    each_s = max(time.perf_counter() - started_s, 1e-6)
    num = min(len(draws.weights) - 1, int(BUDGET_S / each_s))
    if num < min(MIN_RESAMPLES, len(draws.weights) - 1):
        return {}, f"a draw takes {each_s:.1f} s, {MIN_RESAMPLES} of them too long"
    questions: list[list[Scored]] = [[] for _ in range(draws.weights.shape[1])]
    for one, record in zip(scored, draws.record_of.tolist(), strict=True):
        questions[record].append(one)
    for weights in draws.weights[1 : num + 1].astype(int).tolist():
        some = [one for w, own in zip(weights, questions, strict=True) for one in own * w]
        rows.append(corpus(some))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, ""


def by_question(
    corpus: Corpus, shares: Mapping[str, Share] = {}
) -> Callable[[Sequence[Scored], Draws], dict[str, NDArray]]:
    """Draws of metrics that are weighted means of their values for single questions.

    Args:
        corpus: the metrics.
        shares: a question's share of the denominator, by metric; where nothing is said, 1 if the
            question has a truth.
    """

    def resampled(scored: Sequence[Scored], draws: Draws) -> dict[str, NDArray]:
        single = [corpus([one]) for one in scored]
        drawn = {}
        for name in single[0] if single else ():
            values = np.array([row[name] for row in single], np.float64)
            has_value = np.isfinite(values)
            weights = has_value.astype(np.float64)
            if name in shares:
                weights = np.array([shares[name](one) for one in scored], np.float64)
            drawn[name] = draws.ratio(np.where(has_value, values, 0) * weights, weights)
        return drawn

    return resampled


def divide(above: Float[NDArray, "B"], below: Float[NDArray, "B"]) -> Float[NDArray, "B"]:
    """`above / below`, NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(len(above), math.nan), where=below > 0)
