# SPDX-License-Identifier: Apache-2.0
"""What a model's scores mean: the share that is right of boxes with such a score.

Thresholds and merging read a score as the probability that an annotation is true. A model's own
score is none: where locations were smoothed in training, each of them shares its probability with
its neighbours. So the boxes that it draws on the audited split are held against the truth there,
and its scores mapped, rising, to the share that is right (isotonic regression), for each maker by
itself: a specialist of one class means another thing by its scores than the model of all.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from florence2_jax.engine.claims import claim, name_of, with_claim
from florence2_jax.engine.filters.marking import maker_of
from florence2_jax.records.schema import Record, Region

Knots = Sequence[Sequence[float]]
"""`(score, share that is right)`, both rising; between them, the line."""

Calibration = Mapping[str, Mapping[str, Knots]]
"""By maker, and by kind: boxes, text_regions."""

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


def calibrated(record: Record, calibration: Calibration) -> Record:
    """The record with the scores of its boxes mapped, where their maker's mean something known."""
    regions = tuple(_mapped(region, calibration) for region in record.regions)
    return dataclasses.replace(record, regions=regions)


def _mapped(region: Region, calibration: Calibration) -> Region:
    maker = claim(region)
    kind = "text_regions" if name_of(region)[0] == "text" else "boxes"
    known = calibration.get(maker_of(maker), {}).get(kind)
    if maker.kind == "human" or maker.score is None or not known:
        return region
    scores, shares = np.array(known).T
    score = float(np.interp(maker.score, scores, shares))
    return with_claim(region, dataclasses.replace(maker, score=score))
