# SPDX-License-Identifier: Apache-2.0
"""Records -> the batches of one host, in an order that is a function of (seed, epoch, index).

The position in the data is the step: batch `i` of any number of hosts holds the same examples, so a
run resumes by asking for batches from `start_step` on. Grain keeps no other state.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import grain
from absl import flags

from florence2_jax.data.examples import examples_of
from florence2_jax.data.loading import Batch, BatchSpec, LoadExamples
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.typing import UserError


def make_dataset(
    store: RecordStore,
    tokenizer: Tokenizer,
    spec: BatchSpec,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    set_aside: Path | None = None,
) -> grain.MapDataset:
    """The endless sequence of this host's batches; element `i` belongs to step `i`.

    Raises:
        UserError: if the batch does not divide by the hosts.
    """
    if spec.batch_size % process_count:
        raise UserError(
            f"input.batch_size: {spec.batch_size} does not divide by {process_count} hosts"
        )
    load = LoadExamples(store=store, tokenizer=tokenizer, spec=spec, set_aside=set_aside)
    dataset = grain.MapDataset.range(len(store)).seed(seed).shuffle().repeat().random_map(load)
    dataset = dataset[process_index::process_count]
    return dataset.batch(spec.batch_size // process_count)


def iterate(
    dataset: grain.MapDataset, *, start_step: int, num_workers: int, num_threads: int, buffer: int
) -> Iterator[Batch]:
    """Batches from `start_step` on, prepared ahead by processes (or, with none, by threads).

    The sequence does not depend on the number of workers or threads.
    """
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer)
    batches = dataset[start_step:].to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags; we have none there.
        workers = grain.MultiprocessingOptions(num_workers=num_workers)
        batches = batches.mp_prefetch(workers)
    return iter(batches)


def check_feeds(store: RecordStore, weights: Mapping[str, float], *, sample: int = 512) -> None:
    """Refuses tasks that no record of an even sample feeds.

    Raises:
        UserError: naming the tasks and what their records would need.
    """
    missing, reason = set(weights), ""
    for index in range(0, len(store), max(1, len(store) // sample)):
        try:
            record = store[index]
        except UserError as error:
            reason = f" (some cannot be read: {error})"
            continue  # Training sets it aside, with its reason.
        missing -= {token for token in missing if examples_of(record, TASKS[token])}
        if not missing:
            return
    needs = ", ".join(
        f"{TASKS[t].name} (learns from {TASKS[t].learns_from})" for t in sorted(missing)
    )
    raise UserError(
        f"no record of {store.directory} feeds {needs}: import such annotations, or set the weight "
        f"to 0, --config.input.tasks.{TASKS[min(missing)].name}=0{reason}"
    )
