# SPDX-License-Identifier: Apache-2.0
"""`DIR/audit/predictions/round-N`: what each round says about the frozen images.

The stores share their images with the frozen split. They are what rounds are judged by, again
whenever people have said more, and where people are asked about what rounds disagree on.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from florence2_jax.engine.auditing.frozen import SPLIT, audit_folder, frozen_store
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.splitting import KINDS
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import Plan, write_store
from florence2_jax.typing import UserError


def write_predictions(
    directory: str | os.PathLike[str], round: int, records: Iterable[Record]
) -> Path:
    """Writes what a round says about the frozen images; the records need no images of their own.

    Returns:
        The store, with the split "audit" and the records in the order of the frozen split.

    Raises:
        UserError: if nothing was frozen, a record is no frozen one, or the round is there already
            and says something else.
    """
    frozen = frozen_store(directory)
    said = {record.id: {f: getattr(record, f) for f in KINDS.values()} for record in records}
    store = RecordStore(frozen, SPLIT)
    if strangers := said.keys() - {store[index].id for index in range(len(store))}:
        raise UserError(
            f"round {round}: {len(strangers)} predictions are of no frozen record, first "
            f"{min(strangers)!r}; predict on {frozen}"
        )
    nothing: dict[str, Any] = dict.fromkeys(KINDS.values(), ())

    def make(unit: tuple[str, int], ledger: Ledger) -> Record:
        record = store[unit[1]]
        ledger.read("image")
        ledger.keep("image")
        return dataclasses.replace(record, **said.get(record.id, nothing))

    digest = hashlib.sha256(repr(sorted(said.items())).encode("utf-8", "surrogateescape"))
    job = {"format": "predictions", "round": round, "sha256": digest.hexdigest()}
    units = [(SPLIT, index) for index in range(len(store))]
    folder = audit_folder(directory) / "predictions" / f"round-{round}"
    write_store(folder, Plan(units={SPLIT: units}, make=make, job=job, images=frozen))
    return folder


def predictions(directory: str | os.PathLike[str]) -> dict[int, Path]:
    """The stores by their rounds, the first round first."""
    found = (audit_folder(directory) / "predictions").glob("round-*")
    rounds = {int(m[1]): path for path in found if (m := re.fullmatch(r"round-(\d+)", path.name))}
    return dict(sorted(rounds.items()))
