# SPDX-License-Identifier: Apache-2.0
"""What importers of one annotation file per image ask of folders: files, images, splits."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from florence2_jax.records.checks import is_safe_name, read_regular
from florence2_jax.records.importers.folder import SUFFIXES, readable
from florence2_jax.records.ledger import Ledger

MAX_ANNOTATION_BYTES = 2**24
"""Of a file that annotates one image; longer ones are set aside with it."""

HELD_OUT_FIRST = ("test", "val", "train")
"""What two splits list goes to the first of them, so that it stays out of training."""

_SPLIT = re.compile(r"(?<![a-z])(train|val|test)(?:ing|id|idation)?(?![a-z])")


class AnnotationError(ValueError):
    """An annotation file that is not read. The message says why, without the name of the file."""


def split_named(*names: str) -> str | None:
    """The split that the last of some names has as a word ("train2017", "gt_val", "Testing")."""
    for name in reversed(names):
        if match := _SPLIT.search(name.lower()):
            return match[1]
    return None


def files_within(folder: Path, ledger: Ledger) -> list[Path]:
    """All files in a folder and in folders within it, sorted; hidden ones are left out.

    Links to folders are not followed, nor those to files elsewhere: a dataset from others shall not
    bring files of this machine along. Such links are noted.
    """
    found, root = [], os.path.realpath(folder)
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if path.is_symlink() and not os.path.realpath(path).startswith(f"{root}{os.sep}"):
                ledger.note("file", "links that lead out of the folder, not followed")
                continue
            found.append(path)
    return sorted(found)


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name."""
    return path.suffix.lower() in SUFFIXES


def name_within(path: Path, root: Path) -> str:
    """The name of a file within a folder, as an id may hold it."""
    return readable(path.relative_to(root).as_posix())


def listing_digest(paths: Iterable[Path], root: Path) -> str:
    """A digest of the names and sizes of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(
            f"{path.relative_to(root)} {size_of(path)}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """The bytes of a file; -1 of a link to nothing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def named_image(name: object, folder: Path, root: Path) -> Path | None:
    """The file that an annotation file in `folder` means, if it lies within `root`.

    A way that leads out of `root`, or nowhere (that of another machine), is not followed: then the
    file of the same name in `folder` is meant. None if there is no file name at all.
    """
    way = name.replace("\\", "/") if isinstance(name, str) else ""
    if not is_safe_name(way.replace("..", "").lstrip("/")):
        return None
    inside = os.path.relpath(os.path.normpath(folder / way), root)
    if is_safe_name(inside) and exists(root / inside):
        return root / inside
    last = PurePosixPath(way).name
    return folder / last if is_safe_name(last) else None


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; unlike `Path.exists`, no if its name is too long."""
    return os.path.exists(path)  # noqa: PTH110


def read_annotation(path: Path, max_bytes: int = MAX_ANNOTATION_BYTES) -> bytes:
    """The bytes of a file that annotates one image.

    Raises:
        AnnotationError: if it cannot be read, or is longer than `max_bytes`.
    """
    try:
        data = read_regular(path, size=max_bytes + 1)
    except (OSError, ValueError) as error:
        raise AnnotationError("cannot be read") from error
    if len(data) > max_bytes:
        raise AnnotationError("is too long")
    return data


def first_bytes(path: Path, num: int = 4096) -> bytes:
    """The beginning of a file; nothing if it cannot be read. For `detect`."""
    try:
        return read_regular(path, size=num)
    except (OSError, ValueError):
        return b""


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing if it is none or cannot be read. For `detect`."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
