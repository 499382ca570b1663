# SPDX-License-Identifier: Apache-2.0
"""Seconds of a training step, here and in transformers, turn by turn in the same process.

    python benchmarks/train_step.py --json benchmarks/train_step.json
    python benchmarks/train_step.py --variant tiny --size 96 --batch 2 --turns 3

A step is forward, backward, clipping and AdamW, of the same weights on the same batch: an image, a
prompt of 32 tokens and a target of 64. float32 on a CPU; on a GPU bfloat16 over float32 parameters,
in PyTorch by autocast, also compiled by `torch.compile`, at batches that double until the card is
full. Both train with dropout 0.1 (of attention and activations too) and drop path 0.1, each
drawing its own random numbers; PyTorch has its fused AdamW and its attention (`sdpa`). On a CPU the
process keeps what a step frees (`parallel.host_memory`), which serves both. Clocks are
read when results are there; a number is the median over `--turns`, after two that compile and warm
up. `ratio` is PyTorch's time (the better one's) by ours. `annotations` are what K prompts per image
bring: transformers encodes the image once for each.
"""

import argparse
import functools
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Both share one card.

import jax
import numpy as np
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import Florence2Config as TorchConfig
from transformers import Florence2ForConditionalGeneration

from florence2_jax.conversion.configs import to_torch
from florence2_jax.conversion.translate import to_tensors
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.davit import IMAGE_MEAN, IMAGE_STD
from florence2_jax.parallel.host_memory import keep_freed_memory
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.training.optimizer import OptimizerConfig, make_optimizer
from florence2_jax.training.state import init_params, init_state, model_graph
from florence2_jax.training.step import compile_step, train_step

ON_GPU = jax.default_backend() == "gpu"
OPTIMIZER = OptimizerConfig(peak_lr=1e-4, warmup_steps=0)
TOTAL_STEPS = 1_000_000  # So that the learning rate stays what it is.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12}
"""Of a card in bfloat16 (float16 where there is none), dense, by NVIDIA's data sheets."""

Batch: TypeAlias = dict[str, np.ndarray]
Step: TypeAlias = Callable[[], float]
"""Runs one step to its end and gives its loss."""


def main() -> None:
    """Prints a row for each size and batch, and writes them all to --json."""
    args = _arguments()
    if not ON_GPU:
        keep_freed_memory()
    if ON_GPU and not torch.cuda.is_available():
        sys.exit("JAX has a GPU, torch has none: install torch for CUDA to compare on it")
    rows = []
    for size in args.size:
        config = _config(args.variant, size)
        for batch_size in args.batch or _doubling(16):
            try:
                row = compare(config, batch_size, args)
            except (torch.cuda.OutOfMemoryError, jax.errors.JaxRuntimeError) as error:
                if not ON_GPU or "out of memory" not in str(error).lower().replace("_", " "):
                    raise
                break
            finally:
                gc.collect()
            sys.stdout.write(json.dumps(row, indent=2) + "\n")
            rows.append(row)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variant", default="base", help="tiny, base or large")
    parser.add_argument("--size", type=int, nargs="+", default=[384, 768] if ON_GPU else [384])
    parser.add_argument(
        "--batch", type=int, nargs="+", default=None if ON_GPU else [1, 2], help="images per step"
    )
    parser.add_argument("--prompts", type=int, default=4, help="K of the row of annotations, or 1")
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--target", type=int, default=64, help="tokens")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    return parser.parse_args()


def _config(variant: str, size: int) -> Florence2Config:
    dtype, depthwise = ("bfloat16", "conv") if ON_GPU else ("float32", "shift")
    return Florence2Config.create(
        variant, image_size=size, dtype=dtype, davit={"depthwise": depthwise}
    )


def _doubling(batch: int) -> Iterator[int]:
    while True:
        yield batch
        batch *= 2


