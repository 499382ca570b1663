# SPDX-License-Identifier: Apache-2.0
"""Masks of the regions a record has, by a model of the SAM class prompted with their boxes."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Bool
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.engine.specialists.base import Annotations
from florence2_jax.engine.specialists.transformers_model import (
    INSTALL,
    TransformersSpecialist,
    needs,
    on_device,
)
from florence2_jax.geometry import polygon_area, simplify_polygon
from florence2_jax.records.importers.masks import trace_mask
from florence2_jax.records.schema import Provenance, Record
from florence2_jax.typing import Polygon

_SCALES = ("original_sizes", "reshaped_input_sizes")


@dataclasses.dataclass(kw_only=True, eq=False)
class MaskGeneration(TransformersSpecialist):
    """Of each region without a mask and without a quad, the surest of the model's masks.

    Settings:
        max_regions: of one image, the first.
        boxes_at_a_time: prompts of one image that are decoded together.
        tolerance_px: how far the outline may be from the edges of the mask's pixels.
        min_part: parts of a smaller share of the mask are left out.
    """

    max_regions: int = 100
    boxes_at_a_time: int = 16
    tolerance_px: float = 1.0
    min_part: float = 0.02

    family = "masks"
    auto = "AutoModelForMaskGeneration"
    kinds = ("masks",)

    def look(
        self, records: Sequence[Record], images: Sequence[Image.Image]
    ) -> Sequence[Annotations]:
        return [self._masks(r, image) for r, image in zip(records, images, strict=True)]

    def _masks(self, record: Record, image: Image.Image) -> Annotations:
        wanted = [
            i
            for i, region in enumerate(record.regions)
            if not (region.polygons or region.quad or region.is_crowd or region.provenance.dropped)
        ][: self.max_regions]
        if not wanted:
            return Annotations()
        found: list[tuple[int, tuple[Polygon, ...], Provenance]] = []
        embeddings = self._embed(image)
        for start in range(0, len(wanted), self.boxes_at_a_time):
            part = wanted[start : start + self.boxes_at_a_time]
            boxes = [list(record.regions[i].box) for i in part]
            for i, (mask, score) in zip(part, self._ask(image, embeddings, boxes), strict=True):
                polygons = mask_polygons(
                    mask, tolerance_px=self.tolerance_px, min_part=self.min_part
                )
                if polygons:
                    found.append((i, polygons, self.maker(score)))
        return Annotations(masks=tuple(found))

    def _embed(self, image: Image.Image):
        torch = needs("torch", INSTALL)
        inputs = on_device(self._module, dict(self._processor(image, return_tensors="pt")))
        with torch.inference_mode():
            return self._module.get_image_embeddings(inputs["pixel_values"])

    def _ask(
        self, image: Image.Image, embeddings, boxes: list[list[float]]
    ) -> list[tuple[Bool[NDArray, "Y X"], float]]:
        torch = needs("torch", INSTALL)
        inputs = dict(self._processor(image, input_boxes=[boxes], return_tensors="pt"))
        scales = [inputs[name] for name in _SCALES if name in inputs]
        with torch.inference_mode():
            outputs = self._module(
                image_embeddings=embeddings,
                multimask_output=True,
                input_boxes=inputs["input_boxes"].to(self._module.device, self._module.dtype),
            )
        masks = self._processor.post_process_masks(outputs.pred_masks.float().cpu(), *scales)[0]
        ious = outputs.iou_scores[0].float().cpu()
        best = ious.argmax(dim=1).tolist()
        return [
            (masks[r, m].numpy().astype(bool), min(1.0, max(0.0, float(ious[r, m]))))
            for r, m in enumerate(best)
        ]


def mask_polygons(
    mask: Bool[NDArray, "Y X"], *, tolerance_px: float, min_part: float
) -> tuple[Polygon, ...]:
    """Outlines of a mask, largest first, without crumbs and with fewer points; holes are filled."""
    rings = sorted(trace_mask(mask)[0], key=polygon_area, reverse=True)
    total = sum(map(polygon_area, rings))
    simple = (
        simplify_polygon(r, tolerance_px) for r in rings if polygon_area(r) >= min_part * total
    )
    return tuple(ring for ring in simple if polygon_area(ring) > 0)
