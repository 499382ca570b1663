# SPDX-License-Identifier: Apache-2.0
"""A round of the data engine as a page: what it made, what the filters took, how good it is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.records.schema import Record
from florence2_jax.viewing import curves, engine_card, plots
from florence2_jax.viewing.audit_section import audit_section
from florence2_jax.viewing.engine_card import filtered_card
from florence2_jax.viewing.engine_tables import figure_text, head_cells, table
from florence2_jax.viewing.page import escape, plural, write_page

_COLUMNS = {
    "num_texts": "texts",
    "avg_tokens": "words each",
    "num_regions": "regions",
    "avg_regions": "regions each",
    "avg_region_tokens": "words a region",
}
_SEMANTICS = {
    "objects": "objects",
    "attributes": "attributes",
    "actions": "actions",
    "proper_nouns": "proper nouns",
    "object_complexity": "object complexity",
    "action_complexity": "action complexity",
}
_STYLE = """
.share { width:26%; min-width:120px } .share i { display:block; height:10px; border-radius:3px;
  background:var(--accent); min-width:0 } .share .lost { background:var(--second) }
.share .both { display:flex; gap:1px } .ids { font-size:13px; color:var(--soft);
  overflow-wrap:anywhere; min-width:230px; max-width:360px } .was { color:var(--soft) }
.matrix td.cell { text-align:center; font-variant-numeric:tabular-nums; min-width:62px;
  background:color-mix(in srgb, var(--accent) calc(var(--s) * 45%), transparent) }
