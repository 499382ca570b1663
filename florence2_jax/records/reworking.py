# SPDX-License-Identifier: Apache-2.0
"""What may be done to every record on import, whatever its format: shrink it, decode it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from PIL import Image

from florence2_jax.records.checks import (
    ImageError,
    check_decodes,
    encode,
    mend_box,
    open_image,
    to_rgb,
)
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Grounding, Record, Region
from florence2_jax.records.writing import Plan
from florence2_jax.typing import Size

_Make = Callable[[Any, Ledger], Record | None]


def rework(plan: Plan, *, shorter_side_px: int | None = None, verify_pixels: bool = False) -> Plan:
    """A plan whose records are shrunk, or have an image that was decoded to its last pixel.

    Args:
        shorter_side_px: images whose shorter side is longer than that are shrunk to it (Lanczos,
            antialiased) and encoded again: PNG stays PNG, JPEG and WebP have quality 95. All
            coordinates shrink with the image, and `Record.source_size` tells what it was.
        verify_pixels: set aside images with damaged pixels too, at the price of decoding them all.
    """
    make = plan.make
    job = dict(plan.job)
    if shorter_side_px is not None:
        make = functools.partial(_shrunk, make=make, shorter_side_px=shorter_side_px)
        job["shorter_side_px"] = shorter_side_px
    if verify_pixels:
        make = functools.partial(_verified, make=make)
        job["verify_pixels"] = True
    return dataclasses.replace(plan, make=make, job=job)


def _verified(unit: Any, ledger: Ledger, *, make: _Make) -> Record | None:
    if (record := make(unit, ledger)) is None:
        return None
    try:
        check_decodes(open_image(record.image))
    except ImageError as error:
        return _refuse(record, error, ledger)
    return record


def _shrunk(unit: Any, ledger: Ledger, *, make: _Make, shorter_side_px: int) -> Record | None:
    record = make(unit, ledger)
    if record is None or min(record.size) <= shorter_side_px:
        return record
    factor = shorter_side_px / min(record.size)
    size = max(1, round(record.width * factor)), max(1, round(record.height * factor))
    try:
        image = open_image(record.image)
        format_ = image.format if image.format in ("PNG", "WEBP") else "JPEG"
        pixels = to_rgb(image).resize(size, Image.Resampling.LANCZOS)
    except ImageError as error:
        return _refuse(record, error, ledger)
    ledger.note("image", f"shrunk to a shorter side of {shorter_side_px} pixels")
    scaler = _Scaler(record, size, ledger)
    return dataclasses.replace(
        record,
        image=encode(pixels, format_),
        width=size[0],
        height=size[1],
        source_size=record.source_size or record.size,
        regions=tuple(r for r in map(scaler.region, record.regions) if r),
        groundings=tuple(g for g in map(scaler.grounding, record.groundings) if g),
    )


def _refuse(record: Record, error: ImageError, ledger: Ledger) -> None:
    """Takes a record out again that its importer has kept."""
    ledger.set_aside("image", str(error), where=record.id)
    ledger.withdraw("its image was set aside", where=record.id)


@dataclasses.dataclass(frozen=True)
class _Scaler:
    """Annotations of a record -> those of its shrunk image; what then has no area is set aside."""

    record: Record
    size: Size
    ledger: Ledger

    def region(self, region: Region) -> Region | None:
        box = self._box(region.box, "region")
        if box is None:
            return None
        return dataclasses.replace(
            region,
            box=box,
            quad=self._points(region.quad) if region.quad else None,
            polygons=tuple(map(self._points, region.polygons)),
        )

    def grounding(self, grounding: Grounding) -> Grounding | None:
        spans = []
        for span in grounding.spans:
            boxes = [self._box(box, "phrase box") for box in span.boxes]
            if kept := tuple(box for box in boxes if box is not None):
                spans.append(dataclasses.replace(span, boxes=kept))
        if spans:
            return dataclasses.replace(grounding, spans=tuple(spans))
        why = "no phrase with a box once shrunk"
        self.ledger.set_aside("grounding", why, where=self.record.id, value=grounding.text)
        self.ledger.keep("grounding", -1)
        return None

    def _box(self, box: Any, kind: str) -> Any:
        own = Ledger()  # Only what it sets aside counts: mending is of the source.
        scaled = mend_box(self._points(box), self.size, own, self.record.id, kind)
        if scaled is None:
            self.ledger.keep(kind, -1)
            self.ledger.merge(own)
        return scaled

    def _points(self, numbers: Any) -> Any:
        (w, h), (new_w, new_h) = self.record.size, self.size
        ratios = new_w / w, new_h / h
        return tuple(number * ratios[i % 2] for i, number in enumerate(numbers))
