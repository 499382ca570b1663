# SPDX-License-Identifier: Apache-2.0
"""What the readers of result files share: entries with a place, checked values, joined ids.

Whatever is wrong in a file is a UserError of one line that names the file, the entry and a remedy.
An entry is never skipped and an id never dropped: numbers over fewer examples than the protocol has
look better than they are.
"""

import dataclasses
import difflib
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from florence2_jax.records.importers.json_files import (
    Id,
    as_id,
    field,
    parse_json,
    read_file,
    rows,
    shown,
)
from florence2_jax.typing import Box, UserError

K = TypeVar("K", bound=Hashable)
_SHOWN_IDS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One row of a file, and where it is: "results.json: entry 3"."""

    where: str
    row: Any

    def refuse(self, why: str) -> NoReturn:
        """Raises the UserError of this entry; `why` ends in a remedy."""
        raise UserError(f"{self.where}: {why}")

    def get(self, key: str) -> Any:
        """`row[key]`, None where there is none."""
        return field(self.row, key)

    def id(self, *keys: str) -> Id:
        """The id under the first of some keys that is there; "12", 12 and 12.0 are one."""
        value = next((v for v in map(self.get, keys) if v is not None), None)
        found = as_id(value)
        if found is None:
            self.refuse(f"no {' or '.join(keys)} ({shown(value)}); give each entry its id")
        return found

    def text(self, key: str) -> str:
        """A text, which may be empty."""
        value = self.get(key)
        if not isinstance(value, str):
            self.refuse(f"{key} is no text ({shown(value)}); write an empty one for no answer")
        return value

    def texts(self, key: str) -> list[str]:
        """One text or a list of them, none empty of all."""
        value = self.get(key)
        value = [value] if isinstance(value, str) else value
        if not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
            self.refuse(f"{key} is no list of texts ({shown(value)}); give one text or more")
        return value

    def number(self, key: str) -> float:
        """A number that is finite."""
        return self.numbers(key, self.get(key), 1)[0]

    def numbers(self, what: str, value: Any, count: int | None = None) -> list[float]:
        """A list of finite numbers, of a given length (1: the number itself)."""
        values = [value] if count == 1 else value
        are_numbers = isinstance(values, list) and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values
        )
        if not are_numbers or (count is not None and len(values) != count):
            wanted = "a number" if count == 1 else f"{count or 'a list of'} numbers"
            self.refuse(f"{what} is not {wanted} ({shown(value)}); mend or remove the entry")
        if not all(map(math.isfinite, values)):
            self.refuse(f"{what} is not finite ({shown(value)}); mend the program that wrote it")
        return [float(v) for v in values]

    def xywh(self, key: str = "bbox") -> Box:
        """A box `[x, y, width, height]` as its corners."""
        x, y, width, height = self.numbers(key, self.get(key), 4)
        if width < 0 or height < 0:
            self.refuse(f"{key} has a negative side ({shown(self.get(key))}); it is [x, y, w, h]")
        return x, y, x + width, y + height

    def corners(self, what: str, value: Any) -> Box:
        """A box `[x0, y0, x1, y1]`."""
        x0, y0, x1, y1 = self.numbers(what, value, 4)
        if x1 < x0 or y1 < y0:
            self.refuse(f"{what} ends before it begins ({shown(value)}); it is [x0, y0, x1, y1]")
        return x0, y0, x1, y1


def read_entries(path: Path, key: str | None = None) -> list[Entry]:
    """The rows of a file: a JSON list, JSON lines, or (with `key`) the list under a key.

    Raises:
        UserError: if the file cannot be read, is no JSON, or has no such list.
    """
    if path.suffix in (".jsonl", ".ndjson"):
        lines = enumerate(read_file(path).splitlines(), 1)
        return [
            Entry(where, parse_json(line, where))
            for where, line in ((f"{path}: line {i}", line) for i, line in lines)
            if line.strip()
        ]
    content = parse_json(read_file(path), str(path))
    if key is not None and isinstance(content, dict):
        return entries_of(content, key, path)
    if not isinstance(content, list):
        raise UserError(f"{path}: holds no list of entries; is it the right file?")
    return [Entry(f"{path}: entry {i}", row) for i, row in enumerate(content)]


def entries_of(content: Any, key: str, path: Path) -> list[Entry]:
    """The rows of the list under a key of a file's content."""
    found = rows(content, key, path, f"a file with {key!r}")
    return [Entry(f"{path}: {key} {i}", row) for i, row in enumerate(found)]


def by_id(entries: Iterable[Entry], *keys: str) -> dict[Id, Entry]:
    """Entries by their id. Raises UserError if one is there twice."""
    found: dict[Id, Entry] = {}
    for entry in entries:
        id_ = entry.id(*keys)
        if id_ in found:
            first = found[id_].where.rpartition(": ")[2]
            entry.refuse(f"{keys[0]} {shown(id_)} again, first in {first}; keep one of them")
        found[id_] = entry
    return found


def check_known(found: Collection[Any], true: Collection[Any], what: str, path: Path) -> None:
    """Raises UserError if predictions are about what the truth does not have."""
    unknown = [id_ for id_ in dict.fromkeys(found) if id_ not in true]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} {what} that the truth does not have ({_some(unknown)}); "
            "give the truth of the same split, or remove them"
        )


def check_complete(found: Collection[Any], true: Collection[Any], what: str, path: Path) -> None:
    """Raises UserError if a truth has no prediction, where the protocol counts no such thing."""
    missing = [id_ for id_ in true if id_ not in found]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(true)} {what} have no prediction ({_some(missing)}); "
            "answer each, with an empty answer where the model gave none"
        )


def joined(
    true: Mapping[K, Any], found: Mapping[K, Any], what: str, path: Path
) -> list[tuple[Any, Any]]:
    """Truth and prediction of each id, in the order of the truth; both must have the same ids."""
    check_known(found, true, what, path)
    check_complete(found, true, what, path)
    return [(one, found[id_]) for id_, one in true.items()]


def empty_note(found: Collection[Any], true: Collection[Any], what: str) -> tuple[str, ...]:
    """What to say of truths without a prediction, where the protocol counts them as empty."""
    num = sum(id_ not in found for id_ in true)
    return (f"{num} of {len(true)} {what} without a prediction, counted as empty",) if num else ()


def check_names(
    names: Mapping[str, str], known: Collection[str], path: Path, what: str = "label"
) -> None:
    """Raises UserError if labels map to no category, with the nearest ones.

    Args:
        names: label -> where it is first used.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = []
        for name in unknown[:_SHOWN_IDS]:
            near = difflib.get_close_matches(name, sorted(known), n=2, cutoff=0.5)
            listed.append(f"{name!r} (nearest: {', '.join(map(repr, near)) or 'none'})")
        more = f" and {len(unknown) - _SHOWN_IDS} more" if len(unknown) > _SHOWN_IDS else ""
        raise UserError(
            f"{path}: {len(unknown)} {what}(s) that are no category of the truth: "
            f"{', '.join(listed)}{more}; rename or remove them"
        )


def corner_boxes(boxes: Sequence[Box]) -> np.ndarray:
    """Boxes as float64 `[R, 4]`."""
    return np.array(boxes, np.float64).reshape(-1, 4)


def _some(ids: Sequence[Any]) -> str:
    more = ", ..." if len(ids) > _SHOWN_IDS else ""
    return ", ".join(shown(id_) for id_ in ids[:_SHOWN_IDS]) + more
