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

Variants: `full`; `no-filters`; `vanishing-no-guard`, in which people's labels are not preferred
after round 1, so that the unseen class should die out, with a guard that only tells; `vanishing`,
the same with a guard that stops the loop (what comes before is the same, so it is copied).

A killed run goes on where it was. Sizes and steps are parameters: the defaults take hours on a
laptop; `--images 60 --human-share 0.3 --first-steps 3 --steps 3` shows in minutes that all runs.
"""

import argparse
import functools
import json
import math
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from florence2_jax.cli.train import load_config
from florence2_jax.engine import audit, rounds
from florence2_jax.engine.filter import FilterConfig, filter_record
from florence2_jax.engine.specialists.imperfect import by_human, three
from florence2_jax.engine.subsets import bare, write_changed
from florence2_jax.geometry import box_iou
from florence2_jax.records.importers.drawn import plan_scenes
from florence2_jax.records.scene_config import EASY
from florence2_jax.records.schema import Record, Region
from florence2_jax.records.store import RecordStore, write_store
from florence2_jax.records.writing import split_by_hash
from florence2_jax.training import loop

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("full", "no-filters", "vanishing-no-guard", "vanishing")
UNSEEN = "star"
SAME, NOTHING = 0.5, 0.3  # IoU with an object that a box finds, and with all where nothing is.

MEASURES = {
    "precision": "precision",
    "recall": "recall",
    "missed_recall": "recall of missed",
    "imagined_per_100": "imagined /100",
    "unseen_recall": f"recall of {UNSEEN}",
    "model_precision": "model precision",
    "model_recall": "model recall",
    "model_missed_recall": "model recall of missed",
    "model_imagined_per_100": "model imagined /100",
    "model_unseen_recall": f"model recall of {UNSEEN}",
}
_ONCE = FilterConfig.create(
    {"filters": ("regions",), "regions": {"min_score": 0.0, "nms_iou": 0.5}}
)
"""Boxes that are said twice, whatever their scores; the same for the models of all variants."""


def main() -> None:
    args = _arguments()
    # Models of one size are compiled once.
    jax.config.update("jax_compilation_cache_dir", str(args.workdir.absolute() / "compiled"))
    results = []
    for variant in args.variants:
        for seed in args.seeds:
            results.append(run_one(args, variant, seed))
            if args.json:
                args.json.write_text(json.dumps(summarise(args, results), indent=1) + "\n")
    summary = summarise(args, results)
    show(summary)
    if args.plot:
        args.plot.write_text(plot(summary), "utf-8")


def run_one(args: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """One loop: the measures of its rounds, and why it was stopped if it was."""
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
    if unguarded.is_dir() and not workdir.is_dir():
        copy_run(unguarded, workdir, config)
    report = rounds.run(config, workdir, num_workers=args.workers, tell=_teller(variant, seed))
    measured = measure(truth, workdir, report)
    return {"variant": variant, "seed": seed, "stopped": report["stopped"], "rounds": measured}


def first_model(
    args: argparse.Namespace, truth: Path, source: Path, folder: Path, seed: int
) -> Path:
    """A model that learnt from the specialists' labels: what every variant starts from.

    It saves each of them from learning alone what a box is, which takes most of the steps.
    """
    workdir = folder / "specialists"
    config = engine_config(args, "full", truth, source, seed, None) | {"rounds": 0}
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
        "refine": {"echo": args.echo, "add_score": args.add_score},
        "start": "fresh",
        "train": train,
        "predict": {"tasks": ("od",), "batch_size": args.batch_size},
        "human_shares": (args.human_images, 0.0) if is_vanishing else (args.human_images,),
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


# Measures.


def measure(truth: Path, workdir: Path, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each round the labels against the truth, and the model that learnt from them."""
    true = {record.id: record for record in RecordStore(truth, "train")}
    annotated = RecordStore(workdir / "round-0" / "annotated", "train")
    loose = [record for record in annotated if not _is_human(record)]
    missed = {record.id: _missed(true[record.id], record) for record in loose}
    judged = {one["round"]: one.get("guard", {}).get("reasons", []) for one in report["rounds"]}
    frozen = {
        record.id: _missed(true[record.id], record)
        for record in RecordStore(workdir / "round-0" / "audited", audit.SPLIT)
    }
    measured = []
    for number in sorted(judged):
        row: dict[str, Any] = {"round": number}
        labels: list[Record] = []
        store = workdir / f"round-{number}" / "filtered"
        if store.is_dir():
            labels = [record.kept() for record in RecordStore(store, "train")]
            row |= measure_labels(true, [r for r in labels if r.id in missed], missed)
        if number + 1 in judged:  # Trained on these labels.
            place = workdir / f"round-{number + 1}"
            said = RecordStore(place / "audited", audit.SPLIT)
            once = [filter_record(record, _ONCE).kept() for record in said]
            by_model = measure_labels(true, once, frozen)
            row |= {f"model_{name}": value for name, value in by_model.items()}
            row["guard_of_model"] = judged[number + 1]
            if (predicted := place / "predicted").is_dir():
                row["echo"] = echo(true, labels, RecordStore(predicted, "train"))
        if len(row) > 1:
            measured.append(row)
    return measured


