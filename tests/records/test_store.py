# SPDX-License-Identifier: Apache-2.0
"""The store: what goes in comes out, for TFDS too, whole after a kill; errors give advice."""

import dataclasses
import functools
import io
import json
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from florence2_jax.records import journal as journal_module
from florence2_jax.records import schema, writing
from florence2_jax.records.columns import (
    FEATURES,
    LATER_COLUMNS,
    as_stored,
    example_to_record,
    parse,
    record_to_example,
    serialize,
)
from florence2_jax.records.inspection import check_store, statistics
from florence2_jax.records.journal import journal
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.store import Plan, RecordStore, split_by_hash, splits_of, write_store
from florence2_jax.typing import UserError


def png(width: int = 8, height: int = 6, color: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (color % 256, 2, 3)).save(out, "PNG")
    return out.getvalue()


def make(index: int, ledger: Ledger, tag: str = "") -> schema.Record | None:
    """A record per index; every seventh is set aside."""
    ledger.read("image")
    if index % 7 == 3:
        ledger.set_aside("image", "unlucky", where=f"index {index}", value=index)
        return None
    ledger.keep("image")
    return schema.Record(
        id=f"{tag}{index}",
        image=png(color=index),
        width=8,
        height=6,
        texts=(schema.Text(text="a"),),
    )


def simple_plan(num_train: int = 40, num_val: int = 10, tag: str = "") -> Plan:
    units = {"train": range(num_train), "val": range(1000, 1000 + num_val)}
    return Plan(units=units, make=functools.partial(make, tag=tag), job={"tag": tag})


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# Round trips.

TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12
).filter(str.strip)
FLOATS = st.floats(-1e6, 1e6, width=32)
PROVENANCES = st.builds(
    schema.Provenance,
    kind=st.sampled_from(schema.MAKER_KINDS),
    name=st.text(st.characters(codec="utf-8"), max_size=5),
    round=st.integers(0, 9),
    score=st.none() | st.floats(0, 1, width=32),
    dropped=st.sampled_from(["", "score under 0.3"]),
)


def tuples(values, **sizes):
    return st.lists(values, **sizes).map(tuple)


@st.composite
def boxes(draw):
    side = st.integers(0, 640).map(lambda n: n / 8)  # Exact in float32; images are 80 pixels.
    x0, x1 = sorted(draw(st.lists(side, min_size=2, max_size=2, unique=True)))
    y0, y1 = sorted(draw(st.lists(side, min_size=2, max_size=2, unique=True)))
    return x0, y0, x1, y1


REGIONS = st.builds(
    schema.Region,
    box=boxes(),
    labels=tuples(
        st.builds(
            schema.Label,
            text=TEXTS | st.just(""),
            kind=st.sampled_from(schema.LABEL_KINDS),
            provenance=st.none() | PROVENANCES,
        ),
        max_size=3,
    ),
    quad=st.none() | st.tuples(*[FLOATS] * 8),
    polygons=tuples(
        st.integers(3, 5).flatmap(lambda n: tuples(FLOATS, min_size=2 * n, max_size=2 * n)),
        max_size=3,
    ),
    is_crowd=st.booleans(),
    provenance=PROVENANCES,
    mask_provenance=st.none() | PROVENANCES,
)


@st.composite
def groundings(draw):
    text = draw(TEXTS)
    starts = sorted(draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=3)))
    scores = st.floats(0, 1, width=32)
    spans = []
    for start in starts:
        own = draw(tuples(boxes(), min_size=1, max_size=3))
        each = tuples(scores, min_size=len(own), max_size=len(own))
        span = schema.Span(
            start=start,
            end=draw(st.integers(start + 1, len(text))),
            boxes=own,
            phrase_score=draw(st.none() | scores),
            box_scores=draw(st.just(()) | each),
            dropped=draw(st.sampled_from(["", "pronoun"])),
        )
        spans.append(span)
    return schema.Grounding(text=text, spans=tuple(spans), provenance=draw(PROVENANCES))


