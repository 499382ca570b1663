# SPDX-License-Identifier: Apache-2.0
"""Run-length masks of COCO -> polygons along the edges of their pixels.

Decoding is ours rather than pycocotools', whose C code trusts the numbers it is given.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from florence2_jax.records.checks import MAX_IMAGE_PIXELS
from florence2_jax.typing import Polygon


class MaskError(ValueError):
    """A run-length mask that says nothing sensible."""


def decode_rle(rle: Mapping[str, Any]) -> Bool[NDArray, "Y X"]:
    """The mask of `{"size": [height, width], "counts": ...}`, counts as a list or compressed.

    Runs go down the columns and begin with the background.

    Raises:
        MaskError: if the runs do not fill the mask.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        runs = _decompress(counts) if isinstance(counts, str) else [int(n) for n in counts]
    except (KeyError, TypeError, ValueError) as error:
        raise MaskError("run-length mask cannot be read") from error
    if height <= 0 or width <= 0 or height * width > MAX_IMAGE_PIXELS:
        raise MaskError("run-length mask of no or too many pixels")
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise MaskError("runs do not add up to the size of the mask")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _decompress(counts: str) -> list[int]:
    """Runs of the compressed form: 5 bits a character, lowest first, bit 6 says that more follow.

    The sign is the highest bit given. From the fourth run on, the difference from the run two
    before is stored. Source: format of the COCO API (maskApi).
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"character {character!r} in a run-length mask")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("run-length mask ends in the middle of a number")
    return runs


# Directions in which an edge of a pixel is walked, as steps (x, y); the next one is a right turn.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def trace_mask(mask: Bool[NDArray, "Y X"]) -> tuple[list[Polygon], int]:
    """Outlines of a mask's 4-connected parts, exact along pixel edges, in pixels.

    A polygon of a record has no holes, so holes are filled: their number is the second result.
    """
    leaving = _edges(mask)
    polygons, num_holes = [], 0
    while leaving:
        ring = _walk(leaving)
        x, y = np.array(ring).T
        # The mask is on the right of every edge: around it the walk is clockwise.
        if np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)) > 0:
            polygons.append(tuple(float(v) for point in ring for v in point))
        else:
            num_holes += 1
    return polygons, num_holes


def _edges(mask: NDArray) -> dict[tuple[int, int], list[int]]:
    """Directions of the edges that leave each corner `(x, y)`, with the mask on their right."""
    padded = np.pad(mask, 1)
    above, below = padded[:-1, 1:-1], padded[1:, 1:-1]
    left, right = padded[1:-1, :-1], padded[1:-1, 1:]
    starts = (  # Of each direction: where such edges are, and where they begin from there.
        (below & ~above, 0, 0),
        (left & ~right, 0, 0),
        (above & ~below, 1, 0),
        (right & ~left, 0, 1),
    )
    leaving: dict[tuple[int, int], list[int]] = defaultdict(list)
    for direction, (where, dx, dy) in enumerate(starts):
        rows, columns = where.nonzero()
        for x, y in zip((columns + dx).tolist(), (rows + dy).tolist(), strict=True):
            leaving[x, y].append(direction)
    return leaving


def _walk(leaving: dict[tuple[int, int], list[int]]) -> list[tuple[int, int]]:
    """Takes one closed walk out of the edges; returns the corners where it turns."""
    start = corner = next(iter(leaving))
    direction = leaving[start][0]
    walk: list[tuple[tuple[int, int], int]] = []
    while True:
        leaving[corner].remove(direction)
        if not leaving[corner]:
            del leaving[corner]
        walk.append((corner, direction))
        corner = corner[0] + _STEPS[direction][0], corner[1] + _STEPS[direction][1]
        # Where two pixels touch at a corner the walk turns right: it stays with its own pixel.
        options, turn = leaving.get(corner, []), (direction + 1) % 4
        if corner == start and turn not in options:
            break
        direction = turn if turn in options else options[0]
    return [at for i, (at, direction) in enumerate(walk) if direction != walk[i - 1][1]]
