# SPDX-License-Identifier: Apache-2.0
"""The paper's questions asked again on drawn scenes: does more granularity, do dense labels help?

    python benchmarks/learning.py --runs runs/learning             # hours on two cores
    python benchmarks/learning.py --runs runs/learning --report    # what is there so far

A run is trained, evaluated on scenes that no run has seen, and kept as JSON under `--runs`; the
same command goes on where it was, seed by seed. Runs that are compared share seed, scenes,
tokenizer, number of steps and every value of `configs/scenes.py` but those that `RUNS` names; none
was tuned.

The page `docs/learning.md` is written anew from what is there: per question the difference of two
runs with the same seed, its mean over seeds with a 95 % interval (Student's t), and what follows:
holds, does not hold, cannot tell. Each question is asked twice: of the tasks' metrics, which stay
at zero until a model has learnt much, and of the loss of the true answers, which moves from the
first step on. Runs of several seeds may be trained side by side, each with its own `--seeds`.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from learning_page import IMAGE, MEASURES, PIXEL, REGION, TARGETS, plot, read_results, report
from rich.console import Console

from florence2_jax.cli.train import load_config
from florence2_jax.data.pipeline import iterate, make_dataset
from florence2_jax.evaluation.questions import Asking
from florence2_jax.evaluation.runner import evaluate
from florence2_jax.inference.predictor import Predictor
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.flops import model_flops
from florence2_jax.records.importers.drawn import plan_scenes
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.scene_config import LEVELS
from florence2_jax.records.schema import Record
from florence2_jax.records.store import Plan, RecordStore, write_store
from florence2_jax.tasks.registry import TASKS, get_task
from florence2_jax.training import loop
from florence2_jax.training.config import RunConfig
from florence2_jax.training.loss import shift_right, sums_per_task, token_cross_entropy
from florence2_jax.training.state import merge, model_graph
from florence2_jax.training.step import DEVICE_KEYS

Measure = Literal["metrics", "losses"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "learning.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run differs in from `configs/scenes.py`.

    Attributes:
        tasks: that it is asked, with the weights of the run file.
        init: name of the run it begins with, of the same seed.
        share: of the steps of a whole run.
        is_sparse: each image keeps labels of one kind only.
        same_flops_as: the run whose FLOPs a step has; more images a step where a step has less.
    """

    tasks: tuple[str, ...] = (*IMAGE, *REGION, *PIXEL)
    init: str = ""
    share: float = 1.0
    is_sparse: bool = False
    freeze: tuple[str, ...] = ()
    num_prompts: int = 8
    image_size: int = 64
    same_flops_as: str = ""


GRANULARITIES = {"image": IMAGE, "image+region": (*IMAGE, *REGION), "all": Run().tasks}

RUNS: dict[str, Run] = {
    **{name: Run(tasks=tasks) for name, tasks in GRANULARITIES.items()},
    **{
        f"{name} -> {target}": Run(tasks=(target,), init=name, share=0.25)
        for name in GRANULARITIES
        for target in TARGETS
    },
    "sparse": Run(is_sparse=True),
    "image -> all": Run(init="image", share=0.5),
    "image -> all, frozen": Run(init="image", share=0.5, freeze=("image/*",)),
    "one prompt": Run(num_prompts=1, same_flops_as="all"),
    "32 px": Run(image_size=32),
}


def main() -> None:
    args = _arguments()
    # Runs whose programs are the same share them.
    jax.config.update("jax_compilation_cache_dir", str(args.runs.absolute() / "compiled"))
    names = [name for name in RUNS if not args.only or name in args.only]
    if not args.report:
        stores = make_stores(args.runs, args.images)
        for seed in args.seeds:
            for name in names:
                run_once(name, seed, args.runs, stores, args)
    found = read_results(args.runs)
    results = {name: found[name] for name in RUNS if name in found}
    picture = (args.page or PAGE).with_suffix(".svg")
    page = report(results, picture.name)
    if args.page:
        args.page.write_text(page)
        picture.write_text(plot(results))
    sys.stdout.write(page)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--steps", type=int, default=800, help="of a whole run")
    parser.add_argument("--images", type=int, default=6400, help="to learn from")
    parser.add_argument("--test-images", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(RUNS), help="these runs alone")
    parser.add_argument("--report", action="store_true", help="train nothing, write the page")
    parser.add_argument("--page", type=Path, help=f"the page, {PAGE.relative_to(ROOT)} in the docs")
    return parser.parse_args()


