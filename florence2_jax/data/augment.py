# SPDX-License-Identifier: Apache-2.0
"""Other views of one image, with labels that are true of them: random crops and colours.

Pixels are easily cut; what is said about them has to follow. Under a crop

- a region that lies within it is moved and otherwise stays what it was;
- one that is cut keeps its category and the part of its polygons and box that is left (the box is
  drawn anew around what is left of the polygons), if that is at least `min_visible` of its area;
  otherwise it goes. It loses its descriptions and phrases, which may speak of what was cut off;
- writing (a quad, or a label of kind text) stays only if it lies within the crop: half a word is
  another word. Random crops do not cut through writing at all, so that reading the whole image
  stays true as well;
- a phrase tells its region apart from others: it stays only if the crop keeps every annotated place
  of the record (regions, crowds among them, and boxes of groundings) whole;
- a grounding stays only if all of its boxes lie within the crop;
- a brief text stays if the crop keeps `min_text_area` of the image and loses no annotated place
  (cut ones keep at least `min_visible`);
- detailed texts and questions may speak of anything: they stay if the crop keeps `min_text_area` of
  the image and every annotated place whole, of which there must be some, else nothing is known;
- whatever names a place in the image ("the left cup", "at the top", "the second bus") goes with any
  crop. The words are English; texts in other languages are held to the other rules alone.

There are no flips and no turns: they make a lie of "left of" and nonsense of writing. There is no
change of hue: it would make a lie of "the red cup".

Source: ours. The paper does not say how FLD-5B was augmented; resizing without regard to the aspect
ratio (`transforms.resize`) is what the released models expect.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageEnhance

from florence2_jax.geometry import clip_box, clip_polygon, hull_box, polygon_area
from florence2_jax.records.schema import Grounding, Label, Record, Region
from florence2_jax.typing import Box, Size, UserError

Window: TypeAlias = tuple[int, int, int, int]
"""`(x0, y0, x1, y1)` of a crop, whole pixels of the image it is cut from, far sides excluded."""

_TRIES = 10
_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}
_PLACE = re.compile(
    r"\b((?:left|right|top|bottom|upper|lower)(?:most|hand|side)?|lft|rt|btm|up|down|middle|mid|"
    r"cent(?:er|re|ral)(?:most)?|corners?|edges?|sides?|half|first|second|third|fourth|fifth|"
    r"\d+(?:st|nd|rd|th)|last|next|furthest|farthest)\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How much images vary from epoch to epoch; nothing by default.

    Raises:
        UserError: naming the key (`augment.crop`) of a value out of its range.
    """

    crop: float = 0.0  # Share of images that are cropped.
    min_area: float = 0.4  # Least share of the image's area that a crop keeps, and
    max_area: float = 1.0  # the most; drawn evenly between the two.
    max_stretch: float = 4 / 3  # Most and (inverse) least aspect ratio of a crop to the image's.
    min_visible: float = 0.5  # Share of its area below which a region that was cut is dropped.
    min_text_area: float = 0.8  # Share of the image that texts about the whole of it need.
    brightness: float = 0.0  # Factors are drawn from [1 - value, 1 + value], in random order.
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self):
        # Values, and whether their lower end is among them.
        ranges = {
            "crop": (0, 1, True),
            "min_area": (0, self.max_area, False),
            "max_area": (0, 1, False),
            "max_stretch": (1, 10, True),
            "min_visible": (0, 1, False),
            "min_text_area": (0, 1, True),
        }
        for name, (low, high, has_low) in ranges.items():
            value = getattr(self, name)
            if not (low <= value <= high and (has_low or value != low)):
                bracket = "[" if has_low else "("
                raise UserError(f"augment.{name}: {value} is not in {bracket}{low}, {high}]")
        for name in _ENHANCERS:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UserError(
                    f"augment.{name}: {value} is not in [0, 1); at 1 an image could lose it all"
                )


def augment(
    record: Record,
    image: Image.Image,
    rng: np.random.Generator,
    config: AugmentConfig,
    *,
    aspect_ratio: float | None = None,
    is_useful: Callable[[Record], bool] | None = None,
) -> tuple[Record, Image.Image]:
    """A view of a record and of its decoded pixels; see `random_crop` and `jitter_colours`.

    The record returned has the size and annotations of the view. Its `image` still holds the
    encoded bytes of the whole: the pixels of the view are the image returned beside it.

    Raises:
        ValueError: if the image has not the size of its record.
    """
    if image.size != record.size:
        raise ValueError(f"record {record.id} is {record.size}, its image {image.size}")
    view, window = random_crop(record, rng, config, aspect_ratio=aspect_ratio, is_useful=is_useful)
    if view is not record:
        image = image.crop(window)
    return view, jitter_colours(image, rng, config)


