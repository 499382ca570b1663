# SPDX-License-Identifier: Apache-2.0
"""Zero-shot rows of the paper. Source: Florence-2, Table 4 (and the released model card).

    florence2-jax evaluate --config configs/evaluate_zero_shot.py:coco_detection \\
        --model microsoft/Florence-2-base --records /data/records/coco

The dataset is imported before, see docs/evaluation.md. Figures are (base, large). The paper does
not say how it decoded: here as the released models do by default.
"""

from ml_collections import ConfigDict

_REC_NOTE = (
    "The released models have no prompt for referring expressions: asked as phrase grounding, the "
    "first box counts. Images are of COCO train2014, which training sets may hold."
)
_REFCOCO = "RefCOCO, RefCOCO+ (by=unc) and RefCOCOg (by=umd) on COCO train2014"

_ROWS = {
    "coco_caption": dict(
        dataset="COCO captions, Karpathy test split",
        split="test",
        num_images=5_000,
        task="caption",
        metrics=["cider"],
        paper=(133.0, 135.6),
    ),
    "nocaps": dict(
        dataset="NoCaps, validation (entire)",
        split="val",
        num_images=4_500,
        task="caption",
        metrics=["cider"],
        paper=(118.7, 120.8),
    ),
    "textcaps": dict(
        dataset="TextCaps, validation",
        split="val",
        num_images=3_166,
        task="caption",
        metrics=["cider"],
        paper=(70.1, 72.8),
    ),
    "coco_detection": dict(
        dataset="COCO 2017 instances, validation",
        split="val",
        num_images=5_000,
        task="od",
        metrics=["ap"],
        paper=(34.7, 37.5),
        note="The paper does not say by which scores boxes were ranked; here by those of places.",
    ),
    "flickr30k_grounding": dict(
        dataset="Flickr30k Entities, test",
        split="test",
        num_images=1_000,
        task="caption_to_phrase_grounding",
        metrics=["r1_any", "r1_merged"],
        paper=(83.6, 84.4),
        note="The paper does not say whether several boxes of a phrase were merged: both are here.",
    ),
    **{
        f"{name}_{split}": dict(
            dataset=_REFCOCO,
            split=split,
            task="referring_expression_comprehension",
            asked_as="caption_to_phrase_grounding",
            metrics=["accuracy"],
            paper=paper,
            note=_REC_NOTE,
        )
        for name, split, paper in (
            ("refcoco", "val", (53.9, 56.3)),
            ("refcoco", "testA", (58.4, 61.6)),
            ("refcoco", "testB", (49.7, 51.4)),
            ("refcoco_plus", "val", (51.5, 53.6)),
            ("refcoco_plus", "testA", (56.4, 57.9)),
            ("refcoco_plus", "testB", (47.9, 49.9)),
            ("refcocog", "val", (66.3, 68.0)),
            ("refcocog", "test", (65.1, 67.0)),
        )
    },
    "refcoco_segmentation": dict(
        dataset="RefCOCO (by=unc) on COCO train2014",
        split="val",
        task="referring_expression_segmentation",
        metrics=["miou"],
        paper=(34.6, 35.8),
    ),
}

_LENGTHS = {"caption": 128}  # Else as many as the released models have positions for.


def get_config(row: str = "coco_detection") -> ConfigDict:
    """One row of the table; `ROW` is its name above."""
    if row not in _ROWS:
        raise ValueError(f"no row {row!r}; there are {', '.join(_ROWS)}")
    figures = zip(("base", "large"), _ROWS[row]["paper"], strict=True)
    c = ConfigDict(_ROWS[row] | dict(paper=dict(figures)))
    c.source = "Florence-2, Table 4"
    c.decoding = dict(num_beams=3, no_repeat_ngram_size=3)  # Released; not in the paper.
    c.decoding.max_new_tokens = _LENGTHS.get(c.task, 1_024)  # Ours.
    return c
