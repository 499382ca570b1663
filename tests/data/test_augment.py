# SPDX-License-Identifier: Apache-2.0
"""What is said about a view of an image is true of the view."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from florence2_jax.data.augment import (
    AugmentConfig,
    augment,
    crop_record,
    draw_window,
    jitter_colours,
    names_a_place,
    random_crop,
)
from florence2_jax.data.examples import examples_of, feeds, target_of
from florence2_jax.data.transforms import decode
from florence2_jax.geometry import clip_box, hull_box, polygon_area
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Question,
    Record,
    Region,
    Span,
    Text,
)
from florence2_jax.tasks.registry import get_task
from florence2_jax.typing import UserError

W, H = 96, 64
CROPS = AugmentConfig(crop=1.0)
LENIENT = AugmentConfig(crop=1.0, min_visible=1e-6)  # Whatever has an area left stays.


@st.composite
def windows(draw):
    x0, y0 = draw(st.integers(0, W - 1)), draw(st.integers(0, H - 1))
    return x0, y0, draw(st.integers(x0 + 1, W)), draw(st.integers(y0 + 1, H))


@st.composite
def outlines(draw):
    """Concave polygons, many of which a window takes apart: stars, and combs with long teeth."""
    if draw(st.booleans()):
        radii = np.array(draw(st.lists(st.floats(2, 31), min_size=5, max_size=16)))
        angles = 2 * math.pi * np.arange(len(radii)) / len(radii)
        points = np.stack([48 + radii * np.cos(angles), 32 + radii * np.sin(angles)], axis=1)
    else:
        tips = draw(st.lists(st.floats(2, H - 8), min_size=5, max_size=11))
        x = np.linspace(4, W - 4, len(tips))
        points = np.array([*zip(x, tips, strict=True), (W - 4, H - 2), (4, H - 2)])
    return tuple(float(v) for v in points.ravel())


def mask_of(polygons, width, height) -> np.ndarray:
    """As COCO draws it, bool[Y, X]."""
    if not polygons:
        return np.zeros((height, width), bool)
    parts = coco_mask.frPyObjects([list(p) for p in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour of the other kind, the edge of the image not counted."""
    padded = np.pad(mask, 1, mode="edge")
    shifted = [
        padded[1 + dy : 1 + dy + mask.shape[0], 1 + dx : 1 + dx + mask.shape[1]]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    return np.any(shifted, axis=0) & ~np.all(shifted, axis=0)


def assert_same_pixels(before: np.ndarray, window, after: np.ndarray) -> None:
    """A mask drawn after the crop is the crop of the mask, but for pixels on outlines.

    COCO's drawing rounds edges by its own rules: pixels on an outline may differ, and those along
    the sides of the crop, where a new outline is.
    """
    x0, y0, x1, y1 = window
    sure = ~boundary(before)[y0:y1, x0:x1]
    sure[[0, -1], :] = sure[:, [0, -1]] = False
    np.testing.assert_array_equal(after & sure, before[y0:y1, x0:x1] & sure)


def record_of(*regions: Region, **fields) -> Record:
    return Record(id="1", image=b"unused", width=W, height=H, regions=regions, **fields)


def labelled(text: str, kind="category") -> tuple[Label, ...]:
    return (Label(text=text, kind=kind),)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools.
@settings(deadline=None, max_examples=200)
@given(outline=outlines(), window=windows())
def test_masks_move_as_their_pixels_do(outline, window):
    region = Region(box=hull_box(outline), polygons=(outline,))
    view = crop_record(record_of(region), window, LENIENT)
    polygons = tuple(p for r in view.regions for p in r.polygons)
    assert_same_pixels(mask_of((outline,), W, H), window, mask_of(polygons, *view.size))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools.
@settings(deadline=None)
@given(outline=outlines(), margins=st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_masks_that_are_not_cut_move_to_the_pixel(outline, margins):
    x0, y0, x1, y1 = hull_box(outline)
    left, top, right, bottom = margins
    window = (
        max(math.floor(x0) - left, 0),
        max(math.floor(y0) - top, 0),
        min(math.ceil(x1) + right, W),
        min(math.ceil(y1) + bottom, H),
    )
    region = Region(box=hull_box(outline), polygons=(outline,))
    (after,) = crop_record(record_of(region), window, CROPS).regions
    crop = np.s_[window[1] : window[3], window[0] : window[2]]
    drawn = mask_of(after.polygons, *mask_of((outline,), W, H)[crop].shape[::-1])
    np.testing.assert_array_equal(drawn, mask_of((outline,), W, H)[crop])


@settings(deadline=None, max_examples=200)
@given(outline=outlines(), window=windows())
def test_boxes_are_drawn_anew_around_all_that_is_left(outline, window):
    region = Region(box=hull_box(outline), polygons=(outline,), labels=labelled("comb"))
    record = record_of(region)
    views = crop_record(record, window, LENIENT).regions
    left = sum(polygon_area(p) for view in views for p in view.polygons) / polygon_area(outline)
    for view in views:
        assert view.label("category") == "comb"
        assert view.box == hull_box([v for p in view.polygons for v in p])
    if abs(left - CROPS.min_visible) > 1e-9:
        kept = views if left > CROPS.min_visible else ()
        assert crop_record(record, window, CROPS).regions == kept


@settings(deadline=None, max_examples=200)
@given(box=windows(), window=windows())
def test_boxes_move_as_their_pixels_do(box, window):
    x0, y0, x1, y1 = window
    pixels = np.zeros((H, W), bool)
    pixels[box[1] : box[3], box[0] : box[2]] = True
    left = pixels[y0:y1, x0:x1]
    view = crop_record(record_of(Region(box=tuple(map(float, box)))), window, CROPS)
    if left.sum() < CROPS.min_visible * pixels.sum():
        assert view.regions == ()
        return
    (after,) = view.regions
    a0, b0, a1, b1 = map(int, after.box)
    drawn = np.zeros_like(left)
    drawn[b0:b1, a0:a1] = True
    np.testing.assert_array_equal(drawn, left)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), window=windows())
