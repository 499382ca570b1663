# SPDX-License-Identifier: Apache-2.0
"""Plots as inline SVG: bars, maps, log-log lines and reliability, in the colours of the page.

Each is drawn in a view of `WIDTH` x `HEIGHT` units that scales with its place. Numbers stand in its
label for those who cannot see it.
"""

import math
from collections.abc import Sequence
from typing import Any

from florence2_jax.viewing.page import escape, number

WIDTH, HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 34, 40
_INNER_X, _INNER_Y = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

STYLE = """
.plots { display:grid; grid-template-columns:repeat(auto-fill, minmax(min(100%, 380px), 1fr));
  gap:18px; margin:14px 0 }
.plot { background:var(--card); border:1px solid var(--line); border-radius:14px; margin:0;
  padding:14px 16px } .plot figcaption { font-weight:600 }
.plot p { margin:0 0 2px; min-height:40px }
.plot svg { width:100%; height:auto; display:block; font-size:11.5px }
.plot text { fill:var(--soft) } .plot .axis { stroke:var(--line); fill:none }
.plot .bar, .plot .cell { fill:var(--accent) } .plot .line { stroke:var(--accent); fill:none;
  stroke-width:2; stroke-linejoin:round } .plot .second { stroke:var(--second) }
.plot .fld { stroke:var(--second); stroke-width:1.6; stroke-dasharray:5 4 }
.plot text.fld { fill:var(--second); stroke:none } .plot .mean { stroke:var(--text) }
.plot text.mean { fill:var(--text); stroke:none }
.plot .dot { fill:var(--accent); fill-opacity:.75 } .plot .gap { stroke:var(--second);
  stroke-width:1.6 }
:root { --second:#c2410c } @media (prefers-color-scheme: dark) { :root { --second:#fb923c } }
.table { overflow-x:auto } .metrics .fld { color:var(--second) }
"""


def plot(title: str, note: str, drawing: str) -> str:
    """A plot with what it shows above it, both plain text."""
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption>'
        f'<p class="soft">{escape(note)}</p>{drawing}</figure>'
    )


def bars(
    counts: Sequence[int], ticks: Sequence[tuple[float, str]], *, what: str, marks: str = ""
) -> str:
    """A bar per count.

    Args:
        ticks: `(position, text)` below the bars; bar k is at `[k, k + 1)`.
        what: what is on the horizontal axis.
        marks: markup drawn on top (`mark`).
    """
    top, num = max(counts, default=0) or 1, max(len(counts), 1)
    step = _INNER_X / num
    drawn = "".join(
        f'<rect class="bar" x="{_LEFT + k * step:.2f}" y="{_y(count / top):.2f}" '
        f'width="{max(0.94 * step, 0.5):.2f}" height="{_INNER_Y * count / top:.2f}">'
        f"<title>{count:,}</title></rect>"
        for k, count in enumerate(counts)
        if count
    )
    xs = [(_LEFT + at * step, text) for at, text in ticks]
    ys = [(_y(0), "0"), (_y(1), short(top))]
    return _svg(f"{what}: {sum(counts):,} in all", _axes(what, xs, ys) + drawn + marks)


