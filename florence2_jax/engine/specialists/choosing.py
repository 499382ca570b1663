# SPDX-License-Identifier: Apache-2.0
"""What a region shows, chosen from three kinds of candidates by their similarity to its pixels.

Candidates are the name of its category, the text that a captioner has for the cropped region, and
the phrases within that text. Source: Florence-2 §4 (region-text pairs), which compares by
Florence-1; here by a model of the CLIP class.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.engine.specialists.base import Annotations
from florence2_jax.engine.specialists.captioning import Captioner
from florence2_jax.engine.specialists.phrases import load_parser, phrase_spans
from florence2_jax.engine.specialists.transformers_model import (
    INSTALL,
    TransformersSpecialist,
    alike,
    as_numpy,
    image_inputs,
    load_model,
    model_digest,
    needs,
    on_device,
)
from florence2_jax.geometry import clip_box
from florence2_jax.records.schema import Label, Record, Region
from florence2_jax.typing import Size, UserError


class Similarity:
    """A model of the CLIP class that was loaded."""

    def __init__(self, module: Any, processor: Any):
        self.module, self.processor = module, processor

    @classmethod
    def load(cls, model: str, **where) -> "Similarity":
        """Raises SpecialistError if there is no such model; `where` is as for `load_model`."""
        return cls(*load_model("AutoModel", model, processor="AutoProcessor", **where))

    def compare(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float[NDArray, "B T"]:
        """Cosines between images and texts, those below 0 as 0."""
        torch = needs("torch", INSTALL)
        pictures = np.zeros((len(images), 0), np.float32)
        for indices, tensors in alike(image_inputs(self.processor.image_processor, images)):
            with torch.inference_mode():
                rows = _unit(self.module.get_image_features(**on_device(self.module, tensors)))
            if not pictures.shape[1]:
                pictures = np.zeros((len(images), rows.shape[1]), np.float32)
            pictures[indices] = rows
        config = self.module.config
        room = getattr(config, "text_config", config).max_position_embeddings
        tokens = self.processor.tokenizer(
            list(texts), padding=True, truncation=True, max_length=room, return_tensors="pt"
        )
        with torch.inference_mode():
            words = _unit(self.module.get_text_features(**on_device(self.module, dict(tokens))))
        return np.clip(pictures @ words.T, 0.0, 1.0)


def _unit(features: Any) -> Float[NDArray, "B D"]:
    """Features of length 1; since transformers 5 they come within an output."""
    rows = as_numpy(getattr(features, "pooler_output", features))
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


@dataclasses.dataclass(kw_only=True, eq=False)
class RegionCaptions(TransformersSpecialist):
    """A brief label of each region that has none and is no writing; its score is the similarity.

    Settings:
        model: the captioner.
        similarity_model, similarity_revision: what compares.
        margin: how far beyond its box a region is cropped, as a share of the box's sides.
        min_side_px: regions with a smaller side show too little.
        max_regions: of one image, the largest.
        spacy_model: finds the phrases; without one, a rule does (`phrases.py`).
    """

    similarity_model: str
    similarity_revision: str = "main"
    margin: float = 0.1
    min_side_px: int = 16
    max_regions: int = 50
    max_new_tokens: int = 24
    spacy_model: str = ""

    family = "region_captions"
    kinds = ("region_texts",)

    def check(self) -> None:
        super().check()
        if self.margin < 0:
            raise UserError(f"margin: {self.margin} is negative")

    def title(self) -> str:
        return f"{self.family}:{self.model}+{self.similarity_model}"

    def content(self) -> str:
        return model_digest(self.model) + model_digest(self.similarity_model)

    def load(self) -> None:
        where: dict[str, Any] = dict(device=self.device, dtype=self.dtype)
        self._nlp = load_parser(self.spacy_model)
        self._captioner = Captioner.load(
            self.model, max_new_tokens=self.max_new_tokens, revision=self.revision, **where
        )
        self._similarity = Similarity.load(
            self.similarity_model, revision=self.similarity_revision, **where
        )

    def look(
        self, records: Sequence[Record], images: Sequence[Image.Image]
    ) -> Sequence[Annotations]:
        return [self._describe(r, image) for r, image in zip(records, images, strict=True)]

    def _describe(self, record: Record, image: Image.Image) -> Annotations:
        wanted = self._wanted(record)
        if not wanted:
            return Annotations()
        crops = [
            image.crop(crop_box(record.regions[i].box, image.size, self.margin)) for i in wanted
        ]
        captions = [text for text, _ in self._captioner.caption(crops)]
        options = [
            candidates(record.regions[i], caption, nlp=self._nlp)
            for i, caption in zip(wanted, captions, strict=True)
        ]
        texts = list(dict.fromkeys(text for row in options for text in row))
        if not texts:
            return Annotations()
        similar = self._similarity.compare(crops, texts)
        labels = []
        for i, row, scores in zip(wanted, options, similar, strict=True):
            if row:
                score, text = max((float(scores[texts.index(text)]), text) for text in row)
                label = Label(text=text, kind="brief", provenance=self.maker(score))
                labels.append((i, label))
        return Annotations(labels=tuple(labels))

    def _wanted(self, record: Record) -> list[int]:
        """Regions to describe, by their index, largest first."""
        found = []
        for i, region in enumerate(record.regions):
            x0, y0, x1, y1 = region.box
            is_small = min(x1 - x0, y1 - y0) < self.min_side_px
            is_writing = region.quad is not None or region.label("text") is not None
            is_done = region.label("brief") is not None or region.is_crowd
            if not (is_small or is_writing or is_done or region.provenance.dropped):
                found.append(((x1 - x0) * (y1 - y0), i))
        return [i for _, i in sorted(found, key=lambda pair: -pair[0])][: self.max_regions]


def candidates(region: Region, caption: str, *, nlp: Any = None) -> list[str]:
    """The category of a region, a text about it and the phrases of the text, each once."""
    phrases = (caption[start:end] for start, end in phrase_spans(caption, nlp=nlp))
    names = (label.text for label in region.labels if label.kind in ("category", "phrase"))
    return [text for text in dict.fromkeys((*names, caption, *phrases)) if text.strip()]


def crop_box(box: Sequence[float], size: Size, margin: float) -> tuple[int, int, int, int]:
    """Whole pixels around a box and its margin, within the image."""
    x0, y0, x1, y1 = box
    x, y = margin * (x1 - x0), margin * (y1 - y0)
    inside = clip_box((x0 - x, y0 - y, x1 + x, y1 + y), (0, 0, *size))
    left, top, right, bottom = inside or (x0, y0, x1, y1)
    return int(left), int(top), int(-(-right // 1)), int(-(-bottom // 1))
