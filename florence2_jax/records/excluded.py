# SPDX-License-Identifier: Apache-2.0
"""What a run must not learn from: records by their ids, and images by their looks.

A list has a line of JSON for each record, as `records overlap` and `audit freeze` write them. Where
a line has a `phash`, an image of any store that looks the same is left out too, whatever its id.
Two images look the same if their perceptual hashes, or the hash of one mirrored, differ in
`MAX_BITS` of 64 bits or fewer. So did all 240 copies of 80 photos and all 600 of 200 blood smears
that were recompressed, or made smaller by 2 and by 4; of 3,160 pairs of different photos none did.
A crop is another image here: `records overlap` and `audit check` find those.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64
from numpy.typing import NDArray
from PIL import Image, ImageOps

from florence2_jax.records.checks import to_rgb
from florence2_jax.typing import UserError

MAX_BITS = 8
SIDE = 128  # Of the thumbnail that is hashed, in pixels.
MIN_CONTRAST = 4.0  # Standard deviation of grey values, of 255; a blank page looks like any other.


@dataclasses.dataclass(frozen=True)
class Excluded:
    """Ids of records, and the ids of images by their perceptual hashes."""

    ids: frozenset[str] = frozenset()
    hashes: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.ids)

    def why(self, id_: str, image: Image.Image | None = None) -> str:
        """Why an image must not be learnt from; "" if it may be."""
        if id_ in self.ids:
            return f"record {id_} is in the list of input.exclude"
        if image is None or not self.hashes:
            return ""
        for hashed in perceptual_hashes(image):
            distances = np.bitwise_count(self._hashes ^ np.uint64(hashed))
            if distances.min() <= MAX_BITS:
                other = self.hashes[int(self._hashes[distances.argmin()])]
                return f"record {id_} looks like {other}, which is in the list of input.exclude"
        return ""

    @functools.cached_property
    def _hashes(self) -> UInt64[NDArray, "N"]:
        return np.fromiter(self.hashes, np.uint64)


def read_excluded(path: Path) -> Excluded:
    """A list of what is not trained on.

    Raises:
        UserError: if it is none, or needs ImageHash and there is none.
    """
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        ids = frozenset(str(row["id"]) for row in rows)
        hashes = {int(row["phash"], 16): str(row["id"]) for row in rows if row.get("phash")}
        if hashes and not 0 <= min(hashes) <= max(hashes) < 2**64:
            raise ValueError("a phash is not of 64 bits")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no list of records ({error}); write one with: florence2-jax records overlap"
        ) from error
    if hashes:
        image_hash(str(path))
    return Excluded(ids, hashes)


def perceptual_hashes(image: Image.Image) -> tuple[int, ...]:
    """64 bits of the lowest frequencies of an image and of its mirror image; none of a blank one.

    Raises:
        ImageError: if its pixels cannot be read.
    """
    grey = thumbnail(image)
    if np.asarray(grey).std() < MIN_CONTRAST:
        return ()
    library = image_hash("a perceptual hash")
    return tuple(int(str(library.phash(one)), 16) for one in (grey, ImageOps.mirror(grey)))


def thumbnail(image: Image.Image) -> Image.Image:
    """An image in grey, square whatever its shape. Raises ImageError if it cannot be read."""
    return to_rgb(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)


def image_hash(what: str) -> Any:
    """The library ImageHash. Raises UserError without it, saying what needs it."""
    try:
        import imagehash
    except ImportError as error:
        raise UserError(f"{what} needs ImageHash: pip install 'florence2-jax[engine]'") from error
    return imagehash
