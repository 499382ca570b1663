# SPDX-License-Identifier: Apache-2.0
"""(image, task) -> typed answer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.data.pipeline import wrap_prompt
from florence2_jax.data.transforms import resize
from florence2_jax.inference.decoding import greedy
from florence2_jax.models.config import Florence2Config
from florence2_jax.tasks.answers import Answer, parse_answer
from florence2_jax.tasks.registry import Task, prompt_text
from florence2_jax.text.tokenizer import PAD_ID, Tokenizer
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.state import init_params, model_graph
from florence2_jax.typing import Size, UserError

_PROMPT_MULTIPLE = 16  # Prompts are padded to a multiple, so that few shapes are compiled.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """A typed answer, the text it was read from, and the mean log-probability of its tokens."""

    answer: Answer
    raw: str
    mean_log_prob: float


class Predictor:
    """A model ready to be asked.

    Attributes:
        max_length: tokens of an answer, at most.
    """

    def __init__(
        self,
        config: Florence2Config,
        params: Any,
        tokenizer: Tokenizer,
        *,
        max_length: int = 256,
    ):
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.max_length = min(max_length, config.text.max_positions)
        self._graphdef = model_graph(config)

    @classmethod
    def load(cls, workdir: str | Path, *, max_length: int | None = None) -> "Predictor":
        """Opens the newest checkpoint of a run.

        Args:
            max_length: of answers, by default that of the targets the run learnt from.

        Raises:
            UserError: if the directory holds no run or no finished checkpoint.
        """
        workdir = Path(workdir)
        config, tokenizer = workdir_lib.load_model(workdir)
        inputs = workdir_lib.load_config(workdir).get("input", {})
        length = max_length or inputs.get("target_length", 256)
        if not (workdir / workdir_lib.CHECKPOINTS).is_dir():
            raise UserError(f"{workdir} holds no checkpoints: train first")
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(lambda: init_params(config, jax.random.key(0))),
        )
        with Checkpoints(workdir / workdir_lib.CHECKPOINTS) as checkpoints:
            params = checkpoints.restore_params(abstract)
        return cls(config, params, tokenizer, max_length=length)

    def ask(self, image: Image.Image, questions: Sequence[tuple[Task, str]]) -> list[Prediction]:
        """Answers several questions about one image, which is encoded once.

        Args:
            image: any size and mode; answers are in its pixels.
            questions: a task and its input text ("" where it takes none) each.
        """
        if not questions:
            return []
        prompts = [prompt_text(task, text) for task, text in questions]
        pixels = resize(image.convert("RGB"), self.config.image_size)
        ids, scores = self.generate(pixels[None], [prompts])
        return [
            self.read(task, ids[0, k], scores[0, k], image.size)
            for k, (task, _) in enumerate(questions)
        ]

    def generate(
        self,
        images: UInt8[NDArray, "B Y X 3"],
        prompts: Sequence[Sequence[str]],
        *,
        num_prompts: int | None = None,
    ) -> tuple[NDArray, NDArray]:
        """Generates for K or fewer prompts per image.

        Args:
            num_prompts: K, by default the most prompts any image has.

        Returns:
            int32 ids and float32 log-probabilities, both [B, K, T]; rows of missing prompts are
            padding. Each new (B, K) and each 16 tokens of prompt more are compiled once.

        Raises:
            UserError: if a prompt is too long.
        """
        rows = [[wrap_prompt(self.tokenizer.encode(text)) for text in row] for row in prompts]
        most = num_prompts or max(map(len, rows))
        longest = max((len(ids) for row in rows for ids in row), default=1)
        room = self.config.text.max_positions - self.config.num_image_tokens
        if longest > room:
            raise UserError(f"a prompt has {longest} tokens, the model has room for {room}")
        length = min(room, -(-longest // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE)
        prompt_ids = np.full((len(images), most, length), PAD_ID, np.int32)
        for b, row in enumerate(rows):
            for k, ids in enumerate(row):
                prompt_ids[b, k, : len(ids)] = ids
        ids, scores = greedy(
            self.params, images, prompt_ids, graphdef=self._graphdef, max_length=self.max_length
        )
        return np.asarray(ids), np.asarray(scores)

    def read(self, task: Task, ids: NDArray, scores: NDArray, size: Size) -> Prediction:
        """Turns one row of generated ids into a typed answer in pixels of an image of `size`."""
        raw = self.tokenizer.decode(ids.tolist())
        count = max(1, int((ids != PAD_ID).sum()) - 1)  # `<s>` is forced.
        return Prediction(
            answer=parse_answer(task, raw, size),
            raw=raw,
            mean_log_prob=float(scores.sum()) / count,
        )
