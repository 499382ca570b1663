# SPDX-License-Identifier: Apache-2.0
"""Every region gets the probability of its own tokens, whatever else the answer holds."""

import math

import numpy as np
import pytest

from florence2_jax.inference.scores import score_answer, token_spans, with_scores
from florence2_jax.tasks.answers import parse_answer
from florence2_jax.tasks.registry import get_task
from florence2_jax.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer

SIZE = (640, 480)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red car and a blue door beside the café"] * 20, vocab_size=330)


class Written:
    """An answer as `generate` returns it, every token with its own probability."""

    def __init__(self, tokenizer: Tokenizer, text: str):
        inner = tokenizer.encode(text)
        self.ids = np.array([BOS_ID, *inner, EOS_ID, PAD_ID, PAD_ID], np.int32)
        self.log_probs = -np.arange(len(self.ids), dtype=np.float32) / 100
        self.tokenizer, self.text = tokenizer, text

    def mean(self, piece: str, *, after: str = "") -> float:
        """What the tokens of `piece` should score, found behind the text `after`."""
        start = len(self.tokenizer.encode(after)) + 1
        count = len(self.tokenizer.encode(piece))
        assert self.tokenizer.decode(self.ids[start : start + count].tolist()) == piece
        return math.exp(self.log_probs[start : start + count].mean())

    def scores(self, task: str, **options):
        return score_answer(get_task(task), self.ids, self.log_probs, self.tokenizer, **options)


def locations(*bins: int) -> str:
    return "".join(f"<loc_{k}>" for k in bins)


def test_spans_cover_the_text(tokenizer):
    text = "a café<loc_1><loc_22>door ☃<poly>"
    answer = Written(tokenizer, text)
    decoded, spans = token_spans(answer.ids, answer.log_probs, tokenizer)
    assert decoded == text
    assert [text[s.start : s.end] for s in spans] == [
        "a café", "<loc_1>", "<loc_22>", "door ☃", "<poly>",
    ]  # fmt: skip
    assert [s.is_text for s in spans] == [True, False, False, True, False]
    assert sum(len(s.log_probs) for s in spans) == len(answer.ids) - 4


def test_boxes_and_their_labels(tokenizer):
    first, second, third = locations(1, 2, 3, 4), locations(9, 9, 9, 9), locations(30, 8, 5, 7)
    junk = locations(500, 501)  # Of a box that was not finished: the parser sets it aside.
    answer = Written(tokenizer, f"red car{first}{second}{junk}door{third}")
    for compatible in (False, True):
        found = answer.scores("<OD>", compatible=compatible)
        expected = [
            answer.mean(first, after="red car"),
            answer.mean(second, after="red car" + first),
            answer.mean(third, after=f"red car{first}{second}{junk}door"),
        ]
        assert [r.score for r in found.regions] == pytest.approx(expected)
        labels = [answer.mean("red car")] * 2
        labels += [answer.mean("door", after=f"red car{first}{second}{junk}")]
        assert [r.label for r in found.regions] == pytest.approx(labels)
        parsed = parse_answer(get_task("<OD>"), answer.text, SIZE, compatible=compatible)
        scored = with_scores(parsed, found)
        assert [r.score for r in scored.regions] == pytest.approx(expected)
        assert [r.box for r in scored.regions] == [r.box for r in parsed.regions]


def test_proposals_have_no_label(tokenizer):
    found = Written(tokenizer, locations(1, 2, 3, 4, 5, 6, 7, 8)).scores("<REGION_PROPOSAL>")
    assert [r.label for r in found.regions] == [None, None]


def test_quads(tokenizer):
    quad, other = locations(*range(8)), locations(*range(100, 108))
    answer = Written(tokenizer, f"car{quad}door{other}")
    found = answer.scores("<OCR_WITH_REGION>").regions
    assert found[0].score == pytest.approx(answer.mean(quad, after="car"))
    assert found[1].score == pytest.approx(answer.mean(other, after=f"car{quad}door"))
    assert found[1].label == pytest.approx(answer.mean("door", after=f"car{quad}"))


def test_polygons_and_masks(tokenizer):
    one, two = locations(1, 2, 3, 4, 5, 6), locations(7, 7, 8, 8, 9, 7, 6, 6)
    line = locations(40, 41, 42, 43)  # Two points are no polygon.
    head = f"car<poly>{one}<sep>{line}<sep>"
    answer = Written(tokenizer, f"{head}{two}</poly><poly>{two}</poly>")
    found = answer.scores("<OPEN_VOCABULARY_DETECTION>").regions
    assert len(found) == 2
    polygons = answer.mean(one, after="car<poly>"), answer.mean(two, after=head)
    assert found[0].polygons == pytest.approx(polygons)
    both = (6 * math.log(polygons[0]) + 8 * math.log(polygons[1])) / 14
    assert found[0].score == pytest.approx(math.exp(both))
    assert found[1].polygons == (found[1].score,)
    assert found[0].label == found[1].label == pytest.approx(answer.mean("car"))


def test_words_and_the_echoed_box(tokenizer):
    box = locations(1, 2, 3, 4)
    answer = Written(tokenizer, f"blue door{box}")
    found = answer.scores("<REGION_TO_CATEGORY>")
    assert found.text == pytest.approx(answer.mean("blue door"))
    assert found.regions[0].score == pytest.approx(answer.mean(box, after="blue door"))
    assert Written(tokenizer, "a car").scores("<CAPTION>").regions == ()
    assert Written(tokenizer, "").scores("<CAPTION>").text is None


def test_more_than_a_thousand_locations(tokenizer):
    boxes = [locations(k, k, 2 * k, 2 * k) for k in range(300)]
    answer = Written(tokenizer, "".join(boxes))
    found = answer.scores("<REGION_PROPOSAL>").regions
    expected = [answer.mean(box, after="".join(boxes[:k])) for k, box in enumerate(boxes)]
    assert [r.score for r in found] == pytest.approx(expected)