RECORDS = st.builds(
    schema.Record,
    id=TEXTS,
    image=st.binary(min_size=1, max_size=40),
    width=st.just(80),
    height=st.just(80),
    origin=st.text(st.characters(codec="utf-8"), max_size=5),
    split_key=st.text(st.characters(codec="utf-8"), max_size=5),
    source_size=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    texts=tuples(
        st.builds(
            schema.Text,
            text=TEXTS,
            granularity=st.sampled_from(schema.GRANULARITIES),
            provenance=PROVENANCES,
        ),
        max_size=3,
    ),
    regions=tuples(REGIONS, max_size=4),
    groundings=tuples(groundings(), max_size=3),
    questions=tuples(
        st.builds(
            schema.Question,
            question=TEXTS,
            answers=tuples(TEXTS | st.just(""), min_size=1, max_size=3),
            provenance=PROVENANCES,
        ),
        max_size=3,
    ),
)


# The run-time type checker samples elements by chance, not from hypothesis; it decides nothing.
of_type_checker = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


@of_type_checker
@settings(max_examples=60, deadline=None)
@given(RECORDS)
def test_record_comes_back_from_columns_and_from_bytes(record):
    assert example_to_record(record_to_example(record)) == record
    data = serialize(record)
    assert parse(data) == record
    assert serialize(parse(data)) == data
    # TFDS writes the same bytes.
    encoded = FEATURES.encode_example(record_to_example(record))
    serializer = example_serializer.ExampleSerializer(FEATURES.get_serialized_info())
    assert serializer.get_tf_example(encoded).SerializeToString(deterministic=True) == data
    # The way of a TFDS user: its own parser, the image left encoded.
    decoded = FEATURES.deserialize_example_np(data, decoders={"image": tfds.decode.SkipDecoding()})
    assert example_to_record(decoded) == record


@of_type_checker
@settings(max_examples=5, deadline=None)
@given(records=st.lists(RECORDS, min_size=1, max_size=4, unique_by=lambda record: record.id))
def test_records_come_back_from_a_store(records, tmp_path_factory):
    directory = tmp_path_factory.mktemp("store") / "s"
    plan = Plan(units={"train": records}, make=lambda record, ledger: record, job={})
    write_store(directory, plan, examples_per_shard=2)
    assert list(RecordStore(directory, "train")) == records


def test_numbers_become_float32_and_stay_valid():
    box = (0.1, 0.2, 7.3, 5.9)
    provenance = schema.Provenance(kind="specialist", name="d", score=0.9)
    record = dataclasses.replace(
        make(0, Ledger()), regions=(schema.Region(box=box, provenance=provenance),)
    )
    stored = as_stored(record)
    assert stored.regions[0].box == tuple(np.array(box, np.float32).tolist())
    assert stored.regions[0].provenance.score == float(np.float32(0.9))
    assert as_stored(stored) == stored


def test_a_box_that_vanishes_in_float32_is_refused():
    record = schema.Record(
        id="a",
        image=b"x",
        width=100_000,
        height=5,
        regions=(schema.Region(box=(90000.0, 0, 90000.0001, 1)),),
    )
    with pytest.raises(schema.RecordError, match="is empty"):
        serialize(record)


def test_columns_that_do_not_fit_together_are_refused():
    example = record_to_example(make(0, Ledger()))
    with pytest.raises(schema.RecordError, match="1 labels do not divide into counts"):
        counts = {"region_num_labels": [2], "region_num_polygons": [0], "region_provenance": [0]}
        label = {"label_text": ["a"], "label_kind": [0], "region_box": np.ones((1, 4), np.float32)}
        flags = {"region_has_quad": [False], "region_is_crowd": [False]}
        example_to_record(example | counts | label | flags)
    del example["span_box"]
    with pytest.raises(schema.RecordError, match=r"lacks the columns \['span_box'\]"):
        example_to_record(example)