def test_every_view_is_a_record_that_tells_no_more_than_its_source(data, window):
    numbers = st.floats(0, 1, width=32)

    def place():
        x0, y0 = data.draw(numbers) * (W - 2), data.draw(numbers) * (H - 2)
        return x0, y0, x0 + 1 + data.draw(numbers), y0 + 1 + data.draw(numbers)

    regions = [Region(box=place(), labels=labelled(str(i))) for i in range(5)]
    spans = (Span(start=0, end=1, boxes=(place(), place())),)
    source = record_of(*regions, groundings=(Grounding(text="dogs", spans=spans),))
    view = crop_record(source, window, CROPS)  # Validates itself.
    assert view.size == (window[2] - window[0], window[3] - window[1])
    assert (view.id, view.origin, view.split_key) == (source.id, source.origin, source.split_key)
    assert {r.label("category") for r in view.regions} <= set("01234")
    assert len(view.groundings) <= 1


# --- What is said ---------------------------------------------------------------------------------

LEFT, RIGHT = (4.0, 4.0, 24.0, 24.0), (60.0, 20.0, 90.0, 50.0)
QUAD = (30.0, 5.0, 50.0, 5.0, 50.0, 15.0, 30.0, 15.0)
BOTH = (2, 2, 94, 63)  # Cuts nothing, keeps 91 %.
CUTS_RIGHT = (2, 0, 80, 64)  # Two thirds of the right region and 81 % of the image are left.
LOSES_RIGHT = (0, 0, 56, 40)


def speaking(**fields) -> Record:
    left = Region(
        box=LEFT,
        labels=(
            Label(text="cup"),
            Label(text="the red one", kind="phrase"),
            Label(text="the left cup", kind="phrase"),
            Label(text="a red cup with a handle", kind="brief"),
        ),
    )
    right = Region(
        box=RIGHT,
        labels=(
            Label(text="cup"),
            Label(text="the blue one", kind="phrase"),
            Label(text="a blue cup", kind="brief"),
        ),
    )
    texts = (
        Text(text="Two cups."),
        Text(text="A cup on the left of another."),
        Text(text="A red cup. A blue cup.", granularity="detailed"),
        Text(text="There are cups.", granularity="more_detailed"),
    )
    groundings = (
        Grounding(text="A red cup", spans=(Span(start=2, end=9, boxes=(LEFT,)),)),
        Grounding(text="Two cups", spans=(Span(start=0, end=8, boxes=(LEFT, RIGHT)),)),
        Grounding(text="A cup on the left", spans=(Span(start=0, end=5, boxes=(LEFT,)),)),
    )
    questions = (
        Question(question="how many cups?", answers=("2",)),
        Question(question="where is the red cup?", answers=("on the left",)),
    )
    fields = dict(texts=texts, groundings=groundings, questions=questions) | fields
    return record_of(left, right, **fields)


