# SPDX-License-Identifier: Apache-2.0
"""The books of a job that makes records: what was read, kept, repaired and set aside, per kind.

Every thing that is read is either kept or set aside, so that nothing is lost unseen: `unaccounted`
is empty at the end of a sound job. What was set aside is written to `set_aside.jsonl` in the store.
"""

import collections
import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class Tally:
    """Counts of one kind of thing. `repaired` is of what was kept; `noted` is beside the books."""

    read: int = 0
    kept: int = 0
    repaired: Counter[str] = dataclasses.field(default_factory=Counter)
    set_aside: Counter[str] = dataclasses.field(default_factory=Counter)
    noted: Counter[str] = dataclasses.field(default_factory=Counter)


class Ledger:
    """Tallies per kind ("image", "region", ...) and one entry per thing that was set aside."""

    def __init__(self):
        self.tallies: dict[str, Tally] = collections.defaultdict(Tally)
        self.entries: list[dict[str, Any]] = []

    def read(self, kind: str, num: int = 1) -> None:
        """Counts things that the source holds."""
        self.tallies[kind].read += num

    def keep(self, kind: str, num: int = 1) -> None:
        """Counts things that go into the store."""
        self.tallies[kind].kept += num

    def repair(self, kind: str, how: str, num: int = 1) -> None:
        """Counts a mending; `how` names it without values, so that equal ones add up."""
        self.tallies[kind].repaired[how] += num

    def set_aside(
        self, kind: str, why: str, *, where: str, value: Any = None, num: int = 1
    ) -> None:
        """Takes things out, with the place they stood at and what they were (JSON-able)."""
        if num == 0:
            return
        self.tallies[kind].set_aside[why] += num
        entry = {"kind": kind, "where": where, "why": why, "value": value}
        self.entries.append(entry if num == 1 else entry | {"count": num})

    def withdraw(self, why: str, *, where: str, value: Any = None) -> None:
        """Sets aside all that was read and is not set aside yet: its record will not be."""
        for kind, tally in self.tallies.items():
            num = tally.read - tally.set_aside.total()
            tally.kept = 0
            tally.repaired.clear()
            self.set_aside(kind, why, where=where, value=value, num=num)

    def note(self, kind: str, what: str, num: int = 1) -> None:
        """Counts something worth knowing that neither mends nor removes, such as a flag."""
        self.tallies[kind].noted[what] += num

    def unaccounted(self) -> dict[str, int]:
        """Per kind, how many things were read and then neither kept nor set aside."""
        left = {k: t.read - t.kept - t.set_aside.total() for k, t in self.tallies.items()}
        return {kind: num for kind, num in left.items() if num}

    def merge(self, other: "Ledger") -> None:
        """Adds the counts and entries of another ledger to this one."""
        for kind, theirs in other.tallies.items():
            ours = self.tallies[kind]
            ours.read += theirs.read
            ours.kept += theirs.kept
            ours.repaired += theirs.repaired
            ours.set_aside += theirs.set_aside
            ours.noted += theirs.noted
        self.entries += other.entries

    def counts(self) -> dict[str, Any]:
        """The tallies as JSON, without the entries."""
        return {
            kind: {
                "read": tally.read,
                "kept": tally.kept,
                "repaired": dict(tally.repaired),
                "set_aside": dict(tally.set_aside),
                "noted": dict(tally.noted),
            }
            for kind, tally in self.tallies.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, for `from_json`."""
        return {"counts": self.counts(), "entries": self.entries}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Ledger":
        """The ledger that `to_json` wrote."""
        ledger = cls()
        for kind, tally in value["counts"].items():
            counters = {key: Counter(tally[key]) for key in ("repaired", "set_aside", "noted")}
            ledger.tallies[kind] = Tally(read=tally["read"], kept=tally["kept"], **counters)
        ledger.entries = list(value["entries"])
        return ledger
