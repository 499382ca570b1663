# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards: img2dataset's layout comes in; a damaged shard costs what is damaged."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from import_helpers import imported, jpeg, message, why

from florence2_jax.records.importers import plan_import, webdataset
from florence2_jax.records.importers.tar import members
from florence2_jax.records.store import splits_of

IMAGE = jpeg()


def write_tar(path: Path, files: dict[str, bytes], format_: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format_) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, caption: str, **fields) -> dict[str, bytes]:
    """What img2dataset writes of one image, in its order."""
    row = {"caption": caption, "url": f"http://x.org/{key}.jpg", "key": key, "status": "success"}
    row |= {"width": 40, "height": 30, "original_width": 80, "sha256": "0" * 64} | fields
    return {
        f"{key}.jpg": IMAGE,
        f"{key}.json": json.dumps(row).encode(),
        f"{key}.txt": caption.encode(),
    }


def test_shards_of_img2dataset_come_in_whole(tmp_path):
    source = tmp_path / "w"
    for shard in range(2):
        rows = [sample(f"{shard:05d}{i:04d}", f"photo {shard} {i}") for i in range(5)]
        write_tar(source / f"{shard:05d}.tar", {k: v for row in rows for k, v in row.items()})
        (source / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    assert webdataset.detect(source)
    report, records = imported("webdataset", source, tmp_path / "s")
    assert report["splits"] == {"train": 10}
    for kind in ("image", "caption", "metadata"):
        counts = report["counts"][kind]
        assert (counts["read"], counts["kept"], counts["repaired"]) == (10, 10, {})
    assert why(tmp_path / "s") == {}
    record = records["00001/000010003"]
    assert record.image == IMAGE and record.size == (40, 30)
    assert [text.text for text in record.texts] == ["photo 1 3"]
    assert record.origin == "http://x.org/000010003.jpg"


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_sees(tmp_path, format_):
    long = "/".join(["folder"] * 20) if format_ == tarfile.USTAR_FORMAT else "folder/" * 50 + "x"
    names = ["a.jpg", "b/c.jpg", f"{long}/d.jpg", "ä.txt", "empty.json"]
    path = write_tar(tmp_path / "a.tar", dict.fromkeys(names, b"x" * 700), format_)
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive]
    assert [(m.name, m.offset, m.size) for m in members(path)] == expected
    assert not any(m.problem for m in members(path))


def test_texts_come_from_txt_else_from_json_and_splits_from_names(tmp_path):
    source = tmp_path / "w"
    write_tar(source / "train-0.tar", {"a.jpg": IMAGE, "a.json": b'{"caption": "from json"}'})
    write_tar(source / "validation" / "0.tar", {"b.JPG": IMAGE, "b.txt": b"caf\xe9"})
    write_tar(source / "test.tar", {"c.png": IMAGE, "c.seg.png": IMAGE, "c.cls": b"3"})
    report, records = imported("webdataset", source, tmp_path / "s")
    assert splits_of(tmp_path / "s") == {"train": 1, "val": 1, "test": 1}
    assert records["train-0/a"].texts[0].text == "from json"
    assert records["validation/0/b"].texts[0].text == "caf�"
    assert report["counts"]["caption"]["repaired"] == {"bytes that are no UTF-8 replaced": 1}
    noted = {"members .seg.png not read": 1, "members .cls not read": 1}
    assert report["counts"]["file"]["noted"] == noted


