# SPDX-License-Identifier: Apache-2.0
"""A part is there whole or not at all, the first of two stays, and ranges need not fit."""

import concurrent.futures

import pytest
from import_helpers import message

from florence2_jax.engine.parts import (
    Range,
    held,
    missing,
    parts_of,
    pieces,
    read_part,
    read_rows,
    read_summary,
    summarise,
    write_part,
)
from florence2_jax.engine.specialists.base import Annotations, Failure
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Provenance,
    Question,
    Region,
    Span,
    Text,
)

BY = Provenance(kind="specialist", name="all@1", score=0.25, round=1)
BOX = (0.1, 1.0, 2.0, 3.5)
RING = (0.0, 0.0, 1.0, 0.0, 1.0, 1e-7)
EVERYTHING = Annotations(
    texts=(Text(text='A "cat"\nécrit \u2028 😀.', granularity="detailed"),),
    regions=(
        Region(
            box=BOX,
            labels=(Label(text="", kind="text", provenance=BY),),
            quad=(0, 0, 1, 0, 1, 1, 0, 1),
            polygons=(RING, RING),
            is_crowd=True,
            provenance=BY,
            mask_provenance=BY,
        ),
    ),
    groundings=(
        Grounding(
            text="A cat",
            spans=(Span(start=2, end=5, boxes=(BOX,), phrase_score=0.5, box_scores=(1 / 3,)),),
            provenance=BY,
        ),
    ),
    questions=(Question(question="What?", answers=("A cat", "cat"), provenance=BY),),
    labels=((3, Label(text="cat", provenance=BY)),),
    masks=((0, (RING,), BY),),
)


def rows(start: int, stop: int, by: str = "a"):
    return [(f"image {i}", Failure("error", by)) for i in range(start, stop)]


def write(folder, place: Range, by: str = "a") -> None:
    some = rows(place.start, place.stop, by)
    write_part(folder, place, some, summarise(some, 1.5, None))


def test_every_annotation_comes_back_as_it_was(tmp_path):
    place = Range("train", 0, 2)
    some = [("a", EVERYTHING), ("b\udc80", Failure("time-out", "3 s"))]
    write_part(tmp_path, place, some, summarise(some, 2.0, 0.5))
    found, summary = read_part(place.path(tmp_path))
    assert found == some
    assert summary == read_summary(place.path(tmp_path)) == summarise(some, 2.0, 0.5)
    assert summary.failures == {"time-out": 1}
    assert summary.made == dict.fromkeys(vars(EVERYTHING), 1)


def test_the_first_part_stays_also_when_many_write_at_once(tmp_path):
    place = Range("train", 0, 50)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda by: write(tmp_path, place, by), "abcdefgh"))
    (path,) = tmp_path.iterdir()
    said = {getattr(outcome, "detail", "") for _, outcome in read_part(path)[0]}
    assert len(said) == 1
    write(tmp_path, place, "late")
    assert {getattr(outcome, "detail", "") for _, outcome in read_part(path)[0]} == said


def test_ranges_of_any_length_are_read_and_only_holes_are_missing(tmp_path):
    for start, stop, by in ((0, 10, "a"), (5, 8, "b"), (12, 20, "c"), (20, 21, "d")):
        write(tmp_path, Range("train", start, stop), by)
    write(tmp_path, Range("val", 10, 12))
    there, wanted = parts_of(tmp_path), Range("train", 4, 25)
    assert missing(there, wanted) == [Range("train", 10, 12), Range("train", 21, 25)]
    assert "000000010-000000012" in message(lambda: read_rows(tmp_path, wanted))
    write(tmp_path, Range("train", 10, 12), "e")
    said = [
        getattr(outcome, "detail", "") for _, outcome in read_rows(tmp_path, Range("train", 4, 21))
    ]
    assert "".join(said) == "aaaaaaeeccccccccd"
    assert [piece.start for _, piece in pieces(parts_of(tmp_path), wanted)] == [4, 10, 12, 20]


def test_a_damaged_part_is_named(tmp_path):
    place = Range("train", 0, 3)
    write(tmp_path, place)
    path = place.path(tmp_path)
    data = path.read_bytes()
    for bad in (data.replace(b"image 1", b"image 7"), data[: len(data) // 2], b"", b"{}\n"):
        path.write_bytes(bad)
        said = message(lambda: read_part(path))
        assert said.startswith(f"{path}: damaged") and "remove it" in said


def test_a_second_run_is_kept_out_and_leftovers_go(tmp_path):
    (tmp_path / "1-boxes").mkdir()
    leftover = tmp_path / "1-boxes" / "train-000000000-000000004.jsonl.tmp123"
    leftover.write_text("half")
    with held(tmp_path):
        assert not leftover.exists()
        with pytest.raises(Exception, match="another process is annotating here"), held(tmp_path):
            pass


def test_ranges_are_halved_and_cut():
    assert Range("train", 3, 8).halves() == (Range("train", 3, 5), Range("train", 5, 8))
    cut = [(one.start, one.stop) for one in Range("train", 3, 13).cut(4)]
    assert cut == [(3, 4), (4, 8), (8, 12), (12, 13)]