def echo(
    true: Mapping[str, Record], labels: Sequence[Record], predicted: Sequence[Record]
) -> float | None:
    """The share of boxes where there is nothing that a model repeats, having learnt from them."""
    said = {record.id: record for record in predicted}
    counts: Counter[str] = Counter()
    for record in labels:
        found, again = _objects(record), _objects(said[record.id])
        nothing = _overlaps(_objects(true[record.id]), found).max(axis=0, initial=0) < NOTHING
        overlaps = _overlaps(found, again)
        for j in np.flatnonzero(nothing):
            counts["imagined"] += 1
            counts["repeated"] += bool(_same(found[j], again, overlaps[j]))
    return _ratio(counts["repeated"], counts["imagined"])


def measure_labels(
    true: Mapping[str, Record], labels: Sequence[Record], missed: Mapping[str, set[int]]
) -> dict[str, Any]:
    """The measures of the module's first lines; `missed` are objects that no specialist named."""
    judged = audit.judge_round([true[record.id] for record in labels], labels)
    counts: Counter[str] = Counter()
    for record in labels:
        objects, found = _objects(true[record.id]), _objects(record)
        overlaps = _overlaps(objects, found)
        for i, thing in enumerate(objects):
            if i not in missed[record.id] or thing.label("category") == UNSEEN:
                continue
            counts["missed"] += 1
            counts["missed found"] += bool(_same(thing, found, overlaps[i]))
        for j in range(len(found)):
            counts["imagined"] += bool(overlaps[:, j].max(initial=0) < NOTHING)
    boxes = judged.kinds.get("boxes", audit.Counts())
    unseen = judged.classes.get(UNSEEN, audit.Counts())
    return {
        "precision": boxes.precision,
        "recall": boxes.recall,
        "missed_recall": _ratio(counts["missed found"], counts["missed"]),
        "imagined_per_100": 100 * counts["imagined"] / len(labels),
        "unseen_recall": unseen.recall,
        "unseen_precision": unseen.precision,
        "num_images": len(labels),
        "num_missed": counts["missed"],
    }


def _is_human(record: Record) -> bool:
    return any(region.provenance.kind == "human" for region in record.regions)


def _missed(true: Record, said: Record) -> set[int]:
    objects, found = _objects(true), _objects(said)
    overlaps = _overlaps(objects, found)
    return {i for i, thing in enumerate(objects) if not _same(thing, found, overlaps[i])}


def _objects(record: Record) -> list[Region]:
    return [region for region in record.regions if region.label("category")]


def _overlaps(objects: Sequence[Region], found: Sequence[Region]) -> np.ndarray:
    boxes = (np.array([r.box for r in some]).reshape(-1, 4) for some in (objects, found))
    return box_iou(*boxes)


def _same(thing: Region, found: Sequence[Region], overlaps: np.ndarray) -> list[int]:
    name = thing.label("category")
    return [j for j, r in enumerate(found) if r.label("category") == name and overlaps[j] >= SAME]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# What people see.


