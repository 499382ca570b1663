# SPDX-License-Identifier: Apache-2.0
"""The members of an uncompressed tar archive, by its headers alone.

A header is checked by its checksum. Where one is damaged, or the archive is cut off, the stretch is
told and reading goes on at the next sound header, so that damage costs the members it hits and no
other. Nothing is unpacked, and sizes an archive merely claims are never allocated.

Sources: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; the GNU tar manual,
"Basic Tar Format", for long names and sizes in base 256.
"""

import dataclasses
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
_MAX_EXTENSION = 2**20  # Bytes of a long name or of a pax header.
_FILES, _LINKS, _FOLDER, _SPARSE = b"0\0" + b"7", b"12", b"5", b"S"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_ALL = b"L", b"K", b"x", b"g"
_ZEROS = bytes(BLOCK)
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """Bytes `[offset, offset + size)` of an archive. `problem` says why they are no file to read.

    What is damaged beyond having a name has the name "".
    """

    name: str
    offset: int
    size: int
    problem: str = ""


def members(path: Path) -> Iterator[Member]:
    """The members of an archive in order, folders left out. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        total = file.seek(0, 2)
        yield from _Reader(file, total).members()


@dataclasses.dataclass
class _Reader:
    file: BinaryIO
    total: int
    at: int = 0
    name: str | None = None  # What an extension says of the member behind it.
    size: int | None = None
    is_sparse: bool = False

    def members(self) -> Iterator[Member]:
        while self.at < self.total:
            start, block = self.at, self._read(self.at, BLOCK)
            if block == _ZEROS:  # The end, unless archives were joined.
                self._past_zeros()
                continue
            if not _is_header(block):
                self._to_next_header()
                problem = "damaged: no header of a member is here"
                yield Member("", start, self.at - start, problem)
                continue
            member = self._member(block)
            if member is not None:
                yield member

    def _member(self, block: bytes) -> Member | None:
        kind, size = block[156:157], _number(block[124:136])
        data = self.at + BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_ALL):
            if self._past(data, size) and kind in (_LONG_NAME, _PAX):
                self._extend(kind, data, size)
            return None
        name = _name(block) if self.name is None else self.name
        size = size if self.size is None else self.size
        is_sparse = self.is_sparse or kind == _SPARSE
        self.name, self.size, self.is_sparse = None, None, False
        if kind in _LINKS or kind not in _FILES + _SPARSE:
            self._past(data, 0 if kind in _LINKS else size)
            if kind == _FOLDER:
                return None
            what = "a link" if kind in _LINKS else "no regular file"
            return Member(name, data, 0, f"{what} in an archive, not followed")
        if is_sparse:
            self.at = data
            self._to_next_header()  # Its map of holes may take any number of blocks.
            return Member(name, data, 0, "a sparse file in an archive, not read")
        is_whole = self._past(data, size)
        return Member(name, data, size, "" if is_whole else "the archive is cut off within it")

    def _past(self, data: int, size: int) -> bool:
        """Moves behind a member's data; to the next header in them if they end behind the archive.

        For it may be the size that is wrong.
        """
        self.at = data + _padded(size)
        if data + size <= self.total:
            return True
        self.at = data
        self._to_next_header()
        return False

    def _past_zeros(self) -> None:
        """Moves to the next block that holds anything; holes of the file are not read."""
        while self.at < self.total:
            chunk = self._read(self.at, _CHUNK)
            num_zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            if num_zeros < len(chunk):
                self.at += num_zeros // BLOCK * BLOCK
                return
            self.at += len(chunk)
            try:
                self.at = max(self.at, self.file.seek(self.at, os.SEEK_DATA) // BLOCK * BLOCK)
            except (OSError, AttributeError) as error:  # AttributeError: a system without holes.
                if isinstance(error, OSError) and error.errno == errno.ENXIO:
                    self.at = self.total  # There is nothing but a hole.

    def _extend(self, kind: bytes, data: int, size: int) -> None:
        if size > _MAX_EXTENSION:
            return  # The member behind keeps the name it has.
        content = self._read(data, size)
        if kind == _LONG_NAME:
            self.name = _decoded(content.rstrip(b"\0"))
            return
        fields = dict(_pax_fields(content))
        if "path" in fields:
            self.name = fields["path"]
        if fields.get("size", "").isdecimal() and len(fields["size"]) < 20:
            self.size = int(fields["size"])
        self.is_sparse = any(key.startswith("GNU.sparse") for key in fields)

    def _to_next_header(self) -> None:
        self.name, self.size, self.is_sparse = None, None, False
        while self.at < self.total:
            block = self._read(self.at, BLOCK)
            if block == _ZEROS:
                self._past_zeros()
                continue
            # Data may add up by chance; it does not have the magic number as well.
            if block[257:262] == b"ustar" and _is_header(block):
                return
            self.at += BLOCK
        self.at = self.total

    def _read(self, start: int, size: int) -> bytes:
        if self.file.tell() != start:
            self.file.seek(start)
        return self.file.read(size)


def _is_header(block: bytes) -> bool:
    if len(block) < BLOCK or _number(block[124:136]) < 0:
        return False
    stated = _number(block[148:156])
    return stated == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _number(field: bytes) -> int:
    """A number in octal digits, or in base 256 where the first bit is set; -1 if it is neither."""
    if field[0] & 0x80:
        return -1 if field[0] & 0x40 else int.from_bytes(field) - (0x80 << 8 * (len(field) - 1))
    digits = field.partition(b"\0")[0].strip() or b"0"
    try:
        return int(digits, 8) if digits.isdigit() else -1
    except ValueError:  # An 8 or a 9.
        return -1


def _name(block: bytes) -> str:
    name, prefix = (block[a:b].partition(b"\0")[0] for a, b in ((0, 100), (345, 500)))
    has_prefix = block[257:263] == b"ustar\0" and prefix  # GNU keeps times there.
    return _decoded(prefix + b"/" + name if has_prefix else name)


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _pax_fields(content: bytes) -> Iterator[tuple[str, str]]:
    """`LENGTH KEY=VALUE` lines, the length counting itself; ends at the first that is none."""
    at = 0
    while at < len(content):
        digits = content[at : at + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        line = content[at + len(digits) + 1 : at + length]
        key, is_field, value = line.partition(b"=")
        if not is_field or not line.endswith(b"\n"):
            return
        yield _decoded(key), _decoded(value[:-1])
        at += length