def random_crop(
    record: Record,
    rng: np.random.Generator,
    config: AugmentConfig,
    *,
    aspect_ratio: float | None = None,
    is_useful: Callable[[Record], bool] | None = None,
) -> tuple[Record, Window]:
    """A crop's annotations and where it lies; no pixel is touched.

    A crop that cuts through writing, or that leaves nothing useful, is drawn again; after ten of
    them the whole image is taken, as it is for the share of images that are not cropped. Equal
    generators draw equal crops.

    Args:
        aspect_ratio: width / height a crop should have, for buckets of one shape; hit to the pixel
            where `min_area` allows, approached where it does not. It stands in for `max_stretch`.
        is_useful: whether a view is worth training on; by default, whether anything is annotated.
            A run asks whether the view still feeds one of its tasks.

    Returns:
        The view and its window; the record itself and the window of all of it where not cropped.
    """
    whole = (0, 0, *record.size)
    if not config.crop or rng.random() >= config.crop:  # Off, it leaves the generator alone.
        return record, whole
    is_useful = is_useful or _is_annotated
    writing = [box for box in map(_writing, record.regions) if box]
    for _ in range(_TRIES):
        window = draw_window(record.size, rng, config, aspect_ratio=aspect_ratio)
        if window == whole:
            break
        if any(0 < _box_share(box, window) < 1 for box in writing):
            continue
        view = crop_record(record, window, config)
        if is_useful(view):
            return view, window
    return record, whole


def draw_window(
    size: Size,
    rng: np.random.Generator,
    config: AugmentConfig,
    *,
    aspect_ratio: float | None = None,
) -> Window:
    """A random window of an image of `(width, height)` pixels, by the rules of `random_crop`."""
    width, height = size
    share = rng.uniform(config.min_area, config.max_area)
    limit = math.log(config.max_stretch)
    stretch = math.exp(rng.uniform(-limit, limit))
    if aspect_ratio is not None:
        stretch = aspect_ratio * height / width
        share = min(share, max(config.min_area, min(stretch, 1 / stretch)))
    stretch = min(max(stretch, share), 1 / share)  # Or it would be wider or higher than the image.
    x1 = min(max(round(width * math.sqrt(share * stretch)), 1), width)
    y1 = min(max(round(height * math.sqrt(share / stretch)), 1), height)
    x0, y0 = int(rng.integers(width - x1 + 1)), int(rng.integers(height - y1 + 1))
    return x0, y0, x0 + x1, y0 + y1


def crop_record(record: Record, window: Window, config: AugmentConfig) -> Record:
    """The annotations that hold within a window, in its pixels, by the rules of this module.

    Raises:
        ValueError: if the window is empty or leaves the image.
    """
    x0, y0, x1, y1 = window
    width, height = record.size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"window {window} is empty or leaves its {width} x {height} image")
    if window == (0, 0, width, height):
        return record
    places = [_visible_share(region, window) for region in record.regions]
    places += [
        _box_share(box, window) for g in record.groundings for span in g.spans for box in span.boxes
    ]
    is_whole = all(share == 1 for share in places)
    is_most = (x1 - x0) * (y1 - y0) >= config.min_text_area * width * height
    keeps_brief = is_most and all(share >= config.min_visible for share in places)
    keeps_all = is_most and is_whole and bool(places)
    regions = [
        _crop_region(region, window, share, config.min_visible, keeps_phrases=is_whole)
        for region, share in zip(record.regions, places, strict=False)
    ]
    return dataclasses.replace(
        record,
        width=x1 - x0,
        height=y1 - y0,
        texts=tuple(
            text
            for text in record.texts
            if (keeps_brief if text.granularity == "brief" else keeps_all)
            and not names_a_place(text.text)
        ),
        regions=tuple(region for region in regions if region is not None),
        groundings=tuple(
            _move_grounding(grounding, window)
            for grounding in record.groundings
            if _holds(grounding, window)
        ),
        questions=tuple(
            question
            for question in record.questions
            if keeps_all and not any(map(names_a_place, (question.question, *question.answers)))
        ),
    )


