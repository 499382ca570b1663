# SPDX-License-Identifier: Apache-2.0
"""Records -> the batches of one host, in an order that is a function of (seed, epoch, index).

The position in the data is the step: batch `i` of any number of hosts holds the same examples, so a
run resumes by asking for batches from `start_step` on. Grain keeps no other state.
"""

import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import grain
import numpy as np
from absl import flags

from florence2_jax.data.examples import examples_of, target_of
from florence2_jax.data.mixture import draw_examples
from florence2_jax.data.transforms import decode, resize
from florence2_jax.records.checks import ImageError
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import TASKS
from florence2_jax.tasks.targets import Budget, Order
from florence2_jax.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer
from florence2_jax.typing import Size, UserError

Batch: TypeAlias = dict[str, Any]
"""Arrays by name. To the devices go `image` uint8[B,Y,X,3]; `prompt_ids` int32[B,K,L];
`target_ids` int32[B,K,T], `<s> ... </s>`, then padding (a prompt that is missing has nothing else);
`task_ids` int32[B,K], the row of `TASKS`, -1 where missing. For the books are `index` int64[B]
(record of the store), `is_substitute` bool[B] and `num_dropped` int32[B] (regions that did not fit
their targets, and prompts that did not fit)."""

TASK_IDS = {token: i for i, token in enumerate(TASKS)}
_MAX_SUBSTITUTES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """The shape of a batch and how its targets are written."""

    batch_size: int  # Images per step, over all hosts.
    num_prompts: int
    prompt_length: int
    target_length: int
    image_size: Size
    weights: Mapping[str, float]
    order: Order = "random"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadExamples:
    """Index of a record -> its image and `num_prompts` (prompt, target) pairs.

    A record that cannot be used (damaged, or without an example of these tasks) is replaced by the
    next one that can, and is written to `set_aside`, once per process.
    """

    store: RecordStore
    tokenizer: Tokenizer
    spec: BatchSpec
    set_aside: Path | None = None

    def __call__(self, element: int, rng: np.random.Generator) -> Batch:
        """One row of a batch. Raises UserError if a thousand records in a row are unusable."""
        tries = min(len(self.store), _MAX_SUBSTITUTES)
        reason = ""
        for offset in range(tries):
            index = (int(element) + offset) % len(self.store)
            try:
                record = self.store[index]
                row = self._row(record, rng)
            except (UserError, ImageError, EmptyRecordError) as error:
                reason = str(error)
                self._note(index, reason)
                continue
            flags = {"index": np.int64(index), "is_substitute": np.bool_(offset > 0)}
            return row | flags
        raise UserError(f"{tries} records from {element} on are unusable, the last one: {reason}")

    def _row(self, record: Record, rng: np.random.Generator) -> Batch:
        spec = self.spec
        examples = draw_examples(record, spec.weights, spec.num_prompts, rng)
        if not examples:
            raise EmptyRecordError(f"record {record.id} feeds none of the tasks of this run")
        pixels = resize(decode(record.image), spec.image_size)
        prompt_ids = np.full((spec.num_prompts, spec.prompt_length), PAD_ID, np.int32)
        target_ids = np.full((spec.num_prompts, spec.target_length), PAD_ID, np.int32)
        task_ids = np.full(spec.num_prompts, -1, np.int32)
        # Two positions of the target are `<s>` and `</s>`.
        budget = Budget(lambda text: len(self.tokenizer.encode(text)), spec.target_length - 2)
        num_dropped = 0
        for k, example in enumerate(examples):
            prompt = wrap_prompt(self.tokenizer.encode(example.prompt))
            if len(prompt) > spec.prompt_length:
                num_dropped += 1  # Half a question would teach the answer to another one.
                continue
            target = target_of(example, record.size, order=spec.order, rng=rng, budget=budget)
            ids = [BOS_ID, *self.tokenizer.encode(target.text), EOS_ID]
            prompt_ids[k, : len(prompt)] = prompt
            target_ids[k, : len(ids)] = ids
            task_ids[k] = TASK_IDS[example.task.token]
            num_dropped += target.num_dropped
        if (task_ids < 0).all():
            raise EmptyRecordError(
                f"record {record.id}: no prompt fits {spec.prompt_length} tokens"
            )
        return {
            "image": pixels,
            "prompt_ids": prompt_ids,
            "target_ids": target_ids,
            "task_ids": task_ids,
            "num_dropped": np.int32(num_dropped),
        }

    def _note(self, index: int, reason: str) -> None:
        if self.set_aside is None or index in _noted:
            return
        _noted.add(index)
        line = json.dumps({"index": index, "reason": reason}, ensure_ascii=False) + "\n"
        with self.set_aside.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # Several workers share the list.
            file.write(line)


_noted: set[int] = set()


class EmptyRecordError(ValueError):
    """A sound record that has nothing to teach in this run."""


def wrap_prompt(ids: list[int]) -> list[int]:
    """`<s> ids </s>`, as the encoder reads a prompt."""
    return [BOS_ID, *ids, EOS_ID]


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
