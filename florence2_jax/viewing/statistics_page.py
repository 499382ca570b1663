# SPDX-License-Identifier: Apache-2.0
"""What a store holds, as a page of plots and a table beside the figures of FLD-5B."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.viewing import plots
from florence2_jax.viewing.page import plural, write_page

_COLUMNS = {
    "num_texts": "texts",
    "avg_tokens": "words each",
    "num_regions": "regions",
    "avg_regions": "regions each",
    "avg_region_tokens": "words a region",
}
# Kind of boxes: its name, and how its areas are spread in FLD-5B.
_SETS = {
    "regions": ("Boxes of regions", "In FLD-5B small ones are the most."),
    "phrases": ("Boxes of phrases in texts", "In FLD-5B they are spread about evenly."),
}


def write_statistics_page(report: Mapping[str, Any], path: Path, title: str) -> None:
    """Writes a page of what `records.inspection.statistics` reports; one file, no network."""
    totals = report["totals"]
    counts = ", ".join(plural(num, name.removesuffix("s")) for name, num in totals.items() if num)
    lead = f"{counts or 'Nothing'}. Orange figures and dashed lines are those of FLD-5B."
    top = f"<style>{plots.STYLE}</style>"
    body = _body(report)
    write_page(path, title=title, lead=lead, top=top, body=body, script="function start() {}")


def _body(report: Mapping[str, Any]) -> Iterator[str]:
    spread, rows = report["distributions"], report["rows"]
    yield "<h2>Beside FLD-5B</h2><p>Florence-2 §4; words are what stands between blanks.</p>"
    yield _table(rows)
    yield "<h2>Boxes</h2><p>In shares of their image.</p>"
    yield f'<div class="plots">{"".join(_box_plots(spread))}</div>'
    yield "<h2>Regions, texts and labels</h2><p>How many, how long, how rare.</p>"
    parts = [
        _regions_plot(spread["regions_per_image"], report["totals"]["regions"]),
        *_length_plots(spread, rows),
    ]
    yield f'<div class="plots">{"".join(parts)}{_tail_plot(spread["labels"])}</div>'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [row for row in rows if row["num_texts"] or row["num_regions"] or row["fld5b"]]
    names = "".join(f'<th class="num">{name}</th>' for name in _COLUMNS.values())
    lines = "".join(
        f"<tr><td>{row['type']}</td><td>{row['text'].replace('_', ' ')}</td>"
        + "".join(_cell(row[name], (row["fld5b"] or {}).get(name)) for name in _COLUMNS)
        + "</tr>"
        for row in shown
    )
    return (
        '<div class="table"><table class="metrics"><thead><tr><th>Type</th><th>Text</th>'
        f"{names}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _cell(ours: float | None, theirs: float | None) -> str:
    told = "–" if ours is None else f"{ours:,}" if isinstance(ours, int) else f"{ours:,.2f}"
    beside = "" if theirs is None else f'<br><span class="fld">{plots.short(theirs)}</span>'
    return f'<td class="num"><b>{told}</b>{beside}</td>'


def _box_plots(spread: Mapping[str, Any]) -> Iterator[str]:
    for key, (name, note) in _SETS.items():
        sizes, centres, areas = (
            spread[f"box_{what}"][key] for what in ("sizes", "centres", "areas")
        )
        if not sum(areas):
            continue
        drawing = plots.heat_map(sizes, x="width", y="height", is_upward=True)
        yield plots.plot(
            f"{name}: sizes",
            "A cell is a width and a height; large boxes are at the top right.",
            drawing,
        )
        drawing = plots.heat_map(centres, x="from the left", y="from the top", is_upward=False)
        yield plots.plot(f"{name}: centres", "In FLD-5B they lean to the middle.", drawing)
        octaves = range(0, len(areas) + 1, 3)
        ticks = [(len(areas) - k, _share(k)) for k in octaves]
        drawing = plots.bars(areas, ticks, what="share of the image, halved from bar to bar")
        yield plots.plot(f"{name}: areas", note, drawing)


def _share(octave: int) -> str:
    return f"{100 / 2**octave:.2g} %" if octave else "100 %"


def _regions_plot(counts: Sequence[int], num_regions: int) -> str:
    with_some = sum(counts[1:])
    marks = []
    if with_some:
        mean = num_regions / with_some
        marks.append((mean, f"mean {mean:.2f}", False))
    marks.append((5.42, "FLD-5B 5.42", True))
    note = f"{plural(counts[0], 'image')} without; the means are of images that have some."
    return plots.plot("Regions per image", note, _counted(counts, "regions", marks))


def _length_plots(spread: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        counts = spread["text_lengths"].get(row["text"], ())
        if row["type"] != "text" or not sum(counts):
            continue
        theirs = row["fld5b"]["avg_tokens"]
        marks = [(row["avg_tokens"], f"mean {row['avg_tokens']:.2f}", False)]
        marks.append((theirs, f"FLD-5B {theirs}", True))
        name = row["text"].replace("_", " ").capitalize()
        note = f"{plural(row['num_texts'], 'text')}, which are the targets of captioning."
        yield plots.plot(f"{name} texts: words", note, _counted(counts, "words", marks))


def _counted(counts: Sequence[int], what: str, marks: Sequence[tuple[float, str, bool]]) -> str:
    """Bars of the counts of 0, 1, ...: as far as there are any, the rest in the last bar."""
    last = max((k for k, num in enumerate(counts) if num), default=0)
    most = len(counts) - 1
    end = min(max(last, *(int(at) + 1 for at, _, _ in marks), 8), most) + 1
    step = next(s for s in (1, 2, 5, 10, 20, 40) if end / s <= 9)
    ticks = [(k + 0.5, f"{k}+" if k == most else str(k)) for k in range(0, end, step)]
    lines = "".join(plots.mark(at + 0.5, end, text, is_fld=fld) for at, text, fld in marks)
    name = f"{what}, {most} or more in the last bar" if end == most + 1 else what
    return plots.bars(counts[:end], ticks, what=name, marks=lines)


def _tail_plot(labels: Mapping[str, Mapping[str, Any]]) -> str:
    series = [(kind, report["rank_counts"]) for kind, report in labels.items()]
    series = [(kind, rows) for kind, rows in series if rows]
    if not series:
        return ""
    notes = [
        f"{plural(labels[kind]['num_names'], 'name')} of kind {kind}{_dropped(labels[kind])}"
        for kind, _ in series
    ]
    return plots.plot("Label tail", f"{'; '.join(notes)}.", plots.rank_lines(series))


def _dropped(report: Mapping[str, Any]) -> str:
    if not report["num_dropped"]:
        return ""
    return (
        f", and rare ones said {report['num_dropped']:,} times that were forgotten to save memory "
        f"(counts are short by {report['max_error']:,} at most)"
    )
