# SPDX-License-Identifier: Apache-2.0
"""Answers as cards of a page, the truth beside the prediction, and the table above them."""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence

from florence2_jax.data.examples import Example
from florence2_jax.geometry import hull_box
from florence2_jax.tasks.answers import Answer, AnyRegion, BoxRegion, MaskRegion, TextAnswer
from florence2_jax.typing import Box, Size
from florence2_jax.viewing.draw import box_ring, label_color, region_rings
from florence2_jax.viewing.page import (
    box_area,
    chip,
    counted,
    escape,
    figure,
    image_tag,
    plural,
    score_text,
    shape,
    swatch,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """A model's answer to one example.

    `image` are encoded bytes and `size` their `(width, height)` in pixels; `raw` is the text as
    the model wrote it; `score` rates this answer by the metric of its task, higher being better.
    """

    id: str
    image: bytes
    size: Size
    example: Example
    answer: Answer
    raw: str
    score: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A metric over all examples of a task.

    `blind` is its value for answers given to the image of another record, None if not measured.
    """

    task: str
    metric: str
    value: float
    blind: float | None = None
    num_examples: int


def metrics_table(summary: Sequence[MetricRow]) -> str:
    """A row per metric, with a bar for the model above one for the image-blind baseline."""
    if not summary:
        return ""
    rows = "".join(_metric_row(row) for row in summary)
    return (
        '<table class="metrics"><thead><tr><th>Task</th><th>Metric</th>'
        '<th class="num">Model</th><th class="num">Blind</th><th class="bars"></th>'
        f'<th class="num">Examples</th></tr></thead><tbody>{rows}</tbody></table>'
        '<p class="soft key"><i></i>the model<i class="blind"></i>image-blind: the same questions '
        "answered about the image of another record; a model that looks must do better</p>"
    )


def _metric_row(row: MetricRow) -> str:
    values = [row.value] if row.blind is None else [row.value, row.blind]
    known = [value for value in values if math.isfinite(value)]
    # A full bar is the first of 1, 2, 5, 10, ... 100 that no value passes.
    full = next(
        (f for f in (1, 2, 5, 10, 20, 50, 100) if max(known, default=0) <= f), max(known, default=1)
    )
    bars = "".join(
        f'<i class="{name}" style="width:{100 * max(value, 0) / full:.1f}%"></i>'
        for name, value in zip(("model", "blind"), values, strict=False)
        if math.isfinite(value)
    )
    blind = "–" if row.blind is None else score_text(row.blind)
    return (
        f"<tr><td>{escape(row.task)}</td><td>{escape(row.metric)}</td>"
        f'<td class="num"><b>{score_text(row.value)}</b></td><td class="num">{blind}</td>'
        f'<td class="bars">{bars}</td><td class="num">{row.num_examples:,}</td></tr>'
    )


def task_sections(by_task: dict[str, list[PredictionRow]]) -> Iterator[str]:
    """A section per task with a card per answer."""
    seen: dict[bytes, str] = {}
    for token, rows in by_task.items():
        task = rows[0].example.task
        yield (
            f'<section data-task="{escape(token)}"><h2>{escape(token)}</h2>'
            f"<p>{plural(len(rows), 'example')}; measured with {escape(task.metric)}</p>"
        )
        yield from cards(rows, seen)
        yield "</section>\n"


def cards(rows: Iterable[PredictionRow], seen: dict[bytes, str]) -> Iterator[str]:
    """A card per answer.

    Args:
        seen: names of the images that the page holds already, by digest; new ones are added.
    """
    for row in rows:
        yield _prediction_card(row, seen)


def _prediction_card(row: PredictionRow, seen: dict[bytes, str]) -> str:
    example, is_text = row.example, isinstance(row.answer, TextAnswer)
    score = "" if row.score is None else f'<span class="badge score">score {row.score:.3f}</span>'
    value = "" if row.score is None or math.isnan(row.score) else f"{row.score:.6g}"
    head = (
        f'<div class="head"><b>{escape(row.id)}</b><span class="badge">'
        f'{escape(example.task.token)}</span>{score}<div class="prompt">{escape(example.prompt)}'
        "</div></div>"
    )
    rest = "".join(
        f'<div class="warn">Not understood: {escape(text)}</div>' for text in row.answer.unparsed
    )
    rest += (
        f"<details><summary>as the model wrote it</summary><pre>{escape(row.raw)}</pre></details>"
    )
    if isinstance(row.answer, TextAnswer):
        echo = [] if row.answer.region is None else [BoxRegion(box=row.answer.region)]
        picture = _picture(row, echo, seen, side="p")
        references = counted(example.references or (example.text,))
        truth = "".join(f"<li>{text}</li>" for text in references)
        body = (
            f"<div>{picture}</div>"
            f'<div><h3>Truth</h3><ul class="list words">{truth}</ul></div>'
            f'<div><h3>Prediction</h3><div class="words">{escape(row.answer.text)}</div>'
            f"{rest}</div>"
        )
    else:
        truth, told = example.regions, row.answer.regions
        body = (
            f"<div><h3>Truth: {plural(len(truth), 'region')}</h3>"
            f"{_picture(row, truth, seen, side='t')}{_tags(truth, 't')}</div>"
            f"<div><h3>Prediction: {plural(len(told), 'region')}</h3>"
            f"{_picture(row, told, seen, side='p')}{_tags(told, 'p')}{rest}</div>"
        )
    classes = "told" if is_text else "pair"
    return f'<article class="card {classes}" data-score="{value}">{head}{body}</article>\n'


def _picture(
    row: PredictionRow, regions: Sequence[AnyRegion], seen: dict[bytes, str], *, side: str
) -> str:
    """The image with regions on it; bytes that the page already holds are not put in again."""
    shapes, chips = [], []
    order = sorted(range(len(regions)), key=lambda k: -box_area(_hull(regions[k])))
    for k in order:
        region, link = regions[k], f"{side}{k}"
        color = label_color(region.label, k)
        rings, tip = region_rings(region), _caption(region) or "no label"
        is_box = isinstance(region, BoxRegion)
        classes = "box" if is_box else "poly" if isinstance(region, MaskRegion) else "quad"
        shapes += [
            shape(ring, color, classes=classes, link=link, tip=tip, is_box=is_box) for ring in rings
        ]
        words = [("label", _caption(region))]
        chips.append(chip(words, color, hull=_hull(region), size=row.size, link=link))
    if row.example.region is not None:
        ring, tip = box_ring(row.example.region), "the region that is asked about"
        shapes.append(shape(ring, "#ffffff", classes="asked", link="q", tip=tip, is_box=True))
    digest = hashlib.sha256(row.image).digest()
    if digest in seen:
        alt, name = escape(f"image {row.id}"), seen[digest]
        tag = f'<img loading="lazy" decoding="async" alt="{alt}" data-copy="{name}">'
    else:
        name = f"image-{len(seen)}"
        tag = image_tag(row.image, f"image {row.id}", f' id="{name}"')
        if tag.startswith("<img"):
            seen[digest] = name
    return figure(tag, row.size, shapes, chips)


def _tags(regions: Sequence[AnyRegion], side: str) -> str:
    items = (
        f'<li data-link="{side}{k}">{swatch(label_color(region.label, k))}'
        f"{escape(_caption(region)) or 'no label'}</li>"
        for k, region in enumerate(regions)
    )
    return f'<ul class="tags">{"".join(items)}</ul>'


def _caption(region: AnyRegion) -> str:
    return region.label if region.score is None else f"{region.label} {region.score:.2f}".strip()


def _hull(region: AnyRegion) -> Box:
    values = [v for ring in region_rings(region) for v in ring]
    return hull_box(values) if values else (0, 0, 0, 0)
