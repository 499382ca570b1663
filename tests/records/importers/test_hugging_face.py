# SPDX-License-Identifier: Apache-2.0
"""Hugging Face datasets, written as `save_to_disk` and the hub have them, come in row by row."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from import_helpers import imported, jpeg, message, why, write_jpegs

from florence2_jax.records.importers import arrow_rows, hugging_face, plan_import
from florence2_jax.records.schema import Label
from florence2_jax.records.store import RecordStore, splits_of, write_store

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = jpeg()
IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
OBJECTS = {"bbox": pa.list_(pa.list_(pa.float32())), "category": pa.list_(pa.int64())}
SCHEMA = pa.schema(
    {
        "image": IMAGE_TYPE,
        "caption": pa.list_(pa.string()),
        "objects": pa.struct(OBJECTS),
        "label": pa.int64(),
    }
)
FEATURES = {
    "image": {"_type": "Image"},
    "objects": {
        "_type": "Sequence",
        "feature": {
            "bbox": {"_type": "Sequence", "feature": {"dtype": "float32", "_type": "Value"}},
            "category": {"names": ["cat", "hot dog"], "_type": "ClassLabel"},
        },
    },
}


def row(i: int, **fields) -> dict[str, Any]:
    objects = {"bbox": [[1.0, 2.0, 10.0, 5.0]], "category": [i % 2]}
    image = {"bytes": IMAGE, "path": f"{i}.jpg"}
    return {"image": image, "caption": [f"photo {i}", "again"], "objects": objects} | fields


def table(rows: list[dict], schema: Any = SCHEMA) -> Any:
    said = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata(said)


def write_stream(path: Path, rows: list[dict], *, rows_per_batch: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = table(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as stream:
        stream.write_table(content, max_chunksize=rows_per_batch)
    return path


def save_to_disk(folder: Path, rows: list[dict], split: str = "train") -> None:
    half = len(rows) // 2
    names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (rows[:half], rows[half:]), strict=True):
        write_stream(folder / name, part)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def test_a_saved_dict_of_datasets_comes_in_whole(tmp_path):
    source = tmp_path / "d"
    save_to_disk(source / "train", [row(i) for i in range(11)])
    save_to_disk(source / "validation", [row(i) for i in range(4)], "validation")
    (source / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    assert hugging_face.detect(source)
    report, records = imported("hf", source, tmp_path / "s")
    assert report["splits"] == {"train": 11, "val": 4}
    for kind, num in (("image", 15), ("caption", 30), ("region", 15)):
        counts = report["counts"][kind]
        assert (counts["read"], counts["kept"], counts["set_aside"]) == (num, num, {})
    assert report["counts"]["column"]["noted"] == {"label not read": 1}
    record = records["train/data-00001-of-00002/4"]  # Row 4 of the second batch of that file.
    assert [text.text for text in record.texts] == ["photo 9", "again"]
    assert record.image == IMAGE and record.origin == "9.jpg"
    (region,) = record.regions
    assert region.box == (1, 2, 11, 7) and region.labels == (Label(text="hot dog"),)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_parquet_comes_in_by_row_groups(tmp_path, num_workers):
    source = tmp_path / "p" / "data"
    source.mkdir(parents=True)
    rows = table([row(i) for i in range(100)])
    pq.write_table(rows, source / "train-00000-of-00001.parquet", row_group_size=40)
    pq.write_table(rows[:3], source / "testA-00000-of-00001.parquet")
    assert hugging_face.detect(tmp_path / "p")
    plan = plan_import("hf", tmp_path / "p")
    write_store(tmp_path / "s", plan, examples_per_shard=7, num_workers=num_workers)
    assert splits_of(tmp_path / "s") == {"testA": 3, "train": 100}
    texts = [record.texts[0].text for record in RecordStore(tmp_path / "s", "train")]
    assert texts == [f"photo {i}" for i in range(100)]


def test_rows_are_counted_and_not_listed():
    files = [
        arrow_rows.RowFile(Path("a"), "a", (5, 0, 2)),
        arrow_rows.RowFile(Path("b"), "b", (3,)),
    ]
    rows = arrow_rows.Rows(files)
    found = [(r.name, r.group, r.index, r.number) for r in rows]
    expected = [("a", 0, i, i) for i in range(5)] + [("a", 2, i, 5 + i) for i in range(2)]
    assert found == expected + [("b", 0, i, i) for i in range(3)]
    assert rows[4:6] == [rows[4], rows[5]]
    huge = arrow_rows.Rows([arrow_rows.RowFile(Path("a"), "a", (10**8,))])
    assert len(huge) == 10**8 and huge[10**8 - 1].number == 10**8 - 1


def test_columns_by_other_names_and_images_beside(tmp_path):
    source = tmp_path / "p"
    schema = pa.schema(
        {
            "img": IMAGE_TYPE,
            "blurb": pa.string(),
            "question": pa.string(),
            "answers": pa.list_(pa.string()),
            "width": pa.int64(),
            "height": pa.int64(),
            "url": pa.string(),
        }
    )
    write_jpegs(source, "images/a.jpg")
    good = {"blurb": "a", "question": "what?", "answers": ["cat", "dog"], "width": 40, "height": 30}
    rows = [
        good | {"img": {"bytes": None, "path": "images/a.jpg"}, "url": "http://x.org/a"},
        good | {"img": {"bytes": None, "path": "../../etc/passwd"}},
        good | {"img": {"bytes": None, "path": None}},
        good | {"img": {"bytes": b"<html>", "path": "b.jpg"}},
        {"img": {"bytes": IMAGE, "path": None}},
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), source / "rows.parquet")
    _, records = imported("hf", source, tmp_path / "s", caption="blurb")
    assert set(records) == {"rows/0", "rows/4"}
    record = records["rows/0"]
    assert record.origin == "http://x.org/a" and record.image == IMAGE
    assert record.questions[0].answers == ("cat", "dog") and record.texts[0].text == "a"
    assert why(tmp_path / "s") == {
        ("image", "its file is missing"): 2,
        ("image", "no image of a known format, or cut off"): 1,
        ("caption", "its image was set aside"): 3,
        ("question", "its image was set aside"): 3,
    }
    assert message(plan_import, "hf", source, {"caption": "none"}) == (
        f"{source}: no column 'none'; option caption names one that is there"
    )


def test_objects_that_make_no_sense_are_set_aside_one_by_one(tmp_path):
    objects = {
        "bbox": [[0.0, 0.0, 5.0, 5.0], [0.0, 0.0], None, [1.0, 1.0, 2.0, 2.0]],
        "category": [0, 1, 1, 7],
    }
    (tmp_path / "p").mkdir()
    pq.write_table(table([row(0, objects=objects)]), tmp_path / "p" / "a.parquet")
    _, records = imported("hf", tmp_path / "p", tmp_path / "s")
    assert len(records["a/0"].regions) == 1
    assert why(tmp_path / "s") == {
        ("region", "box is not four finite numbers"): 2,
        ("region", "no label that is a text"): 1,
    }


def test_a_stream_that_was_cut_off_keeps_the_batches_before(tmp_path):
    source = tmp_path / "d"
    save_to_disk(source, [row(i) for i in range(24)])
    path = source / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:-3000])
    _, records = imported("hf", source, tmp_path / "s")
    assert len(records) == 12 + 8
    assert why(tmp_path / "s") == {("file", "cut off: the rows before are kept"): 1}


def test_files_that_cannot_be_read_cost_themselves_only(tmp_path):
    source = tmp_path / "p"
    source.mkdir()
    pq.write_table(table([row(i) for i in range(3)]), source / "good.parquet")
    (source / "broken.parquet").write_bytes(b"PAR1 no more")
    pq.write_table(pa.table({"a": [1]}), source / "other.parquet")
    _, records = imported("hf", source, tmp_path / "s")
    assert set(records) == {f"good/{i}" for i in range(3)}
    assert why(tmp_path / "s") == {
        ("file", "cannot be read"): 1,
        ("file", "no column of images"): 1,
    }


def test_damaged_pages_cost_their_rows_only(tmp_path):
    path = tmp_path / "p" / "a.parquet"
    path.parent.mkdir()
    rows = table([row(i) for i in range(40)])
    pq.write_table(rows, path, row_group_size=10, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 30] = bytes(30)  # The header of the page with the images.
    path.write_bytes(data)
    _, records = imported("hf", path.parent, tmp_path / "s")
    assert {id_ for id_ in records if int(id_[2:]) not in range(10, 20)} == {
        f"a/{i}" for i in range(40) if i not in range(10, 20)
    }
    assert sum(why(tmp_path / "s").values()) == 40 - len(records) > 0


def test_what_is_no_dataset_is_refused(tmp_path, monkeypatch):
    assert not hugging_face.detect(tmp_path)
    assert "no *.parquet or *.arrow file" in message(plan_import, "hf", tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"")
    assert hugging_face.detect(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"")
    assert not hugging_face.detect(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert message(plan_import, "hf", tmp_path) == (
        "pyarrow, which reads these files, is not installed; run: pip install "
        '"florence2-jax[engine]"'
    )
