# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints stay when a newer one is saved."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers as policies


def keep_policy(
    *, newest: int | None, lowest: int, values: Mapping[int, float], every: int
) -> policies.AnyPreservationPolicy:
    """Keeps a checkpoint that any of these asks for.

    Args:
        newest: so many of the newest; None for all.
        lowest: so many of those with the lowest value.
        values: by step; looked at anew for each decision.
        every: the steps that are multiples of this; 0 for none.
    """
    kept: list[policies.PreservationPolicy] = [policies.LatestN(newest)]
    kept += [_Lowest(values, lowest)] if lowest else []
    kept += [policies.EveryNSteps(every)] if every else []
    return policies.AnyPreservationPolicy(kept)


@dataclasses.dataclass
class _Lowest(policies.PreservationPolicy):
    """Keeps the steps of lowest value. Orbax's `BestN` keeps all while there are fewer than n."""

    values: Mapping[int, float]
    number: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer per checkpoint."""
        del context
        known = [info.step for info in checkpoints if info.step in self.values]
        best = sorted(known, key=self.values.__getitem__)[: self.number]
        return [info.step in best for info in checkpoints]
