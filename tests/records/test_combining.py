# SPDX-License-Identifier: Apache-2.0
"""Merging stores into one record per image, and writing a store in other splits."""

import io
from pathlib import Path

import pytest
from PIL import Image

from florence2_jax.records.ledger import Ledger
from florence2_jax.records.merging import plan_merge
from florence2_jax.records.schema import Label, Provenance, Question, Record, Region, Text
from florence2_jax.records.splitting import parse_shares, plan_split, read_list
from florence2_jax.records.store import RecordStore, splits_of
from florence2_jax.records.writing import Plan, split_by_hash, write_store
from florence2_jax.typing import UserError


def png(color: int, size: tuple[int, int] = (8, 6)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (color, 20, 30)).save(out, "PNG")
    return out.getvalue()


def record(id_: str, color: int, size: tuple[int, int] = (8, 6), **annotations) -> Record:
    width, height = size
    return Record(id=id_, image=png(color, size), width=width, height=height, **annotations)


def keep(unit: Record, ledger: Ledger) -> Record:
    ledger.read("image")
    ledger.keep("image")
    return unit


def store(directory: Path, **splits: list[Record]) -> Path:
    write_store(directory, Plan(units=splits, make=keep, job={"name": str(directory)}))
    return directory


def region(label: str, **options) -> Region:
    return Region(box=(1, 1, 4, 4), labels=(Label(text=label),), **options)


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """Photos 1 and 2 in both, each with its own folders and splits; photo 3 in the second."""
    first = store(
        tmp_path / "first",
        train=[
            record("a/1.jpg", 1, texts=(Text(text="one"),), regions=(region("cat"),)),
            record("a/2.jpg", 2, regions=(region("cup"),)),
        ],
    )
    signed = Provenance(kind="specialist", name="detector 2", score=0.5)
    second = store(
        tmp_path / "second",
        train=[
            record("b/1.png", 1, texts=(Text(text="one"), Text(text="a cat")),
                   regions=(region("dog"), region("cat", provenance=signed))),
            record("b/3.png", 3),
        ],
        val=[record("b/2.png", 2, (16, 12), regions=(region("mug"),),
                    questions=(Question(question="how many?", answers=("1",)),))],
    )  # fmt: skip
    return first, second


def test_one_record_per_image_with_what_both_say(two, tmp_path):
    report = write_store(tmp_path / "merged", plan_merge(two, "name"))
    assert report["splits"] == {"train": 2, "val": 1}
    photo, third = RecordStore(tmp_path / "merged", "train")
    assert (photo.id, third.id) == ("a/1.jpg", "b/3.png")
    assert [text.text for text in photo.texts] == ["one", "a cat"]
    # They disagree about the same box: both stay, and say who they are from.
    assert [(r.labels[0].text, r.provenance.name) for r in photo.regions] == [
        ("cat", "first"),
        ("dog", "second"),
    ]
    counts = report["counts"]
    assert counts["image"]["read"] == 5 and counts["image"]["kept"] == 3
    assert counts["caption"]["set_aside"] == {"said alike by a store before": 1}
    assert counts["region"]["set_aside"] == {
        "said alike by a store before": 1,
        "of another size of the image": 1,
    }


def test_disagreeing_splits_keep_an_image_out_of_training(two, tmp_path):
    report = write_store(tmp_path / "merged", plan_merge(two, "name"))
    [photo] = RecordStore(tmp_path / "merged", "val")
    assert photo.id == "a/2.jpg" and photo.size == (8, 6)
    assert [r.labels[0].text for r in photo.regions] == ["cup"]
    assert photo.questions[0].provenance.name == "second"
    noted = report["counts"]["image"]["noted"]
    assert noted["in splits train, val: goes to val"] == 1


def test_by_hash_only_equal_bytes_are_one_image(two, tmp_path):
    report = write_store(tmp_path / "merged", plan_merge(two, "hash"))
    assert report["splits"] == {"train": 3, "val": 1}  # Photo 2 has two encodings.


def test_an_id_of_two_images_is_told_apart(tmp_path):
    first = store(tmp_path / "x", train=[record("1", 1)])
    second = store(tmp_path / "y", train=[record("1", 2)])
    write_store(tmp_path / "merged", plan_merge([first, second], "hash"))
    assert {r.id for r in RecordStore(tmp_path / "merged", "train")} == {"1", "y/1"}


def test_what_cannot_be_merged_is_refused(two, tmp_path):
    alike = store(tmp_path / "alike", train=[record("a/1.jpg", 1), record("b/1.jpg", 2)])
    with pytest.raises(UserError, match=r"two records have the name of 'b/1.jpg'; choose another"):
        plan_merge([two[0], alike], "name")
    with pytest.raises(UserError, match="two stores or more"):
        plan_merge(two[:1], "name")
    with pytest.raises(UserError, match="given twice"):
        plan_merge([two[0], two[0]], "name")


def test_splits_by_hash_of_the_split_key(tmp_path):
    shares = {"train": 0.7, "val": 0.3}
    crops = [record(f"{i}", i, split_key=f"photo {i // 2}") for i in range(40)]
    old = store(tmp_path / "old", train=crops[:30], test=crops[30:])
    report = write_store(tmp_path / "new", plan_split(old, shares))
    assert sum(report["splits"].values()) == 40 and set(report["splits"]) == {"train", "val"}
    for split in splits_of(tmp_path / "new"):
        for one in RecordStore(tmp_path / "new", split):
            assert split == split_by_hash(one.split_key, shares)


def test_splits_by_list(tmp_path):
    old = store(tmp_path / "old", train=[record(id_, 1) for id_ in ("a, b", "c", "d")])
    listed = tmp_path / "splits.tsv"
    listed.write_text("a, b\tval\nd\ttrain\n")
    report = write_store(tmp_path / "new", plan_split(old, listed))
    assert report["splits"] == {"train": 1, "val": 1}
    assert report["counts"]["image"]["set_aside"] == {"not in the list of splits": 1}
    assert RecordStore(tmp_path / "new", "val")[0].id == "a, b"
    assert RecordStore(tmp_path / "new", "val")[0] == RecordStore(old, "train")[0]


def test_lists_and_shares_that_say_nothing_are_refused(tmp_path):
    old = store(tmp_path / "old", train=[record("a", 1)])
    path = tmp_path / "list.csv"
    path.write_text("a,train\na,val\n")
    with pytest.raises(UserError, match="line 2 gives 'a' another split"):
        read_list(path)
    path.write_text("no split here\n")
    with pytest.raises(UserError, match="line 1 is no id and split"):
        read_list(path)
    path.write_text("a,train\nz,val\n")
    with pytest.raises(UserError, match=r"1 of its 2 records are not in"):
        plan_split(old, path)
    for text in ("train", "train=x", "train=0.5,val=0.2", "train=1.5,val=-0.5"):
        with pytest.raises(UserError, match=r"train=0\.9,val=0\.1"):
            parse_shares(text)
