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
import math
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
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

Measure = Literal["metrics", "losses"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "learning.md"

MEASURES = {  # The metric that stands for a task; all are in [0, 1].
    "caption": "object_color_f1",
    "detailed_caption": "object_color_f1",
    "vqa": "accuracy",
    "ocr": "word_f1",
    "od": "ap50",
    "caption_to_phrase_grounding": "r1_any",
    "referring_expression_comprehension": "accuracy",
    "region_to_category": "accuracy",
    "region_to_description": "object_color_f1",
    "referring_expression_segmentation": "miou",
    "region_to_segmentation": "miou",
}

IMAGE = ("caption", "detailed_caption", "more_detailed_caption", "vqa", "ocr")
REGION = (
    *("od", "dense_region_caption", "region_proposal", "ocr_with_region"),
    *("caption_to_phrase_grounding", "open_vocabulary_detection", "region_to_category"),
    *("region_to_description", "region_to_ocr", "referring_expression_comprehension"),
)
PIXEL = ("referring_expression_segmentation", "region_to_segmentation")


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
TARGETS = ("caption", "od", "referring_expression_segmentation")

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A claim: the first run is better than the second at these tasks, on average."""

    name: str
    claim: str
    better: str
    worse: str
    tasks: tuple[str, ...] = tuple(MEASURES)


_LOCATED = tuple(task for task in MEASURES if task in REGION)
_MASKED = tuple(task for task in MEASURES if task in PIXEL)

QUESTIONS = (
    *(
        Question(
            name=f"granularity: {target}",
            claim=f"learning image, region and pixel first makes {target} better than image alone, "
            "after equal further training",
            better=f"all -> {target}",
            worse=f"image -> {target}",
            tasks=(target,),
        )
        for target in TARGETS
    ),
    Question(
        name="granularity: masks help boxes",
        claim="pixel tasks beside image and region make detection better, after equal training",
        better="all -> od",
        worse="image+region -> od",
        tasks=("od",),
    ),
    Question(
        name="dense labels",
        claim="all labels of every image teach more than one kind of label an image",
        better="all",
        worse="sparse",
    ),
    Question(
        name="image tower: regions",
        claim="tasks of regions need the image tower to be trained",
        better="image -> all",
        worse="image -> all, frozen",
        tasks=_LOCATED,
    ),
    Question(
        name="image tower: masks",
        claim="tasks of pixels need the image tower to be trained",
        better="image -> all",
        worse="image -> all, frozen",
        tasks=_MASKED,
    ),
    Question(
        name="prompts per image",
        claim="eight prompts about an image teach more than one, at equal FLOPs",
        better="all",
        worse="one prompt",
    ),
    Question(
        name="resolution",
        claim="64 px teach more than 32 px, at equal numbers of images",
        better="all",
        worse="32 px",
    ),
)


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
    results = read_results(args.runs)
    page = report(results)
    if args.page:
        args.page.write_text(page)
        args.page.with_suffix(".svg").write_text(plot(results))
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
    keys = ("image", "prompt_ids", "target_ids", "task_ids")
    sums = [
        summed(predictor.params, {key: batch[key] for key in keys})
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


# What follows from the runs.


def read_results(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Results by run and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/seed-*.json")):
        row = json.loads(path.read_text())
        found.setdefault(row["run"], {})[row["seed"]] = row
    return found


@dataclasses.dataclass(frozen=True)
class Answer:
    """Differences of two runs by seed, their mean and its 95 % interval."""

    differences: tuple[float, ...]
    mean: float
    half_width: float

    @property
    def verdict(self) -> str:
        if abs(self.mean) <= self.half_width:
            return "cannot tell"
        return "holds" if self.mean > 0 else "does not hold"


_T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t of a two-sided 95 % interval, by the number of seeds."""


def answer(
    question: Question, results: Mapping[str, Mapping[int, Any]], measure: Measure
) -> Answer | None:
    """Compares the two runs seed by seed; None with fewer than two seeds of both."""
    better, worse = results.get(question.better, {}), results.get(question.worse, {})
    seeds = sorted(better.keys() & worse.keys())
    if len(seeds) < 2:
        return None
    sign = -1 if measure == "losses" else 1
    gains = tuple(
        sign * (_average(better[s][measure], question) - _average(worse[s][measure], question))
        for s in seeds
    )
    spread = statistics.stdev(gains) / math.sqrt(len(gains))
    return Answer(gains, statistics.mean(gains), _T_975[len(gains)] * spread)


def _average(values: Mapping[str, float], question: Question) -> float:
    return statistics.mean(values[task] for task in question.tasks)


def report(results: Mapping[str, Mapping[int, Any]]) -> str:
    """The page: questions with their answers, then every run."""
    steps = {row["steps"] for row in results.get("all", {}).values()}
    images = {row["images"] for rows in results.values() for row in rows.values()}
    lines = [
        "# What the model learns from",
        "",
        "Written by `python benchmarks/learning.py`. The tiny model, scenes of level easy, 64 px,",
        f"{_listed(images)} images to learn from, {_listed(steps)} steps of a whole run, greedy",
        "decoding. A difference is of the mean over the question's tasks, between runs of a seed,",
        "positive where the claim is right; the interval is Student's t over seeds. With few seeds",
        "it is wide: *cannot tell* is no proof of equality. The loss is what a token of the true",
        "answer costs on scenes that no run has seen, in nats: it moves before the metrics do.",
        "These are small models on drawn scenes, not Florence-2 on photos.",
        "",
        f"![differences with their intervals]({PAGE.stem}.svg)",
        "",
        "| question | claim | seeds | metrics | | loss, nats | |",
        "|---|---|---:|---:|---|---:|---|",
    ]
    for question in QUESTIONS:
        found = [answer(question, results, "metrics"), answer(question, results, "losses")]
        cells = [question.name, question.claim, *_told(found)]
        lines.append(f"| {' | '.join(cells)} |")
    note = "Mean over seeds; a run that learnt one task was asked it."
    lines += ["", "## Metrics of every run", "", note, "", *_table(results, "metrics")]
    lines += ["", "## Losses of every run", "", *_table(results, "losses")]
    return "\n".join([*lines, ""])


def _told(answers: Sequence[Answer | None]) -> list[str]:
    """Cells of a question: its seeds, then difference with interval and verdict of each measure."""
    cells = [str(len(answers[0].differences)) if answers[0] else ""]
    for found in answers:
        if found is None:
            cells += ["", "not run"]
            continue
        low, high = found.mean - found.half_width, found.mean + found.half_width
        cells += [f"{found.mean:+.3f} ({low:+.3f} to {high:+.3f})", f"**{found.verdict}**"]
    return cells


def _table(results: Mapping[str, Mapping[int, Any]], measure: Measure) -> list[str]:
    lines = [
        f"| run | images a step | {' | '.join(MEASURES)} |",
        "|---|---:|" + "---:|" * len(MEASURES),
    ]
    for name in RUNS:
        rows = list(results.get(name, {}).values())
        if not rows:
            continue
        cells = [
            f"{statistics.mean(row[measure][task] for row in rows):.3f}"
            if task in rows[0][measure]
            else ""
            for task in MEASURES
        ]
        cells = [name, str(rows[0]["batch_size"]), *cells]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


_INKS = {"holds": "#1a7f37", "does not hold": "#d1242f", "cannot tell": "#57606a"}
_NAMES_PX, _PANEL_PX, _ROW_PX = 260, 300, 26


def plot(results: Mapping[str, Mapping[int, Any]]) -> str:
    """An SVG: differences of every question as dots with their intervals, by both measures."""
    height = (len(QUESTIONS) + 2) * _ROW_PX
    names = [
        f'<text x="10" y="{_row(i) + 4}">{question.name}</text>'
        for i, question in enumerate(QUESTIONS)
    ]
    panels = _panel(results, "metrics", "metrics", _NAMES_PX)
    panels += _panel(results, "losses", "loss, nats a token", _NAMES_PX + _PANEL_PX)
    width = _NAMES_PX + 2 * _PANEL_PX
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" '
        f'fill="#fff"/>{"".join([*names, *panels])}</svg>\n'
    )


