# SPDX-License-Identifier: Apache-2.0
"""Pre-training at 384 px. Source: Florence-2 §6.1, where no other is given.

    florence2-jax train --config configs/pretrain.py:large --workdir runs/large \\
        --config.input.records=/data/fld --config.tokenizer.path=/data/tokenizer
"""

from ml_collections import ConfigDict


def get_config(variant: str = "base") -> ConfigDict:
    """The recipe of `base` (231 M parameters) or `large` (770 M)."""
    c = ConfigDict(dict(seed=0))
    c.total_samples = 3_000_000_000  # "3 B effective training samples".
    c.accumulate = 1
    c.model = dict(variant=variant, image_size=384, dtype="bfloat16", remat="dots", scan=True)
    c.input = dict(records="/data/fld", split="train")
    c.input.batch_size = {"base": 2048, "large": 3072}[variant]
    # Ours: the paper trains one annotation per sample; four share one image encode here, so that an
    # image counts as one sample and brings four annotations.
    c.input.update(num_prompts=4, prompt_length=64, target_length=256)
    c.input.update(order="random", num_workers=16, num_threads=8, buffer=4)  # Ours.
    c.input.tasks = dict(all=1.0, vqa=0.0, referring_expression_comprehension=0.0)  # Ours.
    # Several stores instead of one: leave `records` out, and give each a weight, its images beside
    # those of the others whatever their sizes, and tasks of its own where `tasks` do not suit it.
    #   c.input.mixture = dict(
    #       fld=dict(records="/data/fld", weight=9.0),
    #       textocr=dict(records="/data/textocr", split="train", tasks=dict(ocr=1.0)),
    #   )
    # Stages, ordered by `until` (a share of the run, or a step above 1), multiply the task weights;
    # a store with weight 0 rests and goes on later where it was.
    #   c.input.stages = dict(
    #       image=dict(
    #           until=0.3,
    #           tasks=dict(caption=1.0, detailed_caption=1.0, more_detailed_caption=1.0),
    #           weights=dict(textocr=0.0),
    #       ),
    #       all_levels=dict(until=1.0),
    #   )
    # The released vocabulary is that of BART; give its folder, or train one on the records.
    c.tokenizer = dict(path="", train_size=32_000)  # Ours.
    c.optimizer = dict(peak_lr={"base": 1e-4, "large": 1e-5}[variant], warmup_steps=5_000)
    c.optimizer.update(weight_decay=0.05, b1=0.9, b2=0.999, clip_norm=1.0)  # Ours.
    c.optimizer.update(final_lr_ratio=0.0)  # "cosine learning rate decay"; its end is ours.
    c.loss = dict(location_smoothing_bins=0.0)
    c.init = dict(workdir="", locations="normal", scale="released")
    # Ours: eight devices share a copy of the parameters; -1 is as many copies as are left, in one
    # slice or in several.
    c.mesh = dict(replica=-1, fsdp=8, tensor=1)
    c.checkpoint = dict(every_steps=1000, keep=3)  # Ours.
    c.log = dict(every_steps=50)  # Ours.
    return c
