# SPDX-License-Identifier: Apache-2.0
"""Flickr30k Entities: exact spans in the plain sentences, all boxes of what a phrase means."""

import functools
from pathlib import Path

import import_helpers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from import_helpers import counts
from PIL import Image

from florence2_jax.records.importers import detect as detect_format
from florence2_jax.records.importers import plan_import
from florence2_jax.records.importers.flickr30k import detect, read_sentence
from florence2_jax.records.store import RecordStore
from florence2_jax.typing import UserError

LINE = (
    "[/EN#1/people Two young guys] with [/EN#2/bodyparts/people shaggy hair] look at "
    "[/EN#3/bodyparts their hands] while hanging out in [/EN#4/scene the yard] ."
)
PLAIN = "Two young guys with shaggy hair look at their hands while hanging out in the yard ."


imported = functools.partial(import_helpers.imported, "flickr30k")


def box_of(*numbers: int, corners=(11, 6, 31, 16)) -> str:
    names = "".join(f"<name>{number}</name>" for number in numbers)
    tags = ("xmin", "ymin", "xmax", "ymax")
    values = "".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, corners, strict=True))
    return f"<object>{names}<bndbox>{values}</bndbox></object>"


def no_box(number: int, *, scene: int) -> str:
    flags = f"<scene>{scene}</scene><nobndbox>1</nobndbox>"
    return f"<object><name>{number}</name>{flags}</object>"