def _panel(
    results: Mapping[str, Mapping[int, Any]], measure: Measure, title: str, left: int
) -> list[str]:
    """To the right is for the claim; intervals wider than the panel are cut at its sides."""
    found = [answer(question, results, measure) for question in QUESTIONS]
    widest = max((2 * max(map(abs, a.differences)) for a in found if a), default=0) or 1.0

    def x(value: float) -> float:
        share = min(max(value / widest, -1), 1)
        return left + _PANEL_PX / 2 + share * (_PANEL_PX / 2 - 15)

    bottom = _row(len(QUESTIONS))
    parts = [
        f'<text x="{x(0)}" y="16" text-anchor="middle">{title}</text>',
        f'<path d="M{x(0)} 24V{bottom}" stroke="#999"/>',
    ]
    for share, anchor in ((-1, "start"), (0, "middle"), (1, "end")):
        label = f"{share * widest:+.2g}" if share else "0"
        place = f'x="{x(share * widest)}" y="{bottom + 6}" text-anchor="{anchor}"'
        parts.append(f"<text {place}>{label}</text>")
    for i, one in enumerate(found):
        if one is None:
            continue
        ink, y = _INKS[one.verdict], _row(i)
        low, high = x(one.mean - one.half_width), x(one.mean + one.half_width)
        parts.append(f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="{ink}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x(one.mean):.1f}" cy="{y}" r="4" fill="{ink}"/>')
    return parts


def _row(number: int) -> int:
    return 40 + number * _ROW_PX


def _listed(values: set[int]) -> str:
    return ", ".join(f"{value:,}" for value in sorted(values)) or "no"


if __name__ == "__main__":
    main()
