# SPDX-License-Identifier: Apache-2.0
"""The order of examples is a function of (seed, epoch, index), whoever reads them."""

import dataclasses
import json

import grain
import numpy as np
import pytest

from florence2_jax.data.augment import AugmentConfig, random_crop
from florence2_jax.data.loading import BatchSpec, LoadExamples
from florence2_jax.data.mixture import Mixture, Part, Stage, parse_weights
from florence2_jax.data.pipeline import DataOrder, check_feeds, iterate, make_dataset
from florence2_jax.data.texts import record_texts, store_texts
from florence2_jax.data.transforms import decode, resize
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import Plan, write_store
from florence2_jax.tasks.answers import parse_answer
from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer
from florence2_jax.typing import UserError

SPEC = BatchSpec(
    batch_size=8,
    num_prompts=3,
    prompt_length=64,
    target_length=40,
    image_size=(64, 64),
    weights=parse_weights({"all": 1.0}),
)


@pytest.fixture(scope="module")
def store(scenes) -> RecordStore:
    return RecordStore(scenes, "train")


@pytest.fixture(scope="module")
def tokenizer(store) -> Tokenizer:
    return Tokenizer.train(store_texts(store), vocab_size=400)


def broken(record: Record, ledger) -> Record:
    return record


def same(a: dict, b: dict) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_a_batch_is_what_it_says(store, tokenizer):
    batch = make_dataset(store, tokenizer, SPEC, seed=0)[0]
    assert batch["image"].dtype == np.uint8 and batch["image"].shape == (8, 64, 64, 3)
    for ids in (*batch["prompt_ids"].reshape(-1, 64), *batch["target_ids"].reshape(-1, 40)):
        real = ids[ids != PAD_ID]
        assert real[0] == BOS_ID and real[-1] == EOS_ID and (ids[len(real) :] == PAD_ID).all()
    assert (batch["task_ids"] >= 0).all() and not batch["is_substitute"].any()


def test_a_prompt_that_does_not_fit_is_left_out_whole_and_counted(store, tokenizer):
    short = dataclasses.replace(SPEC, prompt_length=20)
    batch = make_dataset(store, tokenizer, short, seed=0)[0]
    missing = batch["task_ids"] < 0
    assert missing.any() and not missing.all(axis=1).any()
    assert (batch["prompt_ids"][missing] == PAD_ID).all()
    assert (batch["target_ids"][missing] == PAD_ID).all()
    assert batch["num_dropped"].sum() >= missing.sum()
    for ids in batch["prompt_ids"][~missing]:
        assert ids[ids != PAD_ID][-1] == EOS_ID


def test_targets_are_those_of_the_record(store, tokenizer):
    batch = make_dataset(store, tokenizer, dataclasses.replace(SPEC, target_length=200), seed=0)[0]
    for row in range(8):
        record = store[int(batch["index"][row])]
        words = " ".join(record_texts(record)).lower()
        for k, task_id in enumerate(batch["task_ids"][row]):
            task = list(TASKS.values())[task_id]
            text = tokenizer.decode(batch["target_ids"][row, k].tolist())
            answer = parse_answer(task, text, record.size)
            assert answer.unparsed == ()
            labels = [r.label for r in getattr(answer, "regions", ())]
            for label in [*labels, getattr(answer, "text", "")]:
                assert label.lower() in words


def test_every_record_comes_once_per_epoch_in_another_order(store, tokenizer):
    dataset = make_dataset(store, tokenizer, SPEC, seed=0)
    per_epoch = len(store) // SPEC.batch_size
    epochs = [
        np.concatenate([dataset[i]["index"] for i in range(e * per_epoch, (e + 1) * per_epoch)])
        for e in range(2)
    ]
    for indices in epochs:
        assert sorted(indices) == list(range(len(store)))
    assert list(epochs[0]) != list(epochs[1])
    assert not same(dataset[0], make_dataset(store, tokenizer, SPEC, seed=1)[0])


@pytest.fixture(scope="module")
def mixture(store, tmp_path_factory) -> Mixture:
    """Forty scenes and ten of them again, in two stages: captions of mostly the ten, then all."""
    folder = tmp_path_factory.mktemp("few") / "store"
    few = [store[i] for i in range(10)]
    write_store(folder, Plan(units={"train": few}, make=broken, job={"test": 5}))
    parts = (
        Part(name="all", store=store, weight=2.0),
        Part(name="few", store=RecordStore(folder, "train")),
    )
    captions = parse_weights({"caption": 1.0})
    stages = (
        Stage(name="captions", end_step=5, tasks=captions, weights={"few": 6.0}),
        Stage(name="everything", end_step=60),
    )
    return Mixture(parts=parts, stages=stages)


SMALL = dataclasses.replace(SPEC, num_prompts=1, image_size=(16, 16))


