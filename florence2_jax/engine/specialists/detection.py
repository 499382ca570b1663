# SPDX-License-Identifier: Apache-2.0
"""Boxes with class names by a detector of the DETR class (DETR, DINO, RT-DETR, YOLOS, ...)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from PIL import Image

from florence2_jax.engine.specialists.base import Annotations
from florence2_jax.engine.specialists.configured import check_share, clipped
from florence2_jax.engine.specialists.transformers_model import (
    INSTALL,
    TransformersSpecialist,
    alike,
    image_inputs,
    needs,
    on_device,
)
from florence2_jax.records.schema import Label, Record, Region


@dataclasses.dataclass(kw_only=True, eq=False)
class Detection(TransformersSpecialist):
    """Regions with a category each, surest first.

    Settings:
        threshold: boxes of a lower score are left out; low here, for filters can be changed later.
        max_boxes: per image, the surest.
        ignored: class names that say nothing, such as the gaps in the list of COCO's classes.
    """

    threshold: float = 0.1
    max_boxes: int = 100
    ignored: tuple[str, ...] = ("N/A",)

    family = "detection"
    auto = "AutoModelForObjectDetection"
    processor = "AutoImageProcessor"
    kinds = ("boxes",)

    def check(self) -> None:
        super().check()
        check_share("threshold", self.threshold)

    def look(
        self, records: Sequence[Record], images: Sequence[Image.Image]
    ) -> Sequence[Annotations]:
        torch = needs("torch", INSTALL)
        found: list[Annotations] = [Annotations()] * len(images)
        for indices, tensors in alike(image_inputs(self._processor, images)):
            with torch.inference_mode():
                outputs = self._module(**on_device(self._module, tensors))
            sizes = torch.tensor([images[i].size[::-1] for i in indices])
            results = self._processor.post_process_object_detection(
                outputs, threshold=self.threshold, target_sizes=sizes.to(self._module.device)
            )
            for i, result in zip(indices, results, strict=True):
                found[i] = self._annotations(result, records[i])
        return found

    def _annotations(self, result: dict[str, Any], record: Record) -> Annotations:
        names = self._module.config.id2label
        rows = zip(
            result["scores"].tolist(),
            result["labels"].tolist(),
            result["boxes"].tolist(),
            strict=True,
        )
        regions = []
        for score, label, box in sorted(rows, reverse=True):
            inside, name = clipped(box, record.size), names.get(label, "N/A")
            if inside is not None and name not in self.ignored:
                labels = (Label(text=name),)
                regions.append(Region(box=inside, labels=labels, provenance=self.maker(score)))
        return Annotations(regions=tuple(regions[: self.max_boxes]))
