# SPDX-License-Identifier: Apache-2.0
"""A store of 126 million records costs no more to start, to enter anywhere or to hold than a small
one. Seconds are those of the processor, so that a busy machine does not fail a test.
"""

import io
import multiprocessing
import os
import time
import tracemalloc
from pathlib import Path

import grain
import numpy as np
import pytest
from PIL import Image

from florence2_jax.data.loading import BatchSpec
from florence2_jax.data.mixture import Mixture, Part, Stage, parse_weights
from florence2_jax.data.pipeline import DataOrder, check_feeds, iterate, make_dataset
from florence2_jax.data.texts import store_texts
from florence2_jax.records.schema import Record, Text
from florence2_jax.records.store import RecordStore
from florence2_jax.text.tokenizer import Tokenizer

LENGTH = 126_000_000  # The images of FLD-5B.
BATCH = 64


class Synthetic(RecordStore):
    """Record `i` is made from `i`; nothing is stored."""

    def __init__(self, length: int = LENGTH):
        self.directory, self.split, self._length = Path("synthetic"), "train", length
        self.reads = 0

    def __getitem__(self, index):
        assert 0 <= index < self._length
        self.reads += 1
        color = tuple((index >> shift) % 256 for shift in (0, 8, 16))
        file = io.BytesIO()
        Image.new("RGB", (16, 16), color).save(file, "PNG")
        return Record(
            id=str(index),
            image=file.getvalue(),
            width=16,
            height=16,
            texts=(Text(text=f"one image of colour {color}"),),
        )


SPEC = BatchSpec(
    batch_size=BATCH,
    num_prompts=1,
    prompt_length=32,
    target_length=40,
    image_size=(16, 16),
    weights=parse_weights({"caption": 1.0}),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(store_texts(Synthetic(), max_records=200), vocab_size=400)


def test_the_first_batch_is_there_at_once(tokenizer):
    start_s = time.process_time()
    store = Synthetic()
    check_feeds(store, SPEC.weights)
    dataset = make_dataset(store, tokenizer, SPEC, seed=0)
    options = dict(num_workers=0, num_threads=1, buffer=1)
    batch = next(iterate(dataset, start_step=0, **options))
    assert time.process_time() - start_s < 10
    assert len(set(batch["index"].tolist())) == BATCH and batch["index"].max() > LENGTH // 2
    assert not batch["is_substitute"].any()


def test_any_step_is_as_near_as_the_first(tokenizer):
    per_epoch = LENGTH // BATCH
    parts = (Part(name="a", store=Synthetic()), Part(name="b", store=Synthetic(), weight=0.3))
    stages = (Stage(name="x", end_step=per_epoch), Stage(name="y", end_step=9 * per_epoch))
    dataset = make_dataset(Mixture(parts=parts, stages=stages), tokenizer, SPEC, seed=0)
    dataset[0]
    tracemalloc.start()
    for step in (0, 10**6, per_epoch - 1, 3 * per_epoch - 1, 9 * per_epoch + 10**9):
        start_s = time.process_time()
        batch = dataset[step]
        resumed = next(iterate(dataset, start_step=step, num_workers=0, num_threads=1, buffer=1))
        assert time.process_time() - start_s < 5  # A walk there would take minutes.
        assert np.array_equal(batch["index"], resumed["index"])
        assert np.array_equal(batch["image"], resumed["image"])
    assert tracemalloc.get_traced_memory()[1] < 20e6  # One bit per record would be 16 MB.
    tracemalloc.stop()


def test_epochs_of_two_stores_end_where_they_should():
    big, small = Synthetic(), Synthetic(1_000_000)
    parts = (Part(name="big", store=big, weight=126.0), Part(name="small", store=small))
    order = DataOrder(Mixture(parts=parts), seed=0, batch_size=BATCH)
    assert order.epochs(5 * 127_000_000 // BATCH) == pytest.approx(
        {"epochs/big": 5.0, "epochs/small": 5.0}, abs=1e-4
    )


def test_an_epoch_repeats_no_record():
    """Grain's shuffle of so many, in a sample: any 100,000 places of an epoch are as many ids."""
    order = grain.MapDataset.range(LENGTH).seed(0).shuffle()
    places = np.random.default_rng(0).choice(LENGTH, 100_000, replace=False)
    assert len({order[int(place)] for place in places}) == len(places)


def test_nothing_walks_the_whole_store(tokenizer):
    store = Synthetic()
    check_feeds(store, SPEC.weights)
    texts = sum(1 for text in store_texts(store, max_records=500) if "colour" in text)
    mixture = Mixture(parts=(Part(name="a", store=store), Part(name="b", store=store)))
    make_dataset(mixture, tokenizer, SPEC, seed=0)
    # The run-time type checks of the tests look at a record whenever the store is handed on.
    assert texts <= 501 and store.reads < 501 + 100


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_worker_process_starts_anywhere_in_little_memory(tokenizer):
    before = set(multiprocessing.active_children())
    dataset = make_dataset(Synthetic(), tokenizer, SPEC, seed=0)
    step = 2 * LENGTH // BATCH - 3  # The second epoch ends in the third batch.
    batches = iterate(dataset, start_step=step, num_workers=1, num_threads=2, buffer=2)
    for number in range(6):
        assert np.array_equal(next(batches)["index"], dataset[step + number]["index"])
    (worker,) = set(multiprocessing.active_children()) - before
    status = Path(f"/proc/{worker.pid}/status").read_text()
    peak_kb = int(status.partition("VmHWM:")[2].split()[0])
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    batches.close()
    assert peak_kb < 1e6
    assert seconds < 20  # Starting Python and its imports are most of it.
