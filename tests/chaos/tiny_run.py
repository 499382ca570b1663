# SPDX-License-Identifier: Apache-2.0
"""The run of the chaos tests: as small as a Florence-2 can be."""

from ml_collections import ConfigDict


def get_config(records: str = "") -> ConfigDict:
    """One image size, 50,000 parameters."""
    c = ConfigDict(dict(seed=3, total_steps=24))
    davit = dict(dims=(16,), num_heads=(2,), depths=(1,), window_size=4)
    davit |= dict(patch_kernels=(7,), patch_strides=(16,), pre_norm=(False,))
    text = dict(d_model=32, encoder_layers=1, decoder_layers=1, num_heads=2, mlp_dim=64)
    c.model = dict(variant="tiny", image_size=64, dtype="float32", davit=davit, text=text)
    c.input = dict(records=records, batch_size=8, num_prompts=2, prompt_length=24)
    c.input.update(target_length=32, num_threads=1, num_workers=0, buffer=2)
    c.tokenizer = dict(train_size=400)
    c.optimizer = dict(peak_lr=1e-3, warmup_steps=2)
    c.checkpoint = dict(every_steps=8, keep=3)
    c.hosts = dict(init_timeout_s=300, heartbeat_timeout_s=30, barrier_timeout_s=120)
    c.log = dict(every_steps=1, stall_s=0)
    return c
