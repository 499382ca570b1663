# SPDX-License-Identifier: Apache-2.0
"""Shrinking on import scales all that lies in an image; decoding finds damaged pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from florence2_jax.records.checks import encode
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.reworking import rework
from florence2_jax.records.schema import Grounding, Label, Record, Region, Span
from florence2_jax.records.store import Plan, RecordStore, write_store


def image(width: int = 200, height: int = 100, format_: str = "PNG") -> bytes:
    """A white square on black: pixels 50 to 100 in both directions."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[50:100, 50:100] = 255
    return encode(Image.fromarray(pixels), format_)


def record(id_: str = "a", data: bytes | None = None, **fields) -> Record:
    return Record(id=id_, image=data or image(), **({"width": 200, "height": 100} | fields))


BOX = (50.0, 50.0, 100.0, 100.0)
ANNOTATED = record(
    regions=(
        Region(
            box=BOX,
            labels=(Label(text="square"),),
            quad=(50, 50, 100, 50, 100, 100, 50, 100),
            polygons=((50, 50, 100, 50, 100, 100),),
        ),
        Region(box=(0, 0, 200, 100)),
    ),
    groundings=(Grounding(text="a square", spans=(Span(start=2, end=8, boxes=(BOX,)),)),),
)


def make(unit: Record, ledger: Ledger) -> Record:
    counts = {"image": 1, "region": len(unit.regions), "grounding": len(unit.groundings)}
    counts["phrase box"] = sum(len(s.boxes) for g in unit.groundings for s in g.spans)
    for kind, num in counts.items():
        ledger.read(kind, num)
        ledger.keep(kind, num)
    return unit


def reworked(unit: Record, **options) -> tuple[Record | None, Ledger]:
    ledger = Ledger()
    plan = rework(Plan(units={"train": [unit]}, make=make, job={"a": 1}), **options)
    return plan.make(unit, ledger), ledger


def test_an_image_shrinks_with_all_that_lies_in_it():
    small, ledger = reworked(ANNOTATED, shorter_side_px=40)
    assert small.size == (80, 40) and small.source_size == (200, 100)
    assert Image.open(io.BytesIO(small.image)).format == "PNG"
    region, whole = small.regions
    assert region.box == (20, 20, 40, 40) and whole.box == (0, 0, 80, 40)
    assert region.quad == (20, 20, 40, 20, 40, 40, 20, 40)
    assert region.polygons == ((20, 20, 40, 20, 40, 40),)
    assert small.groundings[0].spans[0].boxes == (region.box,)
    # The box still lies around the white square.
    pixels = np.asarray(Image.open(io.BytesIO(small.image)).convert("L")) > 127
    assert [int(x) for x in np.argwhere(pixels).min(0)] == [20, 20]
    assert [int(x) + 1 for x in np.argwhere(pixels).max(0)] == [40, 40]
    assert ledger.tallies["image"].noted == {"shrunk to a shorter side of 40 pixels": 1}
    assert not ledger.unaccounted()


@pytest.mark.parametrize(("format_", "becomes"), [("JPEG", "JPEG"), ("WEBP", "WEBP")])
def test_lossy_formats_stay_what_they_are(format_, becomes):
    small, _ = reworked(record(data=image(format_=format_)), shorter_side_px=50)
    stored = Image.open(io.BytesIO(small.image))
    assert (stored.format, stored.size) == (becomes, (100, 50))


def test_small_images_pass_byte_by_byte():
    same, _ = reworked(ANNOTATED, shorter_side_px=100)
    assert same is ANNOTATED and same.source_size is None


def test_odd_sizes_keep_boxes_within():
    unit = record(data=image(101, 67), width=101, height=67, regions=(Region(box=(0, 0, 101, 67)),))
    for side in range(1, 67):
        small, _ = reworked(unit, shorter_side_px=side)
        assert min(small.size) == side
        assert small.regions[0].box == (0, 0, *small.size)


def test_a_box_that_vanishes_is_set_aside_alone():
    # Neighbours in float32; at some sizes both become the same number.
    sliver = Region(box=(63.999996185302734, 0.0, 64.0, 5.0))
    num_vanished = 0
    for side in range(60, 100):
        kept, ledger = reworked(record(regions=(sliver, Region(box=BOX))), shorter_side_px=side)
        set_aside = ledger.tallies["region"].set_aside
        assert len(kept.regions) == 2 - set_aside["box without area"]
        assert not ledger.unaccounted()
        num_vanished += set_aside.total()
    assert 0 < num_vanished < 40


def test_damaged_pixels_are_found_when_asked_for():
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    data = encode(Image.fromarray(noise), "JPEG")
    cut = record(data=data[:-2000])  # As if its container had been taken for whole.
    for options in ({"verify_pixels": True}, {"shorter_side_px": 50}):
        made, ledger = reworked(cut, **options)
        assert made is None and not ledger.unaccounted()
        assert ledger.tallies["image"].set_aside == {"truncated or damaged": 1}
        made, _ = reworked(record(data=data), **options)
        assert made is not None


def test_the_store_tells_what_was_done(tmp_path):
    plan = rework(
        Plan(units={"train": [ANNOTATED, record("b")]}, make=make, job={"a": 1}),
        shorter_side_px=50,
        verify_pixels=True,
    )
    assert plan.job == {"a": 1, "shorter_side_px": 50, "verify_pixels": True}
    write_store(tmp_path / "s", plan)
    assert [r.source_size for r in RecordStore(tmp_path / "s", "train")] == [(200, 100)] * 2
