# SPDX-License-Identifier: Apache-2.0
"""The audit: what keeps a loop that learns from its own labels from believing itself.

Before the first round `freeze` puts images aside that the loop neither annotates nor learns from.
People judge what is said about them on a page (`florence2-jax audit serve`), which corrects their
`truth`. Every round predicts on them, `judge_round` counts what is right, and `guard` compares the
rounds and stops the loop when it forgets a class or its labels drift.

    DIR/audit/frozen, training, exclude.jsonl   see `auditing/frozen.py`
    DIR/audit/verdicts.jsonl                    what people said: `auditing/verdicts.py`
    DIR/audit/predictions/round-N               what rounds said: `auditing/predictions.py`
    DIR/audit/ontology/0001.json                `auditing/ontology.py`
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence2_jax.engine.auditing.flapping import Unstable, unstable_labels
from florence2_jax.engine.auditing.frozen import (
    SPLIT,
    exclude_list,
    freeze,
    frozen_ids,
    frozen_store,
    is_frozen,
    overlap_with_frozen,
    training_store,
)
from florence2_jax.engine.auditing.guard import Decision, GuardConfig, guard
from florence2_jax.engine.auditing.matching import Counts
from florence2_jax.engine.auditing.measures import RoundAudit, judge_round
from florence2_jax.engine.auditing.ontology import Ontology, adopt, current, read_ontology
from florence2_jax.engine.auditing.predictions import predictions, write_predictions
from florence2_jax.engine.auditing.verdicts import summary, truth
from florence2_jax.records.store import RecordStore
from florence2_jax.typing import UserError

__all__ = [
    "SPLIT",
    "Counts",
    "Decision",
    "GuardConfig",
    "Ontology",
    "Report",
    "RoundAudit",
    "Unstable",
    "adopt",
    "current",
    "exclude_list",
    "freeze",
    "frozen_ids",
    "frozen_store",
    "guard",
    "is_frozen",
    "judge_round",
    "overlap_with_frozen",
    "predictions",
    "read_ontology",
    "report",
    "summary",
    "training_store",
    "truth",
    "unstable_labels",
    "write_predictions",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All rounds of a workdir, judged by the truth as it is now."""

    audits: Sequence[RoundAudit]
    decisions: Sequence[Decision]  # One a round: of it and those before it.
    unstable: Sequence[Unstable]
    verdicts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rounds": [audit.to_json() for audit in self.audits],
            "guard": [decision.to_json() for decision in self.decisions],
            "unstable_labels": [one.to_json() for one in self.unstable],
            "verdicts": self.verdicts,
        }


def report(
    directory: str | os.PathLike[str],
    config: GuardConfig = GuardConfig(),
    ontology: Ontology | None = None,
) -> Report:
    """Judges every round that predicted on the frozen split.

    Args:
        directory: workdir of the engine.
        config: bounds of the guard.
        ontology: by whose names to judge; the newest that the workdir keeps, if None.

    Raises:
        UserError: if nothing was frozen, or no round has predicted on it.
    """
    names = current(directory) if ontology is None else ontology
    records, stores = truth(directory), predictions(directory)
    if not stores:
        raise UserError(
            f"{Path(directory)}: no round has been audited yet; run: florence2-jax annotate, or "
            "write predictions with florence2_jax.engine.audit.write_predictions"
        )
    rounds = {n: list(RecordStore(path, SPLIT)) for n, path in stores.items()}
    audits = [judge_round(records, rs, round=n, ontology=names) for n, rs in rounds.items()]
    return Report(
        audits=audits,
        decisions=[guard(audits[: k + 1], config) for k in range(len(audits))],
        unstable=unstable_labels(list(rounds.values()), names),
        verdicts=summary(directory),
    )
