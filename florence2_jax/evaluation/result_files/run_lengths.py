# SPDX-License-Identifier: Apache-2.0
"""Masks of COCO files: polygons, or run lengths as numbers or as text.

pycocotools trusts what it is given: run lengths that do not add up to the image make it read beyond
its memory or go on for ever. So they are added up first.
"""

from typing import Any

import pycocotools.mask

from florence2_jax.evaluation.result_files.entries import Entry
from florence2_jax.evaluation.segmentation import rasterize
from florence2_jax.records.importers.json_files import shown
from florence2_jax.typing import Size

_mask: Any = pycocotools.mask  # Its annotations are narrower than what it takes.


def read_mask(entry: Entry, size: Size, key: str = "segmentation") -> dict[str, Any]:
    """The mask of an entry as a compressed run-length code.

    Args:
        size: `(width, height)` of the image; a run-length code must be of it.

    Raises:
        UserError: if it is neither polygons nor a whole run-length code of this size.
    """
    value = entry.get(key)
    if isinstance(value, list):
        rings = [entry.numbers(f"{key} polygon {i}", ring) for i, ring in enumerate(value)]
        if any(len(ring) % 2 for ring in rings):
            entry.refuse(f"{key} has a polygon of an odd number of coordinates; mend it")
        return rasterize([tuple(ring) for ring in rings], size)
    if not (isinstance(value, dict) and isinstance(value.get("counts"), str | list)):
        entry.refuse(f"{key} is neither polygons nor a run-length code ({shown(value)}); mend it")
    width, height = size
    if value.get("size") != [height, width]:
        stated = shown(value.get("size"))
        entry.refuse(f"{key} is of size {stated}, its image is [{height}, {width}] (rows first)")
    runs = value["counts"]
    if isinstance(runs, list):
        runs = [int(run) for run in entry.numbers(f"{key} counts", runs)]
        code = {"size": [height, width], "counts": runs}
    else:
        code = {"size": [height, width], "counts": runs.encode("ascii", "replace")}
        runs = run_lengths(runs)
    if min(runs, default=-1) < 0 or sum(runs) != width * height:
        entry.refuse(
            f"{key} has runs that do not add up to {height} x {width} pixels; write it anew"
        )
    if isinstance(code["counts"], list):
        return _mask.frPyObjects(code, height, width)
    return code


def run_lengths(text: str) -> list[int]:
    """The runs of a compressed code; empty if it is none.

    Characters from "0" on carry five bits and a sixth that says whether more follow, low bits
    first; the last may carry a sign. From the fourth run on, the one two before is added.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return [] if shift else runs