def test_records_of_layout_1_0_0_have_no_source_size():
    record = dataclasses.replace(make(0, Ledger()), source_size=(80, 60))
    example = tf_example_pb2.Example.FromString(serialize(record))
    for column in LATER_COLUMNS:
        del example.features.feature[column]
    old = dataclasses.replace(record, source_size=None)
    assert parse(example.SerializeToString()) == old
    columns = record_to_example(record)
    assert example_to_record({k: v for k, v in columns.items() if k not in LATER_COLUMNS}) == old


# Splits.


def test_split_by_hash_is_the_documented_function():
    # BLAKE2b-64 of "a" is 0x4061...: a quarter of the way; computed with b2sum -l 64.
    expected = subprocess.run(["b2sum", "-l", "64"], input=b"a", capture_output=True, check=True)
    place = int(expected.stdout.split()[0], 16) / 2**64
    assert split_by_hash("a", {"low": place, "high": 1 - place}) == "high"
    assert split_by_hash("a", {"low": place + 1e-9, "high": 1 - place - 1e-9}) == "low"


def test_split_by_hash_keeps_the_shares():
    shares = {"train": 0.8, "val": 0.15, "test": 0.05}
    found = [split_by_hash(f"key {i}", shares) for i in range(4000)]
    for name, share in shares.items():  # Four standard deviations of a binomial share.
        assert abs(found.count(name) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    with pytest.raises(ValueError, match="add up to 1"):
        split_by_hash("a", {"train": 0.5})


# Reading.


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("store") / "s"
    write_store(directory, simple_plan(), examples_per_shard=16, name="demo")
    return directory


def test_random_access(store):
    train = RecordStore(store, "train")
    ids = [str(i) for i in range(40) if i % 7 != 3]
    assert [record.id for record in train] == ids
    assert len(train) == len(ids) == splits_of(store)["train"]
    assert train[-1].id == ids[-1] and [r.id for r in train[2:4]] == ids[2:4]
    assert train[5].image == png(color=int(ids[5]))  # Byte by byte.
    with pytest.raises(IndexError):
        train[len(ids)]


def test_store_pickles_as_its_path(store):
    train = RecordStore(store, "train")
    train[0]
    data = pickle.dumps(train)
    assert len(data) < 1000
    assert pickle.loads(data)[3] == train[3]


def test_tfds_opens_it_without_this_package_and_without_tensorflow(store, tmp_path):
    script = """
        import sys, numpy as np, tensorflow_datasets as tfds
        builder = tfds.builder_from_directory(sys.argv[1])
        source = builder.as_data_source("train")
        example = source[0]
        assert example["image"].shape == (6, 8, 3) and example["image"][0, 0, 1] == 2
        assert builder.info.features["text_granularity"].feature.int2str(0) == "brief"
        assert "tensorflow" not in sys.modules and "florence2_jax" not in sys.modules
        print(len(source), builder.info.name, sorted(builder.info.splits))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(store)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ["34", "demo", "['train',", "'val']"], run.stderr


def test_the_books_are_in_the_store(store):
    report = json.loads((store / "store.json").read_text())["report"]
    assert report["counts"]["image"]["read"] == 50
    assert report["counts"]["image"]["kept"] == 43 == sum(splits_of(store).values())
    lines = [json.loads(line) for line in (store / "set_aside.jsonl").read_text().splitlines()]
    expected = [i for i in (*range(40), *range(1000, 1010)) if i % 7 == 3]
    assert [line["value"] for line in lines] == expected
    assert lines[0] == {"kind": "image", "where": "index 3", "why": "unlucky", "value": 3}


def message(function, *args) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_store_says_so(store, tmp_path):
    assert message(RecordStore, tmp_path / "none", "train") == (
        f"{tmp_path}/none: no such directory; make a store with: florence2-jax records"
    )
    assert message(RecordStore, tmp_path, "train") == (
        f"{tmp_path}: is empty (dataset_info.json is missing); make one with: florence2-jax records"
    )
    (tmp_path / "cat.jpg").write_bytes(b"x")
    assert "holds no store of records (dataset_info" in message(RecordStore, tmp_path, "train")
    (tmp_path / "unfinished").mkdir()
    assert message(RecordStore, tmp_path, "train") == (
        f"{tmp_path}: the store was not written to its end; run the command that wrote it again, "
        "it goes on where it was"
    )
    assert message(RecordStore, store, "dev") == (
        f"{store}: no split 'dev'; there are ['train', 'val']"
    )


def copied(store: Path, directory: Path) -> Path:
    for name, data in contents(store).items():
        (directory / name).write_bytes(data)
    return directory


def test_a_store_of_layout_1_0_0_opens(store, tmp_path):
    directory = copied(store, tmp_path)
    features = json.loads((directory / "features.json").read_text())
    for column in LATER_COLUMNS:
        del features["featuresDict"]["features"][column]
    (directory / "features.json").write_text(json.dumps(features))
    assert len(RecordStore(directory, "train")) == 34


def test_a_missing_shard_is_named(store, tmp_path):
    directory = copied(store, tmp_path)
    name = "demo-train.array_record-00001-of-00003"
    (directory / name).unlink()
    assert message(RecordStore, directory, "train") == (
        f"{directory}: 1 of 3 shards of split 'train' are missing, first {name}; "
        "copy them here again"
    )
    assert len(RecordStore(directory, "val")) == 9


def test_a_split_without_records_is_refused(store, tmp_path):
    directory = copied(store, tmp_path)
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = []
    (directory / "dataset_info.json").write_text(json.dumps(info))
    name = info["splits"][0]["name"]
    expected = f"{directory}: split {name!r} holds no records"
    assert message(RecordStore, directory, name) == expected


def test_another_dataset_and_broken_metadata_are_refused(store, tmp_path):
    directory = copied(store, tmp_path)
    features = json.loads((directory / "features.json").read_text())
    del features["featuresDict"]["features"]["label_text"]
    (directory / "features.json").write_text(json.dumps(features))
    assert "lacks the columns ['label_text']" in message(RecordStore, directory, "train")
    (directory / "dataset_info.json").write_text("{")
    assert "cannot be read" in message(RecordStore, directory, "train")


def test_a_damaged_shard_names_its_record(store, tmp_path):
    directory = copied(store, tmp_path)
    shard = directory / "demo-train.array_record-00000-of-00003"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    train = RecordStore(directory, "train")
    assert "record 0 of split 'train' cannot be read" in message(train.__getitem__, 0)


# Writing.


def test_parallel_and_serial_bytes_are_equal(store, tmp_path):
    write_store(tmp_path / "p", simple_plan(), examples_per_shard=16, name="demo", num_workers=2)
    assert contents(tmp_path / "p") == contents(store)


def test_a_finished_job_is_not_run_again(store):
    before = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    report = write_store(store, simple_plan(), examples_per_shard=16, name="demo")
    assert report["splits"] == {"train": 34, "val": 9}
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == before


def test_another_job_in_the_same_directory_is_refused(store, tmp_path):
    plan = simple_plan(tag="b")
    run = functools.partial(write_store, name="demo", examples_per_shard=16)
    assert message(run, store, plan) == (
        f'{store}: holds the store of another job (job.tag: "" there, "b" asked for); give another '
        "directory, or remove this one first"
    )
    (tmp_path / "cat.jpg").write_bytes(b"x")
    assert message(run, tmp_path, plan) == (
        f"{tmp_path}: is not empty and holds no store; give a new or empty directory"
    )


def test_nothing_to_write_is_refused(tmp_path):
    empty = Plan(units={"train": []}, make=make, job={})
    assert message(write_store, tmp_path / "a", empty) == (
        f"{tmp_path}/a: nothing to write: the source lists no images"
    )
    unlucky = Plan(units={"train": [3, 10]}, make=make, job={})
    assert "no record is left to write" in message(write_store, tmp_path / "b", unlucky)
    assert len((tmp_path / "b" / "set_aside.jsonl").read_text().splitlines()) == 2
    named = Plan(units={"a b": [1]}, make=make, job={})
    assert "name of a split 'a b'" in message(write_store, tmp_path / "c", named)


def test_a_split_of_which_nothing_is_kept_is_left_out(tmp_path):
    plan = Plan(units={"train": [1, 2], "val": [3]}, make=make, job={})
    assert write_store(tmp_path / "s", plan, examples_per_shard=1)["splits"] == {"train": 2}
    assert splits_of(tmp_path / "s") == {"train": 2}


def test_two_records_of_one_id_are_refused(tmp_path):
    plan = Plan(units={"train": [1], "val": [1]}, make=make, job={})
    expected = f"{tmp_path}/s: 2 records have the id '1'; rename them"
    assert message(write_store, tmp_path / "s", plan) == expected


def test_a_record_that_is_not_valid_is_set_aside_with_its_annotations(tmp_path):
    def bad(index, ledger):
        ledger.read("image")
        ledger.read("caption", 2)
        ledger.keep("image")
        ledger.keep("caption", 2)
        texts = (schema.Text(text=" "),) if index else ()
        return schema.Record(id=str(index), image=b"x", width=1, height=1, texts=texts)

    counts = write_store(tmp_path / "s", Plan(units={"train": [0, 1]}, make=bad, job={}))["counts"]
    assert (counts["caption"]["read"], counts["caption"]["kept"]) == (4, 2)
    assert counts["caption"]["set_aside"] == {"its record is not valid": 2}
    assert "a text is empty" in (tmp_path / "s" / "set_aside.jsonl").read_text()


def test_an_importer_that_loses_something_is_found_out(tmp_path):
    def loses(index, ledger):
        ledger.read("caption")
        return make(index, ledger)

    with pytest.raises(RuntimeError, match=r"neither kept nor set aside.*'caption': 2"):
        write_store(tmp_path / "s", Plan(units={"train": [0, 1]}, make=loses, job={}))


@pytest.mark.parametrize(
    ("module", "last_step"), [(writing, "_write_metadata"), (journal_module, "remove_journal")]
)
def test_a_run_that_ends_while_finishing_can_be_repeated(
    store, tmp_path, monkeypatch, module, last_step
):
    def killed(*_):
        raise KeyboardInterrupt

    run = functools.partial(write_store, examples_per_shard=16, name="demo")
    with monkeypatch.context() as patch:
        patch.setattr(module, last_step, killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "s", simple_plan())
    run(tmp_path / "s", simple_plan())
    assert contents(tmp_path / "s") == contents(store)


SLOW_WRITER = """
import sys, time
from florence2_jax.records.schema import Record
from florence2_jax.records.store import Plan, write_store

def make(index, ledger):
    time.sleep(0.002)
    ledger.read("image")
    ledger.keep("image")
    return Record(id=f"r{index}", image=b"pixels %d" % index, width=1, height=1)

if __name__ == "__main__":
    plan = Plan(units={"train": range(600), "val": range(600, 700)}, make=make, job={})
    write_store(sys.argv[1], plan, examples_per_shard=25, num_workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_writer_goes_on_without_duplicates_or_losses(tmp_path, num_workers):
    script = tmp_path / "writer.py"
    script.write_text(SLOW_WRITER)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, str(script), str(broken), str(num_workers)]
    shards_at_kill = []
    for at_least in (2, 6):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(broken.glob("unfinished/*-*.json"))) < at_least:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
        process.wait()
        shards_at_kill.append(len(list(broken.glob("unfinished/*-*.json"))))
        for child in children:  # Workers end with their parent.
            while Path(f"/proc/{child}/cmdline").exists() and time.monotonic() < deadline:
                if not Path(f"/proc/{child}/cmdline").read_bytes():
                    break  # A zombie that nobody waits for.
                time.sleep(0.01)
            assert time.monotonic() < deadline
        assert "run the command that wrote it again" in message(RecordStore, broken, "train")
    assert 2 <= shards_at_kill[0] <= shards_at_kill[1] < 28
    subprocess.run(command, check=True)
    subprocess.run([sys.executable, str(script), str(whole), "1"], check=True)
    assert [r.id for r in RecordStore(broken, "train")] == [f"r{i}" for i in range(600)]
    assert contents(broken) == contents(whole)


