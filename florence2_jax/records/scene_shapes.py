# SPDX-License-Identifier: Apache-2.0
"""What drawn scenes are made of: colours, textures, kinds of objects, letters and their fonts."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from florence2_jax.records.scene_raster import (
    COS,
    FULL,
    SIN,
    SUB_PX,
    UNIT,
    Rgb,
    area,
    coverage,
    fill,
)

Points: TypeAlias = tuple[tuple[float, float], ...]

# Name: the colour, and the tint its textures alternate with (light on dark, dark on light).
COLORS: dict[str, tuple[Rgb, Rgb]] = {
    "red": ((215, 30, 35), (255, 150, 145)),
    "yellow": ((250, 215, 40), (190, 145, 0)),
    "green": ((25, 140, 50), (120, 215, 120)),
    "blue": ((35, 70, 215), (135, 170, 255)),
    "purple": ((125, 30, 165), (205, 130, 240)),
    "white": ((250, 250, 250), (185, 185, 190)),
    "black": ((20, 20, 22), (105, 105, 110)),
}
WORD_COLORS = ("black", "white", "blue", "red", "purple")
TEXTURES = ("plain", "striped", "dotted", "checked")
DETAIL: Rgb = (55, 45, 45)  # Wheels, doors and eyes; paler on what is black.
PALE_DETAIL: Rgb = (185, 180, 175)

# Muted, so that the name of no object's colour fits, and neither black nor white is lost.
BACKGROUNDS: dict[str, Rgb] = {
    "gray": (146, 148, 152),
    "tan": (190, 160, 120),
    "pink": (214, 160, 172),
    "mint": (142, 190, 170),
}
FINISHES = ("smooth", "grainy", "woven")


def _arc(x: float, y: float, radius: float, first: int, last: int, step: int = 12) -> Points:
    """Points of a circle at angles in degrees, clockwise as seen where `first < last`."""
    step = step if first < last else -step
    angles = (*range(first, last, step), last)
    return tuple((x + radius * COS[a % 360], y + radius * SIN[a % 360]) for a in angles)


def _disc(x: float, y: float, radius: float) -> Points:
    return _arc(x, y, radius, 0, 348)


def _bar(x0: float, y0: float, x1: float, y1: float) -> Points:
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _star() -> Points:
    radii = (1.0, 0.45)
    angles = [(270 + 36 * i) % 360 for i in range(10)]
    return tuple((radii[i % 2] * COS[a], radii[i % 2] * SIN[a]) for i, a in enumerate(angles))


def _clockwise(ring: Int[NDArray, "_ 2"]) -> Int[NDArray, "_ 2"]:
    """In the direction in which rings unite."""
    return ring if area(ring) > 0 else ring[::-1]


@dataclasses.dataclass(frozen=True)
class Kind:
    """An everyday object drawn in `[-1, 1]` squared, y down.

    `body` takes the colour and the texture, `details` a fixed dark tone; `holes` show what is
    behind. Parts of one list may overlap.
    """

    plural: str
    body: tuple[Points, ...]
    details: tuple[Points, ...] = ()
    holes: tuple[Points, ...] = ()


KINDS: dict[str, Kind] = {
    "circle": Kind("circles", (_disc(0, 0, 1),)),
    "square": Kind("squares", (_bar(-1, -1, 1, 1),)),
    "triangle": Kind("triangles", (((0, -1), (1.1, 0.9), (-1.1, 0.9)),)),
    "star": Kind("stars", (_star(),)),
    "cross": Kind("crosses", (_bar(-0.33, -1, 0.33, 1), _bar(-1, -0.33, 1, 0.33))),
    "heart": Kind(
        "hearts",
        (
            _disc(-0.48, -0.4, 0.52),
            _disc(0.48, -0.4, 0.52),
            ((0, -0.62), (0.6, -0.55), (0.93, -0.14), (0, 0.95), (-0.93, -0.14), (-0.6, -0.55)),
        ),
    ),
    "moon": Kind("moons", (_arc(0, 0, 1, 55, 305) + _arc(0.5, 0, 0.8225, 275, 85),)),
    "house": Kind(
        "houses",
        (_bar(-0.78, -0.1, 0.78, 1), ((0, -1), (1, 0), (-1, 0)), _bar(0.42, -0.9, 0.7, -0.2)),
        details=(_bar(-0.1, 0.35, 0.35, 1), _bar(-0.58, 0.25, -0.28, 0.58)),
    ),
    "tree": Kind(
        "trees",
        (
            ((0, -1), (0.55, -0.3), (-0.55, -0.3)),
            ((0, -0.7), (0.72, 0.18), (-0.72, 0.18)),
            ((0, -0.3), (0.9, 0.65), (-0.9, 0.65)),
        ),
        details=(_bar(-0.16, 0.65, 0.16, 1),),
    ),
    "car": Kind(
        "cars",
        (
            ((-1, 0), (-0.85, -0.1), (0.8, -0.1), (1, 0.05), (1, 0.42), (-1, 0.42)),
            ((-0.35, -0.6), (0.3, -0.6), (0.65, 0), (-0.7, 0)),
        ),
        details=(
            _disc(-0.55, 0.4, 0.25),
            _disc(0.55, 0.4, 0.25),
            ((-0.3, -0.47), (-0.06, -0.47), (-0.06, -0.1), (-0.5, -0.1)),
            ((0.06, -0.47), (0.23, -0.47), (0.45, -0.1), (0.06, -0.1)),
        ),
    ),
    "fish": Kind(
        "fish",
        (
            tuple((-0.25 + 0.75 * x, 0.52 * y) for x, y in _disc(0, 0, 1)),
            ((0.3, 0), (1, -0.55), (0.85, 0), (1, 0.55)),
            ((-0.3, -0.48), (0.25, -0.75), (0.2, -0.3)),
        ),
        details=(_disc(-0.62, -0.12, 0.11),),
    ),
    "cup": Kind(
        "cups",
        (((-0.8, -0.85), (0.5, -0.85), (0.36, 0.85), (-0.66, 0.85)), _disc(0.48, -0.1, 0.5)),
        details=(_bar(-0.8, -0.85, 0.5, -0.62),),
        holes=(((0.5, -0.3), (0.72, -0.22), (0.74, 0.04), (0.47, 0.16)),),
    ),
}


@dataclasses.dataclass(frozen=True)
class Sprite:
    """Paint in a window of its own, ready to be laid anywhere on whole pixels.

    `body`, `tint` and `details` are how many of `FULL` samples of a pixel take each paint; `quad`
    is the frame of a word in pixels of the window.
    """

    body: Int[NDArray, "Y X"]
    tint: Int[NDArray, "Y X"]
    details: Int[NDArray, "Y X"]
    quad: tuple[float, ...] = ()

    @property
    def mask(self) -> Bool[NDArray, "Y X"]:
        """The pixels that are covered by half or more."""
        return (self.body + self.tint + self.details) * 2 >= FULL


def _turn(points: NDArray, degrees: int) -> NDArray:
    """Turns points about the origin, clockwise as seen."""
    c, s = COS[degrees % 360], SIN[degrees % 360]
    return np.stack([points[:, 0] * c - points[:, 1] * s, points[:, 0] * s + points[:, 1] * c], 1)


def _to_window(
    rings: Iterable[NDArray],
) -> tuple[list[Int[NDArray, "_ 2"]], Int[NDArray, " 2"], int, int]:
    """Rounds rings in pixels to units, in the least window of whole pixels.

    Returns:
        The rings, the window's corner that was taken from them in units, its width and height.
    """
    units = [np.rint(ring * UNIT).astype(np.int64) for ring in rings]
    every = np.concatenate(units)
    corner = every.min(axis=0) // UNIT * UNIT
    width, height = (int(n) for n in -((corner - every.max(axis=0)) // UNIT))
    return [ring - corner for ring in units], corner, width, height


def draw_kind(
    name: str, texture: str, side_px: int, degrees: int, *, mirrored: bool = False
) -> Sprite:
    """Draws an object whose longer side, before it is turned, is `side_px`."""
    kind = KINDS[name]
    groups = (kind.body, kind.details, kind.holes)
    flip = np.array([-1.0 if mirrored else 1.0, 1.0])
    rings = [np.array(points) * flip for group in groups for points in group]
    every = np.concatenate(rings)
    low, high = every.min(axis=0), every.max(axis=0)
    scale = side_px / float((high - low).max())
    rings = [_turn((ring - (low + high) / 2) * scale, degrees) for ring in rings]
    units, corner, width, height = _to_window(rings)
    units = [_clockwise(ring) for ring in units]
    num_solid = len(kind.body) + len(kind.details)
    holes = [ring[::-1] for ring in units[num_solid:]]
    solid = fill(units[:num_solid] + holes, width, height)
    details = np.zeros_like(solid)
    if kind.details:
        details = solid & fill(units[len(kind.body) : num_solid], width, height)
    tint = solid & ~details
    if texture == "plain":
        tint[...] = False
    else:
        tint &= _pattern(texture, side_px, degrees, corner, solid.shape)
    parts = (solid & ~details & ~tint, tint, details)
    body, tint, details = (coverage(part) for part in parts)
    return Sprite(body, tint, details)


def _pattern(
    texture: str, side_px: int, degrees: int, corner: NDArray, shape: tuple[int, ...]
) -> Bool[NDArray, "_ _"]:
    """Where a texture takes its tint; it turns with the object."""
    step = UNIT // SUB_PX
    x = np.arange(shape[1])[None] * step + step // 2 + int(corner[0])
    y = np.arange(shape[0])[:, None] * step + step // 2 + int(corner[1])
    c, s = round(COS[degrees % 360] * 1024), round(SIN[degrees % 360] * 1024)
    u, v = (x * c + y * s) >> 10, (y * c - x * s) >> 10
    band = max(3 * UNIT, side_px * UNIT // 7)
    if texture == "striped":
        return (v // band) % 2 == 1
    if texture == "checked":
        return (u // band + v // band) % 2 == 1
    cell = band * 8 // 5
    du, dv = u % cell - cell // 2, v % cell - cell // 2
    return du * du + dv * dv <= cell * cell // 9


# Letters as strokes on a grid 4 wide (W: 6) and 6 high: "xy" corners; "|" lifts the pen.
LETTERS: dict[str, str] = {
    "A": "06 20 46|14 34",
    "B": "00 30 41 42 33 03|33 44 45 36 06 00",
    "C": "41 30 10 01 05 16 36 45",
    "D": "00 20 42 44 26 06 00",
    "E": "40 00 06 46|03 33",
    "F": "40 00 06|03 33",
    "G": "41 30 10 01 05 16 36 45 43 23",
    "H": "00 06|40 46|03 43",
    "I": "00 06",
    "J": "30 35 26 16 05",
    "K": "00 06|40 03 46",
    "L": "00 06 36",
    "M": "06 00 23 40 46",
    "N": "06 00 46 40",
    "O": "10 30 41 45 36 16 05 01 10",
    "P": "06 00 30 41 42 33 03",
    "Q": "10 30 41 45 36 16 05 01 10|24 46",
    "R": "06 00 30 41 42 33 03|23 46",
    "S": "41 30 10 01 02 13 33 44 45 36 16 05",
    "T": "00 40|20 26",
    "U": "00 05 16 36 45 40",
    "V": "00 26 40",
    "W": "00 16 32 56 60",
    "X": "00 46|40 06",
    "Y": "00 23 40|23 26",
    "Z": "00 40 06 46",
    "0": "10 20 31 35 26 16 05 01 10",
    "1": "02 20 26",
    "2": "01 10 30 41 42 06 46",
    "3": "00 40 23 33 44 45 36 16 05",
    "4": "36 30 04 44",
    "5": "40 00 02 32 43 45 36 06",
    "6": "30 10 01 05 16 36 45 44 33 03",
    "7": "00 40 16",
    "8": "10 30 41 42 33 13 02 01 10|13 04 05 16 36 45 44 33",
    "9": "43 13 02 01 10 30 41 45 36 16",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Font:
    """A way to write the strokes; lengths in grid units, of which a letter is 6 high."""

    weight: float = 1.1
    width: float = 1.0
    slant: float = 0.0
    spacing: float = 1.1
    is_round: bool = False


FONTS: dict[str, Font] = {
    "regular": Font(),
    "bold": Font(weight=1.5, width=1.1),
    "narrow": Font(width=0.8),
    "wide": Font(width=1.2),
    "slanted": Font(slant=0.22),
    "round": Font(weight=1.35, is_round=True),
}


def _stroke(start: Sequence[float], end: Sequence[float], font: Font) -> NDArray:
    """The ring of a thick line with square or rounded ends."""
    start_, end_ = np.array(start), np.array(end)
    along = end_ - start_
    half = font.weight / 2
    length = math.sqrt(along[0] * along[0] + along[1] * along[1])
    along = along * (half / length)
    across = np.array([along[1], -along[0]])
    square, rounded = ((-1, -1), (-1, 1)), ((-0.4, -1), (-1, -0.4), (-1, 0.4), (-0.4, 1))
    ends = rounded if font.is_round else square
    back = [start_ + a * along + b * across for a, b in ends]
    front = [end_ - a * along - b * across for a, b in ends]
    return np.array(back + front)


def draw_word(text: str, font: Font, height_px: int, degrees: int) -> Sprite:
    """Writes a word in capitals `height_px` high; its quad is its frame before it was turned.

    Raises:
        KeyError: for a character that `LETTERS` does not have.
    """
    rings, pen = [], 0.0
    for letter in text:
        lines = [stroke.split() for stroke in LETTERS[letter].split("|")]
        for corners in lines:
            points = [(int(c[0]) * font.width + pen, float(c[1])) for c in corners]
            rings += [_stroke(a, b, font) for a, b in itertools.pairwise(points)]
        advance = max(int(c[0]) for corners in lines for c in corners) * font.width
        pen += advance + font.weight + font.spacing
    every = [np.stack([r[:, 0] + (3 - r[:, 1]) * font.slant, r[:, 1] - 3], 1) for r in rings]
    scale = height_px / (6 + font.weight)
    points = np.concatenate(every)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    frame = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    turned = [_turn(ring * scale, degrees) for ring in [*every, frame]]
    units, _, width, height = _to_window(turned)
    ink = coverage(fill([_clockwise(ring) for ring in units[:-1]], width, height))
    empty = np.zeros_like(ink)
    return Sprite(ink, empty, empty, tuple((units[-1] / UNIT).reshape(-1).tolist()))