def compare(config: Florence2Config, batch_size: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row: median seconds of each kind of step, their ratio, and annotations per second."""
    make_batch = functools.partial(random_batch, config, batch_size, args)
    steps = {"jax": jax_step(config, make_batch(1))}
    steps["torch"], forward_flops = torch_step(config, make_batch(1))
    if ON_GPU:
        steps["torch_compiled"], _ = torch_step(config, make_batch(1), compiled=True)
    if args.prompts > 1:
        steps[f"jax_{args.prompts}_prompts"] = jax_step(config, make_batch(args.prompts))
    seconds, losses = time_in_turns(steps, args.turns)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = min(medians[name] for name in medians if name.startswith("torch"))
    row: dict[str, Any] = {
        "variant": args.variant,
        "image_size_px": config.image_size[0],
        "batch": batch_size,
        "dtype": config.dtype,
        "seconds": {name: round(median, 4) for name, median in medians.items()},
        "slowest_and_fastest": {
            name: [round(max(times), 4), round(min(times), 4)] for name, times in seconds.items()
        },
        "ratio": round(best / medians["jax"], 3),
        "annotations_per_s": {
            name: round(batch_size * (args.prompts if name.endswith("prompts") else 1) / median, 3)
            for name, median in medians.items()
        },
        "last_loss": losses,
    }
    row |= _circumstances(args)
    return row | _utilisation(row, 3 * forward_flops)


def time_in_turns(
    steps: dict[str, Step], turns: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every step in every turn, after two turns that do not count, and last losses."""
    seconds, losses = {name: [] for name in steps}, {}
    for turn in range(turns + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            losses[name] = round(step(), 4)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds, losses


def random_batch(
    config: Florence2Config, batch_size: int, args: argparse.Namespace, num_prompts: int
) -> Batch:
    """Random pixels and ids, without padding."""
    rng = np.random.default_rng(0)
    width, height = config.image_size
    shape, highest = (batch_size, num_prompts), min(50_000, config.text.vocab_size - 1)
    return {
        "image": rng.integers(0, 256, (batch_size, height, width, 3)).astype(np.uint8),
        "prompt_ids": rng.integers(4, highest, (*shape, args.prompt)).astype(np.int32),
        "target_ids": rng.integers(4, highest, (*shape, args.target)).astype(np.int32),
        "task_ids": np.zeros(shape, np.int32),
    }


def fresh_params(config: Florence2Config) -> Any:
    """The weights that every step starts from."""
    return init_params(config, jax.random.key(0))


def jax_step(config: Florence2Config, batch: Batch) -> Step:
    """Ours, as `florence2-jax train` runs it on one device."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(OPTIMIZER, TOTAL_STEPS)
    state, shardings = init_state(lambda: fresh_params(config), optimizer, mesh)
    step = functools.partial(train_step, graphdef=model_graph(config), optimizer=optimizer, seed=0)
    compiled = compile_step(step, state, shardings, batch, mesh)

    def run() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return run


def torch_step(
    config: Florence2Config, batch: Batch, *, compiled: bool = False
) -> tuple[Step, int]:
    """Transformers' model with our weights, trained as its users would, and its forward FLOPs."""
    device = "cuda" if ON_GPU else "cpu"
    model = torch_model(config).to(device)  # pyright: ignore[reportArgumentType]
    model.train()
    groups = {True: [], False: []}  # Decayed as ours: no biases, norms, embeddings.
    for name, parameter in model.named_parameters():
        is_table = "embed" in name or "shared" in name
        groups[parameter.ndim > 1 and not is_table].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}],
        lr=OPTIMIZER.peak_lr,
        betas=(OPTIMIZER.b1, OPTIMIZER.b2),
        eps=OPTIMIZER.eps,
        weight_decay=OPTIMIZER.weight_decay,
        fused=True,
    )
    run_model = torch.compile(model) if compiled else model
    inputs = torch_inputs(model, config, batch, device)
    pixels = torch.from_numpy(batch["image"])
    mean, deviation = (
        torch.tensor(x, device=device).view(3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD)
    )

    def loss_of(model: Any) -> torch.Tensor:
        values = pixels.to(device).permute(0, 3, 1, 2) / 255
        with torch.autocast(device, torch.bfloat16, enabled=ON_GPU):
            return model(pixel_values=(values - mean) / deviation, **inputs).loss

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loss_of(model)

    def run() -> float:
        loss = loss_of(run_model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if ON_GPU:
            torch.cuda.synchronize()
        return float(loss.detach())

    return run, counter.get_total_flops()


def torch_model(config: Florence2Config) -> Florence2ForConditionalGeneration:
    """Transformers' model with a copy of our weights; its last row of the table is `<image>`."""
    rows = config.padded_vocab_size
    values = to_torch(config, "hf", num_rows=rows, image_id=rows - 1, dtype="float32")
    with torch.device("meta"):
        model = Florence2ForConditionalGeneration(TorchConfig.from_dict(values))
    params = jax.jit(lambda: fresh_params(config))()
    tensors = to_tensors(params, config, "hf", num_rows=rows)
    copies = {name: torch.tensor(np.asarray(tensor)) for name, tensor in tensors.items()}
    unknown = model.load_state_dict(copies, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    unset = [name for name, value in model.state_dict().items() if value.is_meta]
    assert not unknown and not unset, (unknown, unset)
    return model.requires_grad_(True)


def torch_inputs(
    model: Any, config: Florence2Config, batch: Batch, device: str
) -> dict[str, torch.Tensor]:
    """What it reads besides pixels: places for the image's tokens before the prompt."""
    prompts, targets = batch["prompt_ids"][:, 0], batch["target_ids"][:, 0]
    places = np.full((len(prompts), config.num_image_tokens), model.config.image_token_id)
    ids = torch.tensor(np.concatenate([places, prompts], axis=1), device=device).long()
    labels = torch.tensor(targets, device=device).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _utilisation(row: dict[str, Any], step_flops: float) -> dict[str, Any]:
    """Useful FLOPs of a step (backward: twice forward) and, of a card we know, their share."""
    found: dict[str, Any] = {"step_gflop": round(step_flops / 1e9, 1)}
    found["tflops"] = {
        name: round(step_flops / seconds / 1e12, 3)
        for name, seconds in row["seconds"].items()
        if not name.endswith("prompts")
    }
    peaks = [peak for name, peak in PEAK_FLOPS.items() if name in row["device"]]
    if ON_GPU and peaks:
        found["mfu"] = {name: round(x * 1e12 / peaks[0], 3) for name, x in found["tflops"].items()}
    return found


def _circumstances(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "prompt_tokens": args.prompt,
        "target_tokens": args.target,
        "turns": args.turns,
        "device": torch.cuda.get_device_name() if ON_GPU else jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "cpu_threads": torch.get_num_threads(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
