# SPDX-License-Identifier: Apache-2.0
"""Encoded images of every mode -> RGB."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from florence2_jax.data.transforms import decode, decode_scaled, resize
from florence2_jax.records.checks import ImageError

ORIENTATION = 0x0112


def encoded(image, kind="PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def colors(image) -> set:
    """Every colour of an RGB image."""
    return set(map(tuple, np.asarray(image).reshape(-1, 3).tolist()))


def ramp() -> np.ndarray:
    """Grey values 0 to 65,535 in 64 x 8 pixels."""
    return np.linspace(0, 65535, 512).round().astype(np.uint16).reshape(8, 64)


def test_sixteen_bit_grey_keeps_its_range():
    image = decode(encoded(Image.fromarray(ramp())))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[..., 0], ramp() >> 8)


def test_sixteen_bits_held_in_thirty_two_are_the_same():
    tiff = encoded(Image.fromarray(ramp().astype(np.int32)), "TIFF")
    np.testing.assert_array_equal(np.asarray(decode(tiff))[..., 1], ramp() >> 8)


@pytest.mark.parametrize("pixels", [np.ones((4, 4), np.float32), np.full((4, 4), -5, np.int32)])
def test_pixels_without_a_range_are_refused(pixels):
    with pytest.raises(ImageError, match="no defined range: save it with 8 or 16 bits"):
        decode(encoded(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_shines_through_is_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))  # Black, but nobody can see it.
    image.putpixel((1, 0), (255, 255, 255, 255) if mode == "LA" else (255, 0, 0, 255))
    options = {}
    if mode == "P":
        image, options = Image.new("P", (2, 1), 0), {"transparency": 0}
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.putpixel((1, 0), 1)
    pixels = np.asarray(decode(encoded(image.convert(mode), **options)))
    expected = (255, 255, 255) if mode == "LA" else (255, 0, 0)
    np.testing.assert_array_equal(pixels[0], [(255, 255, 255), expected])


def test_half_transparent_is_half_white():
    image = decode(encoded(Image.new("RGBA", (1, 1), (0, 0, 200, 128))))
    assert colors(image) == {(127, 127, 227)}


def test_cmyk_becomes_the_colour_it_prints():
    image = decode(encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"))
    assert colors(image) == {(255, 0, 0)}


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_plain_modes_stay_what_they_show(mode):
    image = Image.new(mode, (3, 2), 1 if mode == "1" else (200 if mode == "L" else (9, 8, 7)))
    expected = {"1": (255, 255, 255), "L": (200, 200, 200), "RGB": (9, 8, 7)}[mode]
    assert colors(decode(encoded(image))) == {expected}


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert colors(decode(data)) == {(255, 0, 0)}


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1)])
def test_one_pixel_wide_is_an_image(size):
    pixels = resize(decode(encoded(Image.new("RGB", size, "teal"))), (64, 32))
    assert pixels.shape == (32, 64, 3)
    assert colors(pixels) == {(0, 128, 128)}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_how_a_viewer_shows_it(orientation):
    turned = {3: "ROTATE_180", 6: "ROTATE_270", 8: "ROTATE_90", 2: "FLIP_LEFT_RIGHT"}
    turned |= {4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 7: "TRANSVERSE"}
    stored = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(stored, exif=exif)
    expected = stored
    if orientation != 1:
        expected = stored.transpose(Image.Transpose[turned[orientation]])
    np.testing.assert_array_equal(decode(data, upright=True), expected)
    np.testing.assert_array_equal(decode(data), stored)


def test_damage_is_told():
    data = encoded(Image.effect_noise((64, 64), 50), "JPEG")
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode(data[: len(data) // 2])
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode_scaled(data[: len(data) // 2], (8, 8))
    with pytest.raises(ImageError, match="no image"):
        decode_scaled(b"GIF89a", (8, 8))


SIDES = st.integers(1, 300)


@given(SIDES, SIDES, st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_scaled_decoding_never_falls_below_what_is_asked(width, height, at_least):
    data = encoded(Image.new("RGB", (width, height), "teal"), "JPEG")
    size = decode_scaled(data, at_least).size
    multiple = min(width // at_least[0], height // at_least[1])
    scale = max(s for s in (1, 2, 4, 8) if s <= max(multiple, 1))
    assert size == (-(-width // scale), -(-height // scale))  # Rounded up.
    assert size == (width, height) or (size[0] >= at_least[0] and size[1] >= at_least[1])


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_scaled_decoding_keeps_colours_and_makes_rgb(mode):
    data = encoded(Image.new("RGB", (64, 48), (200, 200, 200)).convert(mode), "JPEG")
    image = decode_scaled(data, (16, 12))
    assert (image.mode, image.size) == ("RGB", (16, 12))
    assert np.abs(np.asarray(image).astype(int) - 200).max() <= 2  # Of the JPEG itself.


@pytest.mark.parametrize(("kind", "size"), [("PNG", (64, 64)), ("JPEG", (31, 64))])
def test_scaled_decoding_leaves_others_and_small_ones_exact(kind, size):
    data = encoded(Image.effect_noise(size, 50), kind)
    np.testing.assert_array_equal(decode_scaled(data, (16, 16)), decode(data))


def test_scaled_decoding_is_as_near_as_documented(shared_data):
    paths = sorted(shared_data.glob("coco_mini_train2017/train2017/*.jpg"))[:8]
    differences = []
    for path in paths:
        exact, scaled = (
            resize(image, (192, 192)).astype(int)
            for image in (
                decode(path.read_bytes()),
                decode_scaled(path.read_bytes(), (192, 192)),
            )
        )
        differences.append(np.abs(exact - scaled))
    changed = [d for d in differences if d.any()]
    assert len(changed) >= 4
    assert max(d.max() for d in changed) <= 102
    assert np.mean([d.mean() for d in changed]) < 2.5  # 1.75 over 30 photos.


def test_photos_in_unusual_modes(shared_data):
    folder = shared_data / "image_modes"
    sizes = {}
    for path in sorted(folder.glob("*/*.*")):
        if path.suffix in (".jpg", ".png", ".gif"):
            image = decode(path.read_bytes(), upright=True)
            assert image.mode == "RGB"
            assert np.asarray(image).std() > 10, f"{path.name} shows nothing"
            sizes[path.name] = image.size
    assert len(sizes) == 10
    assert sizes["color_exif.jpg"] == (300, 400)  # Stored lying, orientation 6.
    assert sizes["Landscape_6.jpg"] == (1800, 1200)
    assert sizes["Portrait_8.jpg"] == (1200, 1800)
