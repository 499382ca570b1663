# SPDX-License-Identifier: Apache-2.0
"""An evaluation as a page: metrics with intervals, plots of scores, best and worst answers."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.tasks.registry import Task
from florence2_jax.viewing import plots
from florence2_jax.viewing.page import escape, plural, score_text, write_page
from florence2_jax.viewing.prediction_card import PredictionRow, cards

_STYLE = """
.interval { position:relative; min-width:150px; width:26% }
.interval svg { width:100%; height:20px; display:block }
.interval line { stroke:var(--line) } .interval .range { stroke:var(--accent); stroke-width:5;
  stroke-opacity:.4; stroke-linecap:round } .interval .value { fill:var(--accent) }
.interval .blind { fill:none; stroke:var(--soft); stroke-width:1.6 }
.told-list { margin:10px 0 0; padding-left:20px } .told-list li { overflow-wrap:anywhere }
.metrics tr.also td { border-top:0; padding-top:0 } .metrics tr.also td:first-child { opacity:0 }
.table + h2, .plots + h2 { margin-top:40px } .table .metrics { min-width:640px }
"""
_SCRIPT = """
function start() {
  for (const copy of document.querySelectorAll("img[data-copy]"))
    copy.src = document.getElementById(copy.dataset.copy).src;
  applySwitches(document);
}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cases:
    """Some answers to a task, of `num_all`; `which` is "worst" or "best"."""

    task: Task
    which: str
    rows: Sequence[PredictionRow]
    num_all: int


def write_evaluation_page(report: Mapping[str, Any], cases: Sequence[Cases], path: Path) -> None:
    """Writes the page of a report of `florence2-jax evaluate`; one file, no network."""
    lead = (
        f"{report['model']} asked about {plural(report['num_records'], 'record')} of split "
        f"{report['split']} of {report['records']}. Intervals hold "
        "95 % of what a metric is when the records are drawn anew. The blind model (a ring) sees "
        "the image of another record."
    )
    write_page(
        path,
        title="Evaluation",
        lead=lead,
        top=f"<style>{plots.STYLE}{_STYLE}</style>",
        body=_body(report, cases),
        script=_SCRIPT,
    )


def _body(report: Mapping[str, Any], cases: Sequence[Cases]) -> Iterator[str]:
    if report["paper"]:
        yield "<h2>Beside the paper</h2><p>As the paper prints figures.</p>"
        yield _paper_table(report["paper"])
    yield "<h2>Metrics</h2><p>The first of each task is its headline.</p>"
    yield _metrics_table(report["tasks"])
    if report["warnings"]:
        items = "".join(f"<li>{escape(line)}</li>" for line in report["warnings"])
        yield f'<h2>What to know about them</h2><ul class="told-list">{items}</ul>'
    if report["ranking"]:
        yield (
            "<h2>Detections ranked by their scores</h2><p>Average precision with the scores of "
            "boxes, beside that of boxes that all score the same.</p>"
        )
        yield _ranking_table(report["ranking"])
    if report["calibration"]:
        yield (
            "<h2>Do scores mean what they say?</h2><p>Of boxes that score 0.8, 80 % should be "
            "right: points on the line. Larger points are more scores.</p>"
        )
        drawn = "".join(_reliability(one) for one in report["calibration"])
        yield f'<div class="plots">{drawn}</div>'
    seen: dict[bytes, str] = {}
    for some in cases:
        token = escape(some.task.token)
        yield (
            f"<section><h2>{token}: the {some.which} answers</h2>"
            f"<p>{len(some.rows)} of {some.num_all:,}</p>"
        )
        yield from cards(some.rows, seen)
        yield "</section>\n"


