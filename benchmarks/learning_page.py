# SPDX-License-Identifier: Apache-2.0
"""The questions of `learning.py`, and the page and plot of what its runs answer."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scipy import stats

Measure = Literal["metrics", "losses"]

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
TARGETS = ("caption", "od", "referring_expression_segmentation")


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
    half_width = float(stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains))
    return Answer(gains, statistics.mean(gains), half_width)


def _average(values: Mapping[str, float], question: Question) -> float:
    return statistics.mean(values[task] for task in question.tasks)


def report(results: Mapping[str, Mapping[int, Any]], picture: str) -> str:
    """The page: questions with their answers, then every run."""
    steps = {row["steps"] for row in results.get("all", {}).values()}
    images = {row["images"] for rows in results.values() for row in rows.values()}
    lines = [
        "# What the model learns from",
        "",
        "Written by `python benchmarks/learning.py --page docs/learning.md`. The tiny model, the",
        f"scenes of level easy, 64 px, {_listed(images)} images to learn from (`--images`),",
        f"{_listed(steps)} steps of a whole run (`--steps`), greedy",
        "decoding. A difference is of the mean over the question's tasks, between runs of a seed,",
        "positive where the claim is right; the interval is Student's t over seeds. With few seeds",
        "it is wide: *cannot tell* is no proof of equality. Nothing is adjusted for the number of",
        "questions: of eighteen answers one may be chance. The loss is what a token of the true",
        "answer costs on scenes that no run has seen, in nats: it moves before the metrics do.",
        "These are small models on drawn scenes, not Florence-2 on photos.",
        "",
        f"![differences with their intervals]({picture})",
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
    for name, by_seed in results.items():
        rows = list(by_seed.values())
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
