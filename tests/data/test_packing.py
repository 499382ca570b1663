# SPDX-License-Identifier: Apache-2.0
"""Targets share rows whole, in order, with little padding, and as the task weights say."""

import dataclasses
from collections import Counter

import numpy as np
import packed_store
import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2_jax.data.examples import examples_of
from florence2_jax.data.loading import BatchSpec, LoadExamples, wrap_prompt
from florence2_jax.data.mixture import draw_examples, parse_weights
from florence2_jax.data.packing import CHUNK, Written, fill_row, lay_out, num_chunks
from florence2_jax.data.pipeline import make_dataset
from florence2_jax.data.texts import store_texts
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.answers import parse_answer
from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer

SPEC = BatchSpec(
    batch_size=4,
    num_prompts=8,
    prompt_length=64,
    target_length=320,
    pack_length=448,
    image_size=(32, 32),
    weights=parse_weights(dict.fromkeys(packed_store.TASKS, 1.0)),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> RecordStore:
    return packed_store.write(tmp_path_factory.mktemp("packed") / "store", number=300)


@pytest.fixture(scope="module")
def tokenizer(store) -> Tokenizer:
    return Tokenizer.train(store_texts(store), vocab_size=700)


@pytest.fixture(scope="module")
def rows(store, tokenizer) -> list[dict]:
    """The packed targets of every record."""
    load = LoadExamples(store=store, tokenizer=tokenizer, spec=SPEC)
    return [load(i, np.random.default_rng((0, i))) for i in range(len(store))]


@pytest.fixture(scope="module")
def draws(store, tokenizer) -> list[list[tuple[str, int]]]:
    """Task and length of the K draws of every record: those `rows` had to place."""
    load = LoadExamples(store=store, tokenizer=tokenizer, spec=SPEC)
    lengths = []
    for i, record in enumerate(store):
        rng = np.random.default_rng((0, i))
        drawn = draw_examples(record, SPEC.weights, 2 * SPEC.num_prompts, rng)
        targets = [load._target(e, record.size, rng, SPEC.target_length) for e in drawn]
        pairs = zip(drawn, targets, strict=True)
        lengths.append([(e.task.token, len(t.ids)) for e, t in pairs][: SPEC.num_prompts])
    return lengths


def fill(lengths, *, num_prompts, pack_length):
    def write(draw, max_length):
        return Written([7] * lengths[draw]) if lengths[draw] <= max_length else None

    return fill_row(len(lengths), write, num_prompts=num_prompts, pack_length=pack_length)


@given(st.lists(st.integers(2, 90), max_size=20), st.integers(1, 8), st.integers(6, 12))
def test_a_row_holds_whole_targets_and_no_more_than_fit(lengths, num_prompts, chunks):
    filling = fill(lengths, num_prompts=num_prompts, pack_length=chunks * CHUNK)
    placed = list(filling.placed)
    assert placed == sorted(placed) and len(placed) <= num_prompts
    assert [len(filling.placed[i].ids) for i in placed] == [lengths[i] for i in placed]
    used = sum(num_chunks(lengths[i]) for i in placed)
    assert used <= chunks
    wanted = [num_chunks(length) for length in lengths[:num_prompts]]
    if sum(wanted) <= chunks:
        assert placed[: len(wanted)] == list(range(len(wanted))) and not filling.num_unplaced
    if len(placed) < num_prompts:  # Nothing that was left out would have found room.
        left = [num_chunks(n) for i, n in enumerate(lengths) if i not in placed]
        assert all(n > chunks - used for n in left)
    assert filling == fill(lengths, num_prompts=num_prompts, pack_length=chunks * CHUNK)


def test_the_longest_stay_and_spares_take_the_place_of_what_found_none():
    lengths = [16, 16, 64, 40, 10, 30, 10]  # In chunks 1 1 4 3 1 2 1: four draws overfill eight.
    filling = fill(lengths, num_prompts=4, pack_length=8 * CHUNK)
    assert list(filling.placed) == [0, 2, 3] and filling.num_unplaced == 1
    filling = fill([40, 40, 64, 90, 10, 30, 10], num_prompts=4, pack_length=8 * CHUNK)
    assert list(filling.placed) == [0, 2, 4] and filling.num_unplaced == 1


@given(st.lists(st.integers(2, 50), min_size=1, max_size=6))
def test_a_laid_out_row_reads_back(lengths):
    targets = [[BOS_ID, *range(10, 8 + n), EOS_ID] for n in lengths]
    ids, prompts = lay_out(targets, 24 * CHUNK)
    assert ids.shape == (24 * CHUNK,) and prompts.shape == (24,)
    assert read_back(ids, prompts) == targets
    assert sorted(prompts[prompts >= 0]) == list(prompts[prompts >= 0])


def test_what_does_not_fit_a_row_is_refused():
    with pytest.raises(ValueError, match="2 targets need 48 cells of a row of 32"):
        lay_out([[7] * 17, [7] * 3], 32)
    with pytest.raises(ValueError, match="1 targets need 16 cells of a row of 20"):
        lay_out([[7] * 3], 20)


def read_back(ids, prompts) -> list[list[int]]:
    chunks = ids.reshape(len(prompts), -1)
    assert (chunks[prompts < 0] == PAD_ID).all()
    targets = [chunks[prompts == k].ravel() for k in range(prompts.max() + 1)]
    real = [cells[cells != PAD_ID].tolist() for cells in targets]
    for ids, cells in zip(real, targets, strict=True):
        assert len(cells) == num_chunks(len(ids)) * CHUNK, "chunks without a token"
    return real


def test_packed_targets_answer_their_prompts(store, tokenizer, rows):
    for row in rows[:40]:
        record = store[int(row["index"])]
        targets = read_back(row["target_ids"], row["target_prompts"])
        num_asked = (row["task_ids"] >= 0).sum()
        assert len(targets) == num_asked and (row["task_ids"][num_asked:] == -1).all()
        assert (row["prompt_ids"][num_asked:] == PAD_ID).all()
        for k, ids in enumerate(targets):
            task = list(TASKS.values())[row["task_ids"][k]]
            assert ids[0] == BOS_ID and ids[-1] == EOS_ID
            assert parse_answer(task, tokenizer.decode(ids), record.size).unparsed == ()
            asked = tokenizer.decode(row["prompt_ids"][k].tolist())
            assert asked.startswith(task.prompt.partition("{")[0])


def test_masks_may_lose_points_and_never_half_of_them(store, tokenizer, rows):
    weights = parse_weights({"region_to_segmentation": 1.0})
    spec = dataclasses.replace(SPEC, weights=weights, pack_length=320)
    load = LoadExamples(store=store, tokenizer=tokenizer, spec=spec)
    num_shortened = 0
    for i in range(40):
        rng = np.random.default_rng(i)
        row = load(i, rng)
        record = store[int(row["index"])]
        assert row["num_dropped"] == 0
        lengths = {}
        for example in examples_of(record, TASKS["<REGION_TO_SEGMENTATION>"]):
            ids = tuple(wrap_prompt(tokenizer.encode(example.prompt)))
            lengths[ids] = len(load._target(example, record.size, rng, 320).ids)
        for k, ids in enumerate(read_back(row["target_ids"], row["target_prompts"])):
            prompt = row["prompt_ids"][k]
            whole = lengths[tuple(prompt[prompt != PAD_ID].tolist())]
            # A polygon loses points one tolerance at a time, so it may need less than its room.
            assert whole / 4 < len(ids) <= whole
            num_shortened += len(ids) < whole
    assert num_shortened


def test_any_number_of_hosts_packs_the_same_rows(store, tokenizer):
    whole = make_dataset(store, tokenizer, SPEC, seed=0)[3]
    assert whole["target_ids"].shape == (4, 448) and whole["target_prompts"].shape == (4, 28)
    parts = [
        make_dataset(store, tokenizer, SPEC, seed=0, process_index=h, process_count=2)[3]
        for h in range(2)
    ]
    for name, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), value)