def said(view: Record) -> dict:
    return dict(
        labels=[[label.text for label in region.labels] for region in view.regions],
        texts=[text.text for text in view.texts],
        groundings=[grounding.text for grounding in view.groundings],
        questions=[question.question for question in view.questions],
    )


def test_a_crop_that_cuts_nothing_loses_only_places():
    assert said(crop_record(speaking(), BOTH, CROPS)) == dict(
        labels=[
            ["cup", "the red one", "a red cup with a handle"],
            ["cup", "the blue one", "a blue cup"],
        ],
        texts=["Two cups.", "A red cup. A blue cup.", "There are cups."],
        groundings=["A red cup", "Two cups"],
        questions=["how many cups?"],
    )


def test_a_cut_region_keeps_its_category_and_phrases_go_everywhere():
    view = crop_record(speaking(), CUTS_RIGHT, CROPS)
    assert said(view) == dict(
        labels=[["cup", "a red cup with a handle"], ["cup"]],
        texts=["Two cups."],
        groundings=["A red cup"],
        questions=[],
    )
    assert [region.box for region in view.regions] == [(2, 4, 22, 24), (58, 20, 78, 50)]
    assert view.groundings[0].spans[0].boxes == ((2, 4, 22, 24),)


def test_a_lost_region_takes_every_text_of_the_whole_image_with_it():
    lax = dataclasses.replace(CROPS, min_text_area=0.0)
    expected = dict(
        labels=[["cup", "a red cup with a handle"]],
        texts=[],
        groundings=["A red cup"],
        questions=[],
    )
    assert said(crop_record(speaking(), LOSES_RIGHT, CROPS)) == expected
    assert said(crop_record(speaking(), LOSES_RIGHT, lax)) == expected


def test_without_annotated_places_only_brief_texts_stay_and_only_in_large_crops():
    record = dataclasses.replace(speaking(), regions=(), groundings=())
    assert said(crop_record(record, BOTH, CROPS))["texts"] == ["Two cups."]
    assert crop_record(record, BOTH, CROPS).questions == ()
    assert crop_record(record, LOSES_RIGHT, CROPS).texts == ()


def test_the_whole_image_stays_as_it_is():
    record = speaking()
    assert crop_record(record, (0, 0, W, H), CROPS) is record


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the leftmost cup", True), ("Top Right corner", True), ("2nd bus from us", True),
        ("the second man", True), ("btm rt", True), ("centre", True), ("upper half", True),
        ("a bright stop sign", False), ("a copyright on a laptop", False), ("a red cup", False),
    ],
)  # fmt: skip
def test_words_of_place(text, expected):
    assert names_a_place(text) == expected


# --- Writing --------------------------------------------------------------------------------------


def test_half_a_word_is_not_read():
    word = Region(box=hull_box(QUAD), quad=QUAD, labels=labelled("STOP", "text"))
    bare = Region(box=(60.0, 5.0, 80.0, 15.0), labels=labelled("GO", "text"))
    sign = dataclasses.replace(word, labels=(*labelled("sign"), *word.labels))
    record = record_of(word, bare, sign)
    inside = crop_record(record, (20, 0, 90, 40), CROPS)
    assert [r.label("text") for r in inside.regions] == ["STOP", "GO", "STOP"]
    assert inside.regions[0].quad == (10, 5, 30, 5, 30, 15, 10, 15)
    cut = crop_record(record, (32, 0, 78, 40), CROPS)
    assert [(r.labels, r.quad, r.box) for r in cut.regions] == [
        (labelled("sign"), None, (0, 5, 18, 15))
    ]


