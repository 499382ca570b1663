# SPDX-License-Identifier: Apache-2.0
"""Chance, filling, outlines and PNG for drawn scenes: the same bytes on every machine.

Three habits make that true. Chance is the raw stream of a counter-based bit generator, which NumPy
promises to keep (it does not promise that of `Generator.integers`). Geometry is integers as soon
as it meets the pixel grid, and sines come from a rounded table, as libraries differ in the last
bit. Images are stored, not compressed, as builds of zlib differ.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray

T = TypeVar("T")

Rgb: TypeAlias = tuple[int, int, int]

_Steps: TypeAlias = dict[tuple[int, int], list[tuple[int, int]]]  # (y, x): the (dy, dx) from it.

SUB_PX = 4  # Samples per pixel and axis: 17 levels of coverage.
FULL = SUB_PX * SUB_PX
UNIT = 16 * SUB_PX  # Vertices are integers, this many to a pixel.

COS = tuple(round(math.cos(math.radians(degrees)), 6) for degrees in range(360))
SIN = tuple(round(math.sin(math.radians(degrees)), 6) for degrees in range(360))


class Dice:
    """Integers by chance, a pure function of `(seed, index)` and of the calls made so far."""

    def __init__(self, seed: int, index: int):
        self._bits = np.random.Philox(key=np.array([seed, index], np.uint64))

    def below(self, end: int) -> int:
        """An integer in `[0, end)`; the bias of the remainder is below 2**-50 for our ends."""
        return int(self._bits.random_raw()) % end

    def between(self, low: int, high: int) -> int:
        """An integer in `[low, high]`."""
        return low + self.below(high - low + 1)

    def chance(self, share: float) -> bool:
        """True in that share of the calls, to a thousandth."""
        return self.below(1000) < round(1000 * share)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """The options in an order by chance."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in options]

    def bytes_field(self, height: int, width: int) -> Int[NDArray, "Y X"]:
        """Independent values in `[0, 256)`."""
        words = self._bits.random_raw(-(-height * width // 8))
        shifts = np.arange(0, 64, 8, dtype=np.uint64)
        values = (words[:, None] >> shifts) & np.uint64(255)
        return values.reshape(-1)[: height * width].reshape(height, width).astype(np.int64)


def fill(rings: Sequence[Int[NDArray, "_ 2"]], width: int, height: int) -> Bool[NDArray, "Y X"]:
    """The samples inside closed rings, by the non-zero rule.

    Args:
        rings: vertices `x, y`, `UNIT` to a pixel. Rings of one direction unite; a ring of the
            other direction cuts a hole.
        width: of the window, in pixels.
        height: of the window, in pixels.

    Returns:
        A mask with `SUB_PX` samples per pixel and axis, true where a sample's centre is inside.
    """
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    columns, rows = width * SUB_PX, height * SUB_PX
    step = UNIT // SUB_PX
    x0, y0, x1, y1 = (v[:, None] for v in (start[:, 0], start[:, 1], end[:, 0], end[:, 1]))
    y = np.arange(rows)[None] * step + step // 2
    crosses = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))
    edge, row = np.nonzero(crosses)
    x0, y0, x1, y1 = (v[edge, 0] for v in (x0, y0, x1, y1))
    x = x0 + (y[0, row] - y0) * (x1 - x0) // (y1 - y0)
    first = np.clip((x + step // 2 - 1) // step, 0, columns)  # First centre at or beyond x.
    sign = np.where(y1 > y0, 1.0, -1.0)
    turns = np.bincount(row * (columns + 1) + first, sign, rows * (columns + 1))
    turns = turns.astype(np.int8).reshape(rows, columns + 1)[:, :columns]
    return np.cumsum(turns, axis=1, dtype=np.int8) != 0


def coverage(samples: Bool[NDArray, "_ _"]) -> Int[NDArray, "Y X"]:
    """How many of its `FULL` samples are true, per pixel."""
    rows, columns = samples.shape
    blocks = samples.view(np.uint8).reshape(rows // SUB_PX, SUB_PX, columns // SUB_PX, SUB_PX)
    return blocks.sum(axis=(1, 3), dtype=np.int64)


def blend(canvas: Int[NDArray, "Y X 3"], layers: Sequence[tuple[Rgb, Int[NDArray, "Y X"]]]) -> None:
    """Lays paints over the canvas in place, each on its share of the `FULL` samples of a pixel."""
    mixed = canvas * FULL + FULL // 2
    for paint, amount in layers:
        mixed += (np.array(paint) - canvas) * amount[:, :, None]
    canvas[...] = mixed // FULL


def outlines(mask: Bool[NDArray, "Y X"]) -> list[Int[NDArray, "_ 2"]]:
    """The exact outer outlines of a mask's connected parts (8 neighbours), largest first.

    Each is a ring of corners `x, y` of pixels, one pixel apart, clockwise as seen, from its
    top-most, then left-most point. Holes are not outlined.
    """
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), bool)
    padded[1:-1, 1:-1] = mask
    onward: _Steps = {}
    # A pixel's side belongs to the outline where the neighbour beyond it is empty. Walking each
    # side with the pixel on the right hand goes clockwise around parts, the other way in holes.
    sides = (  # Neighbour's (dy, dx); the side's first corner; the step along it.
        ((-1, 0), (0, 0), (0, 1)),
        ((0, 1), (0, 1), (1, 0)),
        ((1, 0), (1, 1), (0, -1)),
        ((0, -1), (1, 0), (-1, 0)),
    )
    for (dy, dx), (cy, cx), step in sides:
        beyond = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        ys, xs = np.nonzero(mask & ~beyond)
        for corner in zip((ys + cy).tolist(), (xs + cx).tolist(), strict=True):
            onward.setdefault(corner, []).append(step)
    rings = []
    while onward:
        ring = _walk(onward)
        if area(ring) > 0:
            rings.append(ring)
    return sorted(rings, key=area, reverse=True)


def _walk(onward: _Steps) -> Int[NDArray, "_ 2"]:
    """Takes one closed walk out of the steps; the points `x, y` that it starts a step from."""
    y, x = start = min(onward)  # One step leaves it: what lies above and before it is empty.
    points, heading = [], (0, 0)
    while True:
        steps = onward[y, x]
        # Where two pixels meet at a corner, turning left crosses over and keeps them one part.
        left = (-heading[1], heading[0])
        step = left if left in steps else steps[-1]
        steps.remove(step)
        if not steps:
            del onward[y, x]
        points.append((x, y))
        heading = step
        y, x = y + step[0], x + step[1]
        if (y, x) == start:
            return np.array(points)


def area(ring: Int[NDArray, "_ 2"]) -> int:
    """Twice the signed area of a ring: positive where it runs clockwise as seen."""
    x, y = ring[:, 0], ring[:, 1]
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def simplify(ring: Int[NDArray, "P 2"]) -> Float[NDArray, "_ 2"]:
    """A polygon of few points that keeps within 0.9 pixels of an outline's steps.

    It runs through the middles of the steps, which lie on the edge that a staircase of pixels
    stands for, where their corners stray to both sides. Source: Douglas and Peucker (1973), with
    exact integer comparisons.
    """
    middles = ring + np.roll(ring, -1, axis=0)  # In half pixels.
    closed = np.concatenate([middles, middles[:1]])
    kept, spans = {0}, [(0, len(ring))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        (x0, y0), (dx, dy) = closed[first], closed[last] - closed[first]
        x, y = closed[first + 1 : last, 0] - x0, closed[first + 1 : last, 1] - y0
        length_2 = int(dx * dx + dy * dy)
        # Squared distance times squared length, from the chord or, of a loop, from its point.
        off = (dx * y - dy * x) ** 2 if length_2 else x * x + y * y
        farthest = int(np.argmax(off))
        if 100 * off[farthest] > 18**2 * (length_2 or 1):
            middle = first + 1 + farthest
            kept.add(middle)
            spans += [(first, middle), (middle, last)]
    return middles[sorted(kept)] / 2


def encode_png(pixels: UInt8[NDArray, "Y X 3"]) -> bytes:
    """An RGB PNG whose data is stored, not compressed. Source: RFC 1950, RFC 1951, RFC 2083."""
    height, width, _ = pixels.shape
    filtered = np.zeros((height, 1 + 3 * width), np.uint8)  # Each row starts with filter 0: none.
    filtered[:, 1:] = pixels.reshape(height, -1)
    raw, limit = filtered.tobytes(), 65535
    stream = b"\x78\x01"
    for at in range(0, len(raw), limit):
        block = raw[at : at + limit]
        is_last = at + limit >= len(raw)
        stream += struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF) + block
    stream += struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced.
    chunks = ((b"IHDR", header), (b"IDAT", stream), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
