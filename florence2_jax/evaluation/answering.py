# SPDX-License-Identifier: Apache-2.0
"""Questions -> answers, in batches of one shape, on every device of this process.

Each device has a copy of the model and takes the next batch when it is free, so that none waits for
the longest answer of another. Images are read while the devices write.
"""

import copy
import dataclasses
import math
import queue
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from florence2_jax.data.transforms import decode, resize
from florence2_jax.evaluation.answer_log import Line, Reply, SetAside
from florence2_jax.evaluation.questions import Asking, Question
from florence2_jax.inference.predictor import Predictor
from florence2_jax.records.checks import ImageError
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """Questions `first` to `stop` of a record, which share one look at its image."""

    record: int
    first: int
    stop: int

    @property
    def numbers(self) -> range:
        """Of its questions in the record."""
        return range(self.first, self.stop)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of every batch: images, prompts per image. An incomplete batch is padded, never scored."""

    num_rows: int
    num_prompts: int


def rows_of(counts: Sequence[int], records: Iterable[int], num_prompts: int) -> list[Row]:
    """Rows of at most `num_prompts` questions, by record; none of records without questions."""
    return [
        Row(record, first, min(first + num_prompts, counts[record]))
        for record in records
        for first in range(0, counts[record], num_prompts)
    ]


def batches_of(rows: Sequence[Row], num_rows: int) -> list[list[Row]]:
    """Rows in batches; the last one may be shorter."""
    return [list(rows[start : start + num_rows]) for start in range(0, len(rows), num_rows)]


def replicas(predictor: Predictor, devices: Sequence[Any] | None = None) -> list[Predictor]:
    """A copy of the model on each device, by default on every one of this process.

    On CPUs one: what JAX calls further devices there are the same cores.
    """
    if devices is None:
        devices = jax.local_devices()
        devices = devices[:1] if devices[0].platform == "cpu" else devices
    copies = []
    for device in devices:
        one = copy.copy(predictor)
        one.params = jax.device_put(predictor.params, device)
        copies.append(one)
    return copies


class Answering:
    """Asks a model on one or several devices about records of a store."""

    def __init__(
        self, models: Sequence[Predictor], store: RecordStore, asking: Asking, shape: Shape
    ):
        self.store, self.asking, self.shape = store, asking, shape
        self._models = list(models)
        self._free: queue.SimpleQueue[Predictor] = queue.SimpleQueue()
        for model in models:
            self._free.put(model)

    def run(
        self, batches: Sequence[Sequence[Row]], *, seen: Callable[[int], Iterable[int]] | None
    ) -> Generator[list[Line], None, None]:
        """What comes of each batch, in their order.

        Args:
            seen: for a blind baseline, the records whose image is shown in place of the record's
                own; the first that can be decoded is.
        """
        # Twice as many threads as devices: images of the next batch are read meanwhile.
        with ThreadPoolExecutor(2 * len(self._models)) as pool:
            yield from pool.map(lambda batch: self._answer(batch, seen), batches)

    def _answer(
        self, batch: Sequence[Row], seen: Callable[[int], Iterable[int]] | None
    ) -> list[Line]:
        lines: list[Line] = []
        width, height = self._models[0].config.image_size
        images = np.zeros((self.shape.num_rows, height, width, 3), np.uint8)
        asked: list[list[Question]] = [[] for _ in range(self.shape.num_rows)]
        records: list[Record | None] = [None] * self.shape.num_rows
        for place, row in enumerate(batch):
            record = self.store[row.record]
            try:
                own = self._pixels(record)
                images[place] = own if seen is None else self._other(seen(row.record), own)
            except ImageError as error:
                lines.append(SetAside(record=row.record, reason=f"{record.id}: {error}"))
                continue
            records[place] = record
            asked[place] = self.asking.questions(record)[0][row.first : row.stop]
        model = self._free.get()
        try:
            prompts = [[(one.asked, one.prompt) for one in some] for some in asked]
            ids, scores = model.generate(images, prompts, num_prompts=self.shape.num_prompts)
        except UserError as error:
            ids_ = ", ".join(record.id for record in records if record is not None)
            raise UserError(f"{self.store.directory}: {error} (among records {ids_})") from error
        finally:
            self._free.put(model)
        for place, row in enumerate(batch):
            record = records[place]
            for k, question in enumerate(asked[place] if record else ()):
                assert record is not None
                found = model.read(question.asked, ids[place, k], scores[place, k], record.size)
                reply = Reply.of(
                    row.record, question.number, seen is not None, question.prompt, found
                )
                lines.append(reply)
        return lines

    def _pixels(self, record: Record) -> UInt8[NDArray, "Y X 3"]:
        return resize(decode(record.image), self._models[0].config.image_size)

    def _other(
        self, candidates: Iterable[int], own: UInt8[NDArray, "Y X 3"]
    ) -> UInt8[NDArray, "Y X 3"]:
        """The first image that can be shown; a grey one if none can."""
        for index in candidates:
            try:
                return self._pixels(self.store[index])
            except (UserError, ImageError):
                continue
        return np.full_like(own, 128)


def prompts_per_image(counts: Sequence[int], most: int) -> int:
    """K of the batches: as many as the record with most questions has, up to `most`.

    Rows are evened out: eleven questions at most eight a row are rows of six and five.
    """
    largest = max(counts, default=1) or 1
    return math.ceil(largest / math.ceil(largest / most))