def padding(num_tokens: int, num_cells: int) -> float:
    return 1 - num_tokens / num_cells


def test_padding_is_under_a_quarter(rows, draws):
    """Eight prompts in 448 cells. The ladder is better than any that batches could be cut by."""
    num_tokens = sum((row["target_ids"] != PAD_ID).sum() for row in rows)
    share = padding(num_tokens, len(rows) * SPEC.pack_length)
    drawn = sum(length for row in draws for _, length in row)
    unpacked = padding(drawn, len(rows) * SPEC.num_prompts * SPEC.target_length)
    buckets = [min(b for b in (64, 256, 1024) if b >= length) for row in draws for _, length in row]
    ladder = padding(drawn, sum(buckets))  # As if no target had to share a shape with another.
    figures = f"packed {share:.3f}, ladder {ladder:.3f}, unpacked {unpacked:.3f}"
    assert share < 0.25 < ladder < unpacked, figures


def test_packing_leaves_the_task_weights_alone(rows, draws):
    """Every task comes as often as it was drawn, within a sixth; targets left out are few."""
    tokens = list(TASKS)
    placed = Counter(tokens[i] for row in rows for i in row["task_ids"] if i >= 0)
    drawn = Counter(
        token
        for row, drawn_row in zip(rows, draws, strict=True)
        for token, _ in drawn_row[: int((row["task_ids"] >= 0).sum())]
    )
    ratios = {token: placed[token] / drawn[token] for token in drawn}
    assert min(ratios.values()) > 5 / 6 and max(ratios.values()) < 7 / 6
    unplaced = sum(int(row["num_unplaced"]) for row in rows) / placed.total()
    assert unplaced < 0.15


def test_unpacked_rows_stay_as_they_were(store, tokenizer):
    spec = dataclasses.replace(SPEC, pack_length=0)
    batch = make_dataset(store, tokenizer, spec, seed=0)[0]
    assert batch["target_ids"].shape == (4, 8, 320) and "target_prompts" not in batch
    assert not batch["num_unplaced"].any()
