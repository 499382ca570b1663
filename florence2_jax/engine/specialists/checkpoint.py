# SPDX-License-Identifier: Apache-2.0
"""Our own checkpoints as annotators, in every task.

What a task asks builds on what the record holds when it is asked: groundings on its texts, labels
and masks of regions on its regions. To ground the texts that a checkpoint writes, name it twice,
with the captions first; its parameters are loaded once for both.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from florence2_jax.conversion.load import is_workdir
from florence2_jax.data.transforms import resize
from florence2_jax.engine.specialists.base import KINDS, Annotations, SpecialistError
from florence2_jax.engine.specialists.checkpoint_answers import (
    KIND_OF_TASK,
    AnswerBook,
    Asked,
    questions_of,
)
from florence2_jax.engine.specialists.configured import (
    ImageSpecialist,
    check_model,
    check_share,
    folder_digest,
)
from florence2_jax.inference.predictor import Predictor
from florence2_jax.records.schema import Record
from florence2_jax.tasks.registry import Task, get_task
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.typing import UserError
from florence2_jax.version import __version__

_Rows: TypeAlias = list[list[Asked]]


@dataclasses.dataclass(kw_only=True, eq=False)
class Checkpoint(ImageSpecialist):
    """The answers of a checkpoint, with its own scores.

    Settings:
        model: a workdir, a folder or a hub name, as for `Predictor.load`.
        tasks: as `get_task` finds them.
        names: for open-vocabulary detection; by default the categories that the record has.
        questions: for `<VQA>`.
        num_beams: 1 is greedy.
        max_new_tokens: of an answer; 0 for what the model was made for.
        is_constrained: whether only what a task's grammar allows is written.
        dtype: to compute in, "" for what the model says.
        max_prompts: of one image at a time; more go in several turns.
        max_questions: of one task about one image, the first.
        mask_iou: a mask whose box overlaps its region's by less is of something else.
    """

    model: str
    tasks: tuple[str, ...]
    names: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    num_beams: int = 1
    max_new_tokens: int = 0
    is_constrained: bool = False
    dtype: str = ""
    max_prompts: int = 8
    max_questions: int = 64
    mask_iou: float = 0.3

    maker_kind = "checkpoint"
    not_in_version = frozenset({"max_prompts"})

    def check(self) -> None:
        check_model(self.model)
        check_share("mask_iou", self.mask_iou)
        tokens = [get_task(task).token for task in self.tasks]
        if not tokens or len(set(tokens)) < len(tokens):
            raise UserError(f"tasks: {list(self.tasks)} must be one or more, each once")
        if "<VQA>" in tokens and not self.questions:
            raise UserError("questions: <VQA> needs some to ask")
        for name in ("num_beams", "max_prompts", "max_questions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not 1 or more")
        made = {KIND_OF_TASK[token] for token in tokens}
        self.kinds = tuple(kind for kind in KINDS if kind in made)

    def title(self) -> str:
        return f"checkpoint:{self.model}"

    def software(self) -> str:
        return __version__

    def content(self) -> str:
        folder = Path(self.model)
        if not folder.is_dir():
            return ""
        # Beside its checkpoints, a run's workdir holds logs, which say nothing about the model.
        return folder_digest(folder / workdir_lib.CHECKPOINTS if is_workdir(folder) else folder)

    def load(self) -> None:
        options: dict[str, Any] = {"num_beams": self.num_beams}
        options |= {"max_new_tokens": self.max_new_tokens} if self.max_new_tokens else {}
        try:
            self._predictor = _opened(
                self.model,
                self.content(),
                self.dtype or None,
                self.is_constrained,
                tuple(options.items()),
            )
        except UserError as error:
            raise SpecialistError(f"checkpoint: {error}") from error

    def look(
        self, records: Sequence[Record], images: Sequence[Image.Image]
    ) -> Sequence[Annotations]:
        tasks = [get_task(task) for task in self.tasks]
        asked = [[a for task in tasks for a in self._questions(task, r)] for r in records]
        books = [AnswerBook(r, self.maker, mask_iou=self.mask_iou) for r in records]
        size = self._predictor.config.image_size
        # Few shapes, as each is compiled once; yet half a batch must take half the memory.
        num_rows = min(max(self.batch_size, len(records)), _power_of_two(len(records)))
        pixels = np.zeros((num_rows, size[1], size[0], 3), np.uint8)
        for row, image in enumerate(images):
            pixels[row] = resize(image, size)
        most = max(map(len, asked))
        width = min(self.max_prompts, _power_of_two(most))
        for start in range(0, most, width):
            self._turn(pixels, [row[start : start + width] for row in asked], width, books)
        return [book.annotations() for book in books]

    def _questions(self, task: Task, record: Record) -> list[Asked]:
        asked = questions_of(task, record, names=self.names, questions=self.questions)
        room = self._predictor.config.text.max_positions - self._predictor.config.num_image_tokens
        encode = self._predictor.tokenizer.encode
        fits = (a for a in asked if len(encode(a.prompt)) + 2 <= room)  # `<s>` and `</s>`.
        return list(fits)[: self.max_questions]

    def _turn(
        self, pixels: np.ndarray, asked: _Rows, width: int, books: Sequence[AnswerBook]
    ) -> None:
        """Asks one turn of prompts about all images, each encoded once."""
        padding: _Rows = [[] for _ in range(len(pixels) - len(asked))]
        prompts = [[(a.task, a.prompt) for a in row] for row in (*asked, *padding)]
        ids, log_probs = self._predictor.generate(pixels, prompts, num_prompts=width)
        for b, (row, book) in enumerate(zip(asked, books, strict=True)):
            for k, a in enumerate(row):
                size = book.record.size
                book.add(a, self._predictor.read(a.task, ids[b, k], log_probs[b, k], size))


def _power_of_two(number: int) -> int:
    """The smallest that is no less."""
    return 1 << max(0, number - 1).bit_length()


@functools.lru_cache(maxsize=1)
def _opened(
    model: str, content: str, dtype: str | None, is_constrained: bool, options: tuple
) -> Predictor:
    """A model, loaded once for all the specialists of a process that ask it; `content` is its."""
    return Predictor.load(model, dtype=dtype, is_constrained=is_constrained, **dict(options))
