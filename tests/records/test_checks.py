# SPDX-License-Identifier: Apache-2.0
"""What is mended and what is set aside; the books; whole stores read again and counted."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from florence2_jax.records import checks
from florence2_jax.records.containers import is_whole
from florence2_jax.records.inspection import check_store, statistics
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Question,
    Record,
    Region,
    Span,
    Text,
)
from florence2_jax.records.store import Plan, RecordStore, write_store
from florence2_jax.typing import UserError

SIZE = (640, 480)


def encoded(format_: str, size=(24, 16), mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, format_, **options)
    return out.getvalue()


def rotated(orientation: int, size=(24, 16)) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("JPEG", size, exif=exif)


# Boxes.


@pytest.mark.parametrize(
    ("given_box", "expected", "how"),
    [
        ((1, 2, 30, 40), (1, 2, 30, 40), {}),
        (("1", "2.5", "30", "40"), (1, 2.5, 30, 40), {}),
        ((30, 40, 1, 2), (1, 2, 30, 40), {"box was turned inside out": 1}),
        ((-5, 2, 700, 40), (0, 2, 640, 40), {"box clipped to the image": 1}),
        ((0, 0, 640.00001, 480), (0, 0, 640, 480), {}),  # Noise below float32.
    ],
)
def test_boxes_are_mended(given_box, expected, how):
    ledger = Ledger()
    assert checks.mend_box(given_box, SIZE, ledger, "x") == expected
    assert ledger.tallies["region"].repaired == how
    assert not ledger.entries


@pytest.mark.parametrize(
    ("given_box", "why"),
    [
        ((5, 5, 5, 5), "box without area"),
        ((5, 5, 5, 9), "box without area"),
        ((5, 5, 5 + 1e-9, 9), "box without area"),  # Nothing is left of it in float32.
        ((700, 5, 800, 9), "box outside of the image"),
        ((640, 5, 650, 9), "box outside of the image"),
        ((1, 2, 3), "box is not four finite numbers"),
        ((1, 2, float("nan"), 4), "box is not four finite numbers"),
        ((1, 2, 1e300, 4), "box is not four finite numbers"),
        ((1, "a", 3, 4), "box is not four finite numbers"),
        ((None, 2, 3, 4), "box is not four finite numbers"),
    ],
)
def test_hopeless_boxes_are_set_aside(given_box, why):
    ledger = Ledger()
    assert checks.mend_box(given_box, SIZE, ledger, "a.xml object 3") is None
    (entry,) = ledger.entries
    assert (entry["kind"], entry["where"], entry["why"]) == ("region", "a.xml object 3", why)
    json.dumps(entry, allow_nan=False)


@given(st.lists(st.floats(width=64) | st.floats(-700, 700), min_size=4, max_size=4))
def test_a_mended_box_is_a_box_of_a_record(box):
    mended = checks.mend_box(box, SIZE, Ledger(), "x")
    if mended is not None:
        Record(id="a", image=b"x", width=640, height=480, regions=(Region(box=mended),))
        assert mended == tuple(np.array(mended, np.float32).tolist())


def test_polygons_are_mended_or_set_aside():
    ledger = Ledger()

    def mend(*polygon):
        return checks.mend_polygon(polygon, SIZE, ledger, "x")

    assert mend(0, 0, 9, 0, 9, 9) == (0, 0, 9, 0, 9, 9)
    assert mend(0, 0, 9, 0, 9, 9, 0, 0) == (0, 0, 9, 0, 9, 9)
    assert mend(-4, 0, 9, 0, 9, 999) == (0, 0, 9, 0, 9, 480)
    assert mend(0, 0, 9, 0) is None
    assert mend(0, 0, 9, 0, 9) is None
    assert mend(0, 0, 9, 0, 9, float("inf")) is None
    assert mend(700, 0, 709, 0, 709, 9) is None
    tally = ledger.tallies["polygon"]
    assert (tally.read, tally.kept, tally.set_aside.total()) == (7, 3, 4)
    assert tally.repaired == {
        "repeated first point dropped": 1,
        "points moved into the image": 1,
    }
    assert not ledger.unaccounted()


def test_texts_are_mended_or_set_aside():
    ledger = Ledger()
    assert checks.mend_text("A cat.", ledger, "x") == "A cat."
    assert checks.mend_text(" A\x00 cat\x7f\ud800.\n", ledger, "x") == "A cat."
    assert checks.mend_text("two\nlines", ledger, "x") == "two\nlines"
    assert ledger.tallies["caption"].repaired == {
        "control characters removed": 1,
        "blanks around it removed": 1,
    }
    assert checks.mend_text(" \x00 ", ledger, "x") is None
    assert checks.mend_text(None, ledger, "x") is None
    assert [entry["why"] for entry in ledger.entries] == ["empty", "not a text"]


# Images.


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "MPO"])
def test_known_formats_pass_byte_by_byte(format_):
    data, ledger = encoded(format_), Ledger()
    image = checks.mend_image(data, ledger, "x", stated_size=(24, 16))
    assert image == checks.MendedImage(data=data, size=(24, 16))
    assert not ledger.tallies


@pytest.mark.parametrize(
    ("data", "format_"),
    [
        (encoded("JPEG"), "JPEG"),
        (encoded("JPEG", progressive=True), "JPEG"),
        (encoded("JPEG", optimize=True, mode="CMYK"), "JPEG"),
        (encoded("JPEG", restart_marker_blocks=1), "JPEG"),
        (rotated(6), "JPEG"),
        (encoded("MPO"), "MPO"),
        (encoded("PNG", mode="P"), "PNG"),
        (encoded("WEBP"), "WEBP"),
        (encoded("WEBP", lossless=True), "WEBP"),
        (encoded("WEBP", mode="RGBA"), "WEBP"),
    ],
)
def test_the_container_proves_an_image_whole_and_cuts_are_seen(data, format_):
    assert is_whole(data, format_) and is_whole(data + b"behind the end", format_)
    for end in {*range(0, len(data) - 1, 7), len(data) - 1}:
        assert not is_whole(data[:end], format_)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_png_with_a_changed_byte_is_never_taken_for_whole(place, change):
    data = bytearray(encoded("PNG"))
    data[8 + place % (len(data) - 8)] ^= change
    assert not is_whole(bytes(data), "PNG")


def test_tables_of_a_jpeg_that_no_decoder_takes_are_decoded_to_know():
    data = encoded("JPEG")
    changes = ((b"\xff\xc4", 5, 255), (b"\xff\xdb", 4, 0x30), (b"\xff\xc0", 4, 9))
    for mark, offset, value in changes:
        broken = bytearray(data)
        broken[data.index(mark) + offset] = value
        assert not is_whole(bytes(broken), "JPEG")
    assert not is_whole(data.replace(b"\xff\xc0", b"\xff\xc3"), "JPEG")  # Lossless: few can.


def test_photos_of_real_cameras_are_whole(shared_data):
    paths = [*shared_data.glob("coco_mini_train2017/train2017/*.jpg")]
    paths += shared_data.glob("image_modes/exif-orientation-examples/*.jpg")
    paths += shared_data.glob("bccd_voc/BCCD/JPEGImages/*.jpg")
    assert len(paths) > 400 and all(is_whole(path.read_bytes(), "JPEG") for path in paths)


def test_what_the_container_does_not_prove_is_decoded():
    data = encoded("JPEG", (640, 480))[:-2]  # Whole but for its end mark.
    assert not is_whole(data, "JPEG")
    ledger = Ledger()
    assert (checks.mend_image(data, ledger, "x") is None) == bool(ledger.entries)
    # Damage among the pixels of a JPEG shows only when it is decoded: see `records check`.
    damaged = bytearray(encoded("JPEG", (640, 480)))
    middle = len(damaged) // 2
    damaged[middle : middle + 2000] = bytes(2000)
    assert checks.mend_image(bytes(damaged), Ledger(), "x") is not None


def test_images_of_too_many_bytes_are_encoded_again(monkeypatch):
    monkeypatch.setattr(checks, "MAX_IMAGE_BYTES", 3000)
    data, ledger = encoded("JPEG") + bytes(4000), Ledger()
    image = checks.mend_image(data, ledger, "x", stated_size=(24, 16))
    assert ledger.tallies["image"].repaired == {"JPEG of more than 16 MiB stored as PNG": 1}
    stored = Image.open(io.BytesIO(image.data))
    np.testing.assert_array_equal(stored, Image.open(io.BytesIO(data)))
    monkeypatch.setattr(checks, "MAX_IMAGE_BYTES", 500)  # Where the PNG is too large as well.
    assert Image.open(io.BytesIO(checks.mend_image(data, Ledger(), "x").data)).format == "JPEG"


def test_pixels_without_a_range_are_set_aside():
    out = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(out, "TIFF")
    ledger = Ledger()
    assert checks.mend_image(out.getvalue(), ledger, "x") is None
    assert "no defined range" in ledger.entries[0]["why"]


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_bytes(b"0123456789")
    assert checks.read_regular(tmp_path / "a", start=2, size=3) == b"234"
    assert checks.read_regular(tmp_path / "a", start=8) == b"89"
    monkeypatch.setattr(checks, "MAX_FILE_BYTES", 9)
    ledger = Ledger()
    names = ("pipe", "folder", "a", "none", "a\0b", "x" * 300)
    assert [checks.read_bytes(tmp_path / name, ledger, name) for name in names] == [None] * 6
    assert [entry["why"] for entry in ledger.entries] == [
        *["its file cannot be read"] * 3,
        *["its file is missing"] * 3,
    ]
    assert "is no regular file" in ledger.entries[0]["value"]
    assert checks.read_bytes(Path("/dev/zero"), ledger, "x") is None


@pytest.mark.parametrize("format_", ["GIF", "BMP", "TIFF"])
def test_other_formats_become_png(format_):
    data, ledger = encoded(format_), Ledger()
    image = checks.mend_image(data, ledger, "x")
    stored = Image.open(io.BytesIO(image.data))
    assert stored.format == "PNG"
    np.testing.assert_array_equal(stored, Image.open(io.BytesIO(data)).convert("RGB"))
    assert ledger.tallies["image"].repaired == {f"{format_} stored as PNG": 1}


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_modes_pass(mode):
    assert checks.mend_image(encoded("JPEG", mode=mode), Ledger(), "x").size == (24, 16)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds five bytes."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + struct.pack(">I", zlib.crc32(chunk))
    return header + b"\0\0\0\5IDATabcde"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no image of a known format, or cut off"),
        (b"<html>not found</html>", "no image of a known format, or cut off"),
        (png_header(8192, 8193), "more than 67108864 pixels"),
        (png_header(10_000, 10_000), "more than 67108864 pixels"),  # Pillow warns.
        (png_header(60_000, 60_000), "more than 67108864 pixels"),  # Pillow raises.
        (png_header(10, 10), "truncated or damaged"),
        (encoded("JPEG", (640, 480))[:-2000], "truncated or damaged"),
        (encoded("PNG")[:-40], "truncated or damaged"),
        (encoded("WEBP")[:-40], "no image of a known format, or cut off"),
        (encoded("JPEG", (640, 480), progressive=True)[:-2000], "truncated or damaged"),
    ],
)
def test_what_does_not_decode_is_set_aside(data, why):
    ledger = Ledger()
    assert checks.mend_image(data, ledger, "a.jpg") is None
    assert [(e["kind"], e["where"], e["why"]) for e in ledger.entries] == [("image", "a.jpg", why)]


@pytest.mark.parametrize(
    ("stated", "how"),
    [
        ((24, 16), {}),
        (("24", "16"), {}),
        (None, {}),
        ((0, 0), {"size taken from the file, the annotation has none": 1}),
        ((None, None), {"size taken from the file, the annotation has none": 1}),
        ((25, 15), {"size off by a pixel, taken from the file": 1}),
    ],
)
def test_the_header_is_believed_about_the_size(stated, how):
    ledger = Ledger()
    image = checks.mend_image(encoded("JPEG"), ledger, "x", stated_size=stated)
    assert image.size == (24, 16) and image.is_as_annotated
    assert ledger.tallies["image"].repaired == how


def test_annotations_of_another_size_are_not_trusted():
    for stated in ((48, 32), (16, 24)):  # Twice the size; turned, with no EXIF that says so.
        image = checks.mend_image(encoded("JPEG"), Ledger(), "x", stated_size=stated)
        assert image.size == (24, 16) and not image.is_as_annotated


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_image_is_turned_only_for_annotations_that_were(orientation):
    data, ledger = rotated(orientation), Ledger()
    stored = checks.mend_image(data, ledger, "x", stated_size=(24, 16))
    assert stored.data == data and stored.size == (24, 16)
    assert "not applied" in next(iter(ledger.tallies["image"].noted))
    turned = checks.mend_image(data, ledger, "x", stated_size=(16, 24))
    assert turned.size == (16, 24) and turned.is_as_annotated
    image = Image.open(io.BytesIO(turned.data))
    assert image.size == (16, 24) and image.getexif().get(0x0112, 1) == 1
    method = {
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }[orientation]
    np.testing.assert_array_equal(image, Image.open(io.BytesIO(data)).transpose(method))


def test_real_rotated_photos(shared_data):
    for name in ("Landscape_6", "Portrait_8"):
        data = (shared_data / f"image_modes/exif-orientation-examples/{name}.jpg").read_bytes()
        size = Image.open(io.BytesIO(data)).size
        kept = checks.mend_image(data, Ledger(), "x", stated_size=size)
        assert kept.data == data and kept.size == size
        turned = checks.mend_image(data, Ledger(), "x", stated_size=size[::-1])
        assert turned.size == size[::-1]


@pytest.mark.parametrize(
    ("name", "is_safe"),
    [
        *((name, True) for name in ("a.jpg", "sub/a.jpg", "ä b.jpg", "..jpg")),
        *(
            (name, False)
            for name in ("", "../a.jpg", "a/../../b.jpg", "/etc/passwd", "..\\a", None)
        ),
        ("a\0.jpg", False),
    ],
)
def test_names_stay_in_their_folder(name, is_safe):
    assert checks.is_safe_name(name) is is_safe


# The ledger.


def test_ledger_counts_merge_and_come_back():
    a, b = Ledger(), Ledger()
    for ledger in (a, b):
        ledger.read("region", 3)
        ledger.keep("region", 2)
        ledger.repair("region", "clipped")
        ledger.note("region", "flag")
    b.set_aside("region", "empty", where="x", value=[1], num=1)
    assert a.unaccounted() == {"region": 1} and b.unaccounted() == {}
    a.merge(Ledger.from_json(json.loads(json.dumps(b.to_json()))))
    assert a.counts()["region"] == {
        "read": 6,
        "kept": 4,
        "repaired": {"clipped": 2},
        "set_aside": {"empty": 1},
        "noted": {"flag": 2},
    }
    a.withdraw("its image was set aside", where="y")
    assert a.unaccounted() == {}
    assert a.entries[-1]["count"] == 5


# Whole stores.


def write(directory, records):
    plan = Plan(units={"train": list(records)}, make=lambda record, ledger: record, job={})
    write_store(directory, plan, examples_per_shard=2)


def simple(id_: str, **fields) -> Record:
    return Record(id=id_, image=encoded("PNG"), width=24, height=16, **fields)


def test_a_sound_store_has_no_problems(tmp_path):
    write(tmp_path / "s", [simple(f"r{i}") for i in range(5)])
    for num_workers in (1, 2):
        assert check_store(tmp_path / "s", num_workers=num_workers) == {
            "directory": str(tmp_path / "s"),
            "splits": {"train": 5},
            "num_problems": 0,
            "problems": [],
        }


def test_check_finds_images_that_do_not_fit_their_records(tmp_path):
    bad_image = Record(id="bad", image=encoded("PNG")[:-40], width=24, height=16)
    bad_size = Record(id="size", image=encoded("PNG"), width=25, height=16)
    write(tmp_path / "s", [simple("a"), bad_image, bad_size])
    report = check_store(tmp_path / "s")
    assert report["num_problems"] == 2
    assert [problem["what"] for problem in report["problems"]] == [
        "record bad: the image is truncated or damaged",
        "record size: the image is of (24, 16), the record says (25, 16)",
    ]


def test_check_finds_ids_and_counts_that_are_wrong(tmp_path):
    write(tmp_path / "s", [simple(f"r{i}") for i in range(4)])
    first, second = sorted((tmp_path / "s").glob("*array_record*"))
    second.write_bytes(first.read_bytes())
    info = tmp_path / "s" / "dataset_info.json"
    info.write_text(info.read_text().replace('"2"', '"3"', 1))
    what = [problem["what"] for problem in check_store(tmp_path / "s")["problems"]]
    assert what[0] == "holds 2 records, the metadata say 3"
    assert what[1:] == [f"id {name!r} occurs again, first in {first.name}" for name in ("r0", "r1")]


def test_check_finds_a_damaged_shard(tmp_path):
    write(tmp_path / "s", [simple(f"r{i}") for i in range(2)])
    (shard,) = (tmp_path / "s").glob("*array_record*")
    shard.write_bytes(b"no shard")
    report = check_store(tmp_path / "s")
    assert report["num_problems"] == 1
    assert "cannot be opened" in report["problems"][0]["what"]
    shard.unlink()
    with pytest.raises(UserError, match="1 of 1 shards"):
        check_store(tmp_path / "s")


def test_statistics_are_the_counts_of_a_store_made_by_hand(tmp_path):
    box = (0.0, 0.0, 5.0, 5.0)
    cat = Label(text="cat"), Label(text="the black cat", kind="phrase")
    a = simple(
        "a",
        texts=(Text(text="a cat"), Text(text="a cat and a dog", granularity="detailed")),
        regions=(
            Region(box=box, labels=cat, polygons=((0, 0, 1, 0, 1, 1),) * 2),
            Region(box=box, labels=(Label(text="hot dog"),), is_crowd=True),
        ),
        groundings=(
            Grounding(text="a cat", spans=(Span(start=0, end=5, boxes=(box, box)),)),
            Grounding(text="no such text", spans=(Span(start=0, end=2, boxes=(box,)),)),
        ),
        questions=(Question(question="what?", answers=("cat", "dog")),),
    )
    write(tmp_path / "s", [a, simple("b", texts=(Text(text="nothing to see here"),))])
    report = statistics(RecordStore(tmp_path / "s", "train"))
    rows = {(row["type"], row["text"]): row for row in report["rows"]}

    def values(*key):
        names = ("num_texts", "avg_tokens", "num_regions", "avg_regions", "avg_region_tokens")
        return tuple(rows[key][name] for name in names)

    assert values("text", "brief") == (2, 3.0, None, None, None)
    assert values("text", "detailed") == (1, 5.0, None, None, None)
    assert values("region-text", "category") == (None, None, 2, 2.0, 1.5)
    assert values("region-text", "phrase") == (None, None, 1, 1.0, 3.0)
    assert values("text-phrase-region", "brief") == (1, 2.0, 2, 2.0, 2.0)
    assert values("text-phrase-region", "other") == (1, 3.0, 1, 1.0, 1.0)
    assert report["totals"] == {
        "images": 2,
        "texts": 3,
        "regions": 2,
        "crowds": 1,
        "polygons": 2,
        "quads": 0,
        "groundings": 2,
        "questions": 1,
        "dropped": 0,
    }
    assert report["categories"] == {"cat": 1, "hot dog": 1}
    letters = statistics([a], count_tokens=len)
    assert letters["rows"][0]["avg_tokens"] == 5
