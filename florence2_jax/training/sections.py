# SPDX-License-Identifier: Apache-2.0
"""A section of a run file becomes a dataclass: every key known, every value of its type."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from florence2_jax.typing import UserError

_SCALARS = (bool, int, float, str)
_NAMES = tuple[str, ...]


def section(cls: type, name: str, values: Any) -> Any:
    """The dataclass with these values.

    Raises:
        UserError: naming the key, on an unknown one, a missing one, or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{name}: {values!r} is not a mapping of names to values")
    values = dict(values)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    refuse_unknown(f"{name}.", values, fields)
    for key, value in values.items():
        wanted = fields[key].type
        if wanted is float and type(value) is int:
            values[key] = value = float(value)
        if wanted in _SCALARS and type(value) is not wanted:
            raise UserError(f"{name}.{key}: {value!r} is not of type {wanted.__name__}")
        if wanted == _NAMES:
            values[key] = texts(f"{name}.{key}", value)
        elif wanted not in _SCALARS and not isinstance(value, Mapping):
            raise UserError(f"{name}.{key}: {value!r} is not a mapping of names to values")
    missing = [
        key
        for key, field in fields.items()
        if key not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{name}.{missing[0]}: the run file must say it")
    return cls(**values)


def texts(place: str, value: Any) -> tuple[str, ...]:
    """A list of texts. Raises UserError on anything else, a single text included."""
    if not isinstance(value, list | tuple) or not all(isinstance(x, str) for x in value):
        raise UserError(f'{place}: {value!r} is no list of texts, such as ("image/*",)')
    return tuple(value)


def refuse_unknown(place: str, values: Mapping[str, Any], known) -> None:
    """Raises UserError, with the nearest keys, on one that is not known."""
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), cutoff=0.5) or sorted(known)
            raise UserError(f"{place}{name}: no such key; did you mean {', '.join(near)}?")
