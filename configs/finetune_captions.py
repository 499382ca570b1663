# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes captions on images of one's own: adapters, so that little is forgotten.

    florence2-jax train --config configs/finetune_captions.py --workdir runs/captions \\
        --config.input.records=/data/photos

The part behind the colon is the model to start from: a hub name, a folder, or a workdir.
`input.records` is a store, or a dataset's folder as it is: it is imported into the workdir.
"""

from ml_collections import ConfigDict


def get_config(model: str = "microsoft/Florence-2-base-ft") -> ConfigDict:
    """LoRA on every attention of both towers. Values without a source are ours."""
    c = ConfigDict(dict(seed=0))
    c.total_samples = 20_000
    c.accumulate = 1
    c.init = dict(model=model)
    c.model = dict(image_size=768, dtype="bfloat16", remat="dots", scan=True)  # As released.
    c.input = dict(records="/data/photos", split="train", batch_size=16, num_prompts=1)
    c.input.update(prompt_length=32, target_length=128, num_threads=8)
    c.input.tasks = dict(all=0.0, caption=1.0, detailed_caption=0.0, more_detailed_caption=0.0)
    # Users report that full fine-tuning forgets other tasks, and answer with adapters or a rate of
    # 1e-6 (ms-swift issue 1267). Adapters start from nothing and need a larger one.
    c.freeze = ()
    c.lora = dict(rank=8, alpha=16.0, dropout=0.05, modules=("image/*/attn/*", "text/*_proj"))
    c.ema = dict(decay=0.0)
    c.optimizer = dict(peak_lr=1e-4, warmup_steps=100, weight_decay=0.0, lr_factors=dict())
    c.loss = dict(location_smoothing_bins=0.0)
    c.mesh = dict(replica=-1, fsdp=1, tensor=1)
    c.checkpoint = dict(every_steps=250, keep=2, keep_best=0, best_metric="loss")
    c.checkpoint.higher_is_better = False
    # Of a hook that evaluates; 0: the run goes to its end.
    c.early_stopping = dict(metric="", patience=0, higher_is_better=False)
    c.log = dict(every_steps=10)
    return c
