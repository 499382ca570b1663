# SPDX-License-Identifier: Apache-2.0
"""Seeded damage to the files of a small dataset, and which of its images the damage touches.

A dataset is a dict of paths and contents. A mutation returns another one; it does not say what it
touched: that is told by comparing the files, by the numbers of the images in what differs. Where
the difference speaks of no image (a list of names, a file that cannot be read any more), it
touches all.
"""

import dataclasses
import io
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

from .small_datasets import NUMBERS


@dataclasses.dataclass(frozen=True)
class Special:
    """What is no plain file: "link" (to a target), "pipe", "folder", "sparse" (of a size)."""

    kind: str
    target: str = ""
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Packed:
    """A file given by its structure, of which `data` are the bytes."""

    value: Any
    data: bytes


Content: TypeAlias = bytes | Special | Packed
Tree: TypeAlias = dict[str, Content]

ALL = frozenset(map(str, NUMBERS))
NUMBER = re.compile("|".join(sorted(ALL)))


class NotApplicable(Exception):
    """A mutation that says nothing to these files; another one is drawn."""


# Files on disk.


def read_tree(folder: Path) -> Tree:
    """The files of a folder, those with a known structure by it. They must be of good make."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): _packed(path) for path in paths}


def write_tree(tree: Tree, folder: Path) -> None:
    """Writes files; the contents of a folder that has become a file are left out."""
    for name, content in tree.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue


def _write(path: Path, content: Content) -> None:
    if isinstance(content, Special):
        if content.kind == "link":
            path.symlink_to(content.target)
        elif content.kind == "pipe":
            os.mkfifo(path)
        elif content.kind == "folder":
            path.mkdir()
        else:
            with path.open("wb") as file:
                file.truncate(content.size)
    else:
        path.write_bytes(data_of(content))


def data_of(content: Content) -> bytes:
    """The bytes of a file, none of what is no file."""
    if isinstance(content, Packed):
        return content.data
    return content if isinstance(content, bytes) else b""


# Structures of files: how a value is read from good bytes, and bytes made of a bad value.


def _packed(path: Path) -> Content:
    data = path.read_bytes()
    if path.suffix not in _CODECS:
        return data
    decode, _ = _CODECS[path.suffix]
    return Packed(decode(data), data)


def packed(name: str, value: Any) -> Content:
    """A file of a structure. Raises NotApplicable where it cannot be written down."""
    try:
        if name.endswith((".arrow", ".parquet")) and not _is_of_schema(value):
            return _row_bytes(value, is_parquet=name.endswith(".parquet"))  # All rows differ.
        return Packed(value, _CODECS[Path(name).suffix][1](value))
    except Exception as error:  # Arrow, pickle and tar refuse values each in their own way.
        raise NotApplicable from error


DEEP = {"@DEEP@": "[" * 60 + "]" * 60, "@DEEPER@": "[" * 10**5 + "]" * 10**5}


def _json_bytes(value: Any) -> bytes:
    text = json.dumps(value)
    for mark, nest in DEEP.items():
        text = text.replace(f'"{mark}"', nest)
    return text.encode()


def _pickle_bytes(value: Any) -> bytes:
    if re.search(r"\d{19}", repr(value)):
        raise NotApplicable  # A pickle of such numbers is refused as a whole.
    return pickle.dumps(value, 2)


def _read_tar(data: bytes) -> list[dict[str, Any]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [
            {"name": m.name, "type": "0", "link": "", "data": archive.extractfile(m).read()}  # type: ignore
            for m in archive
        ]


def _tar_bytes(members: list[dict[str, Any]]) -> bytes:
    """An archive with whatever its members say, checksums right but for `broken`."""
    out = io.BytesIO()
    for member in members:
        data = member["data"] if isinstance(member["data"], bytes) else b""
        info = tarfile.TarInfo(str(member["name"]))
        info.type, info.linkname = str(member["type"]).encode()[:1], str(member["link"])
        info.size = len(data)
        headers = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        if (size := member.get("size")) is not None:
            headers[-512 + 124 : -512 + 136] = size
            headers[-512 + 148 : -512 + 156] = b" " * 8
            headers[-512 + 148 : -512 + 156] = b"%06o\0 " % sum(headers[-512:])
        out.write(bytes(headers) + data + b"\0" * (-len(data) % 512))
    return out.getvalue() + b"\0" * 1024


def _read_rows(data: bytes) -> list[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if data.startswith(b"PAR1"):
        return pq.read_table(pa.BufferReader(data)).to_pylist()
    return pa.ipc.open_stream(data).read_all().to_pylist()


def _is_of_schema(rows: list[dict]) -> bool:
    from . import test_hugging_face as hf

    try:
        return bool(hf.table(rows))
    except Exception:  # As in `packed`.
        return False


def _row_bytes(rows: list[dict], *, is_parquet: bool) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from . import test_hugging_face as hf

    table = hf.table(rows) if _is_of_schema(rows) else pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    if is_parquet:
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    return sink.getvalue().to_pybytes()


_CODECS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    ".json": (json.loads, _json_bytes),
    ".p": (pickle.loads, _pickle_bytes),
    ".tar": (_read_tar, _tar_bytes),
    ".arrow": (_read_rows, lambda rows: _row_bytes(rows, is_parquet=False)),
    ".parquet": (_read_rows, lambda rows: _row_bytes(rows, is_parquet=True)),
}

# What a change touches.


def touched(old: Tree, new: Tree) -> frozenset[str]:
    """The numbers of the images that the difference of two trees speaks of."""
    found: set[str] = set()
    for name in old.keys() | new.keys():
        before, after = old.get(name), new.get(name)
        if before != after:
            found |= _touched_by_file(name, before, after)
    return frozenset(found)


def _touched_by_file(name: str, before: Content | None, after: Content | None) -> frozenset[str]:
    numbers = _numbers(name)
    if numbers:
        # The file of an image; it may have been made to speak of another one.
        is_text = not name.endswith(IMAGE_SUFFIXES)
        return numbers | (_numbers(data_of(after or b"")) if is_text else frozenset())
    if before is None and name.endswith((*LINES, ".json", ".p", ".yaml")):
        return ALL  # One more annotation file.
    if before is None:
        return _numbers(after.value if isinstance(after, Packed) else data_of(after or b""))
    if name.endswith(CONTAINERS):
        assert isinstance(before, Packed)
        held = _numbers(before.value)
        # Of bytes that changed in an archive or a table it is not known what they cost.
        return _changed(before.value, after.value, held) if isinstance(after, Packed) else held
    if after is None or isinstance(after, Special):
        return ALL
    if name.endswith(LINES):
        lines = [data_of(c).decode("utf-8", "replace").split("\n") for c in (before, after)]
        if name.endswith(".csv") and lines[0][0] != lines[1][0]:
            return ALL  # The names of its columns.
        # A line that speaks of no image may matter to all of them.
        return _changed(*lines, ALL, keeps=False)
    if isinstance(before, Packed) and isinstance(after, Packed) and not name.endswith(".json"):
        return _changed(before.value, after.value, ALL)
    try:
        return _changed_json(json.loads(data_of(before)), json.loads(data_of(after)))
    except (ValueError, RecursionError):
        return ALL


def _changed_json(old: Any, new: Any) -> frozenset[str]:
    """As `_changed`; what is not there any more under a name such as "images" touches all."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            kinds = {type(content.get(key, _MISSING)) for content in (old, new)}
            if key.isidentifier() and len(kinds) > 1:
                return ALL
    return _changed(old, new, ALL)