def jitter_colours(
    image: Image.Image, rng: np.random.Generator, config: AugmentConfig
) -> Image.Image:
    """Brightness, contrast and saturation by random factors, in random order; the image in RGB."""
    names = [name for name in _ENHANCERS if getattr(config, name) > 0]
    for i in rng.permutation(len(names)):
        spread = getattr(config, names[i])
        factor = float(rng.uniform(1 - spread, 1 + spread))
        image = _ENHANCERS[names[i]](image).enhance(factor)
    return image


def names_a_place(text: str) -> bool:
    """Whether English words of a text speak of where in an image, or of order in a row."""
    return _PLACE.search(text) is not None


def _is_annotated(record: Record) -> bool:
    return bool(record.texts or record.regions or record.groundings or record.questions)


def _writing(region: Region) -> Box | None:
    """The box around a region's writing; None if it is no writing."""
    if region.quad is None:
        return region.box if region.label("text") is not None else None
    return hull_box((*region.quad, *region.box))


_NEARLY_ALL = math.nextafter(1, 0)


def _box_share(box: Box, window: Window) -> float:
    """The share of a box's area within a window; 1 only if it lies within."""
    inside = clip_box(box, window)
    if inside is None or inside == box:
        return float(inside is not None)
    area, total = ((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (inside, box))
    return min(area / total, _NEARLY_ALL)


def _visible_share(region: Region, window: Window) -> float:
    """The share of a region's area within a window, of its polygons' where it has some.

    It is 1 only if the box, the quad and all polygons lie within, and 0 where the box lies without.
    """
    share = _box_share(region.box, window)
    if share == 0:
        return 0.0
    outlines = (*region.polygons, region.quad or region.box)
    if share == 1 and all(_box_share(hull_box(o), window) == 1 for o in outlines):
        return 1.0
    total = sum(map(polygon_area, region.polygons))
    if not total:
        return min(share, _NEARLY_ALL)
    inside = (part for polygon in region.polygons for part in clip_polygon(polygon, window))
    return min(sum(map(polygon_area, inside)) / total, _NEARLY_ALL)


def _crop_region(
    region: Region, window: Window, share: float, min_visible: float, *, keeps_phrases: bool
) -> Region | None:
    if share == 1:
        labels = (label for label in region.labels if _is_true(label, keeps_phrases))
        return dataclasses.replace(
            region,
            box=_move(region.box, window),
            quad=None if region.quad is None else _move(region.quad, window),
            polygons=tuple(_move(polygon, window) for polygon in region.polygons),
            labels=tuple(labels),
        )
    categories = tuple(label for label in region.labels if label.kind == "category")
    box = clip_box(region.box, window)
    if share < min_visible or box is None or (_writing(region) and not categories):
        return None
    polygons = [part for polygon in region.polygons for part in clip_polygon(polygon, window)]
    if polygons:
        box = hull_box([v for polygon in polygons for v in polygon])
    return dataclasses.replace(
        region,
        box=_move(box, window),
        quad=None,
        polygons=tuple(_move(polygon, window) for polygon in polygons),
        labels=categories,
    )


def _is_true(label: Label, keeps_phrases: bool) -> bool:
    """Whether a label of a region that lies within a crop holds there."""
    if label.kind in ("category", "text"):
        return True
    return (keeps_phrases or label.kind != "phrase") and not names_a_place(label.text)


def _holds(grounding: Grounding, window: Window) -> bool:
    boxes = (box for span in grounding.spans for box in span.boxes)
    is_whole = all(_box_share(box, window) == 1 for box in boxes)
    return is_whole and not names_a_place(grounding.text)


def _move_grounding(grounding: Grounding, window: Window) -> Grounding:
    spans = tuple(
        dataclasses.replace(span, boxes=tuple(_move(box, window) for box in span.boxes))
        for span in grounding.spans
    )
    return dataclasses.replace(grounding, spans=spans)


_Coordinates = TypeVar("_Coordinates", bound=tuple[float, ...])


def _move(coordinates: _Coordinates, window: Window) -> _Coordinates:
    """From pixels of the image to those of the window; exact, for the numbers only shrink."""
    origin = window[:2] * (len(coordinates) // 2)
    moved = tuple(v - o for v, o in zip(coordinates, origin, strict=True))
    return moved  # pyright: ignore[reportReturnType]
