# SPDX-License-Identifier: Apache-2.0
"""Generated text -> typed answer, for every grammar; what cannot be read is kept in `unparsed`.

The default reading mends what the released parser loses (labels with `<`, newlines or accents,
short quads that spill into the next label, two-point polygons, boxes turned inside out);
`compatible=True` repeats the released parser, see `compatible.py`. Coordinates are float pixels.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from florence2_jax.tasks.registry import Task
from florence2_jax.text.locations import dequantize
from florence2_jax.typing import Box, Polygon, Quad, Size


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxRegion:
    """A labelled box; `score` in [0, 1] where there is one."""

    label: str = ""
    box: Box
    score: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadRegion:
    """A piece of text and the four corners around it."""

    label: str = ""
    quad: Quad
    score: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskRegion:
    """A labelled instance drawn by one or more polygons."""

    label: str = ""
    polygons: tuple[Polygon, ...]
    score: float | None = None


AnyRegion: TypeAlias = BoxRegion | QuadRegion | MaskRegion


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextAnswer:
    """Free text; tasks that ask about a region echo its box."""

    task: str
    text: str
    region: Box | None = None
    unparsed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionsAnswer:
    """Boxes, quads or masks in the order the model wrote them."""

    task: str
    regions: tuple[AnyRegion, ...]
    unparsed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        return dataclasses.asdict(self)


Answer: TypeAlias = TextAnswer | RegionsAnswer

_CONTROL = re.compile(r"<s>|</s>|<pad>")
_BIN = "(?:0|[1-9][0-9]{0,2})"  # As the tokens spell it: `<loc_07>` and `<loc_٧>` are words.
_LOCATION = re.compile(f"<loc_({_BIN})>")
_MARK = f"<loc_{_BIN}>|<poly>|</poly>|<sep>"
# Behind the marks, at the very end of a text, the beginning of one that was cut off.
_ITEM = re.compile(rf"(.*?)((?:{_MARK})+(?:<[a-z_/0-9]*\Z)?)", re.DOTALL)
_POLY = re.compile(r"<poly>(.*?)(?:</poly>|$)", re.DOTALL)


def parse_answer(task: Task, text: str, size: Size, *, compatible: bool = False) -> Answer:
    """Reads what a model wrote.

    Args:
        text: the decoded text, control tokens included or not.
        size: `(width, height)` of the original image, in pixels.
        compatible: read as the native transformers processor does, defects included.
    """
    if compatible:
        from florence2_jax.tasks.compatible import parse_as_released

        return parse_as_released(task, text, size)
    text = _CONTROL.sub("", text)
    if task.grammar == "text":
        return TextAnswer(task=task.token, text=text.strip())
    reader = _Reader(size)
    if task.grammar == "region_text":
        return reader.region_text(task.token, text)
    read = {"quads": reader.quads, "masks": reader.masks}.get(task.grammar, reader.boxes_or_masks)
    regions = tuple(reader.items(text, read))
    return RegionsAnswer(task=task.token, regions=regions, unparsed=tuple(reader.unparsed))


def _runs(marks: str) -> Iterator[tuple[str, bool]]:
    """Runs of marks, each with whether `<poly>` opened it."""
    end = 0
    for instance in _POLY.finditer(marks):
        yield marks[end : instance.start()].replace("</poly>", ""), False
        yield instance.group(1).replace("<poly>", ""), True
        end = instance.end()
    yield marks[end:].replace("</poly>", ""), False


def _cut_off(marks: str) -> str:
    """The beginning of a mark behind the last whole one."""
    return marks[marks.rfind(">") + 1 :]


class _Reader:
    """Turns items `label marks` into regions of one image and keeps what is left over."""

    def __init__(self, size: Size):
        self.size = size
        self.unparsed: list[str] = []

    def region_text(self, token: str, text: str) -> TextAnswer:
        """`text box`: the words before the first mark, and the echoed box."""
        item = _ITEM.match(text)
        if item is None:
            return TextAnswer(task=token, text=text.strip())
        boxes = list(self.boxes("", item.group(2)))
        self.keep(text[item.end() :])
        region = boxes[0].box if boxes else None
        words = item.group(1).strip()
        return TextAnswer(task=token, text=words, region=region, unparsed=tuple(self.unparsed))

    def items(self, text: str, read: Callable[[str, str], Iterator[AnyRegion]]):
        """Every item of a text, its marks read by one of the methods below."""
        end = 0
        for item in _ITEM.finditer(text):
            yield from read(item.group(1).strip(), item.group(2))
            end = item.end()
        self.keep(text[end:])

    def boxes_or_masks(self, label: str, marks: str) -> Iterator[AnyRegion]:
        """Boxes, and masks where the item itself (not merely the answer) draws polygons."""
        for run, is_instance in _runs(marks):
            if is_instance or "<sep>" in run:
                yield from self._mask(label, run)
            else:
                yield from self.boxes(label, run)

    def boxes(self, label: str, marks: str) -> Iterator[BoxRegion]:
        """Four bins a box, corners sorted."""
        for (x0, y0), (x1, y1) in self._groups(label, marks, num_bins=4):
            box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
            yield BoxRegion(label=label, box=box)

    def quads(self, label: str, marks: str) -> Iterator[QuadRegion]:
        """Eight bins a quad; a second one in a row has no text of its own."""
        for index, points in enumerate(self._groups(label, marks, num_bins=8)):
            (x0, y0), (x1, y1), (x2, y2), (x3, y3) = points
            quad = (x0, y0, x1, y1, x2, y2, x3, y3)
            yield QuadRegion(label=label if index == 0 else "", quad=quad)

    def masks(self, label: str, marks: str) -> Iterator[MaskRegion]:
        """One instance per `<poly>`, or one in all."""
        for run, _ in _runs(marks):
            yield from self._mask(label, run)

    def keep(self, text: str) -> None:
        """Remembers what no rule could read."""
        if text.strip():
            self.unparsed.append(text)

    def _mask(self, label: str, run: str) -> Iterator[MaskRegion]:
        """Polygons between `<sep>`, each of at least three points."""
        polygons = []
        for part in run.split("<sep>") if run else ():
            points, rest = self._points(part)
            if len(points) >= 3:
                polygons.append(tuple(v for point in points for v in point))
                self.keep(rest)
            else:
                self.keep(part if polygons else label + part)
        if polygons:
            yield MaskRegion(label=label, polygons=tuple(polygons))

    def _groups(self, label: str, marks: str, *, num_bins: int) -> Iterator[list[list[float]]]:
        bins = _LOCATION.findall(marks)
        whole = len(bins) // num_bins * num_bins
        rest = "".join(f"<loc_{k}>" for k in bins[whole:]) + _cut_off(marks)
        if rest:  # With its label, if that got no region at all.
            self.keep(rest if whole else label + rest)
        points, _ = self._points("".join(f"<loc_{k}>" for k in bins[:whole]))
        for start in range(0, len(points), num_bins // 2):
            yield points[start : start + num_bins // 2]

    def _points(self, marks: str) -> tuple[list[list[float]], str]:
        """Bin centres in pixels, and what is left: an odd last mark, the beginning of one."""
        bins = _LOCATION.findall(marks)
        rest = (f"<loc_{bins[-1]}>" if len(bins) % 2 else "") + _cut_off(marks)
        pairs = np.array(bins[: len(bins) // 2 * 2], np.int32).reshape(-1, 2)
        return dequantize(pairs, self.size).tolist(), rest
