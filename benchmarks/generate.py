# SPDX-License-Identifier: Apache-2.0
"""Seconds per image of `generate`, here and in transformers, in the same process.

    python benchmarks/generate.py --json benchmarks/generate.json
    python benchmarks/generate.py --variant tiny --size 96 --new-tokens 8 --batch 2 --repeats 2

Both models have random weights of the same sizes, one prompt per image, the released options (3
beams, no trigram twice), and both must write every token (`min_new_tokens`), so both do the same
work. float32 on a CPU, bfloat16 on a GPU. Each number is the median of `--repeats` calls after one
that compiles or warms up; reading the image from disk and decoding text are in neither.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from transformers.models.florence2.configuration_florence2 import (
    Florence2Config as TorchConfig,
)
from transformers.models.florence2.modeling_florence2 import Florence2ForConditionalGeneration

from florence2_jax.conversion.configs import to_torch
from florence2_jax.inference.decoding import GenerationConfig, generate
from florence2_jax.models.config import Florence2Config
from florence2_jax.training.state import init_params, model_graph

PROMPT_TOKENS = 12
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    args = _arguments()
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("JAX has a GPU, torch has none: install torch for CUDA to compare on it")
    dtype = "bfloat16" if on_gpu else "float32"
    config = Florence2Config.create(args.variant, image_size=args.size, dtype=dtype)
    ours, theirs = _ours(config, args), _theirs(config, args, on_gpu)
    for batch in args.batch:
        image, prompt_ids = _inputs(config, batch)
        row = _describe(config, args, batch)
        row["jax_first_s"], row["jax_s_per_image"] = _time(ours, image, prompt_ids, args.repeats)
        row["torch_first_s"], row["torch_s_per_image"] = _time(
            theirs, image, prompt_ids, args.repeats
        )
        row["ratio"] = row["torch_s_per_image"] / row["jax_s_per_image"]
        sys.stdout.write(json.dumps(row, indent=2) + "\n")
        if args.json:
            rows = json.loads(args.json.read_text()) if args.json.exists() else []
            args.json.write_text(json.dumps([*rows, row], indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", default="base", help="tiny, base or large")
    parser.add_argument("--size", type=int, default=768, help="side of the image in pixels")
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file of rows to add this one to")
    return parser.parse_args()


def _ours(config: Florence2Config, args: argparse.Namespace) -> Callable[..., Any]:
    params, graphdef = init_params(config, jax.random.key(0)), model_graph(config)
    generation = GenerationConfig(
        num_beams=args.beams, max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens - 1
    )

    def run(image, prompt_ids):
        answers = generate(params, image, prompt_ids[:, None], graphdef=graphdef, config=generation)
        return np.asarray(answers.ids[:, 0, 0])

    return run


def _theirs(config: Florence2Config, args: argparse.Namespace, on_gpu: bool) -> Callable[..., Any]:
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    model = _torch_model(config).eval().to(device=device, dtype=dtype)
    options = transformers.GenerationConfig(
        num_beams=args.beams,
        max_new_tokens=args.new_tokens,
        min_new_tokens=args.new_tokens - 1,
        no_repeat_ngram_size=3,
        early_stopping=True,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))

    @torch.inference_mode()
    def run(image, prompt_ids):
        pixels = torch.from_numpy(image).to(device).permute(0, 3, 1, 2) / 255
        image_ids = np.full((len(image), config.num_image_tokens), model.config.image_token_id)
        ids = torch.tensor(np.concatenate([image_ids, prompt_ids], axis=1), device=device).long()
        answers = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=((pixels - mean) / std).to(dtype),
            generation_config=options,
        )
        return answers.cpu().numpy()[:, 1:]

    return run


def _torch_model(config: Florence2Config) -> Florence2ForConditionalGeneration:
    rows = config.text.padded_vocab_size
    values = to_torch(config, "hf", num_rows=rows, image_id=rows - 1, dtype="float32")
    return Florence2ForConditionalGeneration(TorchConfig.from_dict(values))


def _inputs(config: Florence2Config, batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    width, height = config.image_size
    image = rng.integers(0, 256, (batch, height, width, 3)).astype(np.uint8)
    prompts = rng.integers(4, min(50_000, config.text.vocab_size - 1), (batch, PROMPT_TOKENS))
    return image, prompts.astype(np.int32)


def _time(run: Callable[..., Any], image, prompt_ids, repeats: int) -> tuple[float, float]:
    """Seconds of the first call, and the median of the others by image."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        ids = run(image, prompt_ids)
        seconds.append(time.perf_counter() - start)
        assert (ids[:, -1] == 2).all(), "an answer ended before its length was used up"
    return seconds[0], statistics.median(seconds[1:]) / len(image)


def _describe(config: Florence2Config, args: argparse.Namespace, batch: int) -> dict[str, Any]:
    return {
        "variant": args.variant,
        "image_size_px": args.size,
        "batch": batch,
        "num_beams": args.beams,
        "new_tokens": args.new_tokens,
        "dtype": config.dtype,
        "repeats": args.repeats,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "cpu_threads": torch.get_num_threads(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