def add_photo(folder: Path, stem: str, lines: str | bytes, *objects: str) -> Path:
    """Writes the three files of a photo; the objects may be a whole file instead."""
    for name in ("Sentences", "Annotations", "flickr30k-images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    data = lines.encode() if isinstance(lines, str) else lines
    (folder / "Sentences" / f"{stem}.txt").write_bytes(data)
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    text = f"<annotation><filename>{stem}.jpg</filename>{size}{''.join(objects)}</annotation>"
    if objects and objects[0].startswith("<?"):
        text = objects[0]
    (folder / "Annotations" / f"{stem}.xml").write_text(text)
    image = Image.fromarray(np.zeros((30, 40, 3), np.uint8))
    image.save(folder / "flickr30k-images" / f"{stem}.jpg")
    return folder


def test_a_photo_comes_in(tmp_path):
    second = "[/EN#1/people A man] sees [/EN#0/notvisual it] ; [/EN#1/people he] smiles ."
    third = "Nothing but [/EN#4/scene a yard] ."
    source = add_photo(
        tmp_path / "f",
        "1000092795",
        f"{LINE}\n{second}\r\n{third}\n\n",
        box_of(1, 2),
        box_of(1, corners=(1, 1, 5, 5)),
        no_box(3, scene=0),
        no_box(4, scene=1),
    )
    (source / "train.txt").write_text("1000092795\n")
    report, records = imported(source, tmp_path / "s")
    assert detect_format(source) == "flickr30k"
    assert report["splits"] == {"train": 1}
    record = records["flickr30k/1000092795.jpg"]
    texts = [PLAIN, "A man sees it ; he smiles .", "Nothing but a yard ."]
    assert [(t.text, t.granularity) for t in record.texts] == [(text, "brief") for text in texts]
    first, other = record.groundings
    both = ((10, 5, 30, 15), (0, 0, 4, 4))
    assert first.text == PLAIN
    assert [(first.phrase(span), span.boxes) for span in first.spans] == [
        ("Two young guys", both),
        ("shaggy hair", both[:1]),
    ]
    assert [(other.phrase(span), span.boxes) for span in other.spans] == [
        ("A man", both),
        ("he", both),
    ]
    assert counts(report, "caption") == (3, 3, {})
    assert counts(report, "grounding") == (3, 2, {"no phrase with a box": 1})
    assert counts(report, "phrase box") == (7, 7, {})
    assert report["counts"]["phrase"]["noted"] == {
        "not visual (number 0), no box": 1,
        "the whole scene, no box": 2,
        "nobody drew a box for it": 1,
    }


WORDS = st.text(st.characters(exclude_characters="[]\n\r", exclude_categories=("Cc", "Cs")))


@given(
    st.lists(
        st.tuples(WORDS, st.integers(0, 10**6), st.sampled_from(["/people", "/a/b", ""]), WORDS)
    ),
    WORDS,
)
def test_spans_are_exact(parts, rest):
    markup = "".join(f"{text}[/EN#{n}{kind} {phrase}]" for text, n, kind, phrase in parts) + rest
    sentence = read_sentence(markup)
    assert sentence is not None
    plain, phrases = sentence
    assert plain == "".join(text + phrase for text, _, _, phrase in parts) + rest
    found = [(plain[start:end], number) for start, end, number in phrases]
    assert found == [(phrase, str(n)) for _, n, _, phrase in parts]


@pytest.mark.parametrize(
    "line",
    ["[/EN#1/people A man", "[/EN#x/people A man]", "[/EN#1/people]", "[/EN#1 a [/EN#2 b] c]"],
)
def test_damaged_markup_is_told(line):
    assert read_sentence(f"See {line} .") is None


def test_brackets_that_are_no_markup_stay():
    assert read_sentence("A man [sic] sings") == ("A man [sic] sings", [])


def test_splits_are_those_of_the_lists(tmp_path):
    source = tmp_path / "f"
    for stem in "12345":
        add_photo(source, stem, LINE, box_of(1))
    (source / "train.txt").write_text("1\n2\n3\n9\n")
    (source / "val.txt").write_text("3.jpg\n")
    (source / "test.txt").write_text("4\r\n\n3\n")
    report, _ = imported(source, tmp_path / "s")
    assert report["splits"] == {"train": 2, "test": 2}
    held_out = sorted(r.id for r in RecordStore(tmp_path / "s", "test"))
    assert held_out == ["flickr30k/3.jpg", "flickr30k/4.jpg"]
    assert counts(report, "image") == (
        6,
        4,
        {"in none of the lists of the splits": 1, "listed, but has no sentences": 1},
    )
    assert report["counts"]["image"]["repaired"] == {
        "listed in test and val, is in test": 1,
        "listed in test and train, is in test": 1,
    }


def test_faults_cost_no_neighbours(tmp_path):
    source = tmp_path / "f"
    bomb = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    add_photo(source, "1", f"[/EN#1/people A man\n{LINE}", box_of(1, corners=("x", 1, 5, 5)))
    add_photo(source, "2", LINE, bomb)
    add_photo(source, "3", LINE, "<?xml")
    add_photo(source, "4", b"\xff [/EN#1/people a man]\n[/EN#1/people a\x07 man]", box_of(1))
    add_photo(source, "5", LINE, box_of(1, corners=(30, 20, 99, 99)))
    add_photo(source, "6", LINE, box_of(1))
    (source / "Annotations" / "6.xml").unlink()
    add_photo(source, "7", LINE, box_of(1))
    (source / "flickr30k-images" / "7.jpg").unlink()
    add_photo(source, "8", LINE, box_of(1))
    (source / "Sentences" / "8.txt").unlink()
    report, records = imported(source, tmp_path / "s", images=source / "flickr30k-images")
    assert sorted(records) == [f"flickr30k/{stem}.jpg" for stem in "123456"]
    assert {id_[-5]: [t.text for t in r.texts] for id_, r in records.items()} == {
        "1": [PLAIN],
        "2": [PLAIN],
        "3": [PLAIN],
        "4": ["\ufffd a man", "a man"],
        "5": [PLAIN],
        "6": [PLAIN],
    }
    assert {id_[-5]: len(r.groundings) for id_, r in records.items()} == dict(
        zip("123456", (0, 0, 0, 1, 1, 0), strict=True)
    )
    assert records["flickr30k/5.jpg"].groundings[0].spans[0].boxes == ((29, 19, 40, 30),)
    assert records["flickr30k/4.jpg"].groundings[0].spans[0].start == 2
    assert counts(report, "grounding") == (
        9,
        2,
        {
            "its markup is damaged": 1,
            "no phrase with a box": 1,
            "annotation file holds a document type": 1,
            "annotation file is not XML": 1,
            "empty, or holds control characters": 1,
            "annotation file cannot be read": 1,
            "its image was set aside": 1,
        },
    )
    assert counts(report, "caption") == (
        9,
        7,
        {"its markup is damaged": 1, "its image was set aside": 1},
    )
    assert counts(report, "phrase box")[1:] == (2, {"box is not four finite numbers": 1})
    assert counts(report, "image") == (7, 6, {"its file is missing": 1})
    assert report["counts"]["file"]["noted"] == {
        "Annotations/*.xml without sentences, not read": 1,
        "no train.txt, val.txt, test.txt: all photos are in train": 1,
    }
    assert report["counts"]["image"]["noted"] == {
        "images that no annotation file mentions, not read": 1
    }


def test_what_is_none_says_so(tmp_path, shared_data):
    with pytest.raises(UserError, match="no folder Sentences in it; is it Flickr30k"):
        plan_import("flickr30k", tmp_path)
    (tmp_path / "Sentences").mkdir()
    (tmp_path / "Sentences" / "1.txt").write_text("A man .")
    assert not detect(tmp_path)
    (tmp_path / "Annotations").mkdir()
    assert not detect(tmp_path)
    (tmp_path / "Sentences" / "1.txt").write_text(LINE)
    assert detect(tmp_path)
    with pytest.raises(UserError, match="no image in it; say where they are: images=FOLDER"):
        plan_import("flickr30k", tmp_path)
    assert not detect(shared_data / "bccd_voc" / "BCCD") and not detect(tmp_path / "no")
