# SPDX-License-Identifier: Apache-2.0
"""Means of what `data_engine.py` measured, with their intervals, as a table and as a plot."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_engine_measures import MEASURES
from rich.console import Console
from rich.table import Table
from scipy import stats

VARIANTS = ("full", "no-filters", "vanishing-no-guard", "vanishing")


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of rounds and changes, with 95 % intervals over the seeds."""
    found = {"runs": list(results), "means": _means(results)}
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


def _interval(values: Sequence[float]) -> dict[str, Any]:
    """The values and their mean, and half of its 95 % interval for normal errors."""
    found: dict[str, Any] = {"mean": statistics.fmean(values), "values": list(values)}
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
    """An SVG with a panel per measure: means by round, and a ring for each seed."""
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
    tops = [max(row[name]["values"]) for row in rows]
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
            at = f'cx="{x(row):.1f}" cy='
            parts.append(f'<circle {at}"{y(row[name]["mean"]):.1f}" r="3" fill="{ink}"/>')
            parts += (
                f'<circle {at}"{y(value):.1f}" r="2" fill="none" stroke="{ink}"/>'
                for value in row[name]["values"]
            )
    return "".join(parts)
