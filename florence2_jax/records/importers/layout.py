# SPDX-License-Identifier: Apache-2.0
"""Where the files of a dataset lie: its annotation files, and its images in one of many layouts."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from florence2_jax.records.importers.annotated import ImageFile
from florence2_jax.records.importers.folder import SUFFIXES
from florence2_jax.records.ledger import Ledger
from florence2_jax.typing import UserError


def named_files(
    source: Path, pattern: re.Pattern[str], folders: Sequence[str] = ("annotations", ".")
) -> list[tuple[Path, re.Match[str]]]:
    """Files of some folders whose whole name a pattern matches, sorted by folder and name."""
    found = []
    for folder in folders:
        try:
            names = sorted(filter(pattern.fullmatch, os.listdir(source / folder)))  # noqa: PTH208
        except OSError:
            continue
        matches = ((source / folder / name, pattern.fullmatch(name)) for name in names)
        found += [(path, match) for path, match in matches if match and path.is_file()]
    return found


class ImageFolders:
    """Finds folders of images beneath a root, each in the first of the layouts that exists.

    The root is the source, or else the folder `images`, which may be that of the images itself. A
    layout is a template such as `"{split}/{patch}"`. A group of images whose folder does not exist
    is no error, for other groups may be there: its images will be missing one by one.
    """

    def __init__(self, source: Path, images: Path | None, layouts: Sequence[str]):
        self._root = images or source
        self._layouts = (*layouts, ".") if images else layouts
        self._found: dict[tuple[str, ...], Path] = {}

    def find(self, **names: str) -> Path:
        """The folder of a group; its first layout where none exists. Names must be safe."""
        key = tuple(names.values())
        if key not in self._found:
            candidates = [self._root / layout.format(**names) for layout in self._layouts]
            # Unlike Path.is_dir, says no to a name that is too long.
            existing = (folder for folder in candidates if os.path.isdir(folder))  # noqa: PTH112
            self._found[key] = next(existing, candidates[0])
        return self._found[key]

    def check(self) -> None:
        """Raises UserError if folders were looked for and none of them exists."""
        if self._found and not any(map(os.path.isdir, self._found.values())):
            layouts = ", ".join(layout.upper() + "/" for layout in self._layouts)
            raise UserError(
                f"{self._root}: no folder of images; looked for {layouts}; give the option "
                "images=FOLDER if they are elsewhere"
            )


def note_unmentioned(images: Iterable[ImageFile], ledger: Ledger) -> None:
    """Notes how many images lie beside the files given without being one of them."""
    mentioned: dict[str, set[str]] = {}
    for image in images:
        folder, name = os.path.split(str(image))
        mentioned.setdefault(folder, set()).add(name)
    num = 0
    for folder, names in mentioned.items():
        try:
            inside = os.listdir(folder)  # noqa: PTH208
        except OSError:
            continue  # Each image will say that it is missing.
        num += sum(name not in names and name.lower().endswith(SUFFIXES) for name in inside)
    if num:
        ledger.note("image", "images that no annotation file mentions, not read", num)
