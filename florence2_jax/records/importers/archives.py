# SPDX-License-Identifier: Apache-2.0
"""Images that are no files of their own: a part of a file, or a value in an annotation file."""

import base64
import binascii
import dataclasses
import errno
from pathlib import Path

from florence2_jax.records.checks import read_regular


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """Bytes `[offset, offset + size)` of a file, such as a member of a tar archive."""

    path: Path
    offset: int
    size: int
    name: str

    def exists(self) -> bool:
        return self.path.exists()

    def read_bytes(self) -> bytes:
        """Raises OSError if the file ends before, or is no regular one."""
        data = read_regular(self.path, start=self.offset, size=self.size)
        if len(data) < self.size:
            raise OSError(errno.EIO, "the archive is cut off")
        return data


@dataclasses.dataclass(frozen=True, slots=True)
class Base64:
    """An image written as text into its annotation file."""

    text: str
    name: str

    def exists(self) -> bool:
        return True

    def read_bytes(self) -> bytes:
        """Raises OSError if the text is no base64."""
        try:
            return base64.b64decode(self.text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise OSError(errno.EINVAL, "its base64 text is damaged") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Bytes:
    """An image that stands in a row of its annotation file; None where it should."""

    data: bytes | None
    name: str

    def exists(self) -> bool:
        return self.data is not None

    def read_bytes(self) -> bytes:
        """Raises OSError if there is none."""
        if self.data is None:
            raise OSError(errno.ENOENT, "its row holds no image")
        return self.data