IMAGE_SUFFIXES = (".jpg", ".png")
CONTAINERS = (".tar", ".arrow", ".parquet")
LINES = (".jsonl", ".csv", ".txt")
_MISSING = object()


def _changed(old: Any, new: Any, around: frozenset[str], *, keeps: bool = True) -> frozenset[str]:
    """Numbers in what differs, or else in the least thing around it that has any.

    Where the latter does not hold (`keeps`), all that is around.
    """
    if old is new or _said(old) == _said(new):
        return frozenset()
    if keeps or not isinstance(old, list):
        around = _numbers(old) | _numbers(new) or around
    if isinstance(old, dict) and isinstance(new, dict):
        keys = old.keys() | new.keys()
        pairs: Iterable = ((old.get(k, _MISSING), new.get(k, _MISSING)) for k in keys)
    elif isinstance(old, list) and isinstance(new, list):
        start = _num_equal(old, new)
        stop = _num_equal(old[start:][::-1], new[start:][::-1])
        ours, theirs = old[start : len(old) - stop], new[start : len(new) - stop]
        if len(ours) == len(theirs):
            pairs = zip(ours, theirs, strict=True)
        else:
            pairs = ((item, _MISSING) for item in ours + theirs)
    else:
        return around
    return frozenset().union(*(_changed(a, b, around) for a, b in pairs))


def _num_equal(old: list, new: list) -> int:
    pairs = enumerate(zip(old, new, strict=False))
    return next((i for i, (a, b) in pairs if _said(a) != _said(b)), min(len(old), len(new)))


def _said(value: Any) -> str:
    return repr(value)  # NaN equals itself here, and 1 is neither True nor 1.0.


def _numbers(value: Any) -> frozenset[str]:
    if value is _MISSING:
        return frozenset()
    text = value.decode("latin-1") if isinstance(value, bytes) else _said(value)
    return frozenset(NUMBER.findall(text))
