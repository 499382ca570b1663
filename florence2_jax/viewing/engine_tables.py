# SPDX-License-Identifier: Apache-2.0
"""Tables of the pages of the data engine."""

from collections.abc import Sequence

from florence2_jax.viewing.page import escape


def head_cells(*names: str) -> str:
    """Header cells; a name that begins with # is of a column of numbers."""
    return "".join(
        f'<th class="num">{escape(name[1:])}</th>'
        if name.startswith("#")
        else f"<th>{escape(name)}</th>"
        for name in names
    )


def table(head: str, rows: Sequence[str], classes: str = "metrics") -> str:
    """A table that scrolls within its place where it is too wide."""
    return (
        f'<div class="table"><table class="{classes}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def figure_text(value: float | None) -> str:
    """Counts whole, averages with two decimals."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
