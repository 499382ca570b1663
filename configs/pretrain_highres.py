# SPDX-License-Identifier: Apache-2.0
"""High-resolution tuning at 768 px after `pretrain.py`. Source: Florence-2 §6.1.

The paper gives the samples (0.5 B for base, 0.1 B for large) and the resolution. Learning rate,
warm-up and batch are not stated: those of the first stage are kept, and marked as ours.

    florence2-jax train --config configs/pretrain_highres.py:base --workdir runs/base_768 \\
        --config.init.workdir=runs/base --config.tokenizer.path=runs/base/tokenizer
"""

from ml_collections import ConfigDict


def get_config(variant: str = "base") -> ConfigDict:
    """The recipe of `base` or `large`."""
    c = ConfigDict(dict(seed=1))
    c.total_samples = {"base": 500_000_000, "large": 100_000_000}[variant]
    c.accumulate = 1
    c.model = dict(variant=variant, image_size=768, dtype="bfloat16", remat="dots", scan=True)
    c.input = dict(records="/data/fld", split="train")
    c.input.batch_size = {"base": 2048, "large": 3072}[variant]  # Ours: as at 384 px.
    c.input.update(num_prompts=4, prompt_length=64, target_length=256)  # Ours.
    c.input.update(order="random", num_workers=16, num_threads=8, buffer=4)  # Ours.
    c.input.tasks = dict(all=1.0, vqa=0.0, referring_expression_comprehension=0.0)  # Ours.
    c.tokenizer = dict(path=f"runs/{variant}/tokenizer", train_size=0)  # That of the first stage.
    c.optimizer = dict(peak_lr={"base": 1e-4, "large": 1e-5}[variant], warmup_steps=5_000)  # Ours.
    c.optimizer.update(weight_decay=0.05, b1=0.9, b2=0.999, clip_norm=1.0)  # Ours.
    c.optimizer.update(final_lr_ratio=0.0)  # Ours.
    c.loss = dict(location_smoothing_bins=0.0)
    c.init = dict(workdir=f"runs/{variant}", locations="normal", scale="released")
    c.mesh = dict(replica=-1, fsdp=8, tensor=1)  # Ours.
    c.checkpoint = dict(every_steps=1000, keep=3)  # Ours.
    c.log = dict(every_steps=50)  # Ours.
    return c
