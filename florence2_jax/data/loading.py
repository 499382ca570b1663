# SPDX-License-Identifier: Apache-2.0
"""One record -> one row of a batch: its image and K (prompt, target) pairs."""

import dataclasses
import fcntl
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.data.augment import AugmentConfig, Window, jitter_colours, random_crop
from florence2_jax.data.examples import Example, feeds, target_of
from florence2_jax.data.mixture import draw_examples
from florence2_jax.data.negatives import NamePool, NegativesConfig, vary_names
from florence2_jax.data.packing import Written, fill_row, lay_out
from florence2_jax.data.transforms import decode, decode_scaled, resize
from florence2_jax.records.checks import ImageError
from florence2_jax.records.excluded import Excluded
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import TASKS
from florence2_jax.tasks.targets import Budget, Drop, Order
from florence2_jax.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer
from florence2_jax.typing import Size, UserError

Batch: TypeAlias = dict[str, Any]
"""Arrays by name. To the devices go `image` uint8[B,Y,X,3], all of one size in a step;
`prompt_ids` int32[B,K,L];
`target_ids` int32[B,K,T], `<s> ... </s>`, then padding (a prompt that is missing has nothing else);
`task_ids` int32[B,K], the row of `TASKS`, -1 where missing. Packed targets share the row of their
image: `target_ids` int32[B,N], and `target_prompts` int32[B,G] says which prompt each of its chunks
belongs to (`packing.py`). For the books are `index` int64[B] (record of the store), `store`
int64[B] (part of the mixture), `is_substitute` bool[B], `num_dropped` int32[B] (regions that did
not fit their targets, and prompts that did not fit) and `num_unplaced` int32[B] (targets that found
no room in a packed row)."""

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
    image_sizes: Mapping[Size, float] = dataclasses.field(default_factory=dict)
    """Sizes that the steps take turns in, by their weights; empty: always `image_size`."""
    weights: Mapping[str, float]
    order: Order = "random"
    drop: Drop = "smallest"
    pack_length: int = 0  # Cells that the targets of an image share; 0: each has its own.
    scaled_decode: bool = False  # See `transforms.decode_scaled`.
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    negatives: NegativesConfig = dataclasses.field(default_factory=NegativesConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadExamples:
    """Index of a record -> its image and `num_prompts` (prompt, target) pairs.

    A record that cannot be used (damaged, excluded, or without an example of these tasks) is
    replaced by the next one that can, and is written to `set_aside`, once by each process.
    """

    store: RecordStore
    tokenizer: Tokenizer
    spec: BatchSpec
    set_aside: Path | None = None
    part: int = 0  # Number of the store in the mixture.
    name: str = ""  # Its name there.
    pool: NamePool = dataclasses.field(default_factory=NamePool)  # For names that are absent.
    excluded: Excluded = dataclasses.field(default_factory=Excluded)  # Is not trained on.

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
            place = {"index": np.int64(index), "store": np.int64(self.part)}
            return row | place | {"is_substitute": np.bool_(offset > 0)}
        raise UserError(f"{tries} records from {element} on are unusable, the last one: {reason}")

    def _row(self, record: Record, rng: np.random.Generator) -> Batch:
        spec = self.spec
        if why := self.excluded.why(record.id):
            raise EmptyRecordError(why)
        # What finds no room in a packed row has a spare.
        number = 2 * spec.num_prompts if spec.pack_length else spec.num_prompts
        view, window = random_crop(
            record,
            rng,
            spec.augment,
            aspect_ratio=spec.image_size[0] / spec.image_size[1] if spec.image_sizes else None,
            is_useful=lambda view: feeds(view, spec.weights),
        )
        drawn = draw_examples(view, spec.weights, number, rng)
        # What is absent is absent from the whole image, not only from the view.
        examples = [vary_names(one, record, self.pool, rng, spec.negatives) for one in drawn]
        if not examples:
            raise EmptyRecordError(f"record {record.id} feeds none of the tasks of this run")
        pixels = self._pixels(record, window, rng)
        make = self._packed if spec.pack_length else self._one_per_prompt
        row = make(examples, view.size, rng)
        if (row["task_ids"] < 0).all():
            raise EmptyRecordError(
                f"record {record.id}: no prompt fits {spec.prompt_length} tokens"
            )
        return {"image": pixels} | row

    def _pixels(self, record: Record, window: Window, rng: np.random.Generator) -> NDArray:
        spec, (x0, y0, x1, y1) = self.spec, window
        (width, height), wanted = record.size, spec.image_size
        if spec.scaled_decode:
            whole = wanted[0] * width / (x1 - x0), wanted[1] * height / (y1 - y0)
            image = decode_scaled(record.image, (math.ceil(whole[0]), math.ceil(whole[1])))
        else:
            image = decode(record.image)
        if why := self.excluded.why(record.id, image):
            raise EmptyRecordError(why)
        box = None
        if window != (0, 0, width, height):
            across, down = image.width / width, image.height / height
            box = (x0 * across, y0 * down, x1 * across, y1 * down)
        pixels = resize(image, wanted, box=box)
        if not (spec.augment.brightness or spec.augment.contrast or spec.augment.saturation):
            return pixels  # To an image and back takes 0.4 ms at 768 px.
        jittered = jitter_colours(Image.fromarray(pixels), rng, spec.augment)
        return np.asarray(jittered, np.uint8)

    def _one_per_prompt(
        self, examples: Sequence[Example], size: Size, rng: np.random.Generator
    ) -> Batch:
        spec = self.spec
        prompt_ids, task_ids = self._no_prompts()
        target_ids = np.full((spec.num_prompts, spec.target_length), PAD_ID, np.int32)
        num_dropped = 0
        for k, example in enumerate(examples):
            prompt = self._prompt(example)
            if prompt is None:
                num_dropped += 1
                continue
            target = self._target(example, size, rng, spec.target_length)
            prompt_ids[k, : len(prompt)] = prompt
            target_ids[k, : len(target.ids)] = target.ids
            task_ids[k] = TASK_IDS[example.task.token]
            num_dropped += target.num_dropped
        return {
            "prompt_ids": prompt_ids,
            "target_ids": target_ids,
            "task_ids": task_ids,
            "num_dropped": np.int32(num_dropped),
            "num_unplaced": np.int32(0),
        }

    def _packed(self, examples: Sequence[Example], size: Size, rng: np.random.Generator) -> Batch:
        spec = self.spec
        prompts = [self._prompt(example) for example in examples]
        pairs = zip(examples, prompts, strict=True)
        asked = [(example, prompt) for example, prompt in pairs if prompt is not None]
        whole = functools.cache(
            lambda draw: self._target(asked[draw][0], size, rng, spec.target_length)
        )

        def write(draw: int, max_length: int) -> Written | None:
            target, task = whole(draw), asked[draw][0].task
            if len(target.ids) <= max_length:
                return target
            # A mask may have fewer points, but with half of them it is another shape.
            if task.grammar != "masks" or len(target.ids) > 2 * max_length:
                return None
            shorter = self._target(asked[draw][0], size, rng, max_length)
            return shorter if shorter.num_dropped <= target.num_dropped else None

        filling = fill_row(
            len(asked), write, num_prompts=spec.num_prompts, pack_length=spec.pack_length
        )
        targets = list(filling.placed.values())
        target_ids, target_prompts = lay_out([t.ids for t in targets], spec.pack_length)
        prompt_ids, task_ids = self._no_prompts()
        for k, draw in enumerate(filling.placed):
            example, prompt = asked[draw]
            prompt_ids[k, : len(prompt)] = prompt
            task_ids[k] = TASK_IDS[example.task.token]
        num_dropped = sum(t.num_dropped for t in targets)
        return {
            "prompt_ids": prompt_ids,
            "target_ids": target_ids,
            "target_prompts": target_prompts,
            "task_ids": task_ids,
            "num_dropped": np.int32(num_dropped + prompts[: spec.num_prompts].count(None)),
            "num_unplaced": np.int32(filling.num_unplaced),
        }

    def _no_prompts(self) -> tuple[Int[NDArray, "K L"], Int[NDArray, " K"]]:
        shape = self.spec.num_prompts, self.spec.prompt_length
        return np.full(shape, PAD_ID, np.int32), np.full(shape[0], -1, np.int32)

    def _prompt(self, example: Example) -> list[int] | None:
        """Its ids, or None: half a question would teach the answer to another one."""
        prompt = wrap_prompt(self.tokenizer.encode(example.prompt))
        return prompt if len(prompt) <= self.spec.prompt_length else None

    def _target(
        self, example: Example, size: Size, rng: np.random.Generator, max_length: int
    ) -> Written:
        # Two of its ids are `<s>` and `</s>`.
        encode = functools.cache(self.tokenizer.encode)  # What fits is what is written at last.
        budget = Budget(lambda text: len(encode(text)), max_length - 2)
        target = target_of(
            example, size, order=self.spec.order, drop=self.spec.drop, rng=rng, budget=budget
        )
        ids = [BOS_ID, *encode(target.text), EOS_ID]
        return Written(ids, target.num_dropped)

    def _note(self, index: int, reason: str) -> None:
        place = self.set_aside, self.name, index
        if self.set_aside is None or place in _noted:
            return
        _noted.add(place)
        note = {"store": self.name} if self.name else {}
        note |= {"index": index, "reason": reason}
        line = json.dumps(note, ensure_ascii=False) + "\n"
        with self.set_aside.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # Several workers share the list.
            file.write(line)


_noted: set[tuple[Path | None, str, int]] = set()


class EmptyRecordError(ValueError):
    """A sound record that has nothing to teach in this run."""


def wrap_prompt(ids: list[int]) -> list[int]:
    """`<s> ids </s>`, as the encoder reads a prompt."""
    return [BOS_ID, *ids, EOS_ID]
