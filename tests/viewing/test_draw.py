# SPDX-License-Identifier: Apache-2.0
"""What is drawn lands where the region is, and nothing that a record may hold breaks drawing."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from florence2_jax.records.schema import (
    LABEL_KINDS,
    Grounding,
    Label,
    Record,
    Region,
    Span,
)
from florence2_jax.tasks.answers import (
    BoxRegion,
    MaskRegion,
    QuadRegion,
    RegionsAnswer,
    TextAnswer,
)
from florence2_jax.viewing.draw import (
    MIN_SIDE_PX,
    PALETTE,
    draw_answer,
    draw_record,
    draw_regions,
    label_color,
)

GRAY = (128, 128, 128)
NASTY = ("", "\x00\ud800", "日本語 🦄\u202e", "two\nlines", "x" * 5000, " \t ", "<b>")


def gray(width: int = 600, height: int = 500, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (width, height), GRAY).convert(mode)


def changed(picture: Image.Image) -> np.ndarray:
    """bool[Y, X]: the pixels that are no longer gray."""
    return (np.asarray(picture) != GRAY).any(axis=-1)


def rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def test_a_box_is_drawn_on_its_border_and_nowhere_else():
    picture = draw_regions(gray(), [BoxRegion(box=(100, 200, 300, 400))])
    drawn = changed(picture)
    rows, columns = np.nonzero(drawn)
    # Half of the line and of its edge lie outside of the box.
    assert 97 <= columns.min() <= 100 and 300 <= columns.max() <= 303
    assert 197 <= rows.min() <= 200 and 400 <= rows.max() <= 403
    assert not drawn[205:395, 105:295].any()
    assert drawn[200, 110:290].all() and drawn[210:390, 300].all()


def test_the_line_has_the_colour_of_the_label():
    picture = np.asarray(draw_regions(gray(), [BoxRegion(label="dog", box=(100, 200, 300, 400))]))
    np.testing.assert_array_equal(picture[399:401, 200], [rgb(label_color("dog"))] * 2)


def test_masks_are_translucent_and_quads_are_not_filled():
    corners = (100.0, 100.0, 300.0, 100.0, 300.0, 300.0, 100.0, 300.0)
    mask = draw_regions(gray(), [MaskRegion(polygons=(corners,))]).getpixel((200, 200))
    assert mask != GRAY and mask != rgb(label_color(""))
    quad = draw_regions(gray(), [QuadRegion(quad=corners)])
    assert quad.getpixel((200, 200)) == GRAY and changed(quad)[100, 150:250].all()


def test_labels_and_scores_stand_on_a_chip_inside_the_picture():
    regions = [BoxRegion(label="a dog", box=(560, 0, 600, 40))]
    plain = changed(draw_regions(gray(), [BoxRegion(box=(560, 0, 600, 40))]))
    labelled = draw_regions(gray(), regions)
    scored = draw_regions(gray(), [BoxRegion(label="a dog", box=(560, 0, 600, 40), score=0.5)])
    assert labelled.size == (600, 500)
    counts = [plain.sum(), changed(labelled).sum(), changed(scored).sum()]
    assert counts[0] < counts[1] < counts[2]


def test_small_images_are_enlarged_and_the_regions_with_them():
    picture = draw_regions(gray(96, 48), [BoxRegion(box=(24, 12, 72, 36))])
    assert picture.size == (MIN_SIDE_PX, MIN_SIDE_PX // 2)
    drawn = changed(picture)
    assert drawn[60, 130:350].all() and not drawn[70:170, 130:350].any()


def test_scale_is_what_the_caller_says():
    assert draw_regions(gray(), [], scale=0.5).size == (300, 250)
    with pytest.raises(ValueError, match="scale must be positive"):
        draw_regions(gray(), [], scale=0.0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_any_image_mode_is_drawn_on_and_left_as_it_was(mode):
    image = gray(mode="L" if mode == "I;16" else mode).convert(mode)
    before = image.tobytes()
    assert draw_regions(image, [BoxRegion(label="x", box=(10, 10, 99, 99))]).mode == "RGB"
    assert image.mode == mode and image.tobytes() == before


def test_pixels_without_a_region_stay_exactly_as_they_were():
    noise = np.random.default_rng(0).integers(0, 256, (500, 600, 3), np.uint8)
    picture = np.asarray(draw_regions(Image.fromarray(noise), [BoxRegion(box=(0, 0, 50, 50))]))
    np.testing.assert_array_equal(picture[60:], noise[60:])


def test_colours_do_not_depend_on_case_blanks_or_picture():
    assert label_color("Red  car") == label_color("red car ") in PALETTE
    assert len({label_color("", index) for index in range(len(PALETTE))}) == len(PALETTE)


def test_a_text_answer_gets_its_words_below_and_its_region_above():
    answer = TextAnswer(task="<REGION_TO_OCR>", text="STOP " * 60, region=(100, 200, 300, 400))
    picture = draw_answer(gray(), answer)
    assert picture.width == 600 and picture.height > 560
    assert changed(picture)[200, 110:290].all()
    strip = np.asarray(picture.convert("L"))[500:]
    assert strip.min() < 60 and strip.max() == 255


def test_what_was_not_understood_is_told_below_the_regions():
    region = BoxRegion(label="x", box=(1, 1, 9, 9))
    sizes = [
        draw_answer(gray(), RegionsAnswer(task="<OD>", regions=(region,), unparsed=rest)).height
        for rest in ((), ("car<loc_1>",), ("car<loc_1>", "<loc_2>"))
    ]
    assert sizes[0] == 500 < sizes[1] < sizes[2]


@pytest.mark.parametrize("text", NASTY)
def test_texts_of_any_kind_are_drawn(text):
    regions = (BoxRegion(label=text, box=(5, 5, 20, 20), score=1.0),)
    for size in ((96, 96), (1, 700), (3, 2)):
        draw_answer(gray(*size), RegionsAnswer(task="<OD>", regions=regions, unparsed=(text,)))
        draw_answer(gray(*size), TextAnswer(task="<VQA>", text=text))


def test_degenerate_and_distant_places_are_drawn():
    regions = [
        BoxRegion(label="point", box=(50, 50, 50, 50)),
        BoxRegion(label="inside out", box=(90, 90, 10, 20)),
        MaskRegion(label="no polygon", polygons=()),
        MaskRegion(label="a line, a point, an odd one", polygons=((1, 2, 3, 4), (5, 6), (1,) * 7)),
        QuadRegion(label="far", quad=(-1e30, 0, 1e30, 0, 1e30, 1e30, 0, 1e30)),
    ]
    assert changed(draw_regions(gray(), regions))[50, 50]


def record(*regions: Region, size=(600, 500), groundings=()) -> Record:
    buffer = io.BytesIO()
    gray(*size).save(buffer, "PNG")
    return Record(
        id="r",
        image=buffer.getvalue(),
        width=size[0],
        height=size[1],
        regions=regions,
        groundings=groundings,
    )


def test_crowds_are_dashed():
    solid, crowd = (
        changed(draw_record(gray(), record(Region(box=(100, 200, 300, 400), is_crowd=is_crowd))))
        for is_crowd in (False, True)
    )
    assert solid[200, 110:290].all()
    assert 0.3 < crowd[200, 110:290].mean() < 0.8
    assert crowd[200, 100] and crowd[400, 300]  # Corners show.


def test_boxes_of_groundings_are_drawn_where_no_region_is():
    span = Span(start=0, end=3, boxes=((100, 200, 300, 400),))
    grounding = Grounding(text="dog", spans=(span,))
    assert changed(draw_record(gray(), record(groundings=(grounding,))))[200, 110:290].all()
    region = Region(box=(100, 200, 300, 400), labels=(Label(text="cat"),))
    alone = draw_record(gray(), record(region))
    both = draw_record(gray(), record(region, groundings=(grounding,)))
    assert alone.tobytes() == both.tobytes()


def test_another_image_than_the_records_is_refused():
    with pytest.raises(ValueError, match=r"record r is \(600, 500\), the image given \(60, 50\)"):
        draw_record(gray(60, 50), record())


def any_record(draw) -> Record:
    """Any record, down to images of one pixel and polygons far away.

    No strategy of its own: the type checker draws random numbers, which a strategy may not.
    """
    width, height = draw(st.tuples(st.integers(1, 700), st.integers(1, 700)))
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
    characters = st.characters(exclude_categories=("Cs", "Cc"))
    texts = st.text(characters, max_size=30)

    def box():
        x0, y0 = draw(st.floats(0, width - 0.5)), draw(st.floats(0, height - 0.5))
        x1, y1 = draw(st.floats(x0 + 0.1, width)), draw(st.floats(y0 + 0.1, height))
        return x0, y0, x1, y1

    def region():
        polygons = st.lists(numbers, min_size=6, max_size=12).filter(lambda v: len(v) % 2 == 0)
        labels = draw(st.lists(st.tuples(texts, st.sampled_from(LABEL_KINDS)), max_size=3))
        return Region(
            box=box(),
            labels=tuple(Label(text=text, kind=kind) for text, kind in labels),
            quad=draw(st.none() | st.tuples(*[numbers] * 8)),
            polygons=tuple(map(tuple, draw(st.lists(polygons, max_size=2)))),
            is_crowd=draw(st.booleans()),
        )

    regions = [region() for _ in range(draw(st.integers(0, 4)))]
    groundings = ()
    if draw(st.booleans()):
        text = draw(st.text(characters, min_size=1, max_size=20))
        groundings = (
            Grounding(text=text, spans=(Span(start=0, end=len(text), boxes=(box(), box())),)),
        )
    return record(*regions, size=(width, height), groundings=groundings)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_record_is_drawn(data):
    drawn = any_record(data.draw)
    picture = draw_record(Image.open(io.BytesIO(drawn.image)), drawn)
    assert picture.mode == "RGB" and max(picture.size) >= MIN_SIDE_PX
    assert changed(picture).any() == bool(drawn.regions or drawn.groundings)
