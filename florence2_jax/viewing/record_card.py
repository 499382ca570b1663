# SPDX-License-Identifier: Apache-2.0
"""A record as a card of a page: its image with all places, and all that is said about it."""

import itertools
from collections import Counter
from collections.abc import Iterator

from florence2_jax.records.schema import (
    GRANULARITIES,
    HUMAN,
    Grounding,
    Provenance,
    Record,
    Region,
)
from florence2_jax.typing import Size
from florence2_jax.viewing.draw import KIND_ORDER, box_ring, label_color, main_label
from florence2_jax.viewing.page import (
    box_area,
    chip,
    counted,
    escape,
    figure,
    number,
    plural,
    shape,
    style,
    swatch,
)
from florence2_jax.viewing.record_index import maker_name, region_kinds

# Where there are many regions, those of less than this share of the image show their label only
# when pointed at: labels of specks would hide them and one another.
_SPECK_SHARE, _NUM_LABELLED = 0.004, 8


def record_card(record: Record, image: str) -> str:
    """The image with all places of a record, and all that is said about it beside it.

    What filters dropped is counted, not shown: the report of a round shows it.

    Elements that speak of one annotation name it: places by `data-link` (`r0`; `g0s1` the second
    phrase of the first grounding), texts by `data-note`.

    Args:
        image: markup of the image, or of a note in its place.
    """
    size, num_dropped = record.size, record.num_dropped
    record = record.kept()
    grounded = list(_grounding_shapes(record))
    order = sorted(range(len(record.regions)), key=lambda k: -box_area(record.regions[k].box))
    shapes = [markup for markup, _ in grounded]
    chips = [markup for _, markup in grounded]
    for k in order:  # Small regions last: the mouse must reach them.
        shapes += _region_shapes(record.regions[k], k)
        is_speck = box_area(record.regions[k].box) < _SPECK_SHARE * size[0] * size[1]
        classes = "shy" if is_speck and len(order) > _NUM_LABELLED else ""
        chips.append(_region_chip(record.regions[k], k, size, classes))
    origin = f" · {escape(record.origin)}" if record.origin else ""
    origin += f" · {num_dropped} dropped by filters" if num_dropped else ""
    parts = (
        _captions(record),
        _groundings(record),
        _questions(record),
        _provenance(record),
        _region_table(record),
    )
    picture = figure(image, size, shapes, chips)
    return (
        f'<div class="head"><b>{escape(record.id)}</b>'
        f'<span class="soft">{size[0]} × {size[1]} px{origin}</span></div>'
        f'<div>{picture}</div><div class="notes">{"".join(parts)}</div>'
    )


