# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of `florence2-jax convert`, each way, on random weights of a real size.

python benchmarks/convert.py --variant large --folder /tmp/convert

Writes a folder of transformers with random weights (and a small tokenizer), then converts it in
fresh processes. Peak memory is the resident set of the whole process, interpreter and JAX included;
CPU seconds are there for machines that others use too.
The folder needs room for five checkpoints; it is removed at the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from florence2_jax.conversion.configs import GENERATION, generation_to_torch, to_torch
from florence2_jax.conversion.files import CONFIG, GENERATION_CONFIG
from florence2_jax.conversion.tensors import FLOATS, Tensor, write_safetensors
from florence2_jax.conversion.translate import to_tensors
from florence2_jax.models.config import Florence2Config
from florence2_jax.text.hugging_face import save_hugging_face
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training.state import init_params

LIMITS = {
    "seconds": 60.0,
    "memory": 2.5,
}  # Of `large`, each way; memory in checkpoints (the larger).


def main() -> int:
    """Prints a table; status 1 if `large` misses a limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variant", default="base", choices=("tiny", "base", "large"))
    parser.add_argument("--dtype", default="float32", choices=tuple(FLOATS))
    parser.add_argument("--folder", type=Path, required=True, help="a new folder to work in")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    try:
        rows = measure(args.folder, args.variant, args.dtype)
    finally:
        shutil.rmtree(args.folder)
    console = Console(width=100, highlight=False)
    console.print(f"{'from':10} {'to':10} seconds  cpu s  peak GB  of source  of target")
    for row in rows:
        console.print(
            f"{row['from']:10} {row['to']:10} {row['seconds']:7.1f} {row['cpu_seconds']:6.1f}"
            f" {row['peak_bytes'] / 1e9:8.2f} {row['of_source']:10.2f} {row['of_target']:10.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    missed = [
        row
        for row in rows
        if row["seconds"] > LIMITS["seconds"]
        or min(row["of_source"], row["of_target"]) > LIMITS["memory"]
    ]
    return int(args.variant == "large" and bool(missed))


def measure(folder: Path, variant: str, dtype: str) -> list[dict]:
    """One row per way."""
    make_checkpoint(folder / "hf", variant, dtype)
    out = ["--dtype", dtype]
    ways = (("hf", "jax", []), ("jax", "hf-again", out), ("hf", "microsoft", out),
            ("microsoft", "jax-again", []))  # fmt: skip
    rows = []
    for source, target, options in ways:
        to = target.removesuffix("-again")
        command = [sys.executable, "-m", "florence2_jax", "convert", str(folder / source)]
        command += [str(folder / target), "--to", to, *options]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        rows.append(
            {
                "from": source,
                "to": to,
                "seconds": seconds,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "peak_bytes": peak,
                "of_source": peak / weights_size(folder / source),
                "of_target": peak / weights_size(folder / target),
            }
        )
    return rows


def make_checkpoint(folder: Path, variant: str, dtype: str) -> None:
    """A folder of transformers, its weights normal numbers, one tensor in memory at a time."""
    config = Florence2Config.create(variant)
    tokenizer = Tokenizer.train(["a red circle", "two blue stars"], vocab_size=300)
    abstract = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def random(tensor: Tensor) -> Tensor:
        if tensor.shape[0] == 100:  # The table of frames is no parameter.
            return tensor

        def draw():
            return rng.standard_normal(tensor.shape, np.float32).astype(tensor.dtype)

        return Tensor(tensor.shape, tensor.dtype, draw)

    folder.mkdir()
    tensors = to_tensors(abstract, config, "hf", dtype=dtype)
    write_safetensors(folder, {name: random(tensor) for name, tensor in tensors.items()})
    values = to_torch(
        config,
        "hf",
        num_rows=config.text.vocab_size,
        image_id=len(tokenizer) - 1,
        dtype=dtype,
    )
    (folder / CONFIG).write_text(json.dumps(values))
    (folder / GENERATION_CONFIG).write_text(json.dumps(generation_to_torch(GENERATION)))
    save_hugging_face(
        tokenizer,
        folder,
        image_size=config.image_size,
        num_image_tokens=config.num_image_tokens,
        max_length=config.text.max_positions,
    )


def weights_size(folder: Path) -> int:
    """Bytes of the checkpoint alone."""
    checkpoint = folder / "checkpoints"
    files = checkpoint.rglob("*") if checkpoint.is_dir() else folder.glob("*.safetensors")
    return sum(path.stat().st_size for path in files if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
