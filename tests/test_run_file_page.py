# SPDX-License-Identifier: Apache-2.0
"""`docs/run_file.md` names every key of a run file, with its default, and no other."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2_jax.models.config import Florence2Config
from florence2_jax.training.config import RunConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "run_file.md"
TOP = {"seed": 0, "total_steps": "—", "accumulate": 1, "freeze": ()}  # Read by `create` itself.


def rows() -> dict[str, str]:
    return dict(re.findall(r"^\| `([\w.]+)` \| `?(.*?)`? \|", PAGE.read_text("utf-8"), re.M))


def fields(cls: Any, place: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(cls):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        yield f"{place}.{field.name}", "—" if value is dataclasses.MISSING else value


def keys() -> Iterator[tuple[str, Any]]:
    yield from TOP.items()
    yield from nested("model", dataclasses.asdict(Florence2Config.create()))
    for field in dataclasses.fields(RunConfig):
        if field.name != "model" and field.name not in TOP:
            yield from fields(field.type, field.name)


def nested(place: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{place}.{name}"
        yield from nested(key, value) if isinstance(value, dict) else [(key, value)]


def test_keys_and_defaults():
    assert rows() == {key: "—" if value == "—" else repr(value) for key, value in keys()}