def make_stores(folder: Path, num_images: int) -> dict[bool, Path]:
    """The scenes, and the same with one kind of label an image; keys say whether sparse."""
    dense, sparse = folder / "dense", folder / "sparse"
    plan = plan_scenes(num_images + 256, LEVELS["easy"], seed=11, num_validation=256)
    write_store(dense, plan, num_workers=2)
    units = [("train", i) for i in range(num_images)]
    keep = Plan(units={"train": units}, make=_Thin(dense), job={"sparse": 1}, images=dense)
    write_store(sparse, keep)
    return {False: dense, True: sparse}


@dataclasses.dataclass(frozen=True)
class _Thin:
    """Keeps the labels of one kind of each image, drawn evenly by the hash of its id."""

    directory: Path

    def __call__(self, place: tuple[str, int], ledger: Ledger) -> Record:
        ledger.read("image")
        ledger.keep("image")
        record = RecordStore(self.directory, place[0])[place[1]]
        return thin(record)


def thin(record: Record) -> Record:
    """One of: texts, boxes with labels, groundings, words, masks with phrases, questions."""
    words = tuple(region for region in record.regions if region.label("text") is not None)
    things = tuple(region for region in record.regions if region.label("text") is None)
    boxes = tuple(dataclasses.replace(thing, polygons=()) for thing in things)
    masks = tuple(
        dataclasses.replace(thing, labels=tuple(x for x in thing.labels if x.kind == "phrase"))
        for thing in things
    )
    kinds: list[dict[str, Any]] = [
        {"texts": record.texts},
        {"regions": boxes},
        {"groundings": record.groundings},
        {"regions": words},
        {"regions": masks},
        {"questions": record.questions},
    ]
    kinds = [kind for kind in kinds if all(kind.values())]  # Not every scene has words.
    digest = hashlib.blake2b(record.id.encode(), digest_size=8).digest()
    kept = kinds[int.from_bytes(digest, "big") % len(kinds)]
    empty: dict[str, Any] = dict(texts=(), regions=(), groundings=(), questions=())
    return dataclasses.replace(record, **(empty | kept))


def run_once(
    name: str, seed: int, folder: Path, stores: Mapping[bool, Path], args: argparse.Namespace
) -> None:
    """Trains and evaluates one run, unless its result is there."""
    place = folder / _file_name(name) / f"seed-{seed}"
    result = place.with_suffix(".json")
    if result.is_file():
        return
    config = run_config(name, seed, folder, stores, args.steps)
    console = Console(stderr=True)
    console.print(f"{name}, seed {seed}: {config['total_steps']} steps")
    started = time.monotonic()
    loop.run(config, place, console=Console(quiet=True))
    seconds = time.monotonic() - started
    predictor = Predictor.load(place, num_beams=1)
    measured = RUNS[name].tasks if RUNS[name].share == 0.25 else MEASURES
    tasks = tuple(get_task(task) for task in MEASURES if task in measured)
    found = evaluate(
        predictor,
        RecordStore(stores[False], "validation"),
        Asking(tasks=tasks, per_record=2),
        max_records=args.test_images,
        with_blind=False,
        num_resamples=0,
    )
    assert found is not None  # One process.
    metrics = {row.task.name: row.metrics[MEASURES[row.task.name]] for row in found.results}
    losses = held_out_losses(
        predictor, RecordStore(stores[False], "validation"), RunConfig.create(config), measured
    )
    row = {"run": name, "seed": seed, "steps": config["total_steps"], "seconds": seconds}
    row |= {"batch_size": config["input"]["batch_size"], "metrics": metrics, "losses": losses}
    row |= {"images": args.images, "test_images": args.test_images, "jax": jax.__version__}
    result.write_text(json.dumps(row, indent=1))
    console.print({task: round(value, 3) for task, value in metrics.items()})
    jax.clear_caches()
    if not any(run.init == name for run in RUNS.values()):
        shutil.rmtree(place)