def mark(position: float, num_bars: int, text: str, *, is_fld: bool) -> str:
    """A vertical line across bars, for an average; that of FLD-5B is dashed, its text lower."""
    x = _LEFT + _INNER_X * min(position / num_bars, 1)
    name, row = ("fld", 1) if is_fld else ("mean", 0)
    anchor, gap = ("start", 5) if x < WIDTH * 0.6 else ("end", -5)
    y = 12 + 14 * row  # Above the bars, which would hide it.
    return (
        f'<line class="{name}" x1="{x:.2f}" x2="{x:.2f}" y1="{y - 9}" y2="{_y(0)}"/>'
        f'<text class="{name}" x="{x + gap:.2f}" y="{y}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def heat_map(grid: Sequence[Sequence[int]], *, x: str, y: str, is_upward: bool) -> str:
    """Counts as shades: the square root of the share of the fullest cell, which is said.

    Args:
        grid: rows of columns, both from 0 % to 100 %.
        is_upward: the first row is at the bottom, as in a plot; else at the top, as in an image.
    """
    rows = list(reversed(grid)) if is_upward else list(grid)
    top = max(map(max, rows)) or 1
    side = _INNER_Y / len(rows)
    left = _LEFT + (_INNER_X - _INNER_Y) / 2
    cells = "".join(
        f'<rect class="cell" x="{left + i * side:.2f}" y="{_TOP + j * side:.2f}" '
        f'width="{side + 0.1:.2f}" height="{side + 0.1:.2f}" '
        f'fill-opacity="{math.sqrt(count / top):.3f}"><title>{count:,}</title></rect>'
        for j, row in enumerate(rows)
        for i, count in enumerate(row)
        if count
    )
    shares = [(0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")]
    xs = [(left + share * _INNER_Y, text) for share, text in shares]
    ys = [(_y(share) if is_upward else _y(1 - share), text) for share, text in shares]
    frame = (
        f'<rect class="axis" x="{left}" y="{_TOP}" width="{_INNER_Y}" height="{_INNER_Y}"/>'
        f'<text x="{WIDTH - 2}" y="{_TOP + 10}" text-anchor="end">fullest: {short(top)}</text>'
    )
    names = _axes(x, xs, ys, left=left, has_line=False)
    y_name = f'<text x="2" y="{_TOP + 10}">{escape(y)}</text>'
    return _svg(f"{y} by {x}, {sum(map(sum, rows)):,} boxes", cells + frame + names + y_name)


def rank_lines(series: Sequence[tuple[str, Sequence[Sequence[int]]]]) -> str:
    """Counts by rank, both logarithmic, a line per series of `[rank, count]`; at most two."""
    points = [point for _, rows in series for point in rows]
    x_end = max(1, *(math.ceil(math.log10(rank) + 1e-9) for rank, _ in points))
    y_end = max(1, *(math.ceil(math.log10(count) + 1e-9) for _, count in points))
    drawn = ""
    for k, (name, rows) in enumerate(series):
        place = " ".join(
            f"{_LEFT + _INNER_X * math.log10(rank) / x_end:.2f},{_y(math.log10(count) / y_end):.2f}"
            for rank, count in rows
        )
        second, y = " second" if k else "", _TOP + 6 + 16 * k
        drawn += (
            f'<polyline class="line{second}" points="{place}"/>'
            f'<line class="line{second}" x1="{WIDTH - 96}" x2="{WIDTH - 76}" y1="{y}" y2="{y}"/>'
            f'<text x="{WIDTH - 70}" y="{y + 4}">{escape(name)}</text>'
        )
    xs = [(_LEFT + _INNER_X * k / x_end, short(10**k)) for k in range(x_end + 1)]
    ys = [(_y(k / y_end), short(10**k)) for k in range(y_end + 1)]
    return _svg("count of a label by its rank", _axes("rank of the label", xs, ys) + drawn)


def reliability(points: Sequence[tuple[float, float, int]], *, x: str, y: str) -> str:
    """Accuracy over score, with the line on which both are equal; gaps to it are drawn.

    Args:
        points: (mean score, accuracy, how many) per bin; the area of a dot is its share.
    """
    top = max((number for *_, number in points), default=1)
    line = f'<line class="axis" x1="{_LEFT}" y1="{_y(0)}" x2="{_LEFT + _INNER_X}" y2="{_y(1)}"/>'
    drawn = ""
    for score, accuracy, number_ in points:
        at = _LEFT + _INNER_X * score
        drawn += (
            f'<line class="gap" x1="{at:.2f}" x2="{at:.2f}" y1="{_y(score):.2f}" '
            f'y2="{_y(accuracy):.2f}"/>'
            f'<circle class="dot" cx="{at:.2f}" cy="{_y(accuracy):.2f}" '
            f'r="{2.5 + 6.5 * math.sqrt(number_ / top):.2f}"><title>{number_:,} scores of '
            f"{score:.2f} on average, {accuracy:.0%} right</title></circle>"
        )
    shares = [(0.0, "0"), (0.5, "0.5"), (1.0, "1")]
    xs = [(_LEFT + share * _INNER_X, text) for share, text in shares]
    ys = [(_y(share), text) for share, text in shares]
    name = f'<text x="2" y="{_TOP - 14}">{escape(y)}</text>'
    label = "; ".join(f"score {a:.2f}: {b:.2f} of {n}" for a, b, n in points)
    return _svg(label, _axes(x, xs, ys) + line + drawn + name)


def short(value: float) -> str:
    """`950`, `12.5 k`, `1.01 G`: three digits at most."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            digits = 2 if value < 10 * unit else 1 if value < 100 * unit else 0
            return f"{value / unit:.{digits}f}{name}".replace(".00", "").replace(".0 ", " ")
    return number(value)


def _y(share: float) -> float:
    return _TOP + _INNER_Y * (1 - share)


def _axes(
    what: str,
    xs: Sequence[tuple[float, str]],
    ys: Sequence[tuple[float, str]],
    *,
    left: float = _LEFT,
    has_line: bool = True,
) -> str:
    low = _y(0)
    line = f'<path class="axis" d="M{_LEFT} {_TOP}V{low}H{WIDTH - _RIGHT}"/>' if has_line else ""
    below: Any = (
        f'<text x="{x:.2f}" y="{low + 15}" text-anchor="middle">{escape(t)}</text>' for x, t in xs
    )
    beside: Any = (
        f'<text x="{left - 6:.2f}" y="{y + 4:.2f}" text-anchor="end">{escape(t)}</text>'
        for y, t in ys
    )
    name = f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(what)}</text>'
    return line + "".join(below) + "".join(beside) + name


def _svg(label: str, inside: str) -> str:
    view = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}"'
    return f"<svg {view}>{inside}</svg>"
