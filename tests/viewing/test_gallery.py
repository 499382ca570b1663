# SPDX-License-Identifier: Apache-2.0
"""Pages hold every place and every text of their input, as text, and ask nothing of a network."""

import base64
import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from florence2_jax.data.examples import Example
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Provenance,
    Question,
    Record,
    Region,
    Span,
    Text,
)
from florence2_jax.tasks.answers import (
    BoxRegion,
    MaskRegion,
    QuadRegion,
    RegionsAnswer,
    TextAnswer,
    parse_answer,
)
from florence2_jax.tasks.registry import get_task
from florence2_jax.viewing.draw import label_color
from florence2_jax.viewing.gallery import (
    MetricRow,
    PredictionRow,
    write_predictions_page,
    write_records_page,
)

ATTACKS = (
    "<script>alert(1)</script>",
    "</svg></div><img src=x onerror=alert(1)>",
    "\" onmouseover='alert(1)' x=\"",
    "</script><script>alert(1)",
    "<!-- &lt;b&gt; ]]> &amp;",
    "{title} %s ${x} \\u003c",
)
VOID = {"meta", "img", "input", "br"}


INERT = '<script type="text/plain">(.*?)</script>'


class Page(HTMLParser):
    """A parsed page: its elements in order, each with attributes and the text inside it.

    Cards that are inert text are made first, as the script of the page makes them.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.elements: list[tuple[str, dict, list[str]]] = []
        self.open: list[tuple[str, dict, list[str]]] = []
        self.feed(re.sub(INERT + INERT, self.made, self.source, flags=re.DOTALL))
        self.close()
        assert not self.open, "an element is not closed"

    @staticmethod
    def made(card: re.Match) -> str:
        markup, image = card.groups()
        assert "<!--" not in markup and "<script" not in markup.lower()
        return markup.replace("<img ", f'<img src="{image}" ', 1)

    def index(self) -> dict:
        """What the filters of a page of records go by."""
        return json.loads(next(t for a, t in self.all("script") if a.get("id") == "index"))

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2].append(data)

    def all(self, tag: str, name: str = "") -> list[tuple[dict, str]]:
        """Attributes and text of each element of a tag and, if given, of a class."""
        return [
            (attributes, "".join(texts))
            for found, attributes, texts in self.elements
            if found == tag and (not name or name in attributes.get("class", "").split())
        ]


def encoded(width=60, height=40, format="PNG", noise=False) -> bytes:
    pixels = np.full((height, width, 3), 200, np.uint8)
    if noise:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def record(**fields) -> Record:
    defaults = dict(id="r", image=encoded(), width=60, height=40)
    return Record(**(defaults | fields))


def records_page(tmp_path: Path, *records: Record, title="Some records") -> Page:
    write_records_page(records, tmp_path / "page.html", title)
    return Page(tmp_path / "page.html")


def predictions_page(tmp_path: Path, *rows: PredictionRow, summary=()) -> Page:
    write_predictions_page(rows, tmp_path / "page.html", "Some answers", summary)
    return Page(tmp_path / "page.html")


def row(task: str = "<OD>", raw: str = "", score=None, **fields) -> PredictionRow:
    """A row whose answer is read from what the model wrote."""
    example = Example(task=get_task(task), **fields)
    answer = parse_answer(example.task, raw, (60, 40))
    return PredictionRow(
        id="r", image=encoded(), size=(60, 40), example=example, answer=answer, raw=raw, score=score
    )


def assert_harmless(page: Page) -> None:
    kinds = [attributes.get("type") for attributes, _ in page.all("script")]
    assert kinds in ([None], [None, "application/json"]) and len(page.all("style")) == 1
    for tag, attributes, _ in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert tag not in ("link", "a", "iframe", "object", "embed", "base", "form")
        if tag == "img" and "data-copy" not in attributes:
            assert attributes["src"].startswith("data:image/")
    (policy,) = [a["content"] for a, _ in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "http:" not in page.source and "https:" not in page.source


# Records.


@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_a_record_says_is_text(tmp_path, attack):
    maker = Provenance(kind="specialist", name=attack, round=1)
    labels = tuple(Label(text=attack, kind=k) for k in ("category", "phrase", "brief", "text"))
    region = Region(box=(1, 2, 30, 20), labels=labels, provenance=maker)
    span = Span(start=0, end=len(attack), boxes=((1, 2, 30, 20),))
    page = records_page(
        tmp_path,
        record(
            id=attack,
            origin=attack,
            texts=(Text(text=attack, provenance=maker),),
            regions=(region,),
            groundings=(Grounding(text=attack, spans=(span,), provenance=maker),),
            questions=(Question(question=attack, answers=(attack,)),),
        ),
        title=attack,
    )
    assert_harmless(page)
    assert page.all("title")[0][1] == page.all("h1")[0][1] == attack
    assert page.all("mark")[0][1] == page.all("dt")[0][1] == attack
    assert page.all("article")[0][1].count(attack) >= 12
    tips = [a["data-tip"] for a, _ in page.all("rect", "box")]
    assert tips == [
        f"category: {attack}\nphrase: {attack}\nbrief: {attack}\ntext: {attack}\n"
        f"specialist {attack}, round 1"
    ]


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(str.strip))
def test_any_text_comes_back_from_the_page(tmp_path_factory, text):
    page = records_page(tmp_path_factory.mktemp("page"), record(texts=(Text(text=text),)))
    assert page.all("li")[-2][1] == text  # The last one says who made it.


def test_every_place_is_in_the_svg_in_pixels_of_the_image(tmp_path):
    quad = (1.0, 2.0, 11.5, 3.0, 11.0, 9.0, 1.0, 8.0)
    ring = (20.0, 10.0, 30.25, 10.0, 25.0, 30.0)
    page = records_page(
        tmp_path,
        record(
            regions=(
                Region(box=(20, 10, 30.25, 30), labels=(Label(text="kite"),), polygons=(ring,)),
                Region(box=(1, 2, 11.5, 9), labels=(Label(text="GO", kind="text"),), quad=quad),
                Region(box=(0, 0, 60, 40), is_crowd=True),
            ),
            groundings=(
                Grounding(text="a kite", spans=(Span(start=2, end=6, boxes=((3, 4, 5, 6),)),)),
            ),
        ),
    )
    assert [a["viewbox"] for a, _ in page.all("svg")][-1] == "0 0 60 40"
    boxes = [
        (*(float(a[k]) for k in ("x", "y", "width", "height")), a["data-kinds"], a["class"])
        for a, _ in page.all("rect")
        if "data-link" in a
    ]
    assert boxes == [
        (3, 4, 2, 2, "grounding", "grounding"),
        (0, 0, 60, 40, "unlabelled", "box crowd"),  # Large ones lie below small ones.
        (20, 10, 10.25, 20, "category", "box"),
    ]
    polygons = [
        ([float(v) for v in a["points"].replace(",", " ").split()], a["data-kinds"], a["style"])
        for a, _ in page.all("polygon")
        if "data-link" in a
    ]
    assert [p[:2] for p in polygons] == [(list(ring), "polygon"), (list(quad), "text")]
    assert label_color("kite") in polygons[0][2] and label_color("GO") in polygons[1][2]


def test_phrases_have_the_colour_of_their_boxes_and_the_text_stays_whole(tmp_path):
    text = "the left red cup & a <dog>"
    boxes = ((1, 1, 9, 9), (20, 20, 30, 30))
    spans = (  # The second lies inside of the first.
        Span(start=0, end=16, boxes=boxes[:1]),
        Span(start=9, end=16, boxes=boxes),
        Span(start=19, end=26, boxes=boxes[1:]),
    )
    page = records_page(tmp_path, record(groundings=(Grounding(text=text, spans=spans),)))
    assert page.all("p", "words")[0][1] == text
    marks = [(words, a["data-link"]) for a, words in page.all("mark")]
    assert marks == [("the left ", "g0s0"), ("red cup", "g0s1"), ("a <dog>", "g0s2")]
    shapes = page.all("rect", "grounding")
    shapes = [a for a, _ in shapes if "data-link" in a]
    assert [a["data-link"] for a in shapes] == ["g0s0", "g0s1", "g0s1", "g0s2"]
    colors = {a["data-link"]: a["style"] for a in shapes}
    assert all(colors[a["data-link"]] == a["style"] for a, _ in page.all("mark"))


def test_all_texts_questions_and_makers_are_listed(tmp_path):
    maker = Provenance(kind="checkpoint", name="base-10k", round=2, score=0.5)
    page = records_page(
        tmp_path,
        record(
            texts=(
                Text(text="one"),
                Text(text="two", granularity="detailed"),
                Text(text="three", granularity="more_detailed", provenance=maker),
            ),
            questions=(Question(question="how many?", answers=("2", "two", "2")),),
        ),
    )
    headings = [text for _, text in page.all("h3")]
    assert headings[:3] == ["brief caption", "detailed caption", "more detailed caption"]
    assert [text for _, text in page.all("span", "by")] == [
        "checkpoint base-10k, round 2, score 0.50"
    ]
    assert page.all("dd")[0][1] == "2 × 2 · two"
    assert "checkpoint base-10k, round 2: 1 annotation" in page.all("article")[0][1]


def test_the_image_is_in_the_page_byte_for_byte(tmp_path):
    data = encoded(format="JPEG")
    (image,) = records_page(tmp_path, record(image=data)).all("img")
    assert image[0]["src"] == f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    assert image[0]["decoding"] == "async"


@pytest.mark.parametrize(
    ("data", "size"),
    [(encoded(2000, 700, noise=True), (640, 224)), (encoded(format="TIFF"), (60, 40))],
    ids=["large", "a format that browsers do not read"],
)
def test_other_images_are_encoded_anew(tmp_path, data, size):
    (image,) = records_page(tmp_path, record(image=data)).all("img")
    kind, _, text = image[0]["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == size


def test_images_of_answers_are_shrunk_less(tmp_path):
    large = dataclasses.replace(row(), image=encoded(2000, 700, noise=True))
    (image, _) = predictions_page(tmp_path, large).all("img")
    data = base64.b64decode(image[0]["src"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (1280, 448)


def test_pixels_stored_uncompressed_are_compressed_without_loss(tmp_path):
    buffer = io.BytesIO()
    pixels = np.full((40, 60, 3), 77, np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    (image,) = records_page(tmp_path, record(image=buffer.getvalue())).all("img")
    data = base64.b64decode(image[0]["src"].removeprefix("data:image/png;base64,"))
    assert len(data) < len(buffer.getvalue()) / 10
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


def test_the_index_says_what_each_annotation_is(tmp_path):
    sure = Provenance(kind="specialist", name="detector-1", round=1, score=0.75)
    box = (1, 2, 30, 20)
    labels = (Label(text="kite"), Label(text="red kite", kind="phrase"))
    span = Span(start=2, end=6, boxes=(box, (3, 4, 9, 9)))
    page = records_page(
        tmp_path,
        record(
            origin="http://a/b/c.jpg",
            texts=(Text(text="a kite"),),
            regions=(Region(box=box, labels=labels, provenance=sure), Region(box=box)),
            groundings=(Grounding(text="a kite", spans=(span,)),),
        ),
        record(
            id="s", origin="drawn", questions=(Question(question="</script>?", answers=("1",)),)
        ),
    )
    index = page.index()
    assert index["makers"] == [["human", 4], ["specialist detector-1, round 1", 1]]
    assert index["labels"] == [["kite", 2], ["red kite", 1]]
    assert index["origins"] == [["http://a/b", 1], ["drawn", 1]]
    assert index["places"] == {"category": 1, "phrase": 1, "unlabelled": 1, "grounding": 1}
    assert index["has_scores"] is True
    first, second = index["records"]
    notes = [["t0", 0, None], ["r0", 1, 0.75, 0, 1], ["r1", 0, None], ["g0", 0, None, 0]]
    assert first["notes"] == notes and second["notes"] == [["q0", 0, None]]
    names = [[index["tasks"][k][0] for k in row["tasks"]] for row in (first, second)]
    assert {"<CAPTION>", "<OD>", "<CAPTION_TO_PHRASE_GROUNDING>"} < set(names[0])
    assert "<OCR>" not in names[0] and names[1] == ["<VQA>"]
    assert dict(map(tuple, index["tasks"]))["<OD>"] == 1
    assert {a["data-note"] for _, a, _ in page.elements if "data-note" in a} == {"t0", "g0", "q0"}


@pytest.mark.parametrize("data", [b"no image", encoded(2000, 700, "PNG", noise=True)[:-9000]])
def test_a_broken_image_leaves_a_note_and_all_else(tmp_path, data):
    region = Region(box=(1, 2, 30, 20), labels=(Label(text="kite"),))
    page = records_page(tmp_path, record(image=data, regions=(region,)), record(id="next"))
    assert len(page.all("img")) == 1 and len(page.all("article")) == 2
    assert page.all("div", "no-image")[0][1].startswith("The image cannot be shown: ")
    assert len(page.all("rect", "box")) == 1


def test_no_records_make_a_page_that_says_so(tmp_path):
    page = records_page(tmp_path / "new" / "folder")
    assert page.all("p", "empty")[0][1] == "There are no records to show."
    assert page.index()["records"] == []
    assert_harmless(page)


def test_an_interrupted_page_leaves_the_old_one(tmp_path):
    records_page(tmp_path, record(), title="old")

    def failing():
        yield record()
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        write_records_page(failing(), tmp_path / "page.html", "new")
    assert Page(tmp_path / "page.html").all("h1")[0][1] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


# Predictions.


def test_truth_and_prediction_are_drawn_side_by_side(tmp_path):
    truth = (BoxRegion(label="dog", box=(1, 2, 31, 22)),)
    raw = "dog<loc_100><loc_100><loc_499><loc_499>"
    page = predictions_page(tmp_path, row(raw=raw, regions=truth, score=0.25))
    left, right = [a for a, _ in page.all("rect", "box") if "data-link" in a]
    assert (left["data-link"], left["x"], left["width"]) == ("t0", "1", "30")
    assert (right["data-link"], right["x"], right["width"]) == ("p0", "6.03", "23.94")
    assert left["style"] == right["style"]  # One label, one colour.
    (card,) = page.all("article")
    assert "Locate the objects with category name in the image." in card[1]
    assert "Truth: 1 region" in card[1] and "Prediction: 1 region" in card[1]
    assert card[0]["data-score"] == "0.25" and "score 0.250" in card[1]
    assert page.all("pre")[0][1] == raw


def test_masks_and_quads_of_answers_are_drawn(tmp_path):
    corners = (1.0, 2.0, 30.0, 2.0, 30.0, 20.0, 1.0, 20.0)
    answer = RegionsAnswer(
        task="<OD>",
        regions=(
            QuadRegion(label="GO", quad=corners, score=0.5),
            MaskRegion(label="kite", polygons=(corners, corners[:6])),
            MaskRegion(label="nothing", polygons=()),
        ),
    )
    page = predictions_page(tmp_path, dataclasses.replace(row(), answer=answer))
    drawn = [(a["class"], a["data-tip"]) for a, _ in page.all("polygon") if "data-link" in a]
    assert sorted(drawn) == [("poly", "kite"), ("poly", "kite"), ("quad", "GO 0.50")]
    assert [text for _, text in page.all("ul", "tags")] == ["", "GO 0.50kitenothing"]


def test_texts_stand_beside_each_other_with_every_reference(tmp_path):
    fields = dict(text_input="what?", text="a dog", references=("a dog", "dog", "a dog"))
    page = predictions_page(tmp_path, row("<VQA>", "a cat", **fields))
    assert [text for _, text in page.all("ul", "words")] == ["a dog × 2dog"]
    assert page.all("div", "words")[0][1] == "a cat"
    assert len(page.all("img")) == 1


def test_the_region_asked_about_is_drawn(tmp_path):
    asked = row("<REGION_TO_CATEGORY>", "dog", text_input="<loc_1>", region=(1, 2, 5, 7), text="x")
    (shape,) = [a for a, _ in predictions_page(tmp_path, asked).all("rect", "asked")]
    assert [shape[k] for k in ("x", "y", "width", "height")] == ["1", "2", "4", "5"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_a_model_writes_is_text(tmp_path, attack):
    truth = (BoxRegion(label=attack, box=(1, 2, 31, 22)),)
    boxes = RegionsAnswer(task="<OD>", regions=truth, unparsed=(attack,))
    words = TextAnswer(task="<CAPTION>", text=attack, unparsed=(attack,))
    page = predictions_page(
        tmp_path,
        dataclasses.replace(row(regions=truth, raw=attack), id=attack, answer=boxes),
        dataclasses.replace(row("<CAPTION>", text=attack, raw=attack), answer=words),
        summary=[MetricRow(task=attack, metric=attack, value=0.5, num_examples=2)],
    )
    assert_harmless(page)
    assert [text for _, text in page.all("div", "warn")] == [f"Not understood: {attack}"] * 2
    assert [text for _, text in page.all("pre")] == [attack] * 2


def test_lone_surrogates_do_not_stop_the_page(tmp_path):
    page = predictions_page(tmp_path, row("<CAPTION>", "a \ud800 b", text="x"))
    assert page.all("div", "words")[0][1] == "a ? b"


def test_rows_are_grouped_by_task_with_a_filter(tmp_path):
    caption = row("<CAPTION>", "a dog", text="a dog")
    page = predictions_page(tmp_path, row(), caption, row())
    assert [a["data-task"] for a, _ in page.all("section")] == ["<OD>", "<CAPTION>"]
    options = [(a["value"], text) for a, text in page.all("option")]
    assert options[:3] == [("", "all tasks"), ("<OD>", "<OD> (2)"), ("<CAPTION>", "<CAPTION> (1)")]


def test_an_image_is_in_the_page_once(tmp_path):
    other = dataclasses.replace(row(), image=encoded(format="JPEG"))
    images = [a for a, _ in predictions_page(tmp_path, row(), row(), other).all("img")]
    names = [a.get("id", a.get("data-copy")) for a in images]
    assert names == ["image-0"] * 4 + ["image-1"] * 2
    assert ["src" in a for a in images] == [True, False, False, False, True, False]


def test_metrics_have_bars_beside_those_of_the_blind(tmp_path):
    summary = [
        MetricRow(task="<OD>", metric="box AP", value=0.4, blind=0.1, num_examples=5000),
        MetricRow(task="<VQA>", metric="accuracy", value=71.25, num_examples=1),
        MetricRow(task="<CAPTION>", metric="CIDEr", value=1.5, blind=math.nan, num_examples=1),
        MetricRow(task="<OCR>", metric="of its own", value=250.0, blind=-3.0, num_examples=1),
    ]
    page = predictions_page(tmp_path, summary=summary)
    cells = [text for _, text in page.all("td")]
    assert cells[:6] == ["<OD>", "box AP", "0.400", "0.100", "", "5,000"]
    assert cells[8:10] == ["71.2", "–"]
    widths = [a.get("style") for a, _ in page.all("i", "model") + page.all("i", "blind")]
    model = ["width:40.0%", "width:71.2%", "width:75.0%", "width:100.0%"]
    assert [w for w in widths if w] == [*model, "width:10.0%", "width:0.0%"]
    assert page.all("p", "empty")[0][1] == "There are no predictions to show."
