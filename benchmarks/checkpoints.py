# SPDX-License-Identifier: Apache-2.0
"""What digests cost, and how long a save stops a run: Orbax alone beside `Checkpoints`.

    python benchmarks/checkpoints.py --json benchmarks/checkpoints.json
    python benchmarks/checkpoints.py --quick

The state is that of a run of `base`: float32 parameters and both moments of AdamW, all filled with
random numbers (zeros would compress away), on one device. Each turn saves and restores with bare
Orbax, then with `Checkpoints`, to the same disk; a number is the median over `--turns`. A save
`blocks` until its call returns and `takes` until its files are committed. Digests are computed once
per save: their share of the training time is that of `--interval-s` between two saves. The first
pass compiles a program for every shape above a megabyte; it is told apart.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from florence2_jax.models.config import Florence2Config
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.parallel.partitioning import state_shardings
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.digests import digests
from florence2_jax.training.optimizer import OptimizerConfig, make_optimizer
from florence2_jax.training.state import TrainState, init_params


def main() -> None:
    """Prints the figures, and writes them where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="base")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--interval-s", type=float, default=120.0, help="between two saves")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    parser.add_argument("--quick", action="store_true", help="the tiny variant, one turn")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.quick:
        args.variant, args.turns = "tiny", 1
    state = random_state(args.variant)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report = measure(state, Path(folder), turns=args.turns)
    report |= {
        "variant": args.variant,
        "interval_s": args.interval_s,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "load": os.getloadavg()[1],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    report["shares"] = {
        "digests of the interval, below 1 %": report["digest_s"] / args.interval_s,
        "digests of a bare save, below 10 %": report["digest_s"] / report["bare"]["takes_s"],
        "blocked of the interval, below 5 %": report["ours"]["blocks_s"] / args.interval_s,
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def random_state(variant: str) -> TrainState:
    """A state of this size whose arrays hold random numbers."""
    config = Florence2Config.create(variant=variant)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-4, warmup_steps=0), 1_000_000)
    mesh = make_mesh(MeshConfig.create(replica=1, fsdp=1, tensor=1))

    def init() -> TrainState:
        params = init_params(config, jax.random.key(0))
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
        )

    shapes = jax.eval_shape(init)
    shardings = state_shardings(shapes, mesh)
    rng = np.random.default_rng(0)

    def fill(x: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        if x.dtype != np.float32:
            return jax.device_put(np.zeros(x.shape, x.dtype), sharding)
        return jax.device_put(rng.standard_normal(x.shape, np.float32), sharding)

    return jax.tree.map(fill, shapes, shardings)


def measure(state: TrainState, folder: Path, *, turns: int) -> dict[str, Any]:
    """Seconds of a digest pass, of saves and of restores."""
    training = {"step": state.step, "opt_state": state.opt_state}
    trees = {"params": state.params, "training": training}
    nbytes = sum(x.nbytes for x in jax.tree.leaves(trees))
    first_s = seconds(lambda: digests(trees))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    rows: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    passes = []
    for turn in range(turns):
        passes.append(seconds(lambda: digests(trees)))
        order = [("bare", bare_turn), ("ours", our_turn)]
        for name, one in order[:: 1 if turn % 2 == 0 else -1]:
            rows[name].append(one(folder / name, state, trees, abstract))
            shutil.rmtree(folder / name)
    median = {
        name: {key: statistics.median(row[key] for row in found) for key in found[0]}
        for name, found in rows.items()
    }
    digest_s = statistics.median(passes)
    speed = {"gb": nbytes / 1e9, "arrays": len(jax.tree.leaves(trees))}
    speed |= {"digest_s": digest_s, "first_digest_s": first_s}
    return speed | {"gb_per_s": nbytes / 1e9 / digest_s, **median, "rows": rows, "passes": passes}


def seconds(function: Callable[[], Any]) -> float:
    """Of one call."""
    start_s = time.perf_counter()
    function()
    return time.perf_counter() - start_s


def bare_turn(folder: Path, state: TrainState, trees: Any, abstract: TrainState) -> dict:
    """Orbax as it comes."""
    del state
    names = {name: ocp.StandardCheckpointHandler() for name in trees}
    with ocp.CheckpointManager(folder, item_handlers=names) as manager:
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        start_s = time.perf_counter()
        manager.save(1, args=ocp.args.Composite(**items))
        blocks_s = time.perf_counter() - start_s
        manager.wait_until_finished()
        takes_s = time.perf_counter() - start_s
    training = {"step": abstract.step, "opt_state": abstract.opt_state}

    def restore() -> None:
        for name, tree in {"params": abstract.params, "training": training}.items():
            arguments = ocp.args.StandardRestore(tree)
            found = names[name].restore(epath.Path(folder / "1" / name), args=arguments)
            jax.block_until_ready(found)

    return {"blocks_s": blocks_s, "takes_s": takes_s, "restore_s": seconds(restore)}


def our_turn(folder: Path, state: TrainState, trees: Any, abstract: TrainState) -> dict:
    """The same with digests."""
    del trees
    with Checkpoints(folder) as checkpoints:
        checkpoints.check_writable()
        start_s = time.perf_counter()
        checkpoints.save(1, state)
        blocks_s = time.perf_counter() - start_s
    takes_s = time.perf_counter() - start_s
    with Checkpoints(folder) as checkpoints:
        restore_s = seconds(lambda: jax.block_until_ready(checkpoints.restore(abstract)))
    return {"blocks_s": blocks_s, "takes_s": takes_s, "restore_s": restore_s}


if __name__ == "__main__":
    main()
