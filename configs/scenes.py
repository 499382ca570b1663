# SPDX-License-Identifier: Apache-2.0
"""The embedded run: a tiny Florence-2 learns every task from drawn scenes on two CPU cores.

Every value here is ours. `get_config("RECORDS")` reads another store, `configs/scenes.py:runs/x`.
"""

from ml_collections import ConfigDict


def get_config(records: str = "runs/scenes/records") -> ConfigDict:
    """Tiny model, 96 px, 144 image tokens, four prompts per image."""
    c = ConfigDict(dict(seed=0, total_steps=1200))
    c.model = dict(variant="tiny", image_size=64, dtype="float32")
    c.model.davit = dict(depthwise="shift", drop_path_rate=0.0)
    c.model.text = dict(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    c.input = dict(records=records, split="train", batch_size=16, num_prompts=6)
    c.input.update(prompt_length=28, target_length=40, order="random", num_threads=1)
    c.input.tasks = dict(all=1.0)
    c.tokenizer = dict(train_size=600)
    c.optimizer = dict(peak_lr=6e-4, warmup_steps=100, b2=0.98)
    c.loss = dict(location_smoothing_bins=10.0)
    c.init = dict(workdir="", locations="ordinal", scale="fan_in")
    c.mesh = dict(replica=1, fsdp=-1, tensor=1)
    c.checkpoint = dict(every_steps=500, keep=1)
    c.log = dict(every_steps=50)
    return c
