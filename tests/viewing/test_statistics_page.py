# SPDX-License-Identifier: Apache-2.0
"""The page of statistics draws the counts it is given, beside those of FLD-5B."""

import re

import pytest
from test_gallery import ATTACKS, Page, assert_harmless, record

from florence2_jax.records.inspection import statistics
from florence2_jax.records.schema import Grounding, Label, Region, Span, Text
from florence2_jax.viewing import plots
from florence2_jax.viewing.statistics_page import write_statistics_page


def page_of(tmp_path, *records, title="Some records") -> Page:
    write_statistics_page(statistics(records), tmp_path / "page.html", title)
    return Page(tmp_path / "page.html")


def kites(name="kite") -> tuple:
    spans = (Span(start=0, end=6, boxes=((0, 0, 60, 40),)),)
    return tuple(
        record(
            id=f"r{i}",
            texts=(Text(text="a kite in the sky"),),
            regions=(Region(box=(0, 0, 30, 20), labels=(Label(text=name),)),) * (i + 1),
            groundings=(Grounding(text="a kite in the sky", spans=spans),),
        )
        for i in range(3)
    )


def test_each_plot_holds_its_counts(tmp_path):
    page = page_of(tmp_path, *kites())
    figures = re.findall(r"<figure.*?</figure>", page.source, re.DOTALL)
    names = [re.search("<figcaption>(.*?)</fig", figure)[1] for figure in figures]
    assert names == [
        *(f"Boxes of regions: {what}" for what in ("sizes", "centres", "areas")),
        *(f"Boxes of phrases in texts: {what}" for what in ("sizes", "centres", "areas")),
        "Regions per image",
        "Brief texts: words",
        "Label tail",
    ]
    drawn = {
        name: re.findall('<rect class="(?:bar|cell)".*?<title>(.*?)</title>', figure)
        for name, figure in zip(names, figures, strict=True)
    }
    assert drawn["Boxes of regions: sizes"] == ["6"] and drawn["Brief texts: words"] == ["3"]
    assert drawn["Regions per image"] == ["1", "1", "1"]
    assert "mean 2.00" in figures[6] and "FLD-5B 5.42" in figures[6]
    assert "mean 5.00" in figures[7] and "FLD-5B 7.95" in figures[7]
    assert "1 name of kind category" in figures[8]


def test_the_table_has_fld5b_beside_each_figure(tmp_path):
    page = page_of(tmp_path, *kites())
    cells = [text for _, text in page.all("td")]
    assert cells[:4] == ["text", "brief", "3235 M", "5.007.95"]
    assert "31.007.95" not in cells and "31.01 G" in cells


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_page_is_harmless(tmp_path, attack):
    page = page_of(tmp_path, *kites(attack), title=attack)
    assert page.all("h1")[0][1] == attack
    page.elements = [e for e in page.elements if e[0] != "style" or "--paper" in "".join(e[2])]
    assert_harmless(page)


def test_nothing_makes_a_page_too(tmp_path):
    assert page_of(tmp_path).all("p", "lead")[0][1].startswith("Nothing.")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7.95, "7.95"), (950, "950"), (1000, "1 k"), (12_500, "12.5 k"), (235e6, "235 M"),
     (1007e6, "1.01 G"), (999_999, "1000 k")],
)  # fmt: skip
def test_short_numbers(value, text):
    assert plots.short(value) == text


def test_a_cell_is_where_its_box_is():
    grid = [[0, 0], [4, 1]]
    upward = plots.heat_map(grid, x="x", y="y", is_upward=True)
    downward = plots.heat_map(grid, x="x", y="y", is_upward=False)

    def cells(drawing):
        found = re.findall(r'class="cell" x="(.*?)" y="(.*?)".*?fill-opacity="(.*?)"', drawing)
        return [tuple(map(float, cell)) for cell in found]

    (left, low, full), (right, _, half) = cells(upward)[:2]
    assert left < right and (full, half) == (1, 0.5)
    assert cells(downward)[0][1] > plots.HEIGHT / 3 and low < plots.HEIGHT / 3