def held_out_losses(
    predictor: Predictor, store: RecordStore, run: RunConfig, tasks: Iterable[str]
) -> dict[str, float]:
    """Nats that a token of the true answer costs, by task, over eight questions about each image.

    Every run is asked the same. Locations are smoothed as in training.
    """
    spec = dataclasses.replace(
        run.batch_spec(),
        weights={get_task(task).token: 1.0 for task in tasks},
        batch_size=8,
        num_prompts=8,
    )
    graph, first_location_id = model_graph(predictor.config), predictor.tokenizer.first_location_id

    @jax.jit
    def summed(params: Any, batch: dict[str, Any]) -> Any:
        model = merge(graph, params)
        targets = batch["target_ids"]
        logits = model(batch["image"], batch["prompt_ids"], shift_right(targets))
        losses = token_cross_entropy(logits, targets, run.loss, first_location_id=first_location_id)
        return sums_per_task(losses, targets, batch["task_ids"])

    dataset = make_dataset(store, predictor.tokenizer, spec, seed=0)
    batches = iterate(dataset, start_step=0, num_workers=0, num_threads=1, buffer=2)
    sums = [
        summed(predictor.params, {key: batch[key] for key in DEVICE_KEYS if key in batch})
        for batch in itertools.islice(batches, len(store) // spec.batch_size)
    ]
    costs, tokens = (np.sum(part, axis=0) for part in zip(*sums, strict=True))
    numbers = {task.name: i for i, task in enumerate(TASKS.values())}
    return {task: float(costs[numbers[task]] / tokens[numbers[task]]) for task in tasks}


def _file_name(name: str) -> str:
    return name.replace(" -> ", "-to-").replace(", ", "-").replace(" ", "-")


def run_config(
    name: str, seed: int, folder: Path, stores: Mapping[bool, Path], steps: int
) -> dict[str, Any]:
    """The values of `configs/scenes.py` with what the run differs in."""
    run = RUNS[name]
    config = load_config(f"{ROOT / 'configs' / 'scenes.py'}:{stores[run.is_sparse]}", [])
    config["seed"] = seed
    config["total_steps"] = round(steps * run.share)
    weights = config["input"]["tasks"]
    default = weights["all"]
    config["input"]["tasks"] = {"all": 0.0} | {t: weights.get(t, default) for t in run.tasks}
    config["input"]["num_prompts"] = run.num_prompts
    config["model"]["image_size"] = run.image_size
    config["freeze"] = run.freeze
    config["checkpoint"] = dict(every_steps=config["total_steps"], keep=1)
    if run.init:
        config["init"]["workdir"] = str(folder / _file_name(run.init) / f"seed-{seed}")
    if run.same_flops_as:
        config["input"]["batch_size"] = _batch_size(config, RUNS[run.same_flops_as])
    first = folder / _file_name(next(iter(RUNS))) / f"seed-{seed}" / "tokenizer"
    if first.is_dir():  # One vocabulary for all runs of a seed.
        config["tokenizer"]["path"] = str(first)
    return config


def _batch_size(config: Mapping[str, Any], other: Run) -> int:
    """Images a step that cost as many FLOPs as a step of the other run."""
    given = config["input"]
    given_size = config["tokenizer"]["train_size"]
    model = Florence2Config.create(
        **(config["model"] | {"text": config["model"]["text"] | {"vocab_size": given_size + 1024}})
    )
    lengths = dict(prompt_length=given["prompt_length"], target_length=given["target_length"])
    theirs = model_flops(model, num_prompts=other.num_prompts, **lengths).per_image
    ours = model_flops(model, num_prompts=given["num_prompts"], **lengths).per_image
    return round(given["batch_size"] * theirs / ours)


if __name__ == "__main__":
    main()
