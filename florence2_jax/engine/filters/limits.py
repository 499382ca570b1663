# SPDX-License-Identifier: Apache-2.0
"""Thresholds are checked before work starts."""

from collections.abc import Mapping
from typing import Any

from florence2_jax.records.schema import GRANULARITIES
from florence2_jax.typing import UserError


def check_shares(config: Any, *names: str) -> None:
    """Fields that are shares or scores. Raises UserError on one outside of [0, 1]."""
    for name in names:
        value = getattr(config, name)
        for key, one in value.items() if isinstance(value, Mapping) else [("", value)]:
            if isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one <= 1:
                place = f"{name}[{key!r}]" if key else name
                raise UserError(f"filter, {place}: {one!r} is no number in [0, 1]")


def check_counts(config: Any, **least: int) -> None:
    """Fields that are counts, with the least of each. Raises UserError on one below it."""
    for name, lowest in least.items():
        if (value := getattr(config, name)) < lowest:
            raise UserError(f"filter, {name}: {value} is under {lowest}")


def by_granularity(config: Any, **defaults: Mapping[str, int]) -> None:
    """Fills up fields that hold a number for each length of text.

    Raises:
        UserError: naming what is no such length, or no whole number from 0 on.
    """
    for name, numbers in defaults.items():
        given = getattr(config, name)
        for key, value in given.items():
            if key not in GRANULARITIES:
                raise UserError(f"filter, {name}: {key!r} is none of {', '.join(GRANULARITIES)}")
            if type(value) is not int or value < 0:
                raise UserError(f"filter, {name}[{key!r}]: {value!r} is no number of things")
        object.__setattr__(config, name, dict(numbers) | dict(given))  # The config is frozen.
