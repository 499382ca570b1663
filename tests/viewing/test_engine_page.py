# SPDX-License-Identifier: Apache-2.0
"""The page of a round tells what was dropped and why, and what was is told apart from what is."""

import dataclasses
import json
import re

import pytest
from browser import browser, program
from test_gallery import ATTACKS, Page, assert_harmless, record

from florence2_jax.engine.filter import FilterConfig, filter_record, filter_store
from florence2_jax.engine.filters.syntax import FLD5B, Semantics
from florence2_jax.engine.report import write_report
from florence2_jax.records.schema import Grounding, Label, Provenance, Region, Span, Text
from florence2_jax.records.writing import Plan, write_store
from florence2_jax.viewing.curves import curves
from florence2_jax.viewing.engine_card import filtered_card
from florence2_jax.viewing.engine_page import write_engine_page

CONFIG = FilterConfig.create({"texts": {"parser": ""}})


def made(name: str, score: float | None = 0.8) -> Provenance:
    return Provenance(kind="specialist", name=name, score=score)


def photo(i: int, said: str = "kite"):
    """A box of two makers, an unsure one, a caption too short and one that is grounded."""
    labels = (Label(text=said),)
    text = f"a red {said} number {i} is high in the sky"
    span = Span(start=0, end=5 + len(said) + 1, boxes=((0, 0, 30, 20),))
    return record(
        id=f"r{i}",
        texts=(Text(text=said, provenance=made("captioner@1")), Text(text=text)),
        regions=(
            Region(box=(0, 0, 30, 20), labels=labels, provenance=made("a@1")),
            Region(box=(0, 0, 30, 21), labels=labels, provenance=made("b@1", 0.6)),
            Region(box=(40, 10, 55, 30), labels=labels, provenance=made("b@1", 0.1)),
        ),
        groundings=(Grounding(text=text, spans=(span,), provenance=made("grounder@1")),),
    )


def take(unit, ledger):
    ledger.read("image")
    ledger.keep("image")
    return unit


def audit(round: int, recall: float, said: str = "kite") -> dict:
    """What an audit of one class says, as JSON."""
    counts = dict(num_true=20, num_found=16, num_matched=8, precision=0.5, recall=recall, f1=0.4)
    bins = [dict(low=0.8, high=0.9, number=16, score=0.84, accuracy=0.5)]
    return {
        "round": round,
        "num_images": 12,
        "kinds": {"boxes": counts, "texts": counts | {"precision": None}},
        "classes": {said: counts},
        "tail_share": 0.01,
        "tail_classes": [said],
        "tail": counts,
        "calibration": {"boxes": {"number": 16, "ece": 0.34, "bins": bins}},
        "label_entropy_bits": 1.5,
        "true_label_entropy_bits": 2.0,
        "label_divergence_bits": 0.1,
    }


PHASE_1 = {
    "specialists": [
        dict(name="a", version="1", images=5, failures={"time-out": 2}, made={"regions": 5},
             s_per_image=0.25, money=None)
    ]
}  # fmt: skip
CHANGES = {"records": 5, "changed": 3, "kinds": {"boxes": {"counts": {"added": 4, "gone": 1}}}}


