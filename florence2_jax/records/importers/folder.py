# SPDX-License-Identifier: Apache-2.0
"""A plain folder of images, in folders within it or not; NAME.txt beside an image is its caption.

There is one split, "train", unless the folders at the top are all named train, val or test. Links
to files within the folder are read like files. A link that leads out of the folder is set aside,
so that a dataset from elsewhere cannot bring files of this machine along; links to folders are not
followed.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from florence2_jax.records.checks import read_regular
from florence2_jax.records.importers.annotated import AnnotatedImage, make_record
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_CAPTION_BYTES = 2**20
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What folders and files are called -> the split they are."""


def detect(source: Path) -> bool:
    """Whether there is an image anywhere in a folder."""
    return source.is_dir() and any(_is_image(entry.name) for entry in _files(source, Ledger()))


def plan(source: Path) -> Plan:
    """Lists a folder of images. Raises UserError if it holds none."""
    if not source.is_dir():
        raise UserError(f"{source}: is no folder; give the folder that holds the images")
    ledger, digest = Ledger(), hashlib.sha256()
    root = os.path.realpath(source)
    entries = sorted(_files(source, ledger), key=lambda entry: entry.path)
    texts = {_stem(entry): entry for entry in entries if entry.name.lower().endswith(".txt")}
    images = [entry for entry in entries if _is_image(entry.name)]
    if not images:
        raise UserError(f"{source}: no image in it; known are {', '.join(SUFFIXES)}")
    names = [Path(entry.path).relative_to(source).as_posix() for entry in images]
    has_splits = {name.partition("/")[0] for name in names} <= SPLITS.keys()
    units: dict[str, list[AnnotatedImage]] = {}
    used: set[str] = set()
    for entry, name in zip(images, names, strict=True):
        digest.update(f"{name} {_size(entry)}\n".encode("utf-8", "surrogateescape"))
        if _leads_out(entry, root):
            ledger.read("image")
            why = "a link that leads out of the folder"
            ledger.set_aside("image", why, where=readable(name))
            continue
        unit = AnnotatedImage(id=readable(name), image=Path(entry.path))
        text = texts.get(_stem(entry))
        if text is not None:
            used.add(text.path)
            unit.texts.append((_caption(text, root), "brief"))
        split = SPLITS[name.partition("/")[0]] if has_splits else "train"
        units.setdefault(split, []).append(unit)
    if other := len(entries) - len(images) - len(used):
        ledger.note("file", "neither images nor captions, not read", other)
    job = {"format": "images", "sha256": digest.hexdigest()}
    return Plan(units=units, make=make_record, job=job, ledger=ledger)


def readable(name: str) -> str:
    """The name without bytes that are no UTF-8, which a record's id cannot hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _files(folder: Path | str, ledger: Ledger) -> Iterator["os.DirEntry[str]"]:
    """Everything in a folder that is no folder, those within it included."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112
                        # Unlike DirEntry.is_dir, says no to a link that leads to itself.
                        ledger.note("folder", "links to folders, not followed")
                    else:
                        yield entry
        except OSError as error:
            ledger.read("folder")
            where = readable(str(error.filename))
            ledger.set_aside("folder", "cannot be listed", where=where, value=error.strerror)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _stem(entry: "os.DirEntry[str]") -> str:
    return entry.path.rpartition(".")[0]


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError:  # A link to nothing, which reading will find out too.
        return -1


def _leads_out(entry: "os.DirEntry[str]", root: str) -> bool:
    if not entry.is_symlink():
        return False
    return os.path.commonpath([root, os.path.realpath(entry.path)]) != root


def _caption(entry: "os.DirEntry[str]", root: str) -> str | None:
    """The text of a file; None, for `make_record` to set aside, where it cannot be read."""
    if _leads_out(entry, root):
        return None
    try:
        data = read_regular(Path(entry.path), size=MAX_CAPTION_BYTES)
    except OSError:
        return None
    return data.decode("utf-8", "replace")
