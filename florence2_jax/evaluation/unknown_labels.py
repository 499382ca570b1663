# SPDX-License-Identifier: Apache-2.0
"""Names that a detector wrote and no truth of the split has: lost to average precision, so told."""

import difflib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from florence2_jax.evaluation.results import Answered
from florence2_jax.tasks.answers import RegionsAnswer
from florence2_jax.tasks.targets import clean_text


def unknown_labels(answered: Iterable[Answered], *, most: int = 20) -> list[dict[str, Any]]:
    """The most frequent ones: the label, how many boxes have it, the nearest names of truths."""
    known: set[str] = set()
    written: Counter[str] = Counter()
    for one in answered:
        assert isinstance(one.prediction.answer, RegionsAnswer)
        known |= {clean_text(region.label) for region in one.example.regions}
        written.update(clean_text(region.label) for region in one.prediction.answer.regions)
    names = sorted(known)
    unknown = [(label, number) for label, number in written.most_common() if label not in known]
    return [
        {
            "label": label,
            "number": number,
            "nearest": difflib.get_close_matches(label, names, n=3, cutoff=0.5),
        }
        for label, number in unknown[:most]
    ]