def test_every_record_comes_once_per_epoch_of_its_store(mixture, tokenizer):
    dataset = make_dataset(mixture, tokenizer, SMALL, seed=0)
    log = np.concatenate(
        [
            np.stack([batch["store"], batch["index"]], 1)
            for batch in map(dataset.__getitem__, range(30))
        ]
    )
    taken = DataOrder(mixture, seed=0, batch_size=8).epochs(30)
    for number, part in enumerate(mixture.parts):
        ids, length = log[log[:, 0] == number, 1], len(part.store)
        assert len(ids) == round(taken[f"epochs/{part.name}"] * length) > 2 * length
        epochs = [ids[start : start + length] for start in range(0, len(ids), length)]
        for epoch in epochs[:-1]:
            assert sorted(epoch) == list(range(length))
        assert len(set(epochs[-1].tolist())) == len(epochs[-1])
        assert epochs[0].tolist() != epochs[1].tolist()


def test_a_batch_knows_its_stage_from_its_number(mixture, tokenizer):
    dataset = make_dataset(mixture, tokenizer, SMALL, seed=0)
    caption = [task.name for task in TASKS.values()].index("caption")
    assert {int(t) for i in range(5) for t in dataset[i]["task_ids"].flat} == {caption}
    assert len({int(t) for i in range(5, 10) for t in dataset[i]["task_ids"].flat}) > 3
    shares = [np.mean([(dataset[i]["store"] == 1).mean() for i in steps]) for steps in STAGES]
    assert shares == pytest.approx([6 / 8, 1 / 3], abs=2 / 40)  # Within two images of forty.


STAGES = (range(5), range(5, 10))


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_any_number_of_hosts_reads_the_same_global_batches(mixture, tokenizer, hosts):
    alone = make_dataset(mixture, tokenizer, SMALL, seed=0)
    parts = hosts_of(mixture, tokenizer, hosts)
    for step in (0, 4, 5, 11):  # 5 begins another stage.
        assert same(alone[step], put_together([part[step] for part in parts]))


def test_restarts_with_other_numbers_of_hosts_continue_the_sequence(mixture, tokenizer):
    alone = make_dataset(mixture, tokenizer, SMALL, seed=0)
    options = dict(num_workers=0, num_threads=1, buffer=1)
    step = 0
    for hosts in (4, 2, 8):
        batches = [
            iterate(part, start_step=step, **options)
            for part in hosts_of(mixture, tokenizer, hosts)
        ]
        for _ in range(3):
            assert same(alone[step], put_together([next(own) for own in batches]))
            step += 1


def hosts_of(source, tokenizer, hosts: int) -> list:
    return [
        make_dataset(source, tokenizer, SMALL, seed=0, process_index=h, process_count=hosts)
        for h in range(hosts)
    ]


def put_together(blocks: list[dict]) -> dict:
    """The global batch, as JAX lays it out: the hosts' rows one after another."""
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def test_one_store_has_the_order_that_grain_gives_it(store, tokenizer):
    """Runs of before there were mixtures go on with the same images, prompts and targets."""
    load = LoadExamples(store=store, tokenizer=tokenizer, spec=SMALL)
    records = grain.MapDataset.range(len(store)).seed(3).shuffle().repeat().random_map(load)
    ours, plain = make_dataset(store, tokenizer, SMALL, seed=3), records.batch(8)
    for step in (0, 4, 5, 17):  # An epoch is five batches.
        assert same(plain[step], ours[step])


def test_a_restart_goes_on_where_it_was(store, tokenizer):
    dataset = make_dataset(store, tokenizer, SPEC, seed=0)
    options = dict(num_workers=0, num_threads=2, buffer=2)
    straight = iterate(dataset, start_step=0, **options)
    for _ in range(5):
        next(straight)
    resumed = iterate(dataset, start_step=5, **options)
    for _ in range(4):
        assert same(next(straight), next(resumed))


def test_worker_processes_change_nothing(store, tokenizer):
    dataset = make_dataset(store, tokenizer, SPEC, seed=0)
    alone = iterate(dataset, start_step=2, num_workers=0, num_threads=1, buffer=1)
    spread = iterate(dataset, start_step=2, num_workers=2, num_threads=1, buffer=1)
    for _ in range(4):
        assert same(next(alone), next(spread))


@pytest.fixture
def store_with_damage(store, tmp_path) -> RecordStore:
    records = [store[i] for i in range(16)]
    records[3] = dataclasses.replace(records[3], image=b"no image at all")
    records[4] = dataclasses.replace(records[4], image=records[4].image[:500])
    records[9] = dataclasses.replace(records[9], texts=(), regions=(), groundings=(), questions=())
    plan = Plan(units={"train": records}, make=broken, job={"test": 1})
    write_store(tmp_path / "damaged", plan)
    return RecordStore(tmp_path / "damaged", "train")


