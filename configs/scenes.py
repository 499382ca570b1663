# SPDX-License-Identifier: Apache-2.0
"""The embedded run: a tiny Florence-2 learns every task from drawn scenes on two CPU cores.

Every value here is ours. The part behind the colon is the store: `configs/scenes.py:DIR`.
"""

from ml_collections import ConfigDict


def get_config(records: str = "runs/scenes-records") -> ConfigDict:
    """Tiny model, 64 px, 64 image tokens, eight prompts per image."""
    c = ConfigDict(dict(seed=0, total_steps=3200))
    c.model = dict(variant="tiny", image_size=64, dtype="float32")
    # A scene comes 1.3 times in the whole run: there is nothing to regularise against.
    c.model.davit = dict(depthwise="shift", drop_path_rate=0.0)
    c.model.text = dict(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    c.model.text.encoder_layers = 1
    # After 7,200 images batches of 8 and of 16 had learnt the same (one run each).
    c.input = dict(records=records, split="train", batch_size=8, num_prompts=8)
    c.input.update(prompt_length=36, target_length=28, order="raster", num_threads=1)
    # A guess: what names things may teach to look sooner. Not measured against equal weights.
    c.input.tasks = dict(all=1.0, caption=2.0, vqa=2.0, od=2.0, ocr=2.0, region_to_ocr=2.0)
    c.input.tasks.update(region_to_category=3.0, region_to_description=2.0)
    c.tokenizer = dict(path="", train_size=630)
    c.optimizer = dict(peak_lr=7e-4, warmup_steps=60, b2=0.98)
    c.loss = dict(location_smoothing_bins=10.0, location_weight=0.6)
    c.init = dict(workdir="", locations="ordinal", scale="fan_in")
    c.mesh = dict(replica=1, fsdp=-1, tensor=1)
    c.checkpoint = dict(every_steps=800, keep=2)
    c.log = dict(every_steps=100)
    return c
