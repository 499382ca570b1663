# SPDX-License-Identifier: Apache-2.0
"""Pages in a real browser: few cards are made, filters, orders and keys do what they say."""

import io
from pathlib import Path

import pytest
from browser import Tab, browser, program
from PIL import Image
from test_gallery import row

from florence2_jax.records.schema import Label, Provenance, Question, Record, Region, Text
from florence2_jax.viewing.gallery import write_predictions_page, write_records_page

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium to look with")

NUMBER = 200
ATTACK = "</script><img src=x onerror=window.attacked=1><!-- <script>window.attacked=1</script>"
SHOWN = "[...document.querySelectorAll('.card:not([hidden])')]"


def records():
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(buffer, "PNG")
    for i in range(NUMBER):
        maker = Provenance(kind="specialist", name="detector", round=1, score=i / NUMBER)
        regions = [Region(box=(1, 2, 30, 20), labels=(Label(text="dog"),), provenance=maker)]
        if i % 4 == 0:
            regions.append(Region(box=(3, 4, 50, 30), labels=(Label(text="dog house"),)))
        yield Record(
            id=f"r{i:03d}",
            image=buffer.getvalue(),
            width=60,
            height=40,
            origin=f"http://{'ab'[i % 2]}/{i}.png",
            texts=(Text(text=f"number {i} {ATTACK if i == 0 else 'is <here> & now'}"),),
            regions=tuple(regions),
            questions=(Question(question="which?", answers=("this",)),) if i < 10 else (),
        )


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_records_page(records(), path, "Two hundred")
    return path


@pytest.fixture(scope="module")
def tab():
    with browser() as tab:
        yield tab


def told(tab: Tab) -> str:
    return tab.value("document.getElementById('count').textContent")


def ids(tab: Tab) -> list[str]:
    """Ids of the shown records, all made first."""
    return tab.value(f"{SHOWN}.map(c => (make(c), c.querySelector('.head b').textContent))")


def test_only_what_is_near_is_made(tab, page):
    tab.open(page, width=1000, height=700)
    tab.until("made.size > 0")
    assert told(tab) == "200 records"
    assert tab.value("document.querySelector('.card img').naturalWidth") == 60
    assert 1 <= tab.value("made.size") < 12
    tab.value("scrollTo(0, document.body.scrollHeight)")
    tab.until("document.querySelectorAll('.card')[199].querySelector('img') !== null")
    tab.until("document.querySelectorAll('.card')[0].querySelector('img') === null")
    assert tab.value("made.size") < 12
    assert tab.complaints == []


def test_what_is_open_stays_made(tab, page):
    tab.open(page, width=1000, height=700)
    tab.until("made.size > 0")
    tab.value("document.querySelector('details').open = true")
    tab.value("scrollTo(0, document.body.scrollHeight)")
    tab.until("document.querySelectorAll('.card')[199].querySelector('img') !== null")
    tab.until("document.querySelectorAll('.card')[1].querySelector('img') === null")
    assert tab.value("document.querySelectorAll('.card')[0].querySelector('img') !== null")


def test_what_records_say_is_never_run(tab, page):
    tab.open(page)
    tab.until("made.size > 0")
    assert tab.value("typeof window.attacked") == "undefined"
    assert tab.value("document.querySelector('.list li').textContent") == f"number 0 {ATTACK}"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("tasks=%3CVQA%3E", range(10)),
        ("labels=dog+house", range(0, NUMBER, 4)),
        ("labels=hous", range(0, NUMBER, 4)),
        ("labels=dog", range(NUMBER)),
        ("labels=cat", []),
        ("makers=human&labels=dog+house", range(0, NUMBER, 4)),
        ("makers=human&labels=dog", []),  # No dog was found by a person.
        ("score=0.95", range(190, NUMBER)),
        ("score=0.95&labels=dog+house", []),  # That annotation has no score.
        ("origins=http%3A%2F%2Fb", range(1, NUMBER, 2)),
        ("words=%3Chere%3E+%26+r17", range(170, 180)),
        ("words=R019", [19]),
        ("tasks=%3CNO_TASK%3E", range(NUMBER)),
    ],
)
def test_filters_stand_in_the_address(tab, page, state, expected):
    tab.open(page, f"#{state}")
    expected = [f"r{i:03d}" for i in expected]
    few = "" if len(expected) == NUMBER else f"{len(expected)} of "
    assert told(tab) == f"{few}200 records"
    assert ids(tab) == expected
    assert tab.value("document.getElementById('none').hidden") == bool(expected)


