# SPDX-License-Identifier: Apache-2.0
"""What a run file says about evaluation as the run goes; the work is done in `evaluation/`."""

import dataclasses

from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Some held-out records, asked every so many steps and after the last one.

    Scalars are called `eval/TASK/METRIC`, `eval/od/ap50` for one: that is what early stopping and
    the choice of the best checkpoint name.
    """

    every_steps: int = 0  # 0: never.
    records: str = ""  # A store; empty: that of `input.records`.
    split: str = ""  # Empty: the store's held-out one.
    tasks: str = ""  # `"od caption"`; empty: all that the store feeds.
    max_records: int = 64  # The first ones of the split, the same every time.
    per_record: int = 4  # Questions per task and record; 0: all.
    batch_size: int = 16  # Images at a time on each device.
    max_new_tokens: int = 0  # Of an answer; 0: as many as targets have.

    def __post_init__(self):
        least = {"every_steps": 0, "max_records": 1, "per_record": 0, "batch_size": 1}
        for name, number in (least | {"max_new_tokens": 0}).items():
            if getattr(self, name) < number:
                raise UserError(
                    f"evaluation.{name}: {getattr(self, name)} must be at least {number}"
                )