def test_what_may_not_be_in_an_archive_is_set_aside_beside_good_samples(tmp_path):
    path = tmp_path / "w" / "0.tar"
    path.parent.mkdir()
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(50, 50))
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes = b"", **fields) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))

        add("folder", type=tarfile.DIRTYPE)
        add("../evil.jpg", IMAGE)
        add("/etc/evil.jpg", IMAGE)
        add("link.jpg", type=tarfile.SYMTYPE, linkname=str(secret))
        add("hard.jpg", type=tarfile.LNKTYPE, linkname="good.jpg")
        add("pipe.jpg", type=tarfile.FIFOTYPE)
        add("good.jpg", IMAGE)
        add("good.jpg", jpeg(8, 8))
        add("good.txt", b"good")
        add("alone.txt", b"no image")
        add("bad.jpg", b"<html>")
        add("bad.txt", b"its image is none")
        add("json.jpg", IMAGE)
        add("json.json", b"{")
        add("README", b"no suffix")
    report, records = imported("webdataset", path.parent, tmp_path / "s")
    assert set(records) == {"0/good", "0/json"}
    assert records["0/good"].image == IMAGE
    assert why(tmp_path / "s") == {
        ("image", "a name that leaves its folder, or cannot be written"): 2,
        ("image", "a link in an archive, not followed"): 2,
        ("image", "no regular file in an archive, not followed"): 1,
        ("image", "a member of the same name came before"): 1,
        ("image", "no image of a known format, or cut off"): 1,
        ("caption", "no image with it"): 1,
        ("caption", "its image was set aside"): 1,
        ("metadata", "no JSON"): 1,
    }
    counts = report["counts"]["image"]
    assert (counts["read"], counts["kept"]) == (9, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"w", "s", "secret.jpg"}


def damaged_tar(tmp_path: Path) -> tuple[Path, list[tuple[int, int]]]:
    path = write_tar(tmp_path / "w" / "0.tar", {f"{i}.jpg": jpeg(64, 64) for i in range(6)})
    return path, [(m.offset, m.size) for m in members(path)]


def test_a_shard_that_was_cut_off_keeps_what_came_before(tmp_path):
    path, places = damaged_tar(tmp_path)
    offset, size = places[4]
    path.write_bytes(path.read_bytes()[: offset + size // 2])
    _, records = imported("webdataset", path.parent, tmp_path / "s")
    assert set(records) == {f"0/{i}" for i in range(4)}
    assert why(tmp_path / "s") == {("image", "the archive is cut off within it"): 1}


def test_a_damaged_header_costs_its_member_only(tmp_path):
    path, places = damaged_tar(tmp_path)
    data = bytearray(path.read_bytes())
    data[places[2][0] - 512 + 130] ^= 0xFF  # In the size of member 2.
    path.write_bytes(data)
    _, records = imported("webdataset", path.parent, tmp_path / "s")
    assert set(records) == {f"0/{i}" for i in (0, 1, 3, 4, 5)}
    assert why(tmp_path / "s") == {("file", "damaged: no header of a member is here"): 1}


def test_sparse_members_are_refused_and_those_behind_are_read(tmp_path):
    header = bytearray(tarfile.TarInfo("sparse.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    good = write_tar(tmp_path / "good.tar", {"good.jpg": IMAGE}).read_bytes()
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "0.tar").write_bytes(bytes(header) + b"\1" * 512 + good)
    _, records = imported("webdataset", tmp_path / "w", tmp_path / "s")
    assert set(records) == {"0/good"}
    assert why(tmp_path / "s") == {("image", "a sparse file in an archive, not read"): 1}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_stops_the_index(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tar")
    files = {f"{'n' * 30 * i}{i}.jpg": b"x" * 300 * i for i in range(5)}
    content = bytearray(write_tar(folder / "0.tar", files).read_bytes()[:8192])
    for _ in range(data.draw(st.integers(1, 20))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    (folder / "0.tar").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for member in members(folder / "0.tar"):
        assert member.offset >= 0 and (member.problem or member.size <= 8192)


def test_sources_that_hold_no_shards_say_so(tmp_path):
    (tmp_path / "0.tar.gz").write_bytes(b"\x1f\x8b")
    assert not webdataset.detect(tmp_path)
    assert "compressed ones must be unpacked first" in message(plan_import, "webdataset", tmp_path)
    write_tar(tmp_path / "1.tar", {"a.txt": b"a"})
    assert webdataset.detect(tmp_path)
    assert "no sample with an image" in message(plan_import, "webdataset", tmp_path)
    write_tar(tmp_path / "1.tar", {"a.jpg": IMAGE})
    imported("webdataset", tmp_path, tmp_path / "s")
    assert why(tmp_path / "s") == {("shard", "compressed: unpack it with gunzip"): 1}
