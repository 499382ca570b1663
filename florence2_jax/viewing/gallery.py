# SPDX-License-Identifier: Apache-2.0
"""Pages to look at: what records hold, and what a model answers beside what is true.

A page is one file that opens in any browser without a network and can be sent by mail.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from florence2_jax.records.checks import ImageError
from florence2_jax.records.schema import Record
from florence2_jax.viewing.page import (
    ImageBounds,
    escape,
    image_uri,
    inert_json,
    later_card,
    no_image,
    small_images,
    write_page,
)
from florence2_jax.viewing.prediction_card import (
    MetricRow,
    PredictionRow,
    metrics_table,
    task_sections,
)
from florence2_jax.viewing.record_card import record_card
from florence2_jax.viewing.record_index import RecordIndex
from florence2_jax.viewing.scripts import PREDICTIONS, RECORDS

__all__ = ["MetricRow", "PredictionRow", "write_predictions_page", "write_records_page"]

# Kind of a switch: its name.
_SWITCHES = {
    "category": "categories",
    "phrase": "phrases",
    "brief": "briefs",
    "text": "text",
    "unlabelled": "unlabelled",
    "polygon": "polygons",
    "grounding": "grounded phrases",
}

_SAMPLE = '<svg viewBox="0 0 26 17">{}</svg>'
_BOX_SAMPLE = '<rect x="1" y="1" width="24" height="15" class="{}"/>'
_QUAD_SAMPLE = '<polygon points="2,6 23,1 25,10 4,16" class="{}"/>'
_LEGEND = {
    "box": (_BOX_SAMPLE.format(""), "box of a region"),
    "crowd": (_BOX_SAMPLE.format("crowd"), "crowd: many of a kind, kept out of training"),
    "poly": (_QUAD_SAMPLE.format("poly"), "polygon: its exact outline"),
    "quad": (_QUAD_SAMPLE.format(""), "quad around writing"),
    "grounding": (_BOX_SAMPLE.format("grounding"), "box of a phrase in a caption"),
    "asked": (_BOX_SAMPLE.format("grounding"), "white dots: the region that is asked about"),
}


_FILTERS = (
    '<div class="fields"><span class="soft" id="count" aria-live="polite">reading ...</span>'
    '<label>task <select data-filter="tasks"><option value="">any</option></select></label>'
    '<label>made by <select data-filter="makers"><option value="">anyone</option></select></label>'
    '<label>score from <input type="range" data-filter="score" min="0" max="1" step="0.05" '
    'value="0"><output id="least"></output></label>'
    '<label>label <input type="text" data-filter="labels" list="known-labels"></label>'
    '<label>origin <input type="text" data-filter="origins" list="known-origins"></label>'
    '<datalist id="known-labels"></datalist><datalist id="known-origins"></datalist>'
    '<button type="button" id="clear" hidden>clear</button></div>'
)


def write_records_page(
    records: Iterable[Record], path: Path, title: str, *, bounds: ImageBounds = small_images()
) -> None:
    """Writes a page with a card per record: its image with all places, and all that is said.

    Records are read one at a time. The page makes a card when it comes near the window, so one of
    1,000 records opens at once; it filters by task, maker, score, label, origin and words. An image
    that cannot be shown leaves a note in its place.

    Args:
        bounds: images beyond these are shrunk.
    """
    switches = "".join(
        f'<label><input type="checkbox" checked data-switch="{kind}">{name} <small></small></label>'
        for kind, name in _SWITCHES.items()
    )
    top = (
        f'<div class="top">{_legend("box", "crowd", "poly", "quad", "grounding")}</div>'
        f'<div class="bar" id="filters" inert>{_FILTERS}<div class="switches">{switches}'
        '<label><input type="checkbox" checked id="labels">labels</label>'
        '<input type="search" data-filter="words" placeholder="Find words or ids" '
        'aria-label="Find"></div></div>'
    )
    lead = (
        "Each card is one image with everything its record says about it. A label has the same "
        "colour everywhere; rest the mouse on a place, or on words, to see what belongs together "
        "and who made it. Keys: j and k step through the records, / finds."
    )
    body = _record_cards(records, bounds)
    write_page(path, title=title, lead=lead, top=top, body=body, script=RECORDS)


def _record_cards(records: Iterable[Record], bounds: ImageBounds) -> Iterator[str]:
    """Inert cards, then the index of all that they hold."""
    index = RecordIndex()
    yield "<noscript>The script of this page makes its cards.</noscript>"
    yield from _or_note(
        (_later_card(record, index, bounds) for record in records), "There are no records to show."
    )
    yield '<p class="empty" id="none" hidden>No record fits these filters.</p>'
    yield inert_json(index.report(), "index")


def _later_card(record: Record, index: RecordIndex, bounds: ImageBounds) -> str:
    index.add(record)
    uri, tag = "", f'<img decoding="async" alt="{escape(f"image {record.id}")}">'
    try:
        uri = image_uri(record.image, bounds)
    except ImageError as error:
        tag = no_image(error)
    return later_card(record_card(record, tag), uri, record.size)


def write_predictions_page(
    rows: Iterable[PredictionRow], path: Path, title: str, summary: Sequence[MetricRow] = ()
) -> None:
    """Writes a page of answers by task, the truth on the left and the prediction on the right.

    Args:
        summary: shown as a table at the top, each metric beside that of an image-blind model.
    """
    by_task: dict[str, list[PredictionRow]] = {}
    for row in rows:
        by_task.setdefault(row.example.task.token, []).append(row)
    tasks = "".join(
        f'<option value="{escape(task)}">{escape(task)} ({len(some)})</option>'
        for task, some in by_task.items()
    )
    top = (
        f'<div class="top">{metrics_table(summary)}{_legend("box", "poly", "quad", "asked")}</div>'
        '<div class="bar"><div><span class="soft" id="count"></span>'
        f'<select id="task" aria-label="Task"><option value="">all tasks</option>{tasks}</select>'
        '<select id="order" aria-label="Order"><option value="given">in order</option>'
        '<option value="worst">worst first</option></select>'
        '<label><input type="checkbox" checked id="labels">labels</label>'
        '<input type="search" placeholder="Find words or ids" aria-label="Find"></div></div>'
    )
    lead = (
        "Each card is one question to the model: what is true on the left, what it answered on "
        "the right. A label has the same colour on both sides; what the answer held beyond its "
        "grammar is shown as a warning."
    )
    body = _or_note(task_sections(by_task), "There are no predictions to show.")
    write_page(path, title=title, lead=lead, top=top, body=body, script=PREDICTIONS)


def _or_note(parts: Iterable[str], note: str) -> Iterator[str]:
    """The parts, or a note where there are none."""
    is_empty = True
    for part in parts:
        is_empty = False
        yield part
    if is_empty:
        yield f'<p class="empty">{note}</p>'


def _legend(*names: str) -> str:
    items = (f"<li>{_SAMPLE.format(_LEGEND[n][0])}{_LEGEND[n][1]}</li>" for n in names)
    return f'<ul class="legend">{"".join(items)}</ul>'
