# SPDX-License-Identifier: Apache-2.0
"""The guard: stops a loop that believes itself, and says why.

It looks at the newest audit beside the earlier ones, and stops for

- a class whose recall fell by more than `max_recall_drop` below its best earlier round, on at least
  `min_truths` true boxes, if chance alone would do that in less than `significance` of the cases
  (Fisher's exact test, one-sided; rounds are judged on the same images, for which it is cautious);
- the tail (classes of few boxes) and all boxes, by the same rule: one by one many a class is too
  rare to tell;
- a class that vanished: predicted `min_vanished` times or more in an earlier round, and right at
  least once, now never, though it is there;
- a drift of the labels: the Jensen-Shannon divergence of the predicted categories from the true
  ones grew by more than `max_drift_bits` since the first round. What the size of the sample
  explains is granted: two samples of n and m labels of K classes differ by
  (K-1)(1/n + 1/m) / (8 ln 2) bits on average (the leading term for large samples).
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from florence2_jax.engine.auditing.matching import Counts
from florence2_jax.engine.auditing.measures import RoundAudit
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Bounds of the guard; `max_share` limits which classes are watched one by one.

    Raises:
        UserError: if a share is not in (0, 1], or a count is less than 1.
    """

    max_recall_drop: float = 0.2
    significance: float = 0.01
    min_truths: int = 5
    min_vanished: int = 3
    max_share: float = 1.0  # Of the true boxes; 0.05 watches classes of less than 5 % alone.
    max_drift_bits: float = 0.1

    def __post_init__(self):
        for name in ("max_recall_drop", "significance", "max_share", "max_drift_bits"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"guard.{name}: {getattr(self, name)} must be in (0, 1]")
        for name in ("min_truths", "min_vanished"):
            if getattr(self, name) < 1:
                raise UserError(f"guard.{name}: {getattr(self, name)} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a loop may go on; `reasons` are sentences for people."""

    round: int
    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """No reason to stop."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"round": self.round, "ok": self.ok, "reasons": list(self.reasons)}


def guard(audits: Sequence[RoundAudit], config: GuardConfig = GuardConfig()) -> Decision:
    """Decides about the newest of some audits, which come in the order of their rounds.

    The first audit alone is always in order: there is nothing to compare it with.

    Raises:
        UserError: if there are none, or rounds were judged by different versions of the ontology
            or different images, and so cannot be compared.
    """
    if not audits:
        raise UserError("guard: no round has been audited")
    *earlier, newest = audits
    for audit in earlier:
        same = (audit.ontology_version, audit.num_images, audit.tail_share)
        if same != (newest.ontology_version, newest.num_images, newest.tail_share):
            raise UserError(
                f"guard: rounds {audit.round} and {newest.round} were judged by other truths or "
                "another ontology; judge both again"
            )
    reasons = (*_falls(earlier, newest, config), *_vanished(earlier, newest, config))
    reasons += tuple(_drift(earlier, newest, config))
    return Decision(round=newest.round, reasons=reasons)


def _falls(earlier: Sequence[RoundAudit], newest: RoundAudit, config: GuardConfig) -> Iterator[str]:
    total = sum(counts.num_true for counts in newest.classes.values())
    watched = [
        name
        for name, counts in newest.classes.items()
        if counts.num_true and counts.num_true <= config.max_share * total
    ]
    audits = [*earlier, newest]
    series = {f"class {name!r}": [a.classes.get(name) for a in audits] for name in watched}
    series["the tail"] = [audit.tail for audit in audits]
    series["all boxes"] = [audit.kinds.get("boxes") for audit in audits]
    for what, counts in series.items():
        rows = [
            (one.recall, audit.round, one)
            for audit, one in zip(earlier, counts[:-1], strict=True)
            if one is not None and one.recall is not None
        ]
        now = counts[-1]
        if not rows or now is None or now.recall is None or now.num_true < config.min_truths:
            continue
        best, at, then = max(rows, key=lambda row: row[0])
        if best - now.recall <= config.max_recall_drop:
            continue
        if (chance := _chance(then, now)) < config.significance:
            yield (
                f"recall of {what} fell from {best:.2f} in round {at} to {now.recall:.2f} "
                f"({then.num_matched} of {then.num_true}, now {now.num_matched} of "
                f"{now.num_true}; by chance with p = {chance:.2g})"
            )


def _vanished(
    earlier: Sequence[RoundAudit], newest: RoundAudit, config: GuardConfig
) -> Iterator[str]:
    for name, now in newest.classes.items():
        if now.num_found or not now.num_true:
            continue
        for audit in reversed(earlier):
            then = audit.classes.get(name, Counts())
            if then.num_found >= config.min_vanished and then.num_matched:
                yield (
                    f"class {name!r} vanished: round {audit.round} had it {then.num_found} times "
                    f"({then.num_matched} right), round {newest.round} never, and it is there "
                    f"{now.num_true} times"
                )
                break


def _drift(earlier: Sequence[RoundAudit], newest: RoundAudit, config: GuardConfig) -> Iterator[str]:
    if not earlier:
        return
    first = earlier[0]
    grown = newest.label_divergence_bits - first.label_divergence_bits
    granted = _noise_bits(newest)
    if grown > config.max_drift_bits + granted:
        yield (
            f"the labels drift: their divergence from the true ones grew from "
            f"{first.label_divergence_bits:.3f} bits in round {first.round} to "
            f"{newest.label_divergence_bits:.3f}, of which {granted:.3f} may be chance"
        )


def _noise_bits(audit: RoundAudit) -> float:
    found = sum(counts.num_found for counts in audit.classes.values())
    true = sum(counts.num_true for counts in audit.classes.values())
    if not (found and true):
        return 0.0
    return (len(audit.classes) - 1) * (1 / found + 1 / true) / (8 * math.log(2))


def _chance(then: Counts, now: Counts) -> float:
    """How often so few of `now` would be found if both were found alike: Fisher's exact test."""
    found, total = then.num_matched + now.num_matched, then.num_true + now.num_true
    ways = [
        _log_ways(now.num_true, k) + _log_ways(then.num_true, found - k)
        for k in range(max(0, found - then.num_true), now.num_matched + 1)
    ]
    return sum(math.exp(way - _log_ways(total, found)) for way in ways)


def _log_ways(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