def test_two_writers_do_not_meet(tmp_path):
    with journal(tmp_path / "s", {"a": 1}):
        assert message(write_store, tmp_path / "s", simple_plan()) == (
            f"{tmp_path}/s: another process is writing this store; wait for it or stop it"
        )


def test_an_unfinished_store_of_another_job_is_refused(tmp_path):
    (tmp_path / "s" / "unfinished").mkdir(parents=True)
    (tmp_path / "s" / "unfinished" / "job.json").write_text('{"name": "old"}')
    assert "unfinished store of another job (examples_per_shard: null there, 512 asked for)" in (
        message(write_store, tmp_path / "s", simple_plan())
    )


# What the data engine adds.


def test_what_is_dropped_stays_in_the_store_and_is_not_kept():
    gone = schema.Provenance(kind="specialist", name="d", score=0.125, dropped="score under 0.3")
    box = (1.0, 2.0, 8.0, 9.0)
    label, mistaken = schema.Label(text="cup"), schema.Label(text="cap", provenance=gone)
    span = schema.Span(start=0, end=1, boxes=(box,), phrase_score=0.5, box_scores=(0.25,))
    record = dataclasses.replace(
        schema.Record(id="a", image=png(width=80, height=80), width=80, height=80),
        texts=(schema.Text(text="a"), schema.Text(text="b", provenance=gone)),
        regions=(
            schema.Region(box=box, labels=(label, mistaken)),
            schema.Region(box=box, labels=(label,), provenance=gone),
            schema.Region(box=box, polygons=((1, 2, 3, 4, 5, 6),), mask_provenance=gone),
        ),
        groundings=(
            schema.Grounding(text="a b", spans=(span, dataclasses.replace(span, dropped="no"))),
            schema.Grounding(text="c", spans=(dataclasses.replace(span, dropped="no"),)),
        ),
    )
    assert as_stored(record) == record
    kept = record.kept()
    assert [text.text for text in kept.texts] == ["a"]
    assert [[label.text for label in region.labels] for region in kept.regions] == [["cup"], []]
    assert not kept.regions[1].polygons
    assert [grounding.spans for grounding in kept.groundings] == [(span,)]
    assert kept.kept() is kept
    assert record.num_dropped == 5
    totals = statistics([record])["totals"]
    assert (totals["texts"], totals["regions"], totals["dropped"]) == (1, 2, 5)