@pytest.fixture(scope="module")
def round_0(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    units = {"train": [photo(i) for i in range(5)]}
    write_store(folder / "source", Plan(units=units, make=take, job={}))
    filter_store(folder / "source", folder / "round-0" / "filtered", CONFIG)
    report = write_report(
        folder / "round-0",
        audits=[audit(0, 0.4), audit(1, 0.7)],
        guard=[{"round": 1, "ok": False, "reasons": ["class 'kite' vanished"]}],
        annotate=PHASE_1,
        difference=CHANGES,
        num_samples=2,
    )
    return folder / "round-0", report


def rows_of(page: Page) -> list[str]:
    return [text for _, text in page.all("tr")]


def test_the_page_tells_what_was_kept_and_dropped_and_why(round_0):
    folder, report = round_0
    page = Page(folder / "report.html")
    assert page.all("h1")[0][1] == "Round 0"
    # Of 15 boxes 10 went, of 10 texts the short 5; each grounding, its box and a label stay.
    assert "25 annotations kept, 15 dropped" in page.all("p", "lead")[0][1]
    rows = rows_of(page)
    assert "regionall51066.7%" in rows and "b@101010" in "".join(rows)
    assert "regionNMS, same class5r0, r1, r2, r3" in rows
    assert "textbrief text under 3 words5r0, r1, r2, r3" in rows
    assert "1 a@15–100%" in rows and "2 b@11050%–" in rows
    assert json.loads((folder / "report.json").read_text("utf-8")) == report


def test_statistics_before_and_after_stand_beside_fld5b(round_0):
    page = Page(round_0[0] / "report.html")
    cells = [text for _, text in page.all("td")]
    assert cells[:4] == ["text", "brief", "5 10235 M", "10.00 5.507.95"]


def test_what_stops_the_loop_and_what_is_not_tested_stand_on_top(round_0):
    (_, warning), *_ = Page(round_0[0] / "report.html").all("div", "warn")
    assert warning.startswith("The guard stops at round 1: class 'kite' vanished")
    assert "10 texts not tested for number of objects" in warning


def test_what_texts_speak_of_stands_beside_fld5b(tmp_path, round_0):
    averages = dict(zip((f.name for f in dataclasses.fields(Semantics)), range(6), strict=True))
    theirs = dict(zip(averages, FLD5B["brief"], strict=True))
    filters = dict(round_0[1]["filters"], parser="en_tiny 1", semantics={
        "brief": {"texts": 7, **averages, "fld5b": theirs}})  # fmt: skip
    write_engine_page(round_0[1] | {"filters": filters}, [], tmp_path / "page.html")
    assert "brief703.2312.820.5831.142.851.14" in rows_of(Page(tmp_path / "page.html"))


def test_curves_hold_their_values_and_gaps():
    drawn = curves([0, 1, 2, 3], [("recall", [0.2, None, 0.6, 1.0]), ("F1", [None] * 4)])
    assert 'aria-label="recall: 0.200, none, 0.600, 1.000; F1: none, none, none, none"' in drawn
    (points,) = re.findall(r'<polyline.*?points="(.*?)"', drawn)
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points.split())
    assert x0 < x1 and y0 > y1 and drawn.count("<circle") == 3
    assert curves([0], [("bits", [3.2])]).count("<circle") == 1
    assert ">5<" in curves([0], [("bits", [3.2])])


def test_a_card_has_all_on_the_left_and_what_stays_on_the_right():
    card = filtered_card(filter_record(photo(0), CONFIG), 0)
    left, right = card.split('class="side"')[1:]
    assert left.count("<rect") == 4 and left.count('class="box gone"') == 2
    assert right.count("<rect") == 2 and "gone" not in right.partition('<div class="said">')[0]
    assert "<s>kite</s>" in right and "score under 0.30" in right
    assert left.count("src=") == 1 and 'data-copy="sample-0"' in right


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_page_is_harmless(tmp_path, round_0, attack):
    report = dict(round_0[1], title=attack, audits=[audit(0, 0.5, attack)])
    report["guard"] = [{"round": 1, "ok": False, "reasons": [attack]}]
    filters = json.loads(json.dumps(report["filters"]))
    filters["reasons"] = [
        {"kind": "text", "reason": attack, "number": 1, "samples": [{"id": attack}]}
    ]
    filters["agreement"]["box"]["makers"] = [attack, "b@1"]
    filters["agreement"]["box"]["numbers"] = {attack: 1, "b@1": 2}
    filters["kinds"]["region"]["makers"][attack] = {"kept": 1, "dropped": {}}
    samples = [filter_record(photo(0, attack), CONFIG)]
    write_engine_page(report | {"filters": filters}, samples, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.all("h1")[0][1] == attack
    page.elements = [e for e in page.elements if e[0] != "style" or "--paper" in "".join(e[2])]
    assert_harmless(page)


@pytest.mark.skipif(program() is None, reason="no Chromium to look with")
def test_the_page_fits_its_window_and_shows_its_images_twice(round_0):
    with browser() as tab:
        for width in (1280, 400):
            tab.open(round_0[0] / "report.html", width=width, height=900)
            tab.until("[...document.images].every(image => image.src)")
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.value("document.querySelectorAll('.card').length") == 2
            assert tab.value("document.querySelectorAll('.card img').length") == 4
            marked = "[...document.querySelectorAll('.chip b')].every(b => b.className === 'on')"
            assert tab.value(marked)
        assert tab.complaints == []