def test_random_crops_do_not_cut_through_writing():
    word = Region(box=hull_box(QUAD), quad=QUAD, labels=labelled("STOP", "text"))
    small = Region(box=(70.0, 40.0, 76.0, 44.0), quad=None, labels=labelled("go", "text"))
    record = record_of(word, small, Region(box=LEFT, labels=labelled("cup")))
    num_crops = 0
    for seed in range(300):
        view, (x0, y0, x1, y1) = random_crop(record, np.random.default_rng(seed), CROPS)
        num_crops += view is not record
        seen = []
        for region in (word, small):
            a0, b0, a1, b1 = region.box
            is_in = x0 <= a0 and y0 <= b0 and a1 <= x1 and b1 <= y1
            is_out = a1 <= x0 or b1 <= y0 or x1 <= a0 or y1 <= b0
            assert is_in or is_out
            seen += [region.label("text")] * is_in
        reading = examples_of(view, get_task("ocr"))
        assert [e.text for e in reading] == (["\n".join(seen)] if seen else [])
    assert num_crops > 100


# --- Drawing --------------------------------------------------------------------------------------


def test_windows_keep_their_area_and_shape():
    config = AugmentConfig(crop=1.0, min_area=0.3, max_area=0.9, max_stretch=1.5)
    rng = np.random.default_rng(0)
    size = (1200, 800)
    shares, stretches = [], []
    for _ in range(500):
        x0, y0, x1, y1 = draw_window(size, rng, config)
        assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]
        shares.append((x1 - x0) * (y1 - y0) / (size[0] * size[1]))
        stretches.append((x1 - x0) / (y1 - y0) / (size[0] / size[1]))
    # Sides are rounded to whole pixels, a 300th of a side at most.
    assert 0.298 < min(shares) < 0.33 and 0.87 < max(shares) < 0.903
    assert 0.66 < min(stretches) < 0.7 and 1.42 < max(stretches) < 1.51
    assert np.mean(shares) == pytest.approx(0.6, abs=0.025)  # Three standard deviations.


@pytest.mark.parametrize("ratio", [0.75, 1.0, 16 / 9])
def test_windows_take_the_shape_of_a_bucket_where_their_area_allows(ratio):
    config = AugmentConfig(crop=1.0, min_area=0.3)
    rng = np.random.default_rng(0)
    for _ in range(100):
        x0, y0, x1, y1 = draw_window((1200, 800), rng, config, aspect_ratio=ratio)
        assert (x1 - x0) / (y1 - y0) == pytest.approx(ratio, rel=0.005)
    x0, y0, x1, y1 = draw_window((1000, 100), rng, config, aspect_ratio=0.1)
    assert (x1 - x0) * (y1 - y0) == pytest.approx(0.3 * 1000 * 100, rel=0.01)
    assert y1 - y0 == 100  # As narrow as three tenths of the area can be.


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2)])
def test_small_images_have_windows(size):
    rng = np.random.default_rng(0)
    for _ in range(50):
        x0, y0, x1, y1 = draw_window(size, rng, AugmentConfig(crop=1.0, min_area=0.01))
        assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]


def test_crops_come_in_their_share_and_repeat_with_their_seed():
    record = speaking()
    half = AugmentConfig(crop=0.5)
    draws = [random_crop(record, np.random.default_rng(seed), half) for seed in range(400)]
    again = [random_crop(record, np.random.default_rng(seed), half) for seed in range(400)]
    assert draws == again
    cropped = sum(view is not record for view, _ in draws) / 400
    assert 0.4 < cropped < 0.6  # Four standard deviations.
    off = [random_crop(record, np.random.default_rng(s), AugmentConfig())[0] for s in range(20)]
    assert all(view is record for view in off)
    rng = np.random.default_rng(0)
    augment(record, Image.new("RGB", (W, H)), rng, AugmentConfig())
    assert rng.random() == np.random.default_rng(0).random()  # Runs without it do not change.


def test_a_crop_that_leaves_nothing_useful_is_not_made():
    asked = dataclasses.replace(speaking(), texts=(), groundings=())
    small = AugmentConfig(crop=1.0, max_area=0.6)  # Questions need more of the image.
    for seed in range(50):
        rng = np.random.default_rng(seed)
        view, window = random_crop(asked, rng, small, is_useful=lambda r: feeds(r, ["<VQA>"]))
        assert view is asked and window == (0, 0, W, H)
    empty = dataclasses.replace(speaking(), regions=(), groundings=())
    for seed in range(50):
        view, _ = random_crop(empty, np.random.default_rng(seed), small)
        assert view is empty


