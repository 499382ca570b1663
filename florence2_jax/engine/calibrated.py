# SPDX-License-Identifier: Apache-2.0
"""What a model's scores mean: the share that is right of boxes with such a score.

Thresholds and merging read a score as the probability that an annotation is true. A model's own
score is none: where locations were smoothed in training, each of them shares its probability with
its neighbours. So the boxes that it draws on the audited split are held against the truth there,
and its scores mapped, rising, to the share that is right (isotonic regression).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from florence2_jax.engine.refine_regions import claim, name_of, with_claim
from florence2_jax.records.schema import Record, Region

Knots = Sequence[Sequence[float]]
"""`(score, share that is right)`, both rising; between them, the line."""

_NUM_KNOTS = 64
_LEAST, _MOST = 0.01, 0.99


def fit(scored: Sequence[tuple[float, bool]]) -> list[tuple[float, float]]:
    """Knots for scores with whether each was right; none for none."""
    if not scored:
        return []
    rows = np.array(sorted(scored), float)
    shares = isotonic_regression(rows[:, 1]).x.clip(_LEAST, _MOST)
    places = np.unique(np.linspace(0, len(rows) - 1, _NUM_KNOTS).round().astype(int))
    return [(float(rows[i, 0]), float(shares[i])) for i in places]


def calibrated(record: Record, knots: Mapping[str, Knots]) -> Record:
    """The record with the scores of its boxes mapped; `knots` by kind: boxes, text_regions."""
    return dataclasses.replace(record, regions=tuple(_mapped(r, knots) for r in record.regions))


def _mapped(region: Region, knots: Mapping[str, Knots]) -> Region:
    maker = claim(region)
    known = knots.get("text_regions" if name_of(region)[0] == "text" else "boxes")
    if maker.kind == "human" or maker.score is None or not known:
        return region
    scores, shares = np.array(known).T
    score = float(np.interp(maker.score, scores, shares))
    return with_claim(region, dataclasses.replace(maker, score=score))
