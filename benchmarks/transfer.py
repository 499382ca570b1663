# SPDX-License-Identifier: Apache-2.0
"""Is a model that learnt something else first better at detection on few photos?

    python benchmarks/transfer.py --data /data/bccd --runs runs/transfer

Fine-tunes `--model` on a dataset's folder with `configs/finetune_detection.py`, seed by seed, and
beside it the same model with weights drawn anew: architecture, tokenizer, rates, steps and order of
the images are the same. Both are asked about `--split`, which neither has seen, and about nothing
else: no step is chosen by it. A run that was interrupted goes on with the same command.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from florence2_jax.cli.train import load_config
from florence2_jax.conversion.export import save_workdir
from florence2_jax.conversion.load import find, load_pretrained
from florence2_jax.evaluation.questions import Asking
from florence2_jax.evaluation.runner import evaluate
from florence2_jax.inference.predictor import Predictor
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import get_task
from florence2_jax.training import loop
from florence2_jax.training.state import InitConfig, init_params

ROOT = Path(__file__).resolve().parents[1]
BEGINNINGS = ("pretrained", "fresh")


def main() -> None:
    args = _arguments()
    # Models of one size are compiled once.
    jax.config.update("jax_compilation_cache_dir", str(args.runs.absolute() / "compiled"))
    console = Console()
    rows = [
        run_once(args, beginning, seed, console)
        for seed in range(args.seeds)
        for beginning in args.begins
    ]
    table = Table(title=f"{args.split} of {args.data.name}, {args.steps} steps, {args.model}")
    for column in ("begins", "seed", "AP50", "AP", "AP50 blind", "minutes"):
        table.add_column(column, justify="left" if column == "begins" else "right")
    for row in rows:
        measured = (row["metrics"]["ap50"], row["metrics"]["ap"], row["blind"]["ap50"])
        numbers = (*(f"{value:.3f}" for value in measured), f"{row['seconds'] / 60:.1f}")
        table.add_row(row["begins"], str(row["seed"]), *numbers)
    console.print(table)
    by_start = {b: [r["metrics"]["ap50"] for r in rows if r["begins"] == b] for b in args.begins}
    for beginning, values in by_start.items():
        spread = f", {min(values):.3f} to {max(values):.3f}" if len(values) > 1 else ""
        console.print(f"{beginning}: mean AP50 {statistics.mean(values):.3f}{spread}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def run_once(
    args: argparse.Namespace, beginning: str, seed: int, console: Console
) -> dict[str, Any]:
    """Fine-tunes and evaluates, unless the result is there."""
    place = args.runs / f"{beginning}-{seed}"
    result = place.with_suffix(".json")
    if result.is_file():
        return json.loads(result.read_text())
    model = str(find(args.model)) if beginning == "pretrained" else fresh(args, seed)
    console.print(f"{beginning}, seed {seed}")
    started = time.monotonic()
    loop.run(run_config(args, model, seed), place, console=Console(quiet=True))
    row: dict[str, Any] = {"begins": beginning, "seed": seed, "seconds": time.monotonic() - started}
    found = evaluate(
        Predictor.load(place, num_beams=1),
        RecordStore(place / "records" / args.data.name, args.split),
        Asking(tasks=(get_task("<OD>"),), per_record=0),
        num_resamples=0,
    )
    assert found is not None  # One process.
    told = found.results[0].to_json()
    row |= {name: told[name] for name in ("metrics", "blind", "num_examples")}
    row |= {"steps": args.steps, "model": args.model, "jax": jax.__version__}
    result.write_text(json.dumps(row, indent=1))
    jax.clear_caches()
    return row


def run_config(args: argparse.Namespace, model: str, seed: int) -> dict[str, Any]:
    """The recipe of the package, with a rate for tiny models and the largest boxes first.

    One seed each of three other recipes (300 steps with smoothed locations: in a random order, in
    raster order, with crops and questions after one class) ended at an AP50 of 0.001 to 0.003:
    they wrote the same boxes about every image.
    """
    config = load_config(f"{ROOT / 'configs' / 'finetune_detection.py'}:{model}", [])
    config["seed"] = seed
    config["total_samples"] = args.steps * args.batch_size
    config["model"] = {"image_size": args.image_size, "dtype": "float32", "remat": "none"}
    config["input"] |= {"records": str(args.data), "batch_size": args.batch_size}
    config["input"] |= {"target_length": args.target_length, "num_threads": 1, "order": "area"}
    config["optimizer"] = load_config(str(ROOT / "configs" / "scenes.py"), [])["optimizer"]
    config["checkpoint"]["every_steps"] = args.steps
    config["log"] = {"every_steps": 100}
    return config


def fresh(args: argparse.Namespace, seed: int) -> str:
    """A workdir with the model's architecture and tokenizer, and weights that know nothing."""
    folder = args.runs / f"fresh-weights-{seed}"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        model = load_pretrained(find(args.model))
        init = InitConfig(locations="ordinal", scale="fan_in")
        first = model.tokenizer.first_location_id
        key = jax.random.key(seed)
        params = init_params(model.config, key, init, first_location_id=first)
        known = {"name": f"{args.model} with fresh weights, seed {seed}"}
        save_workdir(model._replace(params=params), folder, known)
    return str(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of a dataset")
    parser.add_argument("--split", default="test", help="that is asked about (test)")
    parser.add_argument("--model", default="scenes-tiny")
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--target-length", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--begins", nargs="+", choices=BEGINNINGS, default=BEGINNINGS)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
