# SPDX-License-Identifier: Apache-2.0
"""Which makers say the same of an image, and how surely it is right then.

Two boxes say the same if their classes are equal and they overlap; two places of writing if their
words are; two texts of one length if they share enough words. Only other makers count.

The support of an annotation is the chance that at least one of those who say it is right, were they
to err independently: 1 - (1 - p) (1 - p') ..., p the measured precision of each. They do not err
independently, so it is a signal by which to choose, not a probability. It is ours.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from florence2_jax.engine.filters.limits import check_shares
from florence2_jax.engine.filters.marking import Drop, is_human, maker_of, provenance_of
from florence2_jax.engine.filters.regions import boxes_of, class_of, is_writing, normal
from florence2_jax.engine.filters.texts import words_of
from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import Record, Region, Text
from florence2_jax.typing import UserError

AgreementKind: TypeAlias = Literal["box", "writing", "text"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgreementConfig:
    """When makers agree, and what it is worth.

    Attributes:
        precision: measured, by maker as reports name it (`NAME@VERSION`); people's is 1.
        default_precision: of the others.
        iou: of boxes that say the same.
        word_overlap: of the sets of words of two texts that say the same (Jaccard).
        min_support: annotations with less are dropped; 0 for none.
    """

    precision: Mapping[str, float] = dataclasses.field(default_factory=dict)
    default_precision: float = 0.5
    iou: float = 0.5
    word_overlap: float = 0.4
    min_support: float = 0.0

    def __post_init__(self):
        check_shares(self, "precision", "default_precision", "iou", "word_overlap", "min_support")
        if not self.iou:
            raise UserError("filter, iou: 0 would make all boxes of a class agree")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of an annotation, by its number among regions or texts: who made it, who says the same."""

    kind: AgreementKind
    index: int
    maker: str
    others: frozenset[str]
    support: float


def agreements(record: Record, config: AgreementConfig) -> list[Agreement]:
    """What each region and text of a record finds agreement with. Marks are not looked at."""
    numbered = list(enumerate(record.regions))
    kinds: tuple[tuple[AgreementKind, list[tuple[int, Any]], Callable], ...] = (
        ("box", [row for row in numbered if not is_writing(row[1])], _same_boxes),
        ("writing", [row for row in numbered if is_writing(row[1])], _same_boxes),
        ("text", list(enumerate(record.texts)), _same_texts),
    )
    found = []
    for kind, rows, same in kinds:
        annotations = [annotation for _, annotation in rows]
        makers = [maker_of(provenance_of(annotation)) for annotation in annotations]
        alike = same(annotations, makers, config)
        for k, (index, annotation) in enumerate(rows):
            others = {makers[m]: provenance_of(annotations[m]) for m in alike[k]}
            sayers = {makers[k]: provenance_of(annotation)} | others
            doubts = (1 - _precision(name, one, config) for name, one in sayers.items())
            support = 1 - math.prod(doubts)
            found.append(Agreement(kind, index, makers[k], frozenset(others), support))
    return found


def agreement_drops(
    found: Sequence[Agreement], record: Record, config: AgreementConfig
) -> Iterator[Drop]:
    """Annotations with too little support. Regions that filters have added come last: they pass."""
    if not config.min_support:
        return
    for one in found:
        annotation = record.texts[one.index] if one.kind == "text" else record.regions[one.index]
        if one.support < config.min_support - 1e-6 and not is_human(annotation):
            sayers = 1 + len(one.others)
            reason = f"support under {config.min_support:.2f}: {one.support:.2f} by {sayers}"
            yield Drop("text" if one.kind == "text" else "region", (one.index,), reason)


def _precision(name: str, provenance: Any, config: AgreementConfig) -> float:
    if provenance.kind == "human":
        return 1.0
    return config.precision.get(name, config.default_precision)


def _same_boxes(
    regions: list[Region], makers: list[str], config: AgreementConfig
) -> list[list[int]]:
    iou = box_iou(boxes_of(regions), boxes_of(regions))
    said = [normal(r.label("text") or "") if is_writing(r) else class_of(r) for r in regions]
    alike: list[list[int]] = [[] for _ in regions]
    for k, m in np.argwhere(iou >= config.iou).tolist():
        if makers[m] != makers[k] and said[m] == said[k]:
            alike[k].append(m)
    return alike


def _same_texts(texts: list[Text], makers: list[str], config: AgreementConfig) -> list[list[int]]:
    words = [set(words_of(text.text)) for text in texts]
    return [
        [
            m
            for m in range(len(texts))
            if makers[m] != makers[k]
            and texts[m].granularity == texts[k].granularity
            and len(words[k] & words[m]) >= config.word_overlap * max(len(words[k] | words[m]), 1)
        ]
        for k in range(len(texts))
    ]
