# SPDX-License-Identifier: Apache-2.0
"""Images that annotation files speak of by name, wherever they lie within a folder."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from florence2_jax.records.importers.folder import SUFFIXES
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The images of a folder and of the folders within it, by file name."""

    folder: Path
    by_name: Mapping[str, Path]

    def __contains__(self, name: str) -> bool:
        return name in self.by_name

    def __getitem__(self, name: str) -> Path:
        """Where an image is, or would be: one that is missing is told when it is read."""
        return self.by_name.get(name, self.folder / name)


def find_images(source: Path, images: Path | None = None) -> ImageFiles:
    """Lists the images in `images`, or else in the source; of equal names the first path counts.

    Raises:
        UserError: if there are none.
    """
    folder = images or (source.parent if source.is_file() else source)
    by_name: dict[str, Path] = {}
    for place, folders, names in os.walk(folder):  # Links to folders are not followed.
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                by_name.setdefault(name, Path(place, name))
    if not by_name:
        raise UserError(f"{folder}: no image in it; say where they are: images=FOLDER")
    return ImageFiles(folder, by_name)
