# SPDX-License-Identifier: Apache-2.0
"""What one pair of DaViT's blocks costs on TPUs that are not here, by the TPU compiler.

python benchmarks/blocks.py --chip v5e v6e v5p --stage 1 3 --json blocks.json

Compiles the forward and backward pass of a `DualBlock`, or of one of its two attentions, for one
device, with each formulation of the attentions, and estimates it as `planning.estimate` says: by
the roofline of each operation (optimistic) and by the compiler's cycles (pessimistic, without the
kernels, of which it knows no cycles). Nothing is run. Status 1 if a program does not compile.
"""

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from florence2_jax.planning.compile import ENVIRONMENT

os.environ.update(ENVIRONMENT)  # Read when JAX starts.

import jax
import jax.numpy as jnp
from flax import nnx
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh
from rich.console import Console

from florence2_jax.models.config import VARIANTS
from florence2_jax.models.davit import DualBlock
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.planning import hlo
from florence2_jax.planning.chips import CHIPS, Topology
from florence2_jax.planning.dump import NoProgramText, compile_with_text
from florence2_jax.planning.estimate import estimate
from florence2_jax.planning.worker import describe_devices

PARTS = {
    "block": lambda block: block,
    "window": lambda block: block.spatial.attn,
    "channel": lambda block: block.channel.attn,
}
COLUMNS = (
    ("chip", "{chip}"),
    ("model", "{variant}"),
    ("px", "{size_px}"),
    ("images", "{batch}"),
    ("stage", "{stage}"),
    ("part", "{part}"),
    ("attention", "{method}"),
    ("roofline ms", "{seconds_ms:.2f}"),
    ("cycles ms", "{cycle_ms:.2f}"),
    ("HBM GB", "{hbm_gb:.2f}"),
    ("temporaries GB", "{temp_gb:.2f}"),
    ("copies ms", "{copies_ms:.2f}"),
)


def main() -> int:
    """Compiles, prints a row each, and writes them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chip", nargs="+", default=["v5e"], choices=tuple(CHIPS))
    parser.add_argument("--variant", default="base", choices=tuple(VARIANTS))
    parser.add_argument("--size-px", type=int, default=384, help="side of the image")
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--stage", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--part", nargs="+", default=["block"], choices=tuple(PARTS))
    parser.add_argument("--attention", nargs="+", default=["reference", "tiled"])
    parser.add_argument("--remat", action="store_true", help="recompute the forward pass")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    console = Console(width=200, highlight=False)
    names = [name for name, _ in COLUMNS]
    console.print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}", markup=False)
    rows = []
    for row in measure(args):
        cells = [row["error"]] if "error" in row else []
        cells = [text.format(**row) for _, text in COLUMNS if "error" not in row] or cells
        console.print(f"| {' | '.join(cells)} |", markup=False)
        rows.append(row)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in row for row in rows))


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per program; of one that does not compile, the reason."""
    choices = itertools.product(args.chip, args.stage, args.part, args.attention)
    for chip, stage, part, method in choices:
        row = {"chip": chip, "variant": args.variant, "size_px": args.size_px}
        row |= {"batch": args.batch, "remat": args.remat}
        row |= {"stage": stage, "part": part, "method": method}
        try:
            row |= measure_one(row)
        except (JaxRuntimeError, ValueError, NoProgramText) as error:
            reason = next(filter(str.strip, str(error).splitlines()))
            row["error"] = f"{chip} stage {stage} {part} {method}: {reason}"
        yield row


def measure_one(row: Mapping[str, Any]) -> dict[str, Any]:
    """Compiles the program of a row and estimates it."""
    chip = CHIPS[row["chip"]]
    shape = next(shape for shape in chip.shapes if math.prod(shape) == 4)
    devices = describe_devices(Topology(chip, shape))[:1]
    lowered = lower_part(row, make_mesh(MeshConfig(), devices))
    start = time.perf_counter()
    compiled, text = compile_with_text(lowered.compile)
    compile_s = time.perf_counter() - start
    found = estimate(hlo.parse(text), chip)
    copies = found.categories.get("copies")
    return {
        "seconds_ms": found.seconds * 1e3,
        "cycle_ms": found.cycle_seconds * 1e3,
        "copies_ms": copies.seconds * 1e3 if copies else 0.0,
        "hbm_gb": found.hbm_bytes / 1e9,
        "executed_gflop": found.executed_flops / 1e9,
        "temp_gb": compiled.memory_analysis().temp_size_in_bytes / 1e9,
        "compile_s": round(compile_s, 1),
        "categories_ms": {name: cost.seconds * 1e3 for name, cost in found.categories.items()},
        "costliest": [
            f"{op.cost.seconds * 1e3:.3f} ms {op.category}: {op.name} {op.shape}"
            for op in found.costliest
        ],
        "unknown": [*found.unknown_loops, *found.unknown_kernels],
    }


def lower_part(row: Mapping[str, Any], mesh: Mesh) -> Any:
    """Forward and backward pass of a part, for the one device of `mesh`; bfloat16 throughout."""
    config = VARIANTS[row["variant"]].davit
    dim, num_heads = config.dims[row["stage"] - 1], config.num_heads[row["stage"] - 1]
    side = row["size_px"] // math.prod(config.patch_strides[: row["stage"]])
    sharding = jax.NamedSharding(mesh, jax.P())

    def make() -> Any:
        block = DualBlock(dim, num_heads, config, dtype="bfloat16", rngs=nnx.Rngs(0))
        for attention in (block.spatial.attn, block.channel.attn):
            vars(attention)["method"] = row["method"]
        return PARTS[row["part"]](block)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    with jax.set_mesh(mesh):
        graphdef, state = nnx.split(nnx.eval_shape(make))
        # Kernels arrive in bfloat16, as a step gathers them.
        dtypes = {1: jnp.float32}
        params = jax.tree.map(
            lambda p: array(p.shape, dtypes.get(p.ndim, jnp.bfloat16)), nnx.to_pure_dict(state)
        )
        x = array((row["batch"], side, side, dim), jnp.bfloat16)
        options = {"drop_rates": (0.0, 0.0), "key": None} if row["part"] == "block" else {}

        def call(params, x):
            return nnx.merge(graphdef, params)(x, **options)

        def both(params, x, d_out):
            run = jax.checkpoint(call) if row["remat"] else call
            out, pull = jax.vjp(run, params, x)
            return out, pull(d_out)

        return jax.jit(both).lower(params, x, x)


if __name__ == "__main__":
    raise SystemExit(main())