.matrix { width:auto } .table + h2, .plots + h2 { margin-top:36px }
.told { margin:0; padding-left:20px } .told li { overflow-wrap:anywhere }
.table .metrics { min-width:560px } .table .matrix { min-width:0 }
.table + .table { margin-top:14px } .reasons td:nth-child(2) { min-width:190px }
h2 + p { max-width:110ch }
"""
_SCRIPT = """
function start() {
  for (const copy of document.querySelectorAll("img[data-copy]"))
    copy.src = document.getElementById(copy.dataset.copy).src;
  applySwitches(document);
}
"""


def write_engine_page(report: Mapping[str, Any], samples: Sequence[Record], path: Path) -> None:
    """Writes the page of a report of `engine.report`; one file, no network.

    Args:
        samples: filtered records, with their marks.
    """
    kinds = (report["filters"] or {"kinds": {}})["kinds"].values()
    kept, dropped = (sum(kind[what] for kind in kinds) for what in ("kept", "dropped"))
    statistics = report["statistics"]
    some = statistics["num_records"] < statistics["num_all"]
    counted = f"{statistics['num_records']:,} of {statistics['num_all']:,} records"
    lead = (
        f"{plural(statistics['num_all'], 'record')} of {report['filtered']}: {kept:,} annotations "
        f"kept, {dropped:,} dropped by the filters. Dropped ones stay in the store, marked."
        + (f" The statistics are of {counted}." if some else "")
    )
    write_page(
        path,
        title=report["title"],
        lead=lead,
        top=f"<style>{plots.STYLE}{curves.STYLE}{engine_card.STYLE}{_STYLE}</style>",
        body=_body(report, samples),
        script=_SCRIPT,
    )


def _body(report: Mapping[str, Any], samples: Sequence[Record]) -> Iterator[str]:
    yield from _warnings(report)
    yield (
        "<h2>Beside FLD-5B</h2><p>After the filters; before them in grey; FLD-5B in orange "
        "(Florence-2 §4). Words are what stands between blanks.</p>"
    )
    yield _statistics(report["statistics"])
    if report["filters"]:
        yield from _filters(report["filters"])
        yield from _semantics(report["filters"])
        yield from _agreement(report["filters"]["agreement"])
    if report["audits"]:
        yield from audit_section(report["audits"])
    if report["annotate"]:
        yield from _specialists(report["annotate"])
    if report["difference"]:
        yield from _difference(report["difference"])
    if samples:
        yield (
            "<h2>Samples</h2><p>Records with something that was dropped first. Rest the mouse on a "
            "place to see who made it, and why it went.</p>"
        )
        yield from (filtered_card(record, k) for k, record in enumerate(samples))
    if report["filters"]:
        values = json.dumps(report["filters"]["config"], indent=1, ensure_ascii=False)
        yield f"<details><summary>All thresholds</summary><pre>{escape(values)}</pre></details>"


def _warnings(report: Mapping[str, Any]) -> Iterator[str]:
    reasons = [one for decision in report["guard"] for one in _stops(decision)]
    untested = report["filters"] and report["filters"]["not_tested"]
    if untested and untested["texts"]:
        reasons.append(
            f"{plural(untested['texts'], 'text')} not tested for {untested['what']}: "
            f"{untested['why']}."
        )
    if reasons:
        items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
        yield f'<div class="warn"><ul class="told">{items}</ul></div>'


def _stops(decision: Mapping[str, Any]) -> list[str]:
    if decision["ok"]:
        return []
    return [f"The guard stops at round {decision['round']}: {why}" for why in decision["reasons"]]


def _statistics(statistics: Mapping[str, Any]) -> str:
    head = head_cells("Type", "Text", *(f"#{name}" for name in _COLUMNS.values()))
    rows = []
    for before, after in zip(statistics["before"], statistics["after"], strict=True):
        if not (before["num_texts"] or before["num_regions"] or after["fld5b"]):
            continue
        cells = "".join(
            _cell(before[name], after[name], (after["fld5b"] or {}).get(name)) for name in _COLUMNS
        )
        text = after["text"].replace("_", " ")
        rows.append(f"<tr><td>{escape(after['type'])}</td><td>{escape(text)}</td>{cells}</tr>")
    return table(head, rows)


def _cell(before: float | None, after: float | None, theirs: float | None) -> str:
    was = "" if before == after else f' <span class="was">{figure_text(before)}</span>'
    beside = "" if theirs is None else f'<br><span class="fld">{plots.short(theirs)}</span>'
    return f'<td class="num"><b>{figure_text(after)}</b>{was}{beside}</td>'


def _filters(filters: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "<h2>Filters</h2><p>Kept in blue, dropped in orange, by kind and by who made it. Boxes "
        "that were merged into one count as dropped.</p>"
    )
    rows = []
    for kind, counts in filters["kinds"].items():
        rows.append(_kept_row(kind, "", counts["kept"], counts["dropped"]))
        makers = counts["makers"] if len(counts["makers"]) > 1 else {}
        for maker, one in sorted(makers.items()):
            rows.append(_kept_row("", maker, one["kept"], sum(one["dropped"].values())))
    yield table(head_cells("Kind", "Made by", "#Kept", "#Dropped", "#Share dropped", ""), rows)
    if not filters["reasons"]:
        return
    most = max(row["number"] for row in filters["reasons"])
    rows = [
        f"<tr><td>{escape(row['kind'])}</td><td>{escape(row['reason'])}</td>"
        f'<td class="num"><b>{row["number"]:,}</b></td><td class="share">'
        f'<i class="lost" style="width:{100 * row["number"] / most:.2f}%"></i></td>'
        f'<td class="ids">{escape(", ".join(one["id"] for one in row["samples"][:4]))}</td></tr>'
        for row in filters["reasons"]
    ]
    head = head_cells("Kind", "Dropped for", "#Number", "", "For example")
    yield table(head, rows, "metrics reasons")


def _kept_row(kind: str, maker: str, kept: int, dropped: int) -> str:
    share = dropped / max(kept + dropped, 1)
    bar = (
        f'<div class="both"><i style="width:{100 - 100 * share:.2f}%"></i>'
        f'<i class="lost" style="width:{100 * share:.2f}%"></i></div>'
    )
    tag = "b" if kind else "span"
    return (
        f"<tr><td><{tag}>{escape(kind)}</{tag}></td><td>{escape(maker or 'all')}</td>"
        f'<td class="num">{kept:,}</td><td class="num">{dropped:,}</td>'
        f'<td class="num">{share:.1%}</td><td class="share">{bar}</td></tr>'
    )


def _semantics(filters: Mapping[str, Any]) -> Iterator[str]:
    if not filters["semantics"]:
        return
    yield (
        "<h2>What texts speak of</h2><p>Averages per text before the filters, counted by "
        f"{escape(filters['parser'])}; FLD-5B in orange.</p>"
    )
    rows = [
        f"<tr><td>{escape(length.replace('_', ' '))}</td>"
        f'<td class="num">{row["texts"]:,}</td>'
        + "".join(_cell(row[name], row[name], row["fld5b"][name]) for name in _SEMANTICS)
        + "</tr>"
        for length, row in filters["semantics"].items()
    ]
    yield table(head_cells("Text", "#texts", *(f"#{name}" for name in _SEMANTICS.values())), rows)


def _agreement(tables: Mapping[str, Any]) -> Iterator[str]:
    told = {kind: one for kind, one in tables.items() if len(one["makers"]) > 1}
    if not told:
        return
    yield (
        "<h2>Who agrees with whom</h2><p>Of what the maker of a row says, the share that the maker "
        "of a column says too. What a person had said already was not added and is not counted.</p>"
    )
    for kind, one in told.items():
        makers = one["makers"]
        head = head_cells(kind, "#number", *(f"{k + 1}" for k in range(len(makers))))
        rows = []
        for k, maker in enumerate(makers):
            cells = "".join(
                '<td class="cell">–</td>'
                if k == j
                else f'<td class="cell" style="--s:{share:.3f}">{share:.0%}</td>'
                for j, share in enumerate(one["shares"][k])
            )
            number = f"{one['numbers'][maker]:,}"
            rows.append(
                f'<tr><td>{k + 1} {escape(maker)}</td><td class="num">{number}</td>{cells}</tr>'
            )
        yield table(head, rows, "metrics matrix")


def _specialists(report: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Specialists</h2><p>What they made, what failed, and what it cost.</p>"
    rows = []
    for one in report["specialists"]:
        made = ", ".join(f"{num:,} {what}" for what, num in one["made"].items())
        failures = ", ".join(f"{num:,} {why}" for why, num in one["failures"].items())
        cost = "–" if one["money"] is None else f"{one['money']:.2f}"
        rows.append(
            f"<tr><td>{escape(one['name'])} {escape(one['version'])}</td>"
            f'<td class="num">{one["images"]:,}</td><td>{escape(made)}</td>'
            f'<td>{escape(failures) or "–"}</td><td class="num">{one["s_per_image"]:.3f}</td>'
            f'<td class="num">{cost}</td></tr>'
        )
    yield table(head_cells("Specialist", "#images", "Made", "Failed", "#s an image", "#cost"), rows)


def _difference(report: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"<h2>Since the round before</h2><p>{report['changed']:,} of "
        f"{plural(report['records'], 'record')} changed.</p>"
    )
    names = list(dict.fromkeys(n for kind in report["kinds"].values() for n in kind["counts"]))
    rows = [
        f"<tr><td>{escape(kind)}</td>"
        + "".join(f'<td class="num">{one["counts"].get(name, 0):,}</td>' for name in names)
        + "</tr>"
        for kind, one in report["kinds"].items()
    ]
    yield table(head_cells("Kind", *(f"#{name}" for name in names)), rows)
