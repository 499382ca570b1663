# SPDX-License-Identifier: Apache-2.0
"""(image, task) -> typed answer: the way to ask a model from Python.

from florence2_jax import Predictor

model = Predictor.load("microsoft/Florence-2-base")       # or a folder, or a run's workdir
model.ask("photo.jpg", "<OD>").answer.regions
model.ask(["a.jpg", "b.jpg"], ["<CAPTION>", ("<VQA>", "What colour is the car?")])
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.conversion.load import load_pretrained
from florence2_jax.data.loading import wrap_prompt
from florence2_jax.data.transforms import decode, resize
from florence2_jax.inference.decoding import generate
from florence2_jax.inference.generation_config import GenerationConfig
from florence2_jax.inference.rules import Constraint
from florence2_jax.inference.scores import AnswerScores, score_answer, with_scores
from florence2_jax.models.config import Florence2Config
from florence2_jax.records.checks import ImageError, to_rgb
from florence2_jax.tasks.answers import Answer, parse_answer
from florence2_jax.tasks.grammar import Grammar
from florence2_jax.tasks.registry import Task, get_task, prompt_text
from florence2_jax.tasks.targets import clean_text
from florence2_jax.text.locations import coordinates_text
from florence2_jax.text.tokenizer import PAD_ID, Tokenizer
from florence2_jax.training.state import model_graph
from florence2_jax.typing import Size, UserError

AnyImage: TypeAlias = str | Path | bytes | Image.Image | np.ndarray
"""A file, its bytes, a Pillow image, or uint8 RGB pixels [Y, X, 3]."""

TaskInput: TypeAlias = str | Sequence[str] | Sequence[float]
"""A text; names, for open-vocabulary detection; a box `(x0, y0, x1, y1)` in pixels."""

Question: TypeAlias = str | Task | tuple[str | Task, TaskInput]
"""A task (`"<OD>"`, `"od"`), with its input where it takes one."""

_PROMPT_MULTIPLE = 16  # Prompts are padded to a multiple, so that few shapes are compiled.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """A typed answer and how sure the model was.

    Attributes:
        answer: its regions carry the score of their locations.
        raw: the text it was read from.
        mean_log_prob: of its tokens, the forced `<s>` not among them.
        scores: of every label and polygon besides, see `inference.scores`.
    """

    answer: Answer
    raw: str
    mean_log_prob: float
    scores: AnswerScores


class Predictor:
    """A model ready to be asked.

    Attributes:
        generation: how it generates.
        is_constrained: whether only what its task's grammar allows may be written, so that every
            answer parses.
    """

    def __init__(
        self,
        config: Florence2Config,
        params: Any,
        tokenizer: Tokenizer,
        *,
        generation: GenerationConfig = GenerationConfig(),
        is_constrained: bool = False,
    ):
        self.config, self.params, self.tokenizer = config, params, tokenizer
        length = min(generation.num_new_tokens, config.text.max_positions)
        self.generation = dataclasses.replace(generation, max_new_tokens=length, max_length=None)
        self.is_constrained = is_constrained
        self._graphdef = model_graph(config)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: str | None = None,
        is_constrained: bool = False,
        **options: Any,
    ) -> "Predictor":
        """Opens a run's workdir, a folder of transformers or Microsoft, or a hub name.

        Args:
            dtype: to compute in, by default the workdir's, or float32.
            options: fields of `GenerationConfig` that replace the model's own defaults, such as
                `num_beams=1`.

        Raises:
            UserError: if there is no model, or an option is unknown or impossible.
        """
        found = load_pretrained(model, dtype=dtype)
        defaults = dict(found.generation)
        if {"max_new_tokens", "max_length"} & options.keys():
            defaults.pop("max_new_tokens", None)
            defaults.pop("max_length", None)
        known = {field.name for field in dataclasses.fields(GenerationConfig)}
        if unknown := options.keys() - known:
            raise UserError(f"{', '.join(sorted(unknown))}: no option of generation; there are "
                            f"{', '.join(sorted(known))}")  # fmt: skip
        generation = GenerationConfig(**(defaults | options))
        return cls(
            found.config,
            found.params,
            found.tokenizer,
            generation=generation,
            is_constrained=is_constrained,
        )

    @property
    def max_length(self) -> int:
        """Tokens of an answer, at most."""
        return self.generation.num_new_tokens

    def ask(
        self,
        images: AnyImage | Sequence[AnyImage],
        questions: Question | list[Question],
        *,
        batch_size: int = 8,
    ) -> Any:
        """Asks one question or a list of them about one image or a list.

        An image is encoded once for all its questions. Photos are turned upright as their EXIF
        orientation says; answers, and regions that are asked about, are in pixels of the upright
        image.

        Args:
            batch_size: images at a time.

        Returns:
            A `Prediction`; a list of them where either is a list; lists of lists, by image, where
            both are.

        Raises:
            UserError: if an image cannot be read, a task is unknown, or an input is missing or
                unfit.
        """
        given = [images] if isinstance(images, AnyImage) else images
        wanted = questions if isinstance(questions, list) else [questions]
        pictures = [_open(image) for image in given]
        asked = [[_read_question(q, picture.size) for q in wanted] for picture in pictures]
        answers: list[Any] = []
        for start in range(0, len(pictures) if wanted else 0, batch_size):
            answers += self._ask_batch(
                pictures[start : start + batch_size],
                asked[start : start + batch_size],
                num_images=min(batch_size, len(pictures)),
            )
        answers = answers or [[] for _ in pictures]
        if not isinstance(questions, list):
            answers = [row[0] for row in answers]
        return answers[0] if isinstance(images, AnyImage) else answers

    def _ask_batch(
        self,
        pictures: Sequence[Image.Image],
        asked: Sequence[Sequence[tuple[Task, str]]],
        *,
        num_images: int,
    ) -> list[list[Prediction]]:
        width, height = self.config.image_size
        pixels = np.zeros((num_images, height, width, 3), np.uint8)
        for row, picture in enumerate(pictures):
            pixels[row] = resize(picture, self.config.image_size)
        missing: list[Sequence[tuple[Task, str]]] = [()] * (num_images - len(pictures))
        ids, log_probs = self.generate(pixels, [*asked, *missing])
        return [
            [
                self.read(task, ids[b, k], log_probs[b, k], picture.size)
                for k, (task, _) in enumerate(row)
            ]
            for b, (picture, row) in enumerate(zip(pictures, asked, strict=True))
        ]

    def generate(
        self,
        images: UInt8[NDArray, "B Y X 3"],
        asked: Sequence[Sequence[tuple[Task, str]]],
        *,
        num_prompts: int | None = None,
    ) -> tuple[NDArray, NDArray]:
        """Generates the best answer to K or fewer prompts per image.

        Args:
            asked: for each image its tasks and prompts (`prompt_text`).
            num_prompts: K, by default the most prompts any image has.

        Returns:
            int32 ids and float32 log-probabilities, both [B, K, T]; rows of missing prompts are
            padding. Each new (B, K) and each 16 tokens of prompt more are compiled once.

        Raises:
            UserError: if a prompt is too long.
        """
        most = num_prompts or max(map(len, asked))
        rows = [[wrap_prompt(self.tokenizer.encode(text)) for _, text in row] for row in asked]
        longest = max((len(ids) for row in rows for ids in row), default=1)
        room = self.config.text.max_positions - self.config.num_image_tokens
        if longest > room:
            raise UserError(f"a prompt has {longest} tokens, the model has room for {room}")
        length = min(room, math.ceil(longest / _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE)
        prompt_ids = np.full((len(images), most, length), PAD_ID, np.int32)
        ngram_sizes = np.zeros((len(images), most), np.int32)
        states = np.zeros((len(images), most), np.int32)
        for b, row in enumerate(asked):
            for k, (task, _) in enumerate(row):
                prompt_ids[b, k, : len(rows[b][k])] = rows[b][k]
                ngram_sizes[b, k] = self.generation.ngram_size(task.token)
                if self.is_constrained:
                    states[b, k] = self._grammar.initial[task.token]
        generated = generate(
            self.params,
            images,
            prompt_ids,
            graphdef=self._graphdef,
            config=self.generation,
            ngram_sizes=ngram_sizes,
            grammar=Constraint.of(self._grammar) if self.is_constrained else None,
            initial_states=states if self.is_constrained else None,
            first_location_id=self.tokenizer.first_location_id,
        )
        return np.asarray(generated.ids[:, :, 0]), np.asarray(generated.log_probs[:, :, 0])

    @functools.cached_property
    def _grammar(self) -> Grammar:
        return Grammar.build(self.tokenizer)

    def read(self, task: Task, ids: NDArray, log_probs: NDArray, size: Size) -> Prediction:
        """Turns one row of generated ids into a typed answer in pixels of an image of `size`."""
        raw = self.tokenizer.decode(ids.tolist())
        scores = score_answer(task, ids, log_probs, self.tokenizer)
        count = max(1, int((ids != PAD_ID).sum()) - 1)  # `<s>` is forced.
        return Prediction(
            answer=with_scores(parse_answer(task, raw, size), scores),
            raw=raw,
            mean_log_prob=float(log_probs.sum()) / count,
            scores=scores,
        )


def task_input(task: Task, given: TaskInput, size: Size) -> str:
    """What the prompt of a task is filled with.

    Args:
        given: a text, names or a box, whatever the task takes; "" for nothing.
        size: of the upright image, in pixels; a box must lie in it.

    Raises:
        UserError: if it is not what the task takes.
    """
    if isinstance(given, str):
        is_tokens = task.input == "region" and given.startswith("<loc_")
        return given if is_tokens else clean_text(given)
    values = list(given)
    if all(isinstance(value, str) for value in values):
        if len(values) > 1 and task.grammar != "named_boxes":
            raise UserError(f"{task.token} takes one text, got {len(values)}")
        return "<and>".join(clean_text(str(value)) for value in values)
    if task.input != "region":
        raise UserError(f"{task.token} takes {task.input}, not {given!r}")
    if len(values) != 4:
        raise UserError(f"{task.token}: a box has four numbers (x0, y0, x1, y1), not {given!r}")
    x0, y0, x1, y1 = box = [float(value) for value in values]
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise UserError(f"{task.token}: {tuple(box)} is no box inside {size[0]} x {size[1]} px")
    return coordinates_text(box, size)


def _read_question(question: Question, size: Size) -> tuple[Task, str]:
    named, given = question if isinstance(question, tuple) else (question, "")
    task = named if isinstance(named, Task) else get_task(named)
    return task, prompt_text(task, task_input(task, given, size))


def _open(image: AnyImage) -> Image.Image:
    """Any image as upright RGB. Raises UserError naming the file."""
    where = f"{image}: " if isinstance(image, str | Path) else ""
    try:
        if isinstance(image, str | Path):
            image = Path(image).read_bytes()
        if isinstance(image, bytes):
            return decode(image, upright=True)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(
                    f"pixels must be uint8 RGB [Y, X, 3], not {image.dtype} {list(image.shape)}"
                )
            return Image.fromarray(image)
        return to_rgb(image, upright=True)
    except OSError as error:
        raise UserError(f"{where}{error.strerror or error}") from error
    except ImageError as error:
        raise UserError(f"{where}{error}") from error