def reread(place: tuple[str, int], ledger: Ledger, directory: Path) -> schema.Record:
    ledger.read("image")
    ledger.keep("image")
    split, index = place
    return RecordStore(directory, split)[index]


def test_a_store_refers_to_the_images_of_another(tmp_path):
    base, rounds = tmp_path / "base", tmp_path / "round"
    write_store(base, simple_plan())
    places = {"train": range(1, 30, 2), "val": range(3)}
    units = {split: [(split, i) for i in indices] for split, indices in places.items()}

    def written(directory, workers):
        again = functools.partial(reread, directory=base)
        plan = Plan(units=units, make=again, job={"round": 1}, images=base)
        write_store(directory, plan, examples_per_shard=4, num_workers=workers)
        return contents(directory)

    files = written(rounds, 1)
    assert files == written(tmp_path / "again", 2)
    store, source = RecordStore(rounds, "train"), RecordStore(base, "train")
    images = [record.image for record in source]
    assert [record.image for record in store] == images[1:30:2]
    assert store.image(2) == images[5]
    assert check_store(rounds)["num_problems"] == 0
    stored = b"".join(data for name, data in files.items() if "array_record" in name)
    assert not any(image in stored for image in images)
    shutil.move(base, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="its images are in the store"):
        RecordStore(rounds, "train")
