# SPDX-License-Identifier: Apache-2.0
"""Lines over rounds as inline SVG, beside the plots of `plots.py`."""

import math
from collections.abc import Sequence
from typing import TypeAlias

from florence2_jax.viewing.page import escape, number
from florence2_jax.viewing.plots import HEIGHT, WIDTH

Curve: TypeAlias = tuple[str, Sequence[float | None]]
"""A name and a value for each round, None where there is none."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 34, 40
_X, _Y = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

STYLE = """
.curve { fill:none; stroke-width:2; stroke-linejoin:round }
.curve.k0, .knot.k0 { stroke:var(--accent) }
.curve.k1, .knot.k1 { stroke:var(--second) } .curve.k2, .knot.k2 { stroke:var(--text) }
.knot { fill:var(--card); stroke-width:2 } .curve.k2 { stroke-dasharray:5 4 }
"""


def curves(rounds: Sequence[int], lines: Sequence[Curve]) -> str:
    """Up to three lines over rounds, from 0 to 1 or to the highest value; gaps stay gaps.

    A single round is a row of points.
    """
    values = [v for _, line in lines for v in line if v is not None]
    top = 1.0 if max(values, default=0) <= 1 else _round_up(max(values))
    last = max(len(rounds) - 1, 1)

    def x(k: int) -> float:
        return _LEFT + _X * (k / last if len(rounds) > 1 else 0.5)

    def y(value: float) -> float:
        return _TOP + _Y * (1 - value / top)

    drawn = ""
    for n, (name, line) in enumerate(lines):
        points = [(x(k), y(v), v, rounds[k]) for k, v in enumerate(line) if v is not None]
        drawn += _line(line, n, x, y)
        drawn += "".join(
            f'<circle class="knot k{n}" cx="{px:.2f}" cy="{py:.2f}" r="3.5">'
            f"<title>round {r}: {escape(name)} {v:.3f}</title></circle>"
            for px, py, v, r in points
        )
        at = _LEFT + 118 * n
        drawn += (
            f'<line class="curve k{n}" x1="{at}" x2="{at + 18}" y1="12" y2="12"/>'
            f'<text x="{at + 23}" y="16">{escape(name)}</text>'
        )
    ticks = "".join(
        f'<text x="{_LEFT - 6}" y="{y(v) + 4:.2f}" text-anchor="end">{number(v)}</text>'
        f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(v):.2f}" y2="{y(v):.2f}"/>'
        for v in (0.0, top / 2, top)
    )
    step = math.ceil(len(rounds) / 10)
    ticks += "".join(
        f'<text x="{x(k):.2f}" y="{_TOP + _Y + 15}" text-anchor="middle">{r}</text>'
        for k, r in enumerate(rounds)
        if k % step == 0
    )
    label = "; ".join(f"{name}: {', '.join(_told(v) for v in line)}" for name, line in lines)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{ticks}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">round</text>{drawn}</svg>'
    )


def _line(line: Sequence[float | None], n: int, x, y) -> str:
    """Pieces between the gaps."""
    pieces: list[list[str]] = [[]]
    for k, value in enumerate(line):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{x(k):.2f},{y(value):.2f}")
    return "".join(
        f'<polyline class="curve k{n}" points="{" ".join(piece)}"/>'
        for piece in pieces
        if len(piece) > 1
    )


def _round_up(value: float) -> float:
    unit = 10 ** math.floor(math.log10(value))
    return next(m * unit for m in (1, 2, 5, 10) if value <= m * unit)


def _told(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
