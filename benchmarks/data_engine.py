# SPDX-License-Identifier: Apache-2.0
"""What the loop of the data engine does to labels whose truth is known: drawn scenes.

    python benchmarks/data_engine.py --workdir /tmp/engine --json benchmarks/data_engine.json \\
        --plot benchmarks/data_engine.svg

Five per cent of the training images keep their exact labels, as if people had made them, and so do
the frozen ones. All others are labelled by three imperfect specialists (`engine/specialists/
imperfect.py`): they miss 40 % of the small objects (the same ones), draw boxes askew, imagine a
tenth of theirs, take 15 % of the colors for others, and never see one class. A tiny model learns
from what they say, filtered; from it start the models of all variants and rounds, so that those of
two rounds differ by their labels alone. Then two rounds of refinement, and a last model on the last
labels. Per round and seed:

    labels  precision and recall of the boxes of the training labels that people did not make, by
            class at IoU 0.5; recall of the objects that all specialists missed; boxes where there
            is nothing, per 100 images; recall of the unseen class
    model   the same of what a model that was trained on them says of the audited split, whatever
            the scores, boxes said twice counted once

Variants: `full`; `no-filters`; `vanishing-no-guard`, in which the model of round 1 learns mostly
from people's labels, later ones have no more of them than there are, and nothing that a model finds
anew enters, so that the unseen class should be forgotten, with a guard that only tells;
`vanishing`, the same with a guard that stops the loop (what comes before is the same: a copy).

A killed run goes on where it was. Sizes and steps are parameters: the defaults take hours on a
laptop; `--images 60 --human-share 0.3 --first-steps 3 --steps 3` shows in minutes that all runs.
"""

import argparse
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from data_engine_measures import UNSEEN, measure
from data_engine_page import VARIANTS, plot, show, summarise
from rich.console import Console

from florence2_jax.cli.train import load_config
from florence2_jax.engine import audit, rounds
from florence2_jax.engine.specialists.imperfect import by_human, three
from florence2_jax.engine.subsets import bare, write_changed
from florence2_jax.records.importers.drawn import plan_scenes
from florence2_jax.records.scene_config import EASY
from florence2_jax.records.schema import Record
from florence2_jax.records.store import write_store
from florence2_jax.records.writing import split_by_hash
from florence2_jax.training import loop

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    args = _arguments()
    # Models of one size are compiled once.
    jax.config.update("jax_compilation_cache_dir", str(args.workdir.absolute() / "compiled"))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    results = []
    for variant in args.variants:
        for seed in args.seeds:
            results.append(run_one(args, variant, seed))
            if args.json:
                found = {"settings": settings} | summarise(results)
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    summary = summarise(results)
    show(summary)
    if args.plot:
        args.plot.write_text(plot(summary), "utf-8")


