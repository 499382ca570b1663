# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes reading with regions, for pages whose text is longer than 1,024 tokens.

    florence2-jax train --config configs/finetune_ocr.py --workdir runs/ocr \\
        --config.input.records=/data/pages

The part behind the colon is the model to start from: a hub name, a folder, or a workdir.
`input.records` is a store, or a dataset's folder as it is: it is imported into the workdir.
"""

from ml_collections import ConfigDict


def get_config(model: str = "microsoft/Florence-2-base-ft") -> ConfigDict:
    """4,096 positions, all parameters. Values without a source are ours."""
    c = ConfigDict(dict(seed=0))
    c.total_samples = 40_000
    c.accumulate = 1
    c.init = dict(model=model)
    c.model = dict(image_size=768, dtype="bfloat16", remat="dots", scan=True)  # As released.
    # As the large model was published again in December 2024; new rows are copies of the old ones.
    c.model.text = dict(max_positions=4096)
    c.input = dict(records="/data/pages", split="train", batch_size=8, num_prompts=1)
    c.input.update(prompt_length=32, target_length=2048, order="raster", num_threads=8)
    c.input.tasks = dict(all=0.0, ocr=1.0, ocr_with_region=2.0)
    c.freeze = ()
    c.lora = dict(rank=0, alpha=16.0, dropout=0.0, modules=("image/*/attn/*", "text/*_proj"))
    c.ema = dict(decay=0.99)
    # All parameters: the new rows of positions have to be learnt, and adapters leave them alone.
    c.optimizer = dict(peak_lr=1e-5, warmup_steps=100, weight_decay=0.05, lr_factors=dict())
    c.loss = dict(location_smoothing_bins=0.0)
    c.mesh = dict(replica=-1, fsdp=1, tensor=1)
    c.checkpoint = dict(every_steps=250, keep=2, keep_best=0, best_metric="loss")
    c.checkpoint.higher_is_better = False
    # Of a hook that evaluates; 0: the run goes to its end.
    c.early_stopping = dict(metric="", patience=0, higher_is_better=False)
    c.log = dict(every_steps=10)
    return c
