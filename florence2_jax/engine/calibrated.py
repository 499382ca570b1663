# SPDX-License-Identifier: Apache-2.0
"""What a model's scores mean: the share that is right of boxes with such a score.

Thresholds and merging read a score as the probability that an annotation is true. A model's own
score is none: where locations were smoothed in training, each of them shares its probability with
its neighbours. So the boxes that it draws on the audited split are held against the truth there,
and its scores mapped, rising, to the share that is right (isotonic regression), for each maker by
itself: a specialist of one class means another thing by its scores than the model of all.

What a model draws where nobody else saw anything is less often right than what others see too, at
the same score. So such boxes have a mapping of their own, by those boxes on the audited split where
round 0's specialists drew none of that name, and odds of their own for each name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from florence2_jax.engine.auditing.matching import Outcome
from florence2_jax.engine.claims import are_new, claim, name_of, with_claim
from florence2_jax.engine.filters.marking import maker_of
from florence2_jax.records.schema import Record, Region

Knots = Sequence[Sequence[float]]
"""`(score, share that is right)`, both rising; between them, the line."""

Calibration = Mapping[str, Mapping[str, Any]]
"""By maker: `all` and `new`, each by kind (boxes, text_regions), and `odds`, by name."""

_KINDS = ("boxes", "text_regions")
_NUM_KNOTS = 64
_LEAST, _MOST = 0.01, 0.99


def fit(scored: Sequence[tuple[float, bool]]) -> list[tuple[float, float]]:
    """Knots for scores with whether each was right; none for none."""
    if not scored:
        return []
    given, is_right = np.array(scored, float).T
    scores, places, numbers = np.unique(given, return_inverse=True, return_counts=True)
    right = np.bincount(places, weights=is_right)
    shares = isotonic_regression(right / numbers, weights=numbers).x.clip(_LEAST, _MOST)
    # Evenly many boxes between two knots.
    ranks = np.linspace(0, len(given) - 1, _NUM_KNOTS)
    chosen = np.unique(np.searchsorted(np.cumsum(numbers), ranks, side="right"))
    return [(float(scores[i]), float(shares[i])) for i in chosen]


def fit_maker(judged: Mapping[str, Outcome], new: Mapping[str, Outcome]) -> dict[str, Any]:
    """What a maker's scores mean, as JSON.

    Args:
        judged: by kind, what it drew on the audited split.
        new: the same of what no specialist of round 0 had drawn there.
    """
    found: dict[str, Any] = {"all": _fits(judged), "new": _fits(new), "odds": {}}
    if (boxes := new.get("boxes")) and (share := boxes.total.precision):
        found["odds"] = {
            # As if two more boxes had this name, as often right as those of all names.
            name.casefold(): _odds((one.num_matched + 2 * share) / (one.num_found + 2))
            / _odds(share)
            for name, one in boxes.classes.items()
            if one.num_found
        }
    return found


def calibrated(
    record: Record,
    calibration: Calibration,
    *,
    beside: Sequence[Region] | None = None,
    new_iou: float = 1.0,
) -> Record:
    """The record with the scores of its boxes mapped, where their maker's mean something known.

    Args:
        beside: what is there already; boxes that overlap none of their name by `new_iou` are new.
            Without it none is.
    """
    new = [False] * len(record.regions)
    if beside is not None:
        new = are_new(beside, record.regions, new_iou)
    regions = tuple(
        _mapped(region, calibration, is_new=one)
        for region, one in zip(record.regions, new, strict=True)
    )
    return dataclasses.replace(record, regions=regions)


def _mapped(region: Region, calibration: Calibration, *, is_new: bool) -> Region:
    maker = claim(region)
    label, name = name_of(region)
    kind = "text_regions" if label == "text" else "boxes"
    known = calibration.get(maker_of(maker), {})
    of_new = known.get("new", {}).get(kind) if is_new else None
    knots = of_new or known.get("all", {}).get(kind)
    if maker.kind == "human" or maker.score is None or not knots:
        return region
    scores, shares = np.array(knots).T
    score = float(np.interp(maker.score, scores, shares))
    if of_new and kind == "boxes":
        odds = _odds(score) * known["odds"].get(name, 1.0)
        score = odds / (1 + odds)
    return with_claim(region, dataclasses.replace(maker, score=score))


def _fits(judged: Mapping[str, Outcome]) -> dict[str, list[tuple[float, float]]]:
    return {kind: fit(judged[kind].scored) for kind in _KINDS if kind in judged}


def _odds(share: float) -> float:
    share = min(max(share, _LEAST), _MOST)
    return share / (1 - share)