def summarise(args: argparse.Namespace, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything, with means and 95 % intervals over the seeds."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    found = {"settings": settings, "runs": list(results), "means": _means(results)}
    return found | {"changes": _changes(results), "filters": _worth(results)}


def _changes(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the rounds changed, by variant: the last row of a run less its first, by seed."""
    changes: dict[str, dict[str, Any]] = {}
    for variant in dict.fromkeys(one["variant"] for one in results):
        runs = [one["rounds"] for one in results if one["variant"] == variant]
        pairs = [(rows[-1], rows[0]) for rows in runs if len(rows) > 1]
        changes[variant] = _differences(pairs)
    return changes


def _worth(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the filters are worth: `full` less `no-filters` in the last round, by seed."""
    last = {(one["variant"], one["seed"]): one["rounds"][-1] for one in results}
    both = [seed for variant, seed in last if variant == "full" and ("no-filters", seed) in last]
    return _differences([(last["full", seed], last["no-filters", seed]) for seed in both])


def _differences(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    values = {
        name: [a[name] - b[name] for a, b in pairs if None not in (a.get(name), b.get(name))]
        for name in MEASURES
    }
    return {name: _interval(some) for name, some in values.items() if some}


def _means(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for one in results:
        for row in one["rounds"]:
            place = values.setdefault((one["variant"], row["round"]), {m: [] for m in MEASURES})
            for name in MEASURES:
                if row.get(name) is not None:
                    place[name].append(row[name])
    return [
        {"variant": variant, "round": number}
        | {name: _interval(some) for name, some in measures.items() if some}
        for (variant, number), measures in values.items()
    ]


def _interval(values: Sequence[float]) -> dict[str, float | int]:
    """The mean, and half of the interval in which it lies with 95 % for normal errors."""
    found = {"mean": statistics.fmean(values), "num_seeds": len(values)}
    if len(values) > 1:
        found["half"] = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return found


def show(summary: Mapping[str, Any]) -> None:
    """The table of means, and what the guard said."""
    table = Table("variant", "labels of round", *MEASURES.values())
    for row in summary["means"]:
        cells = (_cell(row.get(name), name) for name in MEASURES)
        table.add_row(row["variant"], str(row["round"]), *cells)
    rows = {f"{variant}: last less first": row for variant, row in summary["changes"].items()}
    for name, row in (rows | {"full less no-filters": summary["filters"]}).items():
        table.add_row(name, "", *(_cell(row.get(measure), measure) for measure in MEASURES))
    console = Console(width=220)
    console.print(table)
    for one in summary["runs"]:
        for row in one["rounds"]:
            for reason in row.get("guard_of_model", ()):
                what = "stopped" if one["stopped"] else "told"
                console.print(f"{one['variant']}, seed {one['seed']}, {what}: {reason}")


def _cell(value: Mapping[str, float] | None, name: str) -> str:
    if value is None:
        return "-"
    digits = 1 if name.endswith("per_100") else 3
    half = f" ± {value['half']:.{digits}f}" if "half" in value else ""
    return f"{value['mean']:.{digits}f}{half}"


_WIDTH, _HEIGHT, _MARGIN = 300, 180, 40
_INKS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df")


def plot(summary: Mapping[str, Any]) -> str:
    """An SVG with a panel per measure: means by round, bars for the intervals."""
    panels = [
        f'<g transform="translate({(i % 3) * _WIDTH},{(i // 3) * _HEIGHT + 30})">'
        f"{_panel(summary['means'], name, title)}</g>"
        for i, (name, title) in enumerate(MEASURES.items())
    ]
    legend = "".join(
        f'<text x="{20 + 160 * i}" y="18" fill="{ink}">{variant}</text>'
        for i, (variant, ink) in enumerate(zip(VARIANTS, _INKS, strict=True))
    )
    rows = math.ceil(len(MEASURES) / 3)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{3 * _WIDTH}" '
        f'height="{rows * _HEIGHT + 30}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{legend}{"".join(panels)}</svg>\n'
    )


def _panel(means: Sequence[Mapping[str, Any]], name: str, title: str) -> str:
    rows = [row for row in means if name in row]
    if not rows:
        return ""
    tops = [row[name]["mean"] + row[name].get("half", 0) for row in rows]
    top = 1.0 if not name.endswith("per_100") else max(tops) or 1.0
    last = max(1, *(row["round"] for row in rows)) if rows else 1

    def x(row: Mapping[str, Any]) -> float:
        return _MARGIN + row["round"] / last * (_WIDTH - 2 * _MARGIN)

    def y(value: float) -> float:
        return _HEIGHT - 25 - min(max(value / top, 0), 1) * (_HEIGHT - 55)

    parts = [
        f'<text x="{_MARGIN}" y="18">{title}</text>',
        f'<text x="4" y="{y(top) + 4}">{top:.3g}</text><text x="4" y="{y(0) + 4}">0</text>',
        f'<path d="M{_MARGIN} {y(top)}V{y(0)}H{_WIDTH - 20}" fill="none" stroke="#999"/>',
    ]
    for number in range(last + 1):
        parts.append(f'<text x="{x({"round": number}) - 3}" y="{_HEIGHT - 8}">{number}</text>')
    for variant, ink in zip(VARIANTS, _INKS, strict=True):
        points = [row for row in rows if row["variant"] == variant]
        line = " ".join(f"{x(row):.1f},{y(row[name]['mean']):.1f}" for row in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{ink}"/>')
        for row in points:
            mean, half = row[name]["mean"], row[name].get("half", 0)
            parts.append(f'<circle cx="{x(row):.1f}" cy="{y(mean):.1f}" r="3" fill="{ink}"/>')
            bar = f"M{x(row):.1f} {y(mean - half):.1f}V{y(mean + half):.1f}"
            parts.append(f'<path d="{bar}" stroke="{ink}"/>')
    return "".join(parts)


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
    add("--min-score", type=float, default=0.5, help="that a box needs to be learnt from (0.5)")
    add("--echo", type=float, default=0.1, help="false boxes that a model repeats (0.1)")
    add("--add-score", type=float, default=0.7, help="that a new box needs to enter (0.7)")
    add("--batch-size", type=int, default=8)
    add("--workers", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
