# SPDX-License-Identifier: Apache-2.0
"""`DIR/audit/verdicts.jsonl`: what people said, a line each, only ever added to.

A line holds the item it speaks of, so that the truth can be made anew from the frozen split and
this file alone. Any number of processes may add lines at once.
"""

import fcntl
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from florence2_jax.engine.auditing.frozen import SPLIT, audit_folder, frozen_store
from florence2_jax.engine.auditing.items import Item, Verdict, corrected
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore

VERDICTS = "verdicts.jsonl"


class VerdictLog:
    """The verdicts of a workdir; `num_damaged` lines of the last `read` were none."""

    def __init__(self, directory: str | os.PathLike[str]):
        self.path = audit_folder(directory) / VERDICTS
        self.num_damaged = 0

    def add(self, verdict: Verdict) -> None:
        """Writes a verdict; it is on disk when this returns."""
        line = (json.dumps(_to_json(verdict), ensure_ascii=False) + "\n").encode()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # A writer died in the middle of its line.
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> list[Verdict]:
        """All verdicts, the oldest first; damaged lines are counted and left where they are."""
        self.num_damaged, verdicts = 0, []
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        for line in filter(None, lines):
            try:
                verdicts.append(_from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                self.num_damaged += 1
        return verdicts


def truth(directory: str | os.PathLike[str]) -> list[Record]:
    """The frozen records as people see them now, in the order of their store.

    What nobody has judged yet is as the source had it.

    Raises:
        UserError: if nothing was frozen.
    """
    by_id: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in VerdictLog(directory).read():
        by_id[verdict.item.id].append(verdict)
    store = RecordStore(frozen_store(directory), SPLIT)
    records = (store[index] for index in range(len(store)))
    return [corrected(record, by_id.get(record.id, ())) for record in records]


def summary(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Counts of the verdicts: by ruling, by person, and items on which people disagree."""
    log = VerdictLog(directory)
    verdicts = log.read()
    said: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for verdict in verdicts:  # Of each person the last word.
        what = verdict.ruling, verdict.text, verdict.box
        said[verdict.item.id, verdict.item.key][verdict.who] = what
    disputed = [place for place, by in said.items() if len(set(by.values())) > 1]
    return {
        "num_verdicts": len(verdicts),
        "num_items": len(said),
        "num_damaged_lines": log.num_damaged,
        "rulings": dict(Counter(verdict.ruling for verdict in verdicts)),
        "people": dict(Counter(verdict.who for verdict in verdicts)),
        "disputed": [{"id": id_, "key": key} for id_, key in disputed],
    }


def _to_json(verdict: Verdict) -> dict[str, Any]:
    item = verdict.item
    return {
        "id": item.id,
        "key": item.key,
        "verdict": verdict.ruling,
        "text": verdict.text,
        "box": verdict.box,
        "who": verdict.who,
        "when": verdict.when,
        "item": item.to_json(),
    }


def _from_json(values: Mapping[str, Any]) -> Verdict:
    return Verdict(
        item=Item.from_json(values["item"]),
        ruling=values["verdict"],
        who=values["who"],
        when=values["when"],
        text=values["text"],
        box=None if values["box"] is None else tuple(values["box"]),
    )