def run_one(args: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """One loop: the measures of its rounds, and why it was stopped if it was."""
    result = args.workdir / f"{variant}-{seed}.json"
    if result.is_file():
        return json.loads(result.read_text())
    data, workdir = args.workdir / f"data-{seed}", args.workdir / f"{variant}-{seed}"
    truth, source = data / "truth", data / "source"
    scenes = replace(EASY, size_px=args.size_px)
    write_store(truth, plan_scenes(args.images, scenes, seed=seed, num_validation=1), name="scenes")
    write_source(
        truth, source, data, human_share=args.human_share, fraction=args.audited, seed=seed
    )
    first = first_model(args, truth, source, data, seed)
    config = engine_config(args, variant, truth, source, seed, first)
    unguarded = args.workdir / f"{variant}-no-guard-{seed}"
    if (unguarded / "report.json").is_file() and not workdir.is_dir():
        copy_run(unguarded, workdir, config)
    report = rounds.run(config, workdir, num_workers=args.workers, tell=_teller(variant, seed))
    measured = measure(truth, workdir, report)
    found = {"variant": variant, "seed": seed, "stopped": report["stopped"], "rounds": measured}
    result.write_text(json.dumps(found, indent=1))
    return found


def first_model(
    args: argparse.Namespace, truth: Path, source: Path, folder: Path, seed: int
) -> Path:
    """A model that learnt from the specialists' labels: what every variant starts from.

    It saves each of them from learning alone what a box is, which takes most of the steps.
    """
    workdir = folder / "specialists"
    likely = {"regions": {"min_score": 0.5, "nms_iou": 0.5}}
    config = engine_config(args, "full", truth, source, seed, None)
    config |= {"rounds": 0, "filter": likely}
    rounds.run(config, workdir, num_workers=args.workers, tell=_teller("first model", seed))
    train = train_config(
        args.first_steps, 7e-4, args.size_px, seed=seed, batch_size=args.batch_size
    )
    train["input"]["records"] = str(workdir / "round-0" / "filtered")
    train["input"]["exclude"] = str(audit.exclude_list(workdir))
    train["input"]["on_excluded"] = "drop"
    loop.run(train, folder / "first-model", console=Console(quiet=True))
    return folder / "first-model"


def copy_run(unguarded: Path, workdir: Path, config: Mapping[str, Any]) -> None:
    """A run as far as it is the same under another run file: it stops where its guard says."""
    shutil.copytree(unguarded, workdir)
    path = workdir / "engine.json"
    books = json.loads(path.read_text())
    path.write_text(json.dumps(books | {"config": json.loads(json.dumps(config))}, indent=1))


def engine_config(
    args: argparse.Namespace,
    variant: str,
    truth: Path,
    source: Path,
    seed: int,
    first: Path | None,
) -> dict[str, Any]:
    """The run file of a variant, whose models start from `first`."""
    is_vanishing = variant.startswith("vanishing")
    kept = {"regions": {"min_score": args.min_score, "nms_iou": 0.5}}
    train = train_config(args.steps, 3e-4, args.size_px, seed=seed, batch_size=args.batch_size)
    if first:
        train["init"] = {"workdir": str(first)}
        train["tokenizer"] = {"path": str(first / "tokenizer")}
    return {
        "source": {"records": str(source)},
        "audit": {
            "fraction": args.audited,
            "seed": seed,
            "near_copies": False,  # Scenes are drawn anew, each from its own number.
            "is_guarded": not variant.endswith("no-guard"),
        },
        "specialists": three(str(truth), seed=seed, blind_to=(UNSEEN,)),
        "rounds": args.rounds,
        "filter": {"filters": ()} if variant == "no-filters" else kept,
        "refine": {
            "echo": args.echo,
            "add_score": 0.99 if is_vanishing else args.add_score,
            "new_iou": args.new_iou,
        },
        "start": "fresh",
        "train": train,
        "predict": {"tasks": ("od",), "batch_size": args.batch_size},
        "human_shares": (0.8, 0.0) if is_vanishing else (args.human_images,),
        "final_model": True,
    }


def train_config(
    steps: int, peak_lr: float, size_px: int, *, seed: int, batch_size: int
) -> dict[str, Any]:
    """The tiny model of `configs/scenes.py`, on what the loop is about."""
    config = load_config(str(ROOT / "configs" / "scenes.py"), [])
    tasks = {"all": 0.0, "od": 4.0, "region_proposal": 1.0, "open_vocabulary_detection": 1.0}
    tasks |= {"region_to_category": 2.0, "region_to_description": 1.0, "caption": 1.0}
    inputs = config["input"] | {"records": "", "tasks": tasks, "batch_size": batch_size}
    inputs |= {"num_prompts": len(tasks) - 1, "prompt_length": 30}  # More would be padding.
    optimizer = config["optimizer"] | {"warmup_steps": max(1, min(60, steps // 10))}
    optimizer["peak_lr"] = peak_lr
    log = {"every_steps": max(1, steps // 4), "tensorboard": False}
    return config | {
        "seed": seed,
        "total_steps": steps,
        "model": config["model"] | {"image_size": size_px},
        "input": inputs,
        "optimizer": optimizer,
        "checkpoint": {"every_steps": max(1, steps), "keep": 1},
        "log": log,
    }


# Labels to begin with.


def write_source(
    truth: Path, source: Path, folder: Path, *, human_share: float, fraction: float, seed: int
) -> None:
    """Writes the images with the labels of people: of a share of them, and of the frozen ones.

    The freezing asks for images only, so that it chooses here what it will choose in the loop.
    """
    settings = {"fraction": fraction, "seed": seed, "near_copies": False}
    audit.freeze(truth, folder, **settings)
    frozen = audit.frozen_ids(folder)
    change = functools.partial(_known, frozen=frozen, share=human_share, seed=seed)
    job = {"format": "some by people", "share": human_share, **settings}
    write_changed(truth, source, change, job)


def _known(record: Record, *, frozen: frozenset[str], share: float, seed: int) -> Record:
    drawn = split_by_hash(f"human {seed} {record.id}", {"human": share, "none": 1 - share})
    return by_human(record) if record.id in frozen or drawn == "human" else bare(record)


def _teller(variant: str, seed: int) -> Callable[..., None]:
    console, told = Console(), [""]

    def tell(what: str, done: int, total: int, detail: str = "") -> None:
        if what != told[0]:
            told[0] = what
            console.print(f"{variant}, seed {seed}: {what}", highlight=False)

    return tell


def _arguments() -> argparse.Namespace:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="of all runs; a killed one goes on here")
    add("--json", type=Path, help="all figures")
    add("--plot", type=Path, help="an SVG")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--rounds", type=int, default=2)
    add("--images", type=int, default=6000, help="scenes, frozen ones among them (6000)")
    add("--size-px", type=int, default=64, help="of a scene's side (64)")
    add("--human-share", type=float, default=0.05, help="of images labelled by people (0.05)")
    add("--human-images", type=float, default=0.4, help="of images in training by people (0.4)")
    add("--audited", type=float, default=0.06, help="share that is frozen (0.06)")
    add("--first-steps", type=int, default=4000, help="of the model that all start from (4000)")
    add("--steps", type=int, default=500, help="of each model (500)")
    add("--min-score", type=float, default=0.35, help="that a box needs to be learnt from (0.35)")
    add("--echo", type=float, default=0.1, help="false boxes that a model repeats (0.1)")
    add("--add-score", type=float, default=0.35, help="that a new box needs to enter (0.35)")
    add(
        "--new-iou", type=float, default=0.1, help="with a box of its name that is no new one (0.1)"
    )
    add("--batch-size", type=int, default=8)
    add("--workers", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
