# SPDX-License-Identifier: Apache-2.0
"""Caption metrics equal pycocoevalcap on its published and verified values."""

import json
import math

import numpy as np
import pytest

from florence2_jax.evaluation.captions import (
    bleu,
    caption_metrics,
    caption_scores,
    cider_d,
    content_vocabulary,
    object_color_f1,
    rouge_l,
    tokenize_caption,
)

# Computed with pycocoevalcap 1.2 on these strings.
REFERENCES = [
    [
        "a green car parked in front of a yellow building",
        "a small turquoise car on the street",
        "an old vw beetle is parked by a wall",
    ],
    ["two cats are sleeping on a pink blanket", "two cats lie on a couch next to remote controls"],
    [
        "a stop sign on a city street in chinatown",
        "a red stop sign in front of an asian style gate",
        "a street with a stop sign and a black car",
    ],
]
CANDIDATES = [
    "a green car parked in front of a building",
    "two cats laying on a couch",
    "a stop sign on the side of a street",
]
CIDER = [2.83654438, 1.82575182, 2.31017127]
ROUGE = [0.93846154, 0.59803922, 0.66666667]
BLEU = [0.8050388627, 0.7026955287, 0.6101515599, 0.5377067527]


def split(candidates, references):
    return [c.split() for c in candidates], [[r.split() for r in texts] for texts in references]


def test_small_golden():
    candidates, references = split(CANDIDATES, REFERENCES)
    scores = cider_d(candidates, references)
    np.testing.assert_allclose(scores, CIDER, atol=5e-9)  # As many digits as were noted.
    assert scores.mean() == pytest.approx(2.3241558227, abs=5e-11)
    np.testing.assert_allclose(bleu(candidates, references), BLEU, atol=5e-11)
    rouge = [rouge_l(*pair) for pair in zip(candidates, references, strict=True)]
    np.testing.assert_allclose(rouge, ROUGE, atol=5e-9)
    assert np.mean(rouge) == pytest.approx(0.7343891403, abs=5e-11)


def test_metrics_of_answers_equal_the_small_golden(ask):
    scored = [ask("CAPTION", r, c) for c, r in zip(CANDIDATES, REFERENCES, strict=True)]
    scores = caption_metrics(scored)
    assert list(scores) == ["cider", "bleu4", "rouge_l", "bleu1", "bleu2", "bleu3"]
    expected = [2.3241558227, BLEU[3], 0.7343891403, *BLEU[:3]]
    assert list(scores.values()) == pytest.approx(expected, abs=5e-11)


def test_thousand_coco_captions(shared_data):
    folder = shared_data / "metrics_golden" / "coco_caption_fakecap"
    truth = json.loads((folder / "gts.json").read_text())
    found = json.loads((folder / "res.json").read_text())
    candidates, references = split([found[key][0] for key in truth], truth.values())
    assert cider_d(candidates, references).mean() == pytest.approx(0.5997905185184199, abs=1e-12)
    expected = [0.5793995754573356, 0.40439129741018104, 0.2785363856619147, 0.1908290437674253]
    np.testing.assert_allclose(bleu(candidates, references), expected, atol=1e-12)
    rouge = [rouge_l(*pair) for pair in zip(candidates, references, strict=True)]
    assert np.mean(rouge) == pytest.approx(0.39625269357570847, abs=1e-12)
    # They come from the Penn Treebank tokenizer, whose tokens ours leaves alone, but for one that
    # the version of pycocoevalcap 1.2 does not leave alone either.
    texts = [text for texts in (*truth.values(), *found.values()) for text in texts]
    changed = [text for text in texts if tokenize_caption(text) != text.split()]
    assert changed == ["a young baseball player in uniform getting ready to bat."]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's a man's \"best\" dog -- isn't it?", "it 's a man 's best dog is n't it"),
        ("A close-up, at 5:55 (or 1,000.5).", "a close-up at 5:55 -lrb- or 1,000.5 -rrb-"),
        ("It's 5 p.m. in the U.S.A. today", "it 's 5 p.m. in the u.s.a. today"),
        ("etc.) and [St.]", "etc. -rrb- and -lsb- st. -rsb-"),
        ("can't cannot won't gonna wanna gotta", "ca n't can not wo n't gon na wan na got ta"),
        ("O'Brien y'all at ten o'clock!!", "o'brien y' all at ten o'clock !!"),
        ("AT&T. No.", "at&t no"),
        ("Trees,houses & cars’", "trees houses & cars"),
        ("un café à Paris", "un café à paris"),
        (" ... ", ""),
    ],
)
def test_tokenizer(text, tokens):
    assert tokenize_caption(text) == tokens.split()