def _region_shapes(region: Region, index: int) -> Iterator[str]:
    color, link = label_color(main_label(region), index), f"r{index}"
    kinds = region_kinds(region)
    crowd = " crowd" if region.is_crowd else ""
    lines = [f"{label.kind}: {label.text}" for label in region.labels] or ["no label"]
    lines += ["a crowd"] if region.is_crowd else []
    tip = "\n".join([*lines, _maker(region.provenance)])
    for ring in region.polygons:
        ring = ring[: len(ring) // 2 * 2]
        yield shape(ring, color, classes=f"poly{crowd}", link=link, tip=tip, kinds=("polygon",))
    if region.quad is not None:
        yield shape(region.quad, color, classes=f"quad{crowd}", link=link, tip=tip, kinds=kinds)
    else:
        yield shape(
            box_ring(region.box),
            color,
            classes=f"box{crowd}",
            link=link,
            tip=tip,
            kinds=kinds,
            is_box=True,
        )


def _region_chip(region: Region, index: int, size: Size, classes: str) -> str:
    order = KIND_ORDER if region.quad is None else ("text", *KIND_ORDER)
    labels = [(kind, text) for kind in dict.fromkeys(order) if (text := region.label(kind))]
    color = label_color(main_label(region), index)
    return chip(labels, color, hull=region.box, size=size, link=f"r{index}", classes=classes)


def _grounding_shapes(record: Record) -> Iterator[tuple[str, str]]:
    """Boxes of phrases, with chips that show only while their phrase is lit."""
    for g, grounding in enumerate(record.groundings):
        for s, span in enumerate(grounding.spans):
            phrase, link = grounding.phrase(span), f"g{g}s{s}"
            color = label_color(phrase, s)
            tip = f"grounded phrase: {phrase}\n{_maker(grounding.provenance)}"
            for box in span.boxes:
                ring, kinds = box_ring(box), ("grounding",)
                yield (
                    shape(
                        ring,
                        color,
                        classes="grounding",
                        link=link,
                        tip=tip,
                        kinds=kinds,
                        is_box=True,
                    ),
                    chip(
                        [("grounding", phrase)],
                        color,
                        hull=box,
                        size=record.size,
                        link=link,
                        classes="shy",
                    ),
                )


def _captions(record: Record) -> str:
    parts = []
    for granularity in GRANULARITIES:
        texts = [(k, t) for k, t in enumerate(record.texts) if t.granularity == granularity]
        if texts:
            items = (
                f'<li data-note="t{k}">{escape(t.text)}{_by(t.provenance)}</li>' for k, t in texts
            )
            name = f"{granularity.replace('_', ' ')} caption{'s' if len(texts) > 1 else ''}"
            parts.append(f'<h3>{name}</h3><ul class="list">{"".join(items)}</ul>')
    return "".join(parts)


def _groundings(record: Record) -> str:
    items = (
        f'<p class="words" data-note="g{g}">{_marked(grounding, g)}{_by(grounding.provenance)}</p>'
        for g, grounding in enumerate(record.groundings)
    )
    return f"<h3>Grounded captions</h3>{''.join(items)}" if record.groundings else ""


def _marked(grounding: Grounding, index: int) -> str:
    """The text with its phrases marked; where phrases overlap, the one that began last wins."""
    text, spans = grounding.text, grounding.spans
    cuts = {0, len(text), *(s.start for s in spans), *(s.end for s in spans)}
    ends = sorted(cuts)
    parts = []
    for start, end in itertools.pairwise(ends):
        words = escape(text[start:end])
        over = [k for k, span in enumerate(spans) if span.start <= start and end <= span.end]
        if over:
            color = label_color(grounding.phrase(spans[over[-1]]), over[-1])
            words = f'<mark data-link="g{index}s{over[-1]}" {style(color)}>{words}</mark>'
        parts.append(words)
    return "".join(parts)


def _questions(record: Record) -> str:
    items = (
        f'<dt data-note="q{k}">{escape(q.question)}</dt>'
        f'<dd data-note="q{k}">{" · ".join(counted(q.answers))}{_by(q.provenance)}</dd>'
        for k, q in enumerate(record.questions)
    )
    return f'<h3>Questions</h3><dl class="qa">{"".join(items)}</dl>' if record.questions else ""


def _provenance(record: Record) -> str:
    """Who made how much of the record."""
    notes = (*record.texts, *record.regions, *record.groundings, *record.questions)
    makers = Counter(maker_name(note.provenance) for note in notes)
    items = (
        f"<li>{escape(name)}: {plural(num, 'annotation')}</li>" for name, num in makers.items()
    )
    return f'<h3>Made by</h3><ul class="list soft">{"".join(items)}</ul>' if makers else ""


def _region_table(record: Record) -> str:
    rows = []
    for k, region in enumerate(record.regions):
        color = label_color(main_label(region), k)
        labels = (
            f'{escape(label.text)} <span class="soft">{label.kind}</span>'
            for label in region.labels
        )
        box = ", ".join(number(round(v, 1)) for v in region.box)
        crowd = " · crowd" if region.is_crowd else ""
        rows.append(
            f'<tr data-link="r{k}"><td>{swatch(color)}{"<br>".join(labels) or "no label"}</td>'
            f'<td class="soft">{box}</td>'
            f'<td class="soft">{escape(_maker(region.provenance))}{crowd}</td></tr>'
        )
    summary = f"<summary>{plural(len(rows), 'region')} as a table</summary>"
    return f"<details>{summary}<table>{''.join(rows)}</table></details>" if rows else ""


def _maker(provenance: Provenance) -> str:
    """`specialist detector-1.2, round 1, score 0.93`; round 0 and no score are not told."""
    score = "" if provenance.score is None else f", score {provenance.score:.2f}"
    return f"{maker_name(provenance)}{score}"


def _by(provenance: Provenance) -> str:
    """The maker behind an annotation; nothing for people without a name, who are most."""
    if provenance == HUMAN:
        return ""
    return f'<span class="by">{escape(_maker(provenance))}</span>'
