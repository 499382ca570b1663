# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes object detection on a COCO, VOC, YOLO or JSONL folder.

    florence2-jax train --config configs/finetune_detection.py --workdir runs/detection \\
        --config.input.records=/data/bccd

The part behind the colon is the model to start from: a hub name, a folder, or a workdir.
`input.records` is a store, or a dataset's folder as it is: it is imported into the workdir.
"""

from ml_collections import ConfigDict


def get_config(model: str = "microsoft/Florence-2-base-ft") -> ConfigDict:
    """All parameters, the image tower at half the rate. Values without a source are ours."""
    c = ConfigDict(dict(seed=0))
    c.total_samples = 40_000
    c.accumulate = 1
    c.init = dict(model=model)
    c.model = dict(image_size=768, dtype="bfloat16", remat="dots", scan=True)  # As released.
    c.input = dict(records="/data/bccd", split="train", batch_size=16, num_prompts=1)
    c.input.update(prompt_length=32, target_length=512, order="random", num_threads=8)
    c.input.tasks = dict(all=0.0, od=1.0, vqa=0.0)
    # Against forgetting, some images of what the model was pre-trained on: leave `records` out.
    #   c.input.mixture = dict(
    #       own=dict(records="/data/bccd", weight=4.0, tasks=dict(od=1.0)),
    #       before=dict(records="/data/fld", weight=1.0, tasks=dict(all=1.0, vqa=0.0)),
    #   )
    # The image tower is trained: with a frozen one AP was 6.9 and not 19.7 (Florence-2 Table 12).
    c.freeze = ()
    c.lora = dict(rank=0, alpha=16.0, dropout=0.0, modules=("image/*/attn/*", "text/*_proj"))
    c.ema = dict(decay=0.99)
    # The rate is the peak of the large model's pre-training (Florence-2 §6.1).
    c.optimizer = dict(peak_lr=1e-5, warmup_steps=100, weight_decay=0.05)
    c.optimizer.lr_factors = {"image/*": 0.5}
    c.loss = dict(location_smoothing_bins=0.0)
    c.mesh = dict(replica=-1, fsdp=1, tensor=1)
    c.checkpoint = dict(every_steps=250, keep=2, keep_best=0, best_metric="loss")
    c.checkpoint.higher_is_better = False
    # Of a hook that evaluates; 0: the run goes to its end.
    c.early_stopping = dict(metric="", patience=0, higher_is_better=False)
    c.log = dict(every_steps=10)
    return c
