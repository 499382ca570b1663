# SPDX-License-Identifier: Apache-2.0
"""Boxes of the phrases of a record's texts, by a model of the Grounding DINO class.

The whole text is the prompt, as the model was trained, and the phrases are looked up in it by the
characters of their tokens, so that a span is found even where a phrase is spelt in unknown words.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.engine.specialists.base import Annotations
from florence2_jax.engine.specialists.configured import check_share, clipped
from florence2_jax.engine.specialists.phrases import load_parser, phrase_spans
from florence2_jax.engine.specialists.transformers_model import (
    INSTALL,
    TransformersSpecialist,
    as_numpy,
    needs,
    on_device,
)
from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import Grounding, Record, Span
from florence2_jax.typing import Size


@dataclasses.dataclass(kw_only=True, eq=False)
class ZeroShotGrounding(TransformersSpecialist):
    """A grounding of each text of a record that has phrases that are found.

    Settings:
        box_threshold: of a box, the probability of the likeliest token of its phrase.
        phrase_threshold: of a phrase, the mean probability of its tokens at its surest box.
        nms_iou: of two boxes of a phrase that overlap more, the surer stays.
        max_boxes: of one phrase, the surest.
        spacy_model: finds the phrases; without one, a rule does (`phrases.py`).
    """

    box_threshold: float = 0.2
    phrase_threshold: float = 0.1
    nms_iou: float = 0.7
    max_boxes: int = 20
    spacy_model: str = ""

    family = "grounding"
    auto = "AutoModelForZeroShotObjectDetection"
    kinds = ("groundings",)

    def check(self) -> None:
        super().check()
        for name in ("box_threshold", "phrase_threshold", "nms_iou"):
            check_share(name, getattr(self, name))

    def load(self) -> None:
        self._nlp = load_parser(self.spacy_model)
        super().load()

    def look(
        self, records: Sequence[Record], images: Sequence[Image.Image]
    ) -> Sequence[Annotations]:
        found = []
        for record, image in zip(records, images, strict=True):
            groundings = (
                self._ground(text, image)
                for text in dict.fromkeys(text.text for text in record.kept().texts)
            )
            found.append(Annotations(groundings=tuple(g for g in groundings if g is not None)))
        return found

    def _ground(self, text: str, image: Image.Image) -> Grounding | None:
        phrases = phrase_spans(text, nlp=self._nlp)
        if not phrases:
            return None
        probs, boxes, offsets = self._ask(text, image)
        spans = []
        for start, end in phrases:
            # The special tokens are at [0, 0), so that no phrase has them.
            tokens = [t for t, (first, last) in enumerate(offsets) if first < end and start < last]
            if tokens:
                span = self._span(start, end, probs[:, tokens], boxes, image.size)
                spans += [] if span is None else [span]
        if not spans:
            return None
        best = max(span.phrase_score or 0.0 for span in spans)
        return Grounding(text=text, spans=tuple(spans), provenance=self.maker(best))

    def _ask(
        self, text: str, image: Image.Image
    ) -> tuple[Float[NDArray, "Q L"], Float[NDArray, "Q 4"], list[tuple[int, int]]]:
        """Probabilities of tokens by query, boxes in pixels, characters of tokens."""
        torch = needs("torch", INSTALL)
        limit = self._module.config.max_text_len
        prompt = lower(text)
        prompt += "" if prompt.rstrip().endswith(".") else "."
        tokens = self._processor.tokenizer(
            prompt,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
            return_token_type_ids=True,
            return_offsets_mapping=True,
        )
        offsets = [(int(a), int(b)) for a, b in tokens.pop("offset_mapping")[0].tolist()]
        pixels = self._processor.image_processor(images=image, return_tensors="pt")
        with torch.inference_mode():
            outputs = self._module(**on_device(self._module, {**tokens, **pixels}))
        probs = as_numpy(outputs.logits[0].sigmoid())[:, : len(offsets)]
        x, y, width, height = as_numpy(outputs.pred_boxes[0]).T
        corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
        return probs, corners * np.array(image.size * 2, np.float32), offsets

    def _span(
        self,
        start: int,
        end: int,
        probs: Float[NDArray, "Q L"],
        boxes: Float[NDArray, "Q 4"],
        size: Size,
    ) -> Span | None:
        scores = probs.max(axis=1)
        places, sure = [], []
        for query in surest(boxes, scores, self.box_threshold, self.nms_iou):
            if (box := clipped(boxes[query].tolist(), size)) is not None:
                places.append(box)
                sure.append(min(1.0, float(scores[query])))
        if not places:
            return None
        phrase_score = min(1.0, float(probs[scores >= self.box_threshold].mean(axis=1).max()))
        if phrase_score < self.phrase_threshold:
            return None
        return Span(
            start=start,
            end=end,
            boxes=tuple(places[: self.max_boxes]),
            phrase_score=phrase_score,
            box_scores=tuple(sure[: self.max_boxes]),
        )


def surest(
    boxes: Float[NDArray, "R 4"], scores: Float[NDArray, "R"], threshold: float, nms_iou: float
) -> list[int]:
    """Boxes at or above a threshold, surest first, without those that overlap a surer one."""
    order = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] >= threshold]
    ious = box_iou(boxes[order], boxes[order])
    kept: list[int] = []
    for i in range(len(order)):
        if all(ious[i, j] <= nms_iou for j in kept):
            kept.append(i)
    return [order[i] for i in kept]


def lower(text: str) -> str:
    """Small letters, as many as there were: `'İ'.lower()` has two characters."""
    return "".join(small if len(small := c.lower()) == 1 else c for c in text)
