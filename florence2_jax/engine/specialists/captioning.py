# SPDX-License-Identifier: Apache-2.0
"""Texts about whole images by an image-to-text model (BLIP, GIT and their like)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, get_args

from PIL import Image

from florence2_jax.engine.specialists.base import Annotations
from florence2_jax.engine.specialists.configured import cleaned
from florence2_jax.engine.specialists.transformers_model import (
    INSTALL,
    TransformersSpecialist,
    alike,
    image_inputs,
    load_model,
    needs,
    on_device,
)
from florence2_jax.records.schema import Granularity, Record, Text
from florence2_jax.typing import UserError


class Captioner:
    """An image-to-text model that was loaded; generates greedily, or with beams."""

    def __init__(self, module: Any, processor: Any, *, max_new_tokens: int, num_beams: int = 1):
        self.module, self.processor = module, processor
        self.options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}

    @classmethod
    def load(cls, model: str, *, max_new_tokens: int, num_beams: int = 1, **where) -> "Captioner":
        """Raises SpecialistError if there is no such model; `where` is as for `load_model`."""
        module, processor = load_model(
            "AutoModelForImageTextToText", model, processor="AutoProcessor", **where
        )
        return cls(module, processor, max_new_tokens=max_new_tokens, num_beams=num_beams)

    def caption(
        self, images: Sequence[Image.Image], prompt: str = ""
    ) -> list[tuple[str, float | None]]:
        """Of each image a text, perhaps empty, and the geometric mean of its tokens' probabilities.

        Args:
            prompt: what the text begins with, or the question the model is asked; not in the text.
        """
        texts: list[tuple[str, float | None]] = [("", None)] * len(images)
        options = {"text": prompt} if prompt else {}
        inputs = image_inputs(self.processor, images, **options)
        for indices, tensors in alike(inputs):
            for i, answer in zip(indices, self._generate(tensors), strict=True):
                text, score = answer
                if prompt and text.lower().startswith(prompt.lower()):
                    text = text[len(prompt) :]
                texts[i] = cleaned(text), score
        return texts

    def _generate(self, tensors: dict[str, Any]) -> list[tuple[str, float | None]]:
        torch = needs("torch", INSTALL)
        with torch.inference_mode():
            output = self.module.generate(
                **on_device(self.module, tensors),
                **self.options,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
            )
            log_probs = self.module.compute_transition_scores(
                output.sequences,
                output.scores,
                getattr(output, "beam_indices", None),
                normalize_logits=True,
            ).float()
        texts = self.processor.batch_decode(output.sequences, skip_special_tokens=True)
        special = torch.tensor(self.processor.tokenizer.all_special_ids, device=log_probs.device)
        written = output.sequences[:, -log_probs.shape[1] :]
        is_word = ~torch.isin(written, special) & torch.isfinite(log_probs)
        return [
            (text.strip(), _mean_probability(row[mask].tolist()))
            for text, row, mask in zip(texts, log_probs, is_word, strict=True)
        ]


def _mean_probability(log_probs: Sequence[float]) -> float | None:
    return math.exp(min(0.0, sum(log_probs) / len(log_probs))) if log_probs else None


@dataclasses.dataclass(kw_only=True, eq=False)
class Captioning(TransformersSpecialist):
    """One text an image; an image that the model has no words for gets none.

    Settings:
        granularity: of its texts.
        prompt: what they begin with, or a question.
        max_new_tokens: of a text, at most.
        num_beams: 1 is greedy.
    """

    granularity: str = "brief"
    prompt: str = ""
    max_new_tokens: int = 64
    num_beams: int = 1

    family = "captioning"
    kinds = ("texts",)

    def check(self) -> None:
        super().check()
        if self.granularity not in get_args(Granularity):
            known = ", ".join(get_args(Granularity))
            raise UserError(f"granularity: {self.granularity!r} is not one of {known}")

    def load(self) -> None:
        self._captioner = Captioner.load(
            self.model,
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
        )

    def look(
        self, records: Sequence[Record], images: Sequence[Image.Image]
    ) -> Sequence[Annotations]:
        return [
            Annotations(texts=(self._text(text, score),)) if text else Annotations()
            for text, score in self._captioner.caption(images, self.prompt)
        ]

    def _text(self, text: str, score: float | None) -> Text:
        granularity: Any = self.granularity
        return Text(text=text, granularity=granularity, provenance=self.maker(score))
