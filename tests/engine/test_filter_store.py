# SPDX-License-Identifier: Apache-2.0
"""A filtered store shares its images, keeps every record, and tells what it dropped and why."""

import dataclasses
import json
from collections import Counter, defaultdict

import pytest
from engine_records import png

from florence2_jax.engine.filter import FilterConfig, _filter_one, filter_record, filter_store
from florence2_jax.engine.filters.marking import counted
from florence2_jax.engine.filters.tables import filter_report
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Label, Provenance, Record, Region, Text
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import Plan, write_store
from florence2_jax.typing import UserError

CONFIG = FilterConfig.create({"texts": {"parser": ""}, "duplicates": {"max_images_per_text": 3}})


def made(name: str, score: float | None = 0.8) -> Provenance:
    return Provenance(kind="specialist", name=name, score=score)


def photo(i: int) -> Record:
    """A cat that two makers see, one of them once more and unsurely; a text like all others."""
    label = (Label(text="cat"),)
    return Record(
        id=f"photo{i}",
        image=png(color=f"rgb({i},9,9)"),
        width=60,
        height=40,
        texts=(Text(text="a cat on a mat", provenance=made("captioner@2")),),
        regions=(
            Region(box=(0, 0, 20, 20), labels=label, provenance=made("a@1")),
            Region(box=(0, 0, 20, 21), labels=label, provenance=made("b@1", 0.6)),
            Region(box=(30, 0, 50, 20), labels=label, provenance=made("b@1", min(i, 10) / 10)),
        ),
    )


def take(unit: Record, ledger) -> Record:
    ledger.read("image")
    ledger.keep("image")
    return unit


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "store"
    units = {"train": [photo(i) for i in range(10)], "val": [photo(i) for i in range(10, 12)]}
    write_store(folder, Plan(units=units, make=take, job={}), examples_per_shard=5)
    return folder