# --- Pixels ---------------------------------------------------------------------------------------


def test_pixels_and_boxes_move_together():
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[20:50, 60:90] = (0, 0, 255)
    record = record_of(Region(box=RIGHT, labels=labelled("cup")))
    for seed in range(40):
        rng = np.random.default_rng(seed)
        view, image = augment(record, Image.fromarray(pixels), rng, CROPS)
        assert image.size == view.size
        y, x = np.nonzero(np.asarray(image)[..., 2])
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert [region.box for region in view.regions] == [box]
    with pytest.raises(ValueError, match="its image"):
        augment(record, Image.new("RGB", (10, 10)), rng, CROPS)


def test_colours_vary_within_their_range_and_places_do_not():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    config = AugmentConfig(brightness=0.2)
    values = {
        jitter_colours(grey, np.random.default_rng(s), config).getpixel((0, 0)) for s in range(60)
    }
    levels = sorted(v[0] for v in values)
    assert all(len(set(v)) == 1 for v in values) and 80 <= levels[0] < 90 < 110 < levels[-1] <= 120
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    assert jitter_colours(noise, rng, AugmentConfig()).tobytes() == noise.tobytes()
    everything = AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.3)
    first, again, other = (
        jitter_colours(noise, np.random.default_rng(seed), everything).tobytes()
        for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(crop=1.5), r"augment.crop: 1.5 is not in \[0, 1\]"),
        (dict(min_area=0.0), "augment.min_area"),
        (dict(min_area=0.8, max_area=0.5), "augment.min_area: 0.8"),
        (dict(max_stretch=0.5), "augment.max_stretch"),
        (dict(min_visible=0.0), "augment.min_visible"),
        (dict(brightness=1.0), "augment.brightness"),
        (dict(saturation=float("nan")), "augment.saturation"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values, message):
    with pytest.raises(UserError, match=message):
        AugmentConfig(**values)


# --- Real photos ----------------------------------------------------------------------------------


def coco_records(folder) -> list[Record]:
    """Photos with their instances and captions, read without the importer's mending."""
    content = json.loads((folder / "annotations/instances_train2017.json").read_text())
    captions = json.loads((folder / "annotations/captions_train2017.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    records = []
    for image in content["images"]:
        size = (image["width"], image["height"])
        regions = []
        for row in content["annotations"]:
            if row["image_id"] == image["id"] and not row["iscrowd"]:
                x, y, w, h = row["bbox"]
                box = clip_box((x, y, x + w, y + h), (0, 0, *size))
                polygons = tuple(tuple(map(float, p)) for p in row["segmentation"])
                labels = labelled(f"{names[row['category_id']]} {len(regions)}")
                regions.append(Region(box=box, polygons=polygons, labels=labels))
        said = [r["caption"] for r in captions["annotations"] if r["image_id"] == image["id"]]
        record = Record(
            id=image["file_name"],
            image=(folder / "train2017" / image["file_name"]).read_bytes(),
            width=size[0],
            height=size[1],
            regions=tuple(regions),
            texts=tuple(Text(text=text) for text in said),
        )
        records.append(record)
    return records


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools.
def test_views_of_real_photos(shared_data):
    records = coco_records(shared_data / "coco_mini_train2017")
    config = AugmentConfig(crop=1.0, min_area=0.2)
    num_cut = 0
    for seed, record in enumerate(records):
        photo = decode(record.image)
        view, (x0, y0, x1, y1) = random_crop(record, np.random.default_rng(seed), config)
        same, image = augment(record, photo, np.random.default_rng(seed), config)
        assert same == view
        np.testing.assert_array_equal(np.asarray(image), np.asarray(photo)[y0:y1, x0:x1])
        num_cut += len(record.regions) - len(view.regions)
        for region in view.regions:
            source = record.regions[int((region.label("category") or "").split()[-1])]
            before = mask_of(source.polygons, *record.size)
            assert_same_pixels(before, (x0, y0, x1, y1), mask_of(region.polygons, *view.size))
        for example in examples_of(view, get_task("od")):
            assert target_of(example, view.size).text.count("<loc_") == 4 * len(view.regions)
    assert records and num_cut
