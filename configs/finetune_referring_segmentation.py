# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes referring segmentation: an expression in, a mask out (RefCOCO style).

    florence2-jax train --config configs/finetune_referring_segmentation.py \\
        --workdir runs/referring --config.input.records=/data/refcoco

The part behind the colon is the model to start from: a hub name, a folder, or a workdir.
`input.records` is a store, or a dataset's folder as it is: it is imported into the workdir.
"""

from ml_collections import ConfigDict


def get_config(model: str = "microsoft/Florence-2-base-ft") -> ConfigDict:
    """All parameters, averaged. Values without a source are ours."""
    c = ConfigDict(dict(seed=0))
    c.total_samples = 200_000
    c.accumulate = 1
    c.init = dict(model=model)
    c.model = dict(image_size=768, dtype="bfloat16", remat="dots", scan=True)  # As released.
    c.input = dict(records="/data/refcoco", split="train", batch_size=32, num_prompts=4)
    c.input.update(prompt_length=64, target_length=512, num_threads=8)
    c.input.tasks = dict(all=0.0, referring_expression_segmentation=1.0)
    c.freeze = ()
    c.lora = dict(rank=0, alpha=16.0, dropout=0.0, modules=("image/*/attn/*", "text/*_proj"))
    c.ema = dict(decay=0.999)
    # The rate is the peak of the large model's pre-training (Florence-2 §6.1).
    c.optimizer = dict(peak_lr=1e-5, warmup_steps=200, weight_decay=0.05, lr_factors=dict())
    c.loss = dict(location_smoothing_bins=0.0)
    c.mesh = dict(replica=-1, fsdp=1, tensor=1)
    c.checkpoint = dict(every_steps=500, keep=2, keep_best=0, best_metric="loss")
    c.checkpoint.higher_is_better = False
    # Of a hook that evaluates; 0: the run goes to its end.
    c.early_stopping = dict(metric="", patience=0, higher_is_better=False)
    c.log = dict(every_steps=10)
    return c