def test_what_does_not_fit_steps_back(tab, page):
    tab.open(page, "#labels=dog+house")
    tab.until("made.size > 0")
    aside = "c => [...c.querySelectorAll('svg rect')].map(e => [e.dataset.link, "
    aside += "e.classList.contains('aside')])"
    assert sorted(tab.value(f"({aside})({SHOWN}[0])")) == [["r0", True], ["r1", False]]
    tab.value("document.getElementById('clear').click()")
    assert sorted(tab.value(f"({aside})({SHOWN}[0])")) == [["r0", False], ["r1", False]]
    assert told(tab) == "200 records" and tab.value("location.hash") in ("", "#")


def test_choosing_and_typing_write_the_address(tab, page):
    tab.open(page)
    options = tab.value("[...filters.tasks.options].map(o => o.textContent)")
    assert options[0] == "any" and "<VQA> (10)" in options and "<OCR> (0)" not in options
    makers = tab.value("[...filters.makers.options].map(o => o.textContent)")
    assert makers == ["anyone", "human (260)", "specialist detector, round 1 (200)"]
    tab.value("filters.makers.selectedIndex = 2; filters.makers.dispatchEvent(new Event('input'))")
    assert tab.value("location.hash") == "#makers=specialist+detector%2C+round+1"


def test_keys_step_and_find(tab, page):
    tab.open(page, width=1000, height=700)
    tab.until("made.size > 0")
    at = "document.activeElement.closest('.card')?.querySelector('.head b')?.textContent"
    for expected in ("r000", "r001", "r002"):
        tab.press("j")
        assert tab.value(at) == expected
    tab.press("k")
    assert tab.value(at) == "r001"
    tab.press("/")
    assert tab.value("document.activeElement.type") == "search"
    for key in "r150":
        tab.press(key)
    assert told(tab) == "1 of 200 records" and tab.value("location.hash") == "#words=r150"


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("is_dark", [False, True])
def test_nothing_sticks_out(tab, page, width, is_dark):
    tab.open(page, width=width, height=700, is_dark=is_dark)
    tab.until("made.size > 0")
    assert tab.value("document.documentElement.scrollWidth") <= width
    ink, paper = tab.value(
        "['color', 'backgroundColor'].map(k => Number(getComputedStyle(document.body)[k]"
        ".match(/\\d+/)[0]))"
    )
    assert (ink > paper) == is_dark


def test_answers_are_ordered_found_and_share_images(tab, tmp_path):
    kinds = (("<OD>", 0.9), ("<OD>", 0.1), ("<CAPTION>", 0.5))
    rows = [row(task, "a dog", text="a dog", score=score) for task, score in kinds]
    write_predictions_page(rows, tmp_path / "page.html", "Some answers")
    tab.open(tmp_path / "page.html")
    assert told(tab) == "3 answers"
    scores = "[...document.querySelectorAll('.card')].map(c => c.dataset.score)"
    choose = "(id, v) => { const e = document.getElementById(id); e.value = v; e.onchange() }"
    tab.value(f"({choose})('order', 'worst')")
    assert tab.value(scores) == ["0.1", "0.9", "0.5"]
    tab.value(f"({choose})('order', 'given')")
    assert tab.value(scores) == ["0.9", "0.1", "0.5"]
    tab.value(f"({choose})('task', '<CAPTION>')")
    assert told(tab) == "1 of 3 answers"
    widths = tab.value(
        "Promise.all([...document.images].map(i => i.decode())).then(() => "
        "[...document.images].map(i => i.naturalWidth))"
    )
    assert widths == [60] * 5
    assert tab.complaints == []
