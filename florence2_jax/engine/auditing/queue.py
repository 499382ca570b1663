# SPDX-License-Identifier: Apache-2.0
"""Which statement a person is asked about next, and that no two people have the same one.

Statements are drawn without replacement, each with a weight: where makers disagree, where scores
are low, and where classes are rare, people are worth most. The draw of a statement depends on the
seed and on itself alone, so others may come and go.
"""

import dataclasses
import hashlib
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from florence2_jax.engine.auditing.items import SAME_IOU, Item, items_of
from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import Record
from florence2_jax.typing import UserError

Place: TypeAlias = tuple[str, str]
"""Id of a record, key of an item."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How much more often than any other a statement is drawn first; 0 is no more.

    A class of `rare_share` of all regions or less counts as fully rare, twice as frequent half so.

    Raises:
        UserError: if a weight is negative, or the share not in (0, 1].
    """

    seed: int = 0
    disagreement: float = 8.0
    low_score: float = 2.0
    rarity: float = 4.0
    rare_share: float = 0.01

    def __post_init__(self):
        if min(self.disagreement, self.low_score, self.rarity) < 0 or not 0 < self.rare_share <= 1:
            raise UserError(f"sampling: weights must not be negative, rare_share in (0, 1]: {self}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A statement to judge, and why it is worth a look, in words."""

    item: Item
    reasons: tuple[str, ...]
    is_added: bool  # Only a prediction says it; the truth has it once it is accepted.


def sample(
    frozen: Sequence[Record],
    predicted: Mapping[str, Sequence[Record]],
    config: SamplingConfig = SamplingConfig(),
) -> list[Asked]:
    """All statements worth judging, the first to be asked about first.

    Those of the frozen records, and those of the newest predictions that differ from them.

    Args:
        frozen: as the source had them.
        predicted: by name of their round, the oldest first, records of the same ids.
    """
    newest = {record.id: record for records in predicted.values() for record in records}
    shares = _shares(frozen)
    drawn = []
    for record in frozen:
        theirs = newest.get(record.id)
        own = items_of(record)
        others = [] if theirs is None else items_of(theirs)
        for item, rest, is_added in _sides(own, others):
            agreed = theirs is None or any(_agree(item, other) for other in rest)
            if is_added and agreed:
                continue
            weight, reasons = _weigh(item, rest, agreed, shares, config)
            drawn.append((_draw(item, weight, config.seed), item, reasons, is_added))
    drawn.sort(key=lambda row: (row[0], row[1].id, row[1].key))
    return [Asked(item=item, reasons=reasons, is_added=added) for _, item, reasons, added in drawn]


def _sides(own: Sequence[Item], others: Sequence[Item]) -> Iterator[tuple[Item, Any, bool]]:
    for item in own:
        yield item, others, False
    for item in others:
        yield item, own, True


def _agree(a: Item, b: Item) -> bool:
    """Whether two items say the same of the same place."""
    if a.kind != b.kind or (a.kind == "region" and a.what != b.what):
        return False
    if a.kind == "question" and a.what != b.what:
        return False
    same = " ".join(a.text.casefold().split()) == " ".join(b.text.casefold().split())
    return same and (not a.boxes or _overlap(a, b) >= SAME_IOU)


def _overlap(a: Item, b: Item) -> float:
    if not (a.boxes and b.boxes):
        return 0.0
    return float(box_iou(np.array(a.boxes, np.float64), np.array(b.boxes, np.float64)).max())


def _weigh(
    item: Item,
    rest: Sequence[Item],
    agreed: bool,
    shares: Mapping[str, float],
    config: SamplingConfig,
) -> tuple[float, tuple[str, ...]]:
    weight, reasons = 1.0, []
    if not agreed:
        weight += config.disagreement
        rivals = (other for other in rest if (other.kind, other.what) == (item.kind, item.what))
        rival = next((other for other in rivals if _overlap(item, other) >= SAME_IOU), None)
        reasons.append(f"another maker says: {rival.text}" if rival else "no other maker says so")
    score = item.maker.score
    if score is not None:
        weight += config.low_score * (1 - score)
        reasons += [f"low score {score:.2f}"] if score < 0.5 else []
    if item.kind == "region" and item.what == "category":
        share = shares.get(item.text, 0.0)
        rarity = min(1.0, config.rare_share / share) if share else 1.0
        weight += config.rarity * rarity
        seen = f"{share:.1%} of the regions" if share else "new"
        reasons += [f"rare class: {seen}"] if rarity == 1 else []
    return weight, tuple(reasons)


def _shares(records: Iterable[Record]) -> dict[str, float]:
    counts = Counter(
        label.text
        for record in records
        for region in record.regions
        for label in region.labels
        if label.kind == "category"
    )
    return {name: num / counts.total() for name, num in counts.items()}


def _draw(item: Item, weight: float, seed: int) -> float:
    """Smallest first: an exponential variable of this rate (Efraimidis and Spirakis, 2006)."""
    digest = hashlib.blake2b(f"{seed}:{item.id}:{item.key}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return -math.log(uniform) / weight


class Queue:
    """Hands out statements, each to one session at a time. Safe for threads.

    A session has a statement for `lease_s` seconds after it last spoke; then others may get it. If
    both judge it, both verdicts are kept.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        judged: Collection[Place],
        *,
        lease_s: float = 120,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._asked = {(one.item.id, one.item.key): one for one in asked}
        self._judged = set(judged) & self._asked.keys()
        self._lease_s, self._clock = lease_s, clock
        self._leases: dict[Place, tuple[str, float]] = {}
        self._skipped: dict[str, dict[Place, None]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._asked)

    def get(self, place: Place) -> Asked | None:
        """A statement by its place, whoever has it."""
        return self._asked.get(place)

    def take(self, session: str) -> Asked | None:
        """The statement that a session has, else the next one; None if none is left for it."""
        with self._lock:
            now = self._clock()
            held = [p for p, (who, _) in self._leases.items() if who == session]
            skipped = self._skipped.get(session, {})
            # What was skipped comes again after all others, in the order of skipping.
            fresh = (place for place in self._asked if place not in skipped)
            for place in itertools.chain(held, fresh, skipped):
                if place in self._judged or self._is_taken(place, session, now):
                    continue
                self._leases[place] = session, now + self._lease_s
                return self._asked[place]
            return None

    def keep(self, session: str, place: Place) -> bool:
        """Renews a session's hold on a statement; False if another session has it by now."""
        with self._lock:
            now = self._clock()
            if place not in self._asked or self._is_taken(place, session, now):
                return False
            self._leases[place] = session, now + self._lease_s
            return True

    def skip(self, session: str, place: Place) -> None:
        """Lets go of a statement, to be asked about it again after all others."""
        with self._lock:
            skipped = self._skipped.setdefault(session, {})
            skipped.pop(place, None)
            skipped[place] = None
            self._let_go(session, place)

    def judged(self, session: str, place: Place) -> None:
        """Notes that a verdict is on disk."""
        with self._lock:
            self._judged.add(place)
            self._let_go(session, place)

    def num_judged(self) -> int:
        """Statements with a verdict."""
        with self._lock:
            return len(self._judged)

    def _is_taken(self, place: Place, session: str, now: float) -> bool:
        who, until = self._leases.get(place, (session, now))
        return who != session and until > now

    def _let_go(self, session: str, place: Place) -> None:
        if self._leases.get(place, ("", 0.0))[0] == session:
            del self._leases[place]