@pytest.fixture(scope="module")
def filtered(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("filtered") / "store"
    return folder, filter_store(source, folder, CONFIG)


def test_every_record_stays_in_its_place_with_its_image(source, filtered):
    for split in ("train", "val"):
        before, after = RecordStore(source, split), RecordStore(filtered[0], split)
        assert [r.id for r in after] == [r.id for r in before]
        assert [r.image for r in after] == [r.image for r in before]
        assert all(len(a.regions) == len(b.regions) for a, b in zip(after, before, strict=True))
    size = sum(path.stat().st_size for path in filtered[0].glob("*.array_record*"))
    assert size < sum(path.stat().st_size for path in source.glob("*.array_record*")) + 12_000


def test_the_report_counts_by_kind_maker_and_reason(filtered):
    report = filtered[1]
    regions = report["kinds"]["region"]
    assert regions["makers"]["a@1"] == {"kept": 12, "dropped": {}}
    # Scores 0, 0.1 and 0.2 are under 0.3, once in every split of tens: 0 .. 0.9, then 1.0 and 1.1.
    assert regions["makers"]["b@1"] == {
        "kept": 9, "dropped": {"NMS, same class": 12, "score under 0.30": 3},
    }  # fmt: skip
    assert (regions["kept"], regions["dropped"]) == (21, 15)
    # Three of each shard of five may say the same; the shard of val has but two.
    texts = report["kinds"]["text"]["makers"]["captioner@2"]
    assert texts == {"kept": 8, "dropped": {"near the same text in a shard": 4}}
    assert [(r["kind"], r["reason"], r["number"]) for r in report["reasons"]] == [
        ("region", "NMS, same class", 12),
        ("text", "near the same text in a shard", 4),
        ("region", "score under 0.30", 3),
    ]
    assert json.loads(json.dumps(report)) == report


def test_samples_are_records_with_that_reason(filtered):
    folder, report = filtered
    rows = {row["reason"]: row["samples"] for row in report["reasons"]}
    assert [sample["id"] for sample in rows["score under 0.30"]] == ["photo0", "photo1", "photo2"]
    assert len(rows["NMS, same class"]) == 8
    for reason, samples in rows.items():
        for sample in samples:
            record = RecordStore(folder, sample["split"])[sample["index"]]
            drops = [a.provenance.dropped for a in (*record.texts, *record.regions)]
            assert record.id == sample["id"]
            assert any(dropped.startswith(reason) for dropped in drops)


def test_makers_agree_as_often_as_they_do(filtered):
    table = filtered[1]["agreement"]["box"]
    assert table["makers"] == ["a@1", "b@1"]
    assert table["numbers"] == {"a@1": 12, "b@1": 24}
    assert table["shares"] == [[1, 1], [0.5, 1]]


def test_what_no_parser_could_test_is_said(filtered):
    assert filtered[1]["not_tested"]["texts"] == 12
    assert "no parser is named" in filtered[1]["not_tested"]["why"]
    assert filtered[1]["semantics"] == {}


def test_processes_write_the_same_bytes(source, filtered, tmp_path):
    report = filter_store(source, tmp_path / "store", CONFIG, num_workers=2)
    assert report["reasons"] == filtered[1]["reasons"]
    for path in filtered[0].glob("*.array_record*"):
        assert (tmp_path / "store" / path.name).read_bytes() == path.read_bytes()


def test_a_filtered_store_is_filtered_anew_with_other_thresholds(source, filtered, tmp_path):
    loose = FilterConfig.create({"filters": (), "texts": {"parser": ""}})
    report = filter_store(filtered[0], tmp_path / "again", loose)
    assert report["reasons"] == []
    assert list(RecordStore(tmp_path / "again", "train")) == list(RecordStore(source, "train"))


def test_other_thresholds_are_another_store(source, filtered, tmp_path):
    other = FilterConfig.create({"texts": {"parser": ""}, "regions": {"min_score": 0.5}})
    with pytest.raises(UserError, match="holds the store of another job"):
        filter_store(source, filtered[0], other)
    assert filter_store(source, filtered[0], CONFIG) == filtered[1]
    with pytest.raises(UserError, match="is no filtered store"):
        filter_report(source)


def test_machines_with_different_parsers_do_not_mix(source):
    with pytest.raises(UserError, match="parser is none, where the work was started it is en_x 1"):
        _filter_one(("train", 0), Ledger(), directory=source, config=CONFIG, parser="en_x 1")


def test_a_config_survives_its_json():
    assert FilterConfig.create(CONFIG.to_json()) == CONFIG


def test_nearly_all_that_people_say_of_photos_would_stay(shared_data):
    """The defaults hold against true annotations, each signed by a machine."""
    folder = shared_data / "coco_mini_train2017" / "annotations"
    boxes = json.loads((folder / "instances_train2017.json").read_text("utf-8"))
    captions = json.loads((folder / "captions_train2017.json").read_text("utf-8"))
    names = {row["id"]: row["name"] for row in boxes["categories"]}
    texts, regions, num = defaultdict(list), defaultdict(list), Counter()
    for row in captions["annotations"]:
        texts[row["image_id"]].append(Text(text=row["caption"], provenance=made("m@1")))
    for row in boxes["annotations"]:
        x, y, w, h = row["bbox"]
        region = Region(box=(x, y, x + w, y + h), labels=(Label(text=names[row["category_id"]]),))
        crowd = bool(row["iscrowd"])
        region = dataclasses.replace(region, provenance=made("m@1"), is_crowd=crowd)
        regions[row["image_id"]].append(region)
    for row in boxes["images"]:
        said = dict(texts=tuple(texts[row["id"]]), regions=tuple(regions[row["id"]]))
        size = dict(width=row["width"], height=row["height"])
        record = Record(id=row["file_name"], image=b"not looked at", **size, **said)
        for kind, _, reason, n in counted(filter_record(record, CONFIG)):
            num[kind, "dropped" if reason else "kept"] += n
    assert num["text", "kept"] + num["text", "dropped"] == 400
    assert num["region", "kept"] + num["region", "dropped"] == 739
    assert num["text", "dropped"] <= 4 and num["region", "dropped"] <= 8
