# SPDX-License-Identifier: Apache-2.0
"""Answers and records drawn onto their image with Pillow alone.

A label has the same colour in every picture and on every page (`label_color`). Small images are
enlarged first, so that labels can be read; labels stand on chips that make way for one another.
"""

import bisect
import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from florence2_jax.geometry import hull_box
from florence2_jax.records.schema import Record, Region
from florence2_jax.tasks.answers import (
    Answer,
    AnyRegion,
    BoxRegion,
    MaskRegion,
    QuadRegion,
    TextAnswer,
)
from florence2_jax.typing import Box

MIN_SIDE_PX = 480
"""Images whose longer side is shorter are enlarged to this before anything is drawn."""

PALETTE = tuple(
    """
    #bf0058 #ff8f97 #ff4000 #9f4820 #e78700 #ffd778 #9fa720 #c7ef08 #287820 #00ff00 #00b700 #48ffaf
    #00af97 #60efff #48afff #0068a7 #0060ff #7000ff #8f78f7 #9f08c7 #efafff #8f508f #ff00ff #ff58bf
    """.split()
)
"""Vivid colours as far apart as possible, found by farthest-point search in OKLab; lightness
counts half, so that they differ in hue first."""

# How a label is chosen for a region that has several.
KIND_ORDER = ("category", "text", "phrase", "brief")

_FILL_ALPHA = 80  # Of 255: a mask lets its object shine through.
_SMOOTHED_SIDE_PX = 2048  # Larger pictures are drawn without oversampling, to save memory.
_MAX_CHARACTERS = 200  # Of a label on a chip; more is never legible in one line.
_MIN_STRIP_PX = 320  # Narrower pictures get a margin beside them rather than a column of letters.
_PAPER, _INK, _WARNING = "#ffffff", "#1a1c23", "#a33b00"

Ring: TypeAlias = Sequence[float]
"""`x0, y0, x1, y1, ...` of a closed outline, in pixels of the image."""


def label_color(label: str, index: int = 0) -> str:
    """`#rrggbb` of a label, whatever its case and blanks; unlabelled things are told by `index`."""
    key = " ".join(label.casefold().split())
    if not key:
        return PALETTE[(2 + 7 * index) % len(PALETTE)]  # Large steps: neighbours differ.
    return PALETTE[zlib.crc32(key.encode("utf-8", "replace")) % len(PALETTE)]


def ink_on(color: str) -> str:
    """Black or white, whichever is easier to read on a colour. Source: ITU-R BT.601 luma."""
    red, green, blue = ImageColor.getrgb(color)[:3]
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 125 else "#ffffff"


def box_ring(box: Box) -> tuple[float, ...]:
    """The corners of a box, clockwise from the top left."""
    x0, y0, x1, y1 = box
    return x0, y0, x1, y0, x1, y1, x0, y1