def _metrics_table(tasks: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for task in tasks:
        for k, (name, value) in enumerate(task["metrics"].items()):
            interval, blind = task["intervals"].get(name), task["blind"].get(name)
            told = f"{score_text(interval[0])} .. {score_text(interval[1])}" if interval else ""
            count = f"{task['num_examples']:,}" if k == 0 else ""
            bold = "b" if k == 0 else "span"
            rows.append(
                f"<tr{' class=also' if k else ''}><td>{escape(task['task'])}</td>"
                f'<td>{escape(name)}</td><td class="num"><{bold}>{_number(value)}</{bold}></td>'
                f'<td class="num">{told}</td><td class="interval">'
                f"{_range(value, interval, blind)}</td>"
                f'<td class="num">{_number(blind)}</td><td class="num">{count}</td></tr>'
            )
    head = (
        "<th>Task</th><th>Metric</th>"
        '<th class="num">Model</th><th class="num">95 %</th><th class="interval"></th>'
        '<th class="num">Blind</th><th class="num">Questions</th>'
    )
    return _table(head, rows)


def _range(value: float | None, interval: Sequence[float] | None, blind: float | None) -> str:
    """The value in its interval on a line from 0 to 1, 10 or 100; the blind one as a ring."""
    known = [v for v in (value, blind, *(interval or ())) if v is not None]
    if not known:
        return ""
    full = next((f for f in (1, 2, 5, 10, 100) if max(known) <= f), max(known))

    def x(at: float) -> str:
        return f"{4 + 192 * min(max(at, 0.0), full) / full:.2f}"

    drawn = '<line x1="4" x2="196" y1="10" y2="10"/>'
    if interval:
        drawn += (
            f'<line class="range" x1="{x(interval[0])}" x2="{x(interval[1])}" y1="10" y2="10"/>'
        )
    if blind is not None:
        drawn += f'<circle class="blind" cx="{x(blind)}" cy="10" r="3.5"/>'
    if value is not None:
        drawn += f'<circle class="value" cx="{x(value)}" cy="10" r="4"/>'
    return (
        f'<svg viewBox="0 0 200 20" role="img" '
        f'aria-label="{_number(value)} of {full:g}">{drawn}</svg>'
    )


def _paper_table(rows: Sequence[Mapping[str, Any]]) -> str:
    variants = list(dict.fromkeys(name for row in rows for name in row["paper"]))
    head = "<th>Task</th><th>Metric</th>" + "".join(
        f'<th class="num">{escape(name)}</th>'
        for name in (*(f"Paper, {name}" for name in variants), "Measured", "95 %")
    )
    lines = []
    for row in rows:
        printed = [row["paper"].get(name) for name in variants]
        interval = row["interval"]
        told = f"{interval[0]:.1f} .. {interval[1]:.1f}" if interval else ""
        cells = "".join(f'<td class="num">{"" if v is None else f"{v:.1f}"}</td>' for v in printed)
        lines.append(
            f"<tr><td>{escape(row['task'])}</td><td>{escape(row['metric'])}</td>{cells}"
            f'<td class="num"><b>{row["measured"]:.1f}</b></td><td class="num">{told}</td></tr>'
        )
    return _table(head, lines)


def _ranking_table(ranking: Mapping[str, Any]) -> str:
    metrics = list(next(iter(ranking["ap"].values())))
    head = "<th>Ranked by</th>" + "".join(f'<th class="num">{escape(m)}</th>' for m in metrics)
    lines = [
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td class="num">{_number(values[m])}</td>' for m in metrics)
        + "</tr>"
        for name, values in ranking["ap"].items()
    ]
    gains = []
    for metric in metrics:
        one = ranking["gain"][metric]
        low_high = one["interval"]
        told = f" ({low_high[0]:+.3f} .. {low_high[1]:+.3f})" if low_high else ""
        gains.append(f'<td class="num"><b>{one["difference"]:+.3f}</b>{told}</td>')
    lines.append(f"<tr><td>box - constant</td>{''.join(gains)}</tr>")
    return _table(head, lines)


def _reliability(one: Mapping[str, Any]) -> str:
    note = (
        f"Expected calibration error {one['ece']:.3f} over {plural(one['number'], 'score')}; "
        f"{_RIGHT[one['kind']]}."
    )
    points = [(b["score"], b["accuracy"], b["number"]) for b in one["bins"]]
    title = f"{one['task']}: scores of {one['kind']}{'es' if one['kind'] == 'box' else 's'}"
    return plots.plot(title, note, plots.reliability(points, x="score", y="share that is right"))


_RIGHT = {
    "box": "right is IoU 0.5 with any true box",
    "label": "right is the label of the true box that it is on",
    "text": "right is full marks",
}


def _table(head: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="table"><table class="metrics"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else score_text(value)