def test_documented_bleu_of_a_single_caption():
    # Published with the test suite of nlg-eval; 4-grams do not match at all.
    candidates, references = split(
        ["this is a good test"], [["this is a test", "this is also a test"]]
    )
    expected = [0.799999, 0.632455, 0.5108729, 0.0000903602]
    np.testing.assert_allclose(bleu(candidates, references), expected, atol=1e-6)
    assert rouge_l(candidates[0], references[0]) == pytest.approx(0.9070631, abs=1e-7)
    assert cider_d(candidates, references).tolist() == [0.0]  # log(1 image) is 0.


def test_published_values_of_two_sentences(shared_data):
    folder = shared_data / "metrics_golden" / "nlg_eval"
    lines = [(folder / f"{name}.txt").read_text().splitlines() for name in ("hyp", "ref1", "ref2")]
    scores = caption_scores(lines[0], list(zip(*lines[1:], strict=True)))
    expected = {"bleu1": 0.55, "bleu2": 0.428174, "bleu3": 0.284043, "bleu4": 0.201143}
    expected |= {"rouge_l": 0.522104, "cider": 1.242192}
    assert scores == pytest.approx(expected, abs=1e-6)


def test_published_values_of_other_scripts():
    french = ["Test en français.", "Le test en français."]
    scores = caption_scores(["Le test est en français."], [french])
    assert scores["bleu1"] == pytest.approx(0.799999, abs=1e-6)
    assert scores["bleu2"] == pytest.approx(0.632455, abs=1e-6)
    assert scores["rouge_l"] == pytest.approx(0.9070631, abs=1e-7)
    japanese = caption_scores(["テスト"], [["テスト"]])
    assert japanese["bleu1"] == pytest.approx(0.99999999, abs=1e-8) and japanese["rouge_l"] == 1


def test_degenerate_captions(ask):
    assert all(map(math.isnan, caption_metrics([]).values()))
    assert all(map(math.isnan, caption_metrics([ask("CAPTION", [], "a dog")]).values()))
    silent = [ask("CAPTION", texts, "...") for texts in REFERENCES]
    assert not any(caption_metrics(silent).values())
    # Only the questions with truth count.
    scored = [ask("CAPTION", r, c) for c, r in zip(CANDIDATES, REFERENCES, strict=True)]
    assert caption_metrics([*scored, ask("CAPTION", [], "a dog")]) == caption_metrics(scored)


VOCABULARY = content_vocabulary(["star", "box", "pony", "glasses", "dining table"])


def test_vocabulary_holds_words_and_colors():
    assert {"star", "dining", "table", "red", "gray"} <= VOCABULARY


def test_object_color_f1_by_hand(ask):
    # Mentioned: red star star blue box; true: red star blue star box: all found but one colour.
    one = ask("CAPTION", ["Two red stars, a blue star and boxes"], "red stars, green star, box")
    assert object_color_f1([one], content_words=VOCABULARY) == pytest.approx(2 * 4 / (5 + 5))
    other = ask("CAPTION", ["a pony", "a pony with glasses"], "ponies wear glasses")
    assert object_color_f1([other], content_words=VOCABULARY) == 1  # The second agrees best.
    both = object_color_f1([one, other], content_words=VOCABULARY)
    assert both == pytest.approx(2 * (4 + 2) / (5 + 2 + 5 + 2))  # Counts are summed.


def test_object_color_f1_of_nothing(ask):
    def f1(truth, answer):
        return object_color_f1([ask("CAPTION", truth, answer)], content_words=VOCABULARY)

    assert math.isnan(object_color_f1([], content_words=VOCABULARY))
    assert math.isnan(f1(["a photo"], "a red star"))
    assert f1(["a red star"], "a photo") == 0
    assert f1(["a red star"], "a red red star") == pytest.approx(2 * 2 / (3 + 2))  # A multiset.