def test_damaged_records_are_replaced_counted_and_listed(store_with_damage, tokenizer, tmp_path):
    note = tmp_path / "set_aside.jsonl"
    dataset = make_dataset(store_with_damage, tokenizer, SPEC, seed=0, set_aside=note)
    batches = [dataset[0], dataset[1]]
    indices = np.concatenate([b["index"] for b in batches])
    flags = np.concatenate([b["is_substitute"] for b in batches])
    assert flags.sum() == 3 and not {3, 4, 9} & set(indices.tolist())
    assert sorted(indices[flags].tolist()) == [5, 5, 10]  # The next record that can be used.
    lines = [json.loads(line) for line in note.read_text().splitlines()]
    assert {line["index"]: line["reason"].split(":")[0] for line in lines} == {
        3: "no image of a known format, or cut off",
        4: "truncated or damaged",
        9: f"record {store_with_damage[9].id} feeds none of the tasks of this run",
    }
    second = tmp_path / "second.jsonl"  # Another run of this process has a list of its own.
    again = make_dataset(store_with_damage, tokenizer, SPEC, seed=0, set_aside=second)
    assert same(again[0], batches[0]) and same(again[1], batches[1])
    assert second.read_text() == note.read_text()


def test_a_mixture_says_which_store_a_damaged_record_is_in(
    store, store_with_damage, tokenizer, tmp_path
):
    parts = (Part(name="a", store=store_with_damage), Part(name="b", store=store_with_damage))
    note = tmp_path / "set_aside.jsonl"
    dataset = make_dataset(Mixture(parts=parts), tokenizer, SMALL, seed=0, set_aside=note)
    for step in range(4):
        dataset[step]
    lines = [json.loads(line) for line in note.read_text().splitlines()]
    assert {(line["store"], line["index"]) for line in lines} == {
        (name, index) for name in "ab" for index in (3, 4, 9)
    }
    assert len(lines) == 6 and all(line["reason"] for line in lines)


def test_a_store_of_nothing_but_damage_stops(store, tokenizer, tmp_path):
    records = [dataclasses.replace(store[i], image=b"x") for i in range(4)]
    write_store(tmp_path / "x", Plan(units={"train": records}, make=broken, job={"test": 2}))
    dataset = make_dataset(RecordStore(tmp_path / "x", "train"), tokenizer, SPEC, seed=0)
    with pytest.raises(UserError, match=r"4 records from \d on are unusable, the last one"):
        dataset[0]


def test_a_task_that_no_record_feeds_is_refused(store, tmp_path):
    records = [dataclasses.replace(store[i], questions=()) for i in range(4)]
    write_store(tmp_path / "x", Plan(units={"train": records}, make=broken, job={"test": 3}))
    with pytest.raises(
        UserError,
        match=r"feeds vqa \(learns from question\): import such .* --config\.input\.tasks\.vqa=0",
    ):
        check_feeds(RecordStore(tmp_path / "x", "train"), SPEC.weights)
    check_feeds(store, SPEC.weights)


def test_a_batch_that_hosts_cannot_share_is_refused(store, tokenizer):
    with pytest.raises(UserError, match="8 does not divide by 3 hosts"):
        make_dataset(store, tokenizer, SPEC, seed=0, process_count=3)


SIZES = {(64, 64): 2.0, (96, 64): 1.0, (64, 96): 1.0}


def test_steps_take_turns_in_the_image_sizes(store, tokenizer):
    spec = dataclasses.replace(SPEC, image_sizes=SIZES)
    batches = make_dataset(store, tokenizer, spec, seed=0)
    shapes = [batches[step]["image"].shape[1:3] for step in range(8)]
    assert [shapes.count(shape) for shape in ((64, 64), (64, 96), (96, 64))] == [4, 2, 2]
    plain = make_dataset(store, tokenizer, SPEC, seed=0)
    for step in (1, 5):  # Only the pixels differ: the records, their questions and answers do not.
        without = [{k: v for k, v in b[step].items() if k != "image"} for b in (batches, plain)]
        assert same(*without)


def test_all_hosts_take_the_same_size(store, tokenizer):
    spec = dataclasses.replace(SPEC, image_sizes=SIZES)
    whole = make_dataset(store, tokenizer, spec, seed=0)
    hosts = [
        make_dataset(store, tokenizer, spec, seed=0, process_index=i, process_count=4)
        for i in range(4)
    ]
    for step in range(5):
        blocks = [host[step]["image"] for host in hosts]
        assert np.array_equal(np.concatenate(blocks), whole[step]["image"])


def test_crops_have_the_shape_of_their_step(store, tokenizer):
    views = []

    def load(size):
        augment = AugmentConfig(crop=1.0, min_area=0.2)
        spec = dataclasses.replace(SPEC, image_size=size, image_sizes=SIZES, augment=augment)
        loader = LoadExamples(store=store, tokenizer=tokenizer, spec=spec)
        for index in range(12):
            record, rng = store[index], np.random.default_rng(index)
            window = random_crop(record, rng, augment, aspect_ratio=size[0] / size[1])[1]
            row = loader(index, np.random.default_rng(index))
            pixels = resize(decode(record.image), size, box=window)
            assert np.array_equal(row["image"], pixels)
            views.append((window, record.size))
        return [(x1 - x0) / (y1 - y0) for (x0, y0, x1, y1), size in views if size != (x1, y1)]

    assert np.median(load((96, 64))) == pytest.approx(1.5, rel=0.05)
