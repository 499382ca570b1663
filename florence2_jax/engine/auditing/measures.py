# SPDX-License-Identifier: Apache-2.0
"""How good the annotations of a round are on the frozen split, in numbers that JSON holds."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from florence2_jax.engine.auditing.frozen import SPLIT
from florence2_jax.engine.auditing.matching import Counts, match_kinds
from florence2_jax.engine.auditing.ontology import NO_ONTOLOGY, Ontology
from florence2_jax.engine.auditing.verdicts import truth as truth_of
from florence2_jax.evaluation.calibration import Bin, Reliability, reliability
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.typing import UserError

TAIL_SHARE = 0.01
"""Classes of less than this share of the true boxes are the tail."""

Records: TypeAlias = Path | Iterable[Record]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundAudit:
    """One round, judged on the frozen split; what the counts mean is in `matching.py`.

    `classes` are those of the boxes: an image's categories, named by the ontology's `version`.
    """

    round: int
    num_images: int
    kinds: Mapping[str, Counts]
    classes: Mapping[str, Counts]
    calibration: Mapping[str, Reliability]
    tail_share: float = TAIL_SHARE
    ontology_version: int = 0
    unknown_labels: tuple[Mapping[str, Any], ...] = ()

    @property
    def tail_classes(self) -> tuple[str, ...]:
        """Classes that are true somewhere, and rarely."""
        total = sum(counts.num_true for counts in self.classes.values())
        limit = self.tail_share * total
        return tuple(name for name, counts in self.classes.items() if 0 < counts.num_true < limit)

    @property
    def tail(self) -> Counts:
        """All boxes of the tail together."""
        return sum((self.classes[name] for name in self.tail_classes), Counts())

    @property
    def label_entropy_bits(self) -> float:
        """Of the categories predicted; 0 where there is one, or none."""
        return entropy_bits([counts.num_found for counts in self.classes.values()])

    @property
    def true_label_entropy_bits(self) -> float:
        """Of the true categories."""
        return entropy_bits([counts.num_true for counts in self.classes.values()])

    @property
    def label_divergence_bits(self) -> float:
        """Jensen-Shannon divergence of the predicted categories from the true ones, 0 to 1."""
        counts = self.classes.values()
        return divergence_bits([c.num_found for c in counts], [c.num_true for c in counts])

    def to_json(self) -> dict[str, Any]:
        """Everything, the derived numbers too."""
        return {
            "round": self.round,
            "num_images": self.num_images,
            "kinds": {name: counts.to_json() for name, counts in self.kinds.items()},
            "classes": {name: counts.to_json() for name, counts in self.classes.items()},
            "tail_share": self.tail_share,
            "tail_classes": list(self.tail_classes),
            "tail": self.tail.to_json(),
            "calibration": {name: one.to_json() for name, one in self.calibration.items()},
            "label_entropy_bits": self.label_entropy_bits,
            "true_label_entropy_bits": self.true_label_entropy_bits,
            "label_divergence_bits": self.label_divergence_bits,
            "ontology_version": self.ontology_version,
            "unknown_labels": [dict(row) for row in self.unknown_labels],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RoundAudit":
        """The audit that `to_json` wrote."""
        given = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        given["unknown_labels"] = tuple(values["unknown_labels"])
        for name in ("kinds", "classes"):
            given[name] = {key: Counts.from_json(row) for key, row in values[name].items()}
        given["calibration"] = {
            key: Reliability(**row | {"bins": tuple(Bin(**one) for one in row["bins"])})
            for key, row in values["calibration"].items()
        }
        return cls(**given)


def judge_round(
    truth: Records,
    predicted: Records,
    *,
    round: int = 0,
    ontology: Ontology = NO_ONTOLOGY,
    tail_share: float = TAIL_SHARE,
) -> RoundAudit:
    """Holds the annotations of a round against the truth of the frozen split.

    What filters dropped is not predicted. An image without predictions has found nothing.

    Args:
        truth: the workdir of the engine (see `verdicts.truth`), or records.
        predicted: a store with the split "audit", or records, of the same ids in any order.
        round: of the predictions.
        ontology: by whose names categories are compared.
        tail_share: classes of less than this share of the true boxes are the tail.

    Raises:
        UserError: if there is no truth, or a prediction is of no record of it.
    """
    true = truth_of(truth) if isinstance(truth, Path) else list(truth)
    if not true:
        raise UserError("audit: the frozen split holds no records to judge by")
    found = _by_id(RecordStore(predicted, SPLIT) if isinstance(predicted, Path) else predicted)
    strangers = found.keys() - {record.id for record in true}
    if strangers:
        raise UserError(
            f"audit: {len(strangers)} predictions are of no frozen record, first "
            f"{min(strangers)!r}; predict on the store that `audit freeze` wrote"
        )
    pairs = [(record.kept(), _predicted(record, found)) for record in true]
    outcomes = match_kinds(pairs, ontology)
    boxes = outcomes.get("boxes")
    said = [
        label.text
        for _, record in pairs
        for region in record.regions
        for label in region.labels
        if label.kind == "category"
    ]
    return RoundAudit(
        round=round,
        num_images=len(true),
        kinds={kind: outcome.total for kind, outcome in outcomes.items()},
        classes={} if boxes is None else boxes.classes,
        calibration={
            kind: reliability(f"round {round}", kind, outcome.scored)
            for kind, outcome in outcomes.items()
            if outcome.scored and outcome.is_judged
        },
        tail_share=tail_share,
        ontology_version=ontology.version,
        unknown_labels=tuple(ontology.unknown(said)) if ontology.names else (),
    )


def entropy_bits(counts: Iterable[int]) -> float:
    """Shannon entropy of the shares of some counts."""
    numbers = [num for num in counts if num]
    total = sum(numbers)
    return sum(num / total * math.log2(total / num) for num in numbers)


def divergence_bits(a: Sequence[int], b: Sequence[int]) -> float:
    """Jensen-Shannon divergence of the shares of two lists of counts of the same things.

    Between 0 (alike) and 1 (nothing in common). 0 if either list has nothing.
    Source: Lin (1991), "Divergence measures based on the Shannon entropy", with equal weights.
    """
    num_a, num_b = sum(a), sum(b)
    if not (num_a and num_b):
        return 0.0
    total = 0.0
    for one, other in zip(a, b, strict=True):
        p, q = one / num_a, other / num_b
        middle = (p + q) / 2
        total += sum(x / 2 * math.log2(x / middle) for x in (p, q) if x)
    return min(max(total, 0.0), 1.0)


def _by_id(records: Iterable[Record]) -> dict[str, Record]:
    return {record.id: record.kept() for record in records}


def _predicted(record: Record, found: Mapping[str, Record]) -> Record:
    nothing: Any = dict.fromkeys(("texts", "regions", "groundings", "questions"), ())
    return found.get(record.id) or dataclasses.replace(record, **nothing)
