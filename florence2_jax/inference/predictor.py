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

from florence2_jax.data.pipeline import fit_prompt
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """A typed answer, the text it was read from, and the mean log-probability of its tokens."""

    answer: Answer
    raw: str
    mean_log_prob: float


class Predictor:
    """A model ready to be asked.

    Attributes:
        prompt_length, max_length: tokens of a prompt and of an answer; longer prompts are cut.
    """

    def __init__(
        self,
        config: Florence2Config,
        params: Any,
        tokenizer: Tokenizer,
        *,
        prompt_length: int = 64,
        max_length: int = 256,
    ):
        positions = config.text.max_positions
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.prompt_length = min(prompt_length, positions - config.num_image_tokens)
        self.max_length = min(max_length, positions)
        self._graphdef = model_graph(config)

    @classmethod
    def load(cls, workdir: str | Path, **lengths: int) -> "Predictor":
        """Opens the newest checkpoint of a run.

        Args:
            lengths: `prompt_length` and `max_length`, by default those the run trained with.

        Raises:
            UserError: if the directory holds no run or no finished checkpoint.
        """
        workdir = Path(workdir)
        config, tokenizer = workdir_lib.load_model(workdir)
        inputs = workdir_lib.load_config(workdir).get("input", {})
        trained = {"prompt_length": "prompt_length", "max_length": "target_length"}
        lengths = {k: inputs[v] for k, v in trained.items() if v in inputs} | lengths
        if not (workdir / workdir_lib.CHECKPOINTS).is_dir():
            raise UserError(f"{workdir} holds no checkpoints: train first")
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(lambda: init_params(config, jax.random.key(0))),
        )
        with Checkpoints(workdir / workdir_lib.CHECKPOINTS) as checkpoints:
            params = checkpoints.restore_params(abstract)
        return cls(config, params, tokenizer, **lengths)

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
            padding. Each new (B, K) is compiled once.
        """
        most = num_prompts or max(len(row) for row in prompts)
        prompt_ids = np.full((len(images), most, self.prompt_length), PAD_ID, np.int32)
        for b, row in enumerate(prompts):
            for k, text in enumerate(row):
                ids = fit_prompt(self.tokenizer.encode(text), self.prompt_length)
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
