# SPDX-License-Identifier: Apache-2.0
"""A filtered record as a card: all that was annotated on the left, what is kept on the right."""

import itertools
from collections.abc import Iterator

from florence2_jax.records.schema import Grounding, Record, Region, is_dropped
from florence2_jax.viewing.draw import box_ring, label_color, main_label
from florence2_jax.viewing.page import (
    box_area,
    chip,
    escape,
    figure,
    image_tag,
    plural,
    shape,
    swatch,
)
from florence2_jax.viewing.record_index import maker_name

STYLE = """
.figure .gone { stroke-dasharray:5 4; stroke-opacity:.95 }
.chip.gone { opacity:.72; text-decoration:line-through }
.said { grid-column:1/-1 } .said h3:first-child { margin-top:12px }
.said s { color:var(--soft) } .said li { margin:3px 0; break-inside:avoid }
.said .many { columns:2 360px; column-gap:26px }
.said .why { color:var(--warn); font-size:13px; margin-left:.5em }
.side { margin:0 0 4px; font-size:13px; color:var(--soft) }
"""
_MAX_LISTED = 40  # Dropped boxes told one by one.
_MAX_CHARACTERS = 1500  # Of a text.
_MAX_CHIPS = 6  # Dropped boxes that show their label without being pointed at.


def filtered_card(record: Record, number: int) -> str:
    """The card of a record with its marks; `number` is its place on the page."""
    name = f"sample-{number}"
    image = image_tag(record.image, f"image {record.id}", f' id="{name}"')
    again = f'<img loading="lazy" decoding="async" alt="" data-copy="{name}">'
    again = again if image.startswith("<img") else image
    kept = record.kept()
    num_before = len(record.regions) + _num_boxes(record)
    num_after = len(kept.regions) + _num_boxes(kept)
    return (
        f'<article class="card pair"><div class="head"><b>{escape(record.id)}</b>'
        f'<span class="soft">{record.width} × {record.height} px</span></div>'
        f'<div><p class="side">Before: {plural(num_before, "place")}, dashed those that go</p>'
        f"{_picture(record, image)}</div>"
        f'<div><p class="side">After: {plural(num_after, "place")}</p>{_picture(kept, again)}</div>'
        f'<div class="said">{"".join(_said(record))}</div></article>\n'
    )


def _num_boxes(record: Record) -> int:
    return sum(len(span.boxes) for g in record.groundings for span in g.spans)


def _picture(record: Record, image: str) -> str:
    shapes, chips = [], []
    for g, grounding in enumerate(record.groundings):
        shapes += _phrase_shapes(grounding, g)
    order = sorted(range(len(record.regions)), key=lambda k: -box_area(record.regions[k].box))
    num_gone = sum(map(is_dropped, record.regions))
    hidden = " shy" if num_gone > _MAX_CHIPS else ""
    for k in order:  # Small ones last: the mouse must reach them.
        region = record.regions[k]
        color, label = label_color(main_label(region), k), main_label(region)[:_MAX_CHARACTERS]
        gone = " gone" if is_dropped(region) else ""
        dropped = region.provenance.dropped
        tip = "\n".join(filter(None, (label or "no label", _maker(region), dropped)))
        for ring in () if gone else region.polygons:
            shapes.append(shape(ring, color, classes="poly", link=f"r{k}", tip=tip))
        ring = box_ring(region.box) if region.quad is None else region.quad
        is_box = region.quad is None
        shapes.append(
            shape(ring, color, classes=f"box{gone}", link=f"r{k}", tip=tip, is_box=is_box)
        )
        words = [("label", label)]
        link, classes = f"r{k}", f"{gone}{hidden}".strip() if gone else ""
        chips.append(
            chip(words, color, hull=region.box, size=record.size, link=link, classes=classes)
        )
    return figure(image, record.size, shapes, chips)


def _phrase_shapes(grounding: Grounding, g: int) -> Iterator[str]:
    for s, span in enumerate(grounding.spans):
        phrase = grounding.phrase(span)
        dropped = span.dropped or grounding.provenance.dropped
        classes = "grounding gone" if dropped else "grounding"
        tip = "\n".join(filter(None, (f"phrase: {phrase}", _maker(grounding), dropped)))
        color, link = label_color(phrase, s), f"g{g}s{s}"
        for box in span.boxes:
            ring = box_ring(box)
            yield shape(ring, color, classes=classes, link=link, tip=tip, is_box=True)


def _said(record: Record) -> Iterator[str]:
    """Texts, dropped ones struck out with their reason; then what else was dropped."""
    texts = "".join(
        f'<li><span class="soft">{text.granularity.replace("_", " ")}</span> '
        f"{_judged(text.text, text.provenance.dropped)}</li>"
        for text in record.texts
    )
    if texts:
        yield f'<h3>Texts</h3><ul class="list">{texts}</ul>'
    rows = list(itertools.islice(_dropped(record), _MAX_LISTED + 1))
    if rows:
        more = '<li class="soft">and more</li>' if len(rows) > _MAX_LISTED else ""
        listed = "".join(rows[:_MAX_LISTED])
        yield f'<h3>Dropped</h3><ul class="list many">{listed}{more}</ul>'


def _dropped(record: Record) -> Iterator[str]:
    for k, region in enumerate(record.regions):
        color = swatch(label_color(main_label(region), k))
        mask = region.mask_provenance
        parts = [(main_label(region) or "no label", region.provenance.dropped)]
        parts += [
            (label.text, label.provenance.dropped) for label in region.labels if label.provenance
        ]
        parts += [(f"mask of {main_label(region)}", mask.dropped)] if mask else []
        for text, why in parts:
            if why:
                yield (
                    f'<li data-link="r{k}">{color}{_judged(text, why)}'
                    f'<span class="by">{escape(_maker(region))}</span></li>'
                )
    for g, grounding in enumerate(record.groundings):
        if why := grounding.provenance.dropped:
            yield f"<li>grounded: {_judged(grounding.text, why)}</li>"
            continue
        for s, span in enumerate(grounding.spans):
            if span.dropped:
                phrase = grounding.phrase(span)
                color = swatch(label_color(phrase, s))
                yield f'<li data-link="g{g}s{s}">{color}{_judged(phrase, span.dropped)}</li>'
    for question in record.questions:
        if why := question.provenance.dropped:
            yield f"<li>{_judged(question.question, why)}</li>"


def _judged(text: str, why: str) -> str:
    """Words, struck out with the reason behind them where there is one; not all of very many."""
    text = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} ..."
    return f'<s>{escape(text)}</s> <span class="why">{escape(why)}</span>' if why else escape(text)


def _maker(annotation: Region | Grounding) -> str:
    score = annotation.provenance.score
    return f"{maker_name(annotation.provenance)}{'' if score is None else f', {score:.2f}'}"