def region_rings(region: AnyRegion) -> tuple[tuple[float, ...], ...]:
    """The outlines of a box, a quad or a mask; empty ones are left out."""
    if isinstance(region, BoxRegion):
        return (box_ring(region.box),)
    rings = (region.quad,) if isinstance(region, QuadRegion) else region.polygons
    return tuple(tuple(ring[: len(ring) // 2 * 2]) for ring in rings if len(ring) >= 2)


def main_label(region: Region) -> str:
    """The label to show where there is room for one: the writing of a quad, else the category."""
    order = KIND_ORDER if region.quad is None else ("text", *KIND_ORDER)
    return next((text for kind in order if (text := region.label(kind))), "")


def draw_regions(
    image: Image.Image, regions: Sequence[AnyRegion], *, scale: float | None = None
) -> Image.Image:
    """Draws boxes, quads and masks with their labels, and scores where there are any.

    Args:
        image: of any mode; it is left as it is.
        regions: in pixels of `image`; what lies outside is clipped.
        scale: pixels of the picture per pixel of the image; by default 1, or what brings the
            longer side to `MIN_SIDE_PX`.

    Returns:
        An RGB picture.

    Raises:
        ValueError: if the scale is not positive.
    """
    return _draw(image, [_region_mark(region, k) for k, region in enumerate(regions)], scale)


def draw_answer(image: Image.Image, answer: Answer) -> Image.Image:
    """Draws an answer onto its image; text, and what could not be read, stand in a strip below.

    The picture is enlarged as by `draw_regions`, and widened where the strip needs room.
    """
    lines: list[tuple[str, str]] = []
    if isinstance(answer, TextAnswer):
        regions = [] if answer.region is None else [BoxRegion(box=answer.region)]
        lines.append((answer.text.strip() or "(no text)", _INK))
    else:
        regions = answer.regions
    lines += [(f"Not understood: {rest}", _WARNING) for rest in answer.unparsed]
    picture = draw_regions(image, regions)
    return _with_strip(picture, lines) if lines else picture


def draw_record(image: Image.Image, record: Record) -> Image.Image:
    """Draws all places of a record: boxes with their category, polygons, quads with their text.

    Crowds are dashed. Boxes of groundings are drawn with their phrase unless a region has that box.

    Args:
        image: the record's image, decoded.

    Raises:
        ValueError: if the image is not of the record's size.
    """
    if image.size != record.size:
        raise ValueError(f"record {record.id} is {record.size}, the image given {image.size}")
    marks = [_record_mark(region, k) for k, region in enumerate(record.regions)]
    known = {region.box for region in record.regions}
    for grounding in record.groundings:
        for span in grounding.spans:
            phrase = grounding.phrase(span)
            new = [box for box in span.boxes if box not in known]
            known.update(new)
            marks += [_region_mark(BoxRegion(label=phrase, box=box), len(marks)) for box in new]
    return _draw(image, marks)


# From regions to marks: what is drawn, without where it came from.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Mark:
    outlines: tuple[Ring, ...]
    fills: tuple[Ring, ...] = ()
    caption: str
    color: str
    is_dashed: bool = False

    @property
    def hull(self) -> Box:
        return hull_box([v for ring in (*self.outlines, *self.fills) for v in ring])

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.hull
        return (x1 - x0) * (y1 - y0)


def _region_mark(region: AnyRegion, index: int) -> _Mark:
    rings = region_rings(region)
    caption = region.label if region.score is None else f"{region.label} {region.score:.2f}"
    fills = rings if isinstance(region, MaskRegion) else ()
    color = label_color(region.label, index)
    return _Mark(outlines=rings, fills=fills, caption=caption, color=color)


def _record_mark(region: Region, index: int) -> _Mark:
    label = main_label(region)
    place = box_ring(region.box) if region.quad is None else region.quad
    # The many pieces of a crowd would drown in dashes: they are filled, its box is outlined.
    outlines = (place,) if region.is_crowd else (place, *region.polygons)
    return _Mark(
        outlines=outlines,
        fills=region.polygons,
        caption=label,
        color=label_color(label, index),
        is_dashed=region.is_crowd,
    )


# From marks to pixels.


def _draw(image: Image.Image, marks: Sequence[_Mark], scale: float | None = None) -> Image.Image:
    if scale is None:
        scale = max(1.0, MIN_SIDE_PX / max(image.size))
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    picture = image.convert("RGB")
    if scale != 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    # Doubled pixels averaged again are the pixels themselves; only what is drawn gets smoothed.
    factor = 2 if max(picture.size) <= _SMOOTHED_SIDE_PX else 1
    width, height = picture.size
    canvas = _Canvas(
        picture.resize((width * factor, height * factor), Image.Resampling.NEAREST),
        unit=factor * max(1.0, max(picture.size) / 640),
        scale=(factor * width / image.width, factor * height / image.height),
    )
    drawn = sorted((mark for mark in marks if mark.outlines), key=lambda m: m.area, reverse=True)
    for mark in drawn:  # Small ones last, lest large ones cover them.
        canvas.shape(mark)
    for mark in drawn:
        canvas.chip(mark)
    return canvas.image.reduce(factor) if factor > 1 else canvas.image


class _Canvas:
    """An image being drawn on; `unit` is a thin line, `scale` canvas pixels per image pixel."""

    def __init__(self, image: Image.Image, *, unit: float, scale: tuple[float, float]):
        self.image = image
        self.draw = ImageDraw.Draw(image, "RGBA")  # Blends translucent colours into RGB.
        self.line_px = max(2, round(2 * unit))
        self.pad_px = max(2, round(2.5 * unit))
        self.font = _font(13 * unit)
        self.scale = scale
        self.chips: list[tuple[Box, str]] = []

    def shape(self, mark: _Mark) -> None:
        """Fills and outlines, the latter with a thin contrasting edge on both sides."""
        red, green, blue = ImageColor.getrgb(mark.color)[:3]
        for ring in mark.fills:
            points = self._points(ring)
            if len(points) >= 3:
                self.draw.polygon(points, fill=(red, green, blue, _FILL_ALPHA))
        edge = 1 + self.line_px // 3
        for color, width in ((ink_on(mark.color), self.line_px + edge), (mark.color, self.line_px)):
            for ring in mark.outlines:
                self._outline(self._points(ring), color, width, is_dashed=mark.is_dashed)

    def chip(self, mark: _Mark) -> None:
        """The label, above its region if there is room, else where it covers no other label.

        In a crowd of like things, a chip that would cover one that says the same is left out.
        """
        width, height = self.image.size
        text = self._fit(_one_line(mark.caption), width - 2 * self.pad_px)
        if not text:
            return
        ascent, descent = self.font.getmetrics()
        w, h = self.font.getlength(text) + 2 * self.pad_px, ascent + descent + self.pad_px
        x0, y0, x1, y1 = hull_box([v for point in self._points(_joined(mark)) for v in point])
        places = [(x, y) for y in (y0 - h, y0, y1, y1 - h) for x in (x0, x1 - w)]
        spots = []
        for x, y in places:
            x, y = min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0))
            spots.append((x, y, x + w, y + h))
        covered = [[said for chip, said in self.chips if _overlap(spot, chip)] for spot in spots]
        free = next((k for k, below in enumerate(covered) if not below), None)
        if free is None and any(text in below for below in covered):
            return
        spot = spots[free or 0]
        self.chips.append((spot, text))
        self.draw.rectangle(spot, fill=mark.color)
        at = (spot[0] + self.pad_px, spot[1] + self.pad_px / 2)
        self.draw.text(at, text, fill=ink_on(mark.color), font=self.font)

    def _points(self, ring: Ring) -> list[tuple[float, float]]:
        """Canvas pixels, kept near the canvas: Pillow cannot draw numbers beyond 32 bits."""
        points = np.asarray(ring, np.float64).reshape(-1, 2) * self.scale
        size = np.array(self.image.size)
        return [tuple(point) for point in np.clip(points, -size, 2 * size).tolist()]

    def _outline(self, points: list, color: str, width: int, *, is_dashed: bool) -> None:
        if np.ptp(np.array(points), axis=0).max() < 1:  # A line of no length would not show.
            x, y = points[0]
            self.draw.ellipse((x - width, y - width, x + width, y + width), fill=color)
        elif not is_dashed:
            # The second point again, so that the corner where the ring closes is joined as well.
            self.draw.line([*points, *points[:2]], fill=color, width=width, joint="curve")
        else:
            for dash in _dashes(points, 5 * self.line_px):
                self.draw.line(dash, fill=color, width=width)

    def _fit(self, text: str, width: float) -> str:
        """The text, or as much of its beginning as fits, with an ellipsis."""
        if len(text) <= _MAX_CHARACTERS and self.font.getlength(text) <= width:
            return text
        cuts = range(1, min(len(text), _MAX_CHARACTERS))
        at = bisect.bisect_right(cuts, width, key=lambda n: self.font.getlength(text[:n] + "..."))
        return f"{text[:at].rstrip()}..."


def _joined(mark: _Mark) -> list[float]:
    return [v for ring in mark.outlines for v in ring]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _dashes(points: list, length: float) -> Iterator[list[tuple[float, float]]]:
    """Segments of a closed ring; every edge begins and ends with one, so that corners show."""
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        num = 2 * int(np.hypot(x1 - x0, y1 - y0) / (2 * length)) + 1  # Dashes and gaps: odd.
        stops = np.linspace((x0, y0), (x1, y1), num + 1).tolist()
        for k in range(0, num, 2):
            yield [tuple(stops[k]), tuple(stops[k + 1])]


# Texts.


def _font(size_px: float) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow; characters it lacks show as an empty box."""
    font = ImageFont.load_default(round(size_px))
    assert isinstance(font, ImageFont.FreeTypeFont)  # With a size it is, or it raises.
    return font


def _one_line(text: str) -> str:
    """A text that any font can be asked for: blanks in a row are one, unprintables are shown."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _with_strip(picture: Image.Image, texts: Sequence[tuple[str, str]]) -> Image.Image:
    """The picture above a strip of paragraphs `(text, colour)`, wrapped to its width."""
    width = max(picture.width, _MIN_STRIP_PX)
    unit = max(1.0, max(picture.size) / 640)
    font, margin = _font(15 * unit), round(10 * unit)
    lines = [
        (line, color)
        for text, color in texts
        for paragraph in text.splitlines()
        for line in _wrapped(_one_line(paragraph), font, width - 2 * margin)
    ]
    step = round(sum(font.getmetrics()) * 1.25)
    height = picture.height + 2 * margin + step * len(lines)
    page = Image.new("RGB", (width, height), _PAPER)
    page.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for k, (line, color) in enumerate(lines):
        draw.text((margin, picture.height + margin + k * step), line, fill=color, font=font)
    return page


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> Iterator[str]:
    """Lines that fit; words longer than a line are broken."""
    line = ""
    for word in text.split(" "):
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            yield line
        while font.getlength(word) > width and len(word) > 1:
            cut = bisect.bisect_right(
                range(1, len(word)), width, key=lambda n: font.getlength(word[:n])
            )
            yield word[: max(1, cut)]
            word = word[max(1, cut) :]
        line = word
    yield line
