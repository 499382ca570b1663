# SPDX-License-Identifier: Apache-2.0
"""Reading JSON that others wrote: nothing in it may stop or harm an import.

A file that is no JSON at all stops the import with a message, for its records are not to be had.
What is wrong inside a file is the importer's to count, row by row. The functions below keep those
rows harmless: no list too deep to walk, no whole number too large for a float, no id that another
spelling of itself would miss, no text that cannot be written.
"""

import contextlib
import gc
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from florence2_jax.typing import UserError

MAX_JSON_BYTES = 2**33
"""Larger files are refused: read at once, they take several times their size of memory."""

MAX_DEPTH = 24
"""Levels of lists and objects in a file. What lies deeper is read as None."""

Id: TypeAlias = int | str


@runtime_checkable
class Digest(Protocol):
    """What `hashlib.sha256()` returns."""

    def update(self, data: bytes, /) -> None: ...


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES, digest: Digest | None = None) -> Any:
    """The content of a JSON file, in UTF-8, 16 or 32.

    Whole numbers of 19 digits and more become floats (perhaps infinite), NaN stays NaN, of a key
    given twice the last value counts, and what is nested deeper than `MAX_DEPTH` becomes None.

    Args:
        digest: is updated with the file's name and bytes.

    Raises:
        UserError: if the file cannot be read, is too large, or is no JSON.
    """
    data = read_file(path, max_bytes)
    if digest is not None:
        digest.update(path.name.encode("utf-8", "surrogateescape") + data)
    return parse_json(data, str(path))


def read_file(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of an annotation file. Raises UserError if it is too large or cannot be read."""
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file; fetch it, or give the folder that holds it")
        if (size := path.stat().st_size) > max_bytes:
            raise UserError(f"{path}: {size} bytes, more than the {max_bytes} read; split the file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend its rights") from error


def parse_json(data: bytes, where: str) -> Any:
    """The content of JSON text, as `read_json` gives it. `where` names it in the UserError."""
    try:
        with collector_paused():
            content = json.loads(data, parse_int=_int)
    except RecursionError as error:
        why = "nested too deeply"
        raise UserError(f"{where}: not JSON ({why}); fetch or export it again") from error
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); fetch or export it again") from error
    return _pruned(content, MAX_DEPTH)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Makes a great many objects at once, none of them garbage: looking takes as long as making."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)


_NESTED = {list, dict}


def _pruned(value: Any, levels: int) -> Any:
    """The value with what lies deeper than `levels` set to None, in place."""
    if levels == 0:
        return None if type(value) in _NESTED else value
    # Most lists are of numbers: a set of types is faster than a look at each.
    if type(value) is list:
        if not _NESTED.isdisjoint(map(type, value)):
            value[:] = [_pruned(item, levels - 1) for item in value]
    elif type(value) is dict and not _NESTED.isdisjoint(map(type, value.values())):
        for key, item in value.items():
            if type(item) in _NESTED:
                value[key] = _pruned(item, levels - 1)
    return value


def rows(content: Any, key: str, path: Path, what: str) -> list[Any]:
    """The list under a key of a file's content; its rows may still be anything.

    Raises:
        UserError: if there is none: then the file is not `what` ("a COCO annotation file").
    """
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{path}: no list {key!r} in it; is it {what}?")
    return found


def field(row: Any, key: str) -> Any:
    """`row[key]`; None where the row is no object, or has no such key."""
    return row.get(key) if isinstance(row, dict) else None


def as_id(value: Any) -> Id | None:
    """An id as it is written or nearly so: 12, "12" and 12.0 are one. None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None  # Infinity and NaN are no integers.
    if isinstance(value, str):
        is_number = value.isascii() and value.isdecimal() and len(value) < 19
        return int(value) if is_number and (value[0] != "0" or value == "0") else value or None
    return value if isinstance(value, int) else None


def is_set(value: Any) -> bool:
    """Whether a flag is 1, in one of its spellings."""
    return isinstance(value, int | float | str) and value in (1, "1", "true", "True")


def as_text(value: Any, default: str = "") -> str:
    """A text that can be written anywhere (UTF-8, one line); the default if it is none."""
    if not isinstance(value, str) or not value.strip():
        return default
    text = value.strip()
    return text if text.isprintable() else repr(text)[1:-1]


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring = 4, 12, 12, 120
_SHORT.maxother = _SHORT.maxlong = 60


def shown(value: Any) -> str:
    """How a row is written into the books: briefly, whatever it is."""
    return _SHORT.repr(value)[:200]
