# SPDX-License-Identifier: Apache-2.0
"""One record -> one row of a batch: its image and K (prompt, target) pairs."""

import dataclasses
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from florence2_jax.data.examples import target_of
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
