# SPDX-License-Identifier: Apache-2.0
"""A plain folder of images: captions beside them, splits by folder, and what is no file."""

import os

from import_helpers import imported, jpeg, message, why, write_jpegs

from florence2_jax.records.importers import detect, folder, plan_import
from florence2_jax.records.store import splits_of


def test_images_in_folders_come_in_with_their_captions(tmp_path):
    source = tmp_path / "f"
    write_jpegs(source, "a.jpg", "sub/b.JPEG", "sub/c.png", "sub/c.jpg", ".hidden.jpg")
    (source / "a.txt").write_text(" a cat\n")
    (source / "sub" / "c.txt").write_text("")
    (source / "notes.md").write_text("x")
    assert folder.detect(source) and detect(source) == "images"
    report, records = imported("images", source, tmp_path / "s")
    assert set(records) == {"a.jpg", "sub/b.JPEG", "sub/c.png", "sub/c.jpg"}
    assert records["a.jpg"].image == jpeg()
    assert [text.text for text in records["a.jpg"].texts] == ["a cat"]
    counts = report["counts"]["caption"]
    assert (counts["read"], counts["kept"], counts["set_aside"]) == (3, 1, {"empty": 2})
    assert report["counts"]["file"]["noted"] == {"neither images nor captions, not read": 2}


def test_folders_named_like_splits_are_splits(tmp_path):
    write_jpegs(tmp_path / "f", "train/a.jpg", "validation/b.jpg", "test/c.jpg")
    imported("images", tmp_path / "f", tmp_path / "s")
    assert splits_of(tmp_path / "s") == {"train": 1, "val": 1, "test": 1}
    write_jpegs(tmp_path / "f", "other/d.jpg")
    imported("images", tmp_path / "f", tmp_path / "t")
    assert splits_of(tmp_path / "t") == {"train": 4}


def test_pipes_are_not_waited_for_and_links_stay_within(tmp_path):
    source = tmp_path / "f"
    write_jpegs(source, "good.jpg", "a/inner.jpg")
    write_jpegs(tmp_path / "elsewhere", "private.jpg")
    os.mkfifo(source / "pipe.jpg")
    os.mkfifo(source / "good.txt")
    (source / "folder.jpg").mkdir()
    (source / "nothing.jpg").symlink_to(source / "gone.jpg")
    (source / "within.jpg").symlink_to(source / "a" / "inner.jpg")
    (source / "out.jpg").symlink_to(tmp_path / "elsewhere" / "private.jpg")
    (source / "inner").symlink_to(tmp_path / "elsewhere")
    (source / os.fsdecode(b"\xff.jpg")).write_bytes(jpeg())
    report, records = imported("images", source, tmp_path / "s")
    assert set(records) == {"good.jpg", "a/inner.jpg", "within.jpg", "\\xff.jpg"}
    assert why(tmp_path / "s") == {
        ("image", "its file cannot be read"): 1,
        ("image", "its file is missing"): 1,
        ("image", "a link that leads out of the folder"): 1,
        ("caption", "not a text"): 1,
    }
    assert report["counts"]["folder"]["noted"] == {"links to folders, not followed": 1}


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert not folder.detect(tmp_path)
    assert "no image in it; known are .jpg" in message(plan_import, "images", tmp_path)
