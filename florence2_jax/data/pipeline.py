# SPDX-License-Identifier: Apache-2.0
"""Records -> the batches of one host, in an order that is a function of (seed, epoch, index).

The position in the data is one integer, the images seen: batch `i` of any number of hosts holds the
same examples in the same rows, so a run resumes by asking for batches from its step on. Grain keeps
no other state, and no place in the order costs more to reach than another.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
from absl import flags

from florence2_jax.data.examples import examples_of
from florence2_jax.data.loading import Batch, BatchSpec, LoadExamples
from florence2_jax.data.mixture import WHOLE_RUN, Interleave, Mixture, Part, Stage
from florence2_jax.data.negatives import NamePool, collect_names
from florence2_jax.records.excluded import Excluded
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.typing import UserError

_ORDER_VERSION = 1
"""To be raised by whoever changes which record comes when: runs under way then stop, named."""


def make_dataset(
    source: RecordStore | Mixture,
    tokenizer: Tokenizer,
    spec: BatchSpec,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    set_aside: Path | None = None,
    excluded: Excluded = Excluded(),
) -> grain.MapDataset:
    """The endless sequence of this host's batches; element `i` belongs to step `i`.

    The global batch is cut into `process_count` blocks of consecutive rows, and the host gets the
    block `process_index`: put together in their order the blocks are the same for any number. Rows
    carry `store` int64[B], the part of the mixture that `index` counts in.

    Args:
        excluded: records and images that are not trained on, in whichever store.

    Raises:
        UserError: if the batch does not divide by the hosts.
    """
    if spec.batch_size % process_count:
        raise UserError(
            f"input.batch_size: {spec.batch_size} does not divide by {process_count} hosts"
        )
    mixture = Mixture.of(source)
    pools = [_pool(part, spec) for part in mixture.parts]
    sizes = spec.image_sizes or {spec.image_size: 1.0}
    datasets = []
    for stage in mixture.stages:
        for number, part in enumerate(mixture.parts):
            weights = mixture.tasks(stage, part, spec.weights)
            records = grain.MapDataset.range(len(part.store)).seed(part.seed(seed))
            records = records.shuffle().repeat()
            for size in sizes:
                load = LoadExamples(
                    store=part.store,
                    tokenizer=tokenizer,
                    spec=dataclasses.replace(spec, weights=weights, image_size=size),
                    set_aside=set_aside,
                    part=number,
                    name=part.name,
                    pool=pools[number],
                    excluded=excluded,
                )
                datasets.append(records.random_map(load))
    order = Interleave(mixture, spec.batch_size, list(sizes.values()))
    images = grain.MapDataset.select_from_datasets(datasets, order)
    return images.batch(spec.batch_size // process_count)[process_index::process_count]


def _pool(part: Part, spec: BatchSpec) -> NamePool:
    """Names to ask for in vain, where a run does so."""
    asks = any(TASKS[token].grammar == "named_boxes" for token in part.tasks or spec.weights)
    return collect_names(part.store) if spec.negatives.share and asks else NamePool()


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


class DataOrder:
    """Where a run is in its data, as its checkpoints keep it, and what that number stands for."""

    def __init__(self, mixture: Mixture, *, seed: int, batch_size: int):
        self._mixture, self._batch_size = mixture, batch_size
        self._interleave = Interleave(mixture, batch_size)
        self._facts: dict[str, Any] = {"order": _ORDER_VERSION, "seed": seed}
        self._facts["input.batch_size"] = batch_size
        for part in mixture.parts:
            self._facts[f"{part.place} (records)"] = len(part.store)
            self._facts[f"{part.place} (weight)"] = float(part.weight)
        for stage in mixture.stages:
            if stage is not WHOLE_RUN:
                self._facts[f"{stage.place} (steps)"] = stage.end_step
                self._facts[f"{stage.place} (weights)"] = list(map(float, mixture.weights(stage)))

    def position(self, step: int) -> dict[str, Any]:
        """What to save after `step`, as JSON: `images` seen, and `order`, what they came from."""
        return {"images": step * self._batch_size, "order": self._facts}

    def check(self, position: Mapping[str, Any], step: int) -> None:
        """Refuses to go on from a position that means other records here.

        Raises:
            UserError: naming what changed since it was saved, or a position that is not `step`'s.
        """
        saved = position["order"]
        changes = [
            f"{name} was {saved.get(name)!r} and is {self._facts.get(name)!r}"
            for name in sorted(saved.keys() | self._facts.keys())
            if saved.get(name) != self._facts.get(name)
        ]
        if changes:
            raise UserError(
                f"the order of the data changed since step {step} was saved: {'; '.join(changes)}. "
                "Restore what it was, or start another --workdir from this one's parameters by "
                "--config.init.workdir"
            )
        if position["images"] != step * self._batch_size:
            raise UserError(
                f"the checkpoint of step {step} says {position['images']} images were seen, but "
                f"{step} steps of {self._batch_size} are {step * self._batch_size}: it is damaged; "
                "remove it to go on from the one before"
            )

    def epochs(self, step: int) -> dict[str, float]:
        """How often each store was walked after `step` steps: `epochs`, or `epochs/NAME`."""
        taken = self._interleave.taken(step * self._batch_size)
        return {
            f"epochs/{part.name}".rstrip("/"): count / len(part.store)
            for part, count in zip(self._mixture.parts, taken, strict=True)
        }


def check_feeds(
    source: RecordStore | Mixture, weights: Mapping[str, float], *, sample: int = 512
) -> None:
    """Refuses tasks that no record of an even sample of each store feeds.

    A store with tasks of its own must feed every one of them. Stores without take from the run's
    tasks those that they feed, at least one in every stage they have a part in; together the stores
    of a stage must feed all of its tasks.

    Raises:
        UserError: naming the tasks, the store, the stage and what their records would need.
    """
    mixture = Mixture.of(source)
    fed, notes = {}, {}
    for part in mixture.parts:
        asked = set(mixture.tasks(WHOLE_RUN, part, weights))
        fed[part.name], notes[part.name] = _fed(part.store, asked, sample)
        missing = asked - fed[part.name]
        if missing and (part.tasks is not None or not part.name):
            place = f"{part.place}.tasks" if part.name else "--config.input.tasks"
            raise _unfed(f"record of {part.store.directory}", missing, place, notes[part.name])
    for stage in mixture.stages:
        asked, available = set(), set()
        for part, weight in zip(mixture.parts, mixture.weights(stage), strict=True):
            if weight:
                tasks = set(mixture.tasks(stage, part, weights))
                _check_part(stage, part, tasks & fed[part.name], tasks, notes[part.name])
                asked |= tasks
                available |= tasks & fed[part.name]
        if asked - available:
            during = "" if stage is WHOLE_RUN else f" in stage {stage.name}"
            raise _unfed(f"store of input.mixture{during}", asked - available, "input.tasks")


def _check_part(stage: Stage, part: Part, usable: set[str], tasks: set[str], note: str) -> None:
    """Refuses a store that would have nothing to teach in a stage."""
    if usable:
        return
    names = ", ".join(TASKS[token].name for token in sorted(tasks)) or "none is left"
    if stage is WHOLE_RUN:
        raise UserError(
            f"{part.place}: no record of {part.store.directory} feeds any of its tasks ({names}); "
            f"import such annotations, or leave the store out{note}"
        )
    rest = f", or let the store rest with {stage.place}.weights.{part.name}=0" if part.name else ""
    raise UserError(
        f"{stage.place}: no record of {part.place} ({part.store.directory}) feeds any task that is "
        f"asked of it in this stage ({names}); give {stage.place}.tasks one that it feeds{rest}"
        f"{note}"
    )


def _fed(store: RecordStore, asked: set[str], sample: int) -> tuple[set[str], str]:
    """Those of the tasks that a sample of records feeds, and a note on records that are damaged."""
    missing, note = set(asked), ""
    for index in range(0, len(store), max(1, len(store) // sample)):
        try:
            record = store[index]
        except UserError as error:
            note = f" (some cannot be read: {error})"
            continue  # Training sets it aside, with its reason.
        missing -= {token for token in missing if examples_of(record, TASKS[token])}
        if not missing:
            break
    return asked - missing, note


def _unfed(what: str, missing: set[str], place: str, note: str = "") -> UserError:
    needs = ", ".join(
        f"{TASKS[t].name} (learns from {TASKS[t].learns_from})" for t in sorted(missing)
    )
    return UserError(
        f"no {what} feeds {needs}: import such annotations, or set the weight to 0, "
        f"{place}.{TASKS[min(missing)].name}=0{note}"
    )
