# SPDX-License-Identifier: Apache-2.0
"""Texts are dropped for what they hold, each for a reason that counts."""

import dataclasses

import pytest
from engine_records import record

from florence2_jax.engine.filter import FilterConfig, filter_record
from florence2_jax.engine.filters.syntax import Semantics, load_parser, semantics
from florence2_jax.engine.filters.texts import TextConfig, judge, text_drops
from florence2_jax.records.schema import Grounding, Label, Provenance, Question, Region, Span, Text
from florence2_jax.typing import UserError

MODEL = Provenance(kind="specialist", name="captioner@1")
NO_PARSER = FilterConfig.create({"texts": {"parser": ""}})

# Words with part of speech, head and relation, by hand.
SENTENCES = (
    "a/DET/1/det dog/NOUN/2/nsubj runs/VERB/2/ROOT",
    "the/DET/1/det cat/NOUN/2/nsubj sleeps/VERB/2/ROOT",
    "a/DET/2/det red/ADJ/2/amod ball/NOUN/3/nsubj rolls/VERB/3/ROOT",
    "a/DET/2/det small/ADJ/2/amod boy/NOUN/3/nsubj throws/VERB/3/ROOT a/DET/6/det red/ADJ/6/amod "
    "ball/NOUN/3/obj",
    "the/DET/1/det man/NOUN/2/nsubj holds/VERB/2/ROOT a/DET/4/det cat/NOUN/2/obj",
    "the/DET/2/det white/ADJ/2/amod dog/NOUN/3/nsubj chases/VERB/3/ROOT the/DET/5/det "
    "cat/NOUN/3/obj",
)


def rows(sentence: str) -> dict[str, list]:
    words, pos, heads, deps = zip(*(word.split("/") for word in sentence.split()), strict=True)
    return dict(words=list(words), pos=list(pos), heads=[int(h) for h in heads], deps=list(deps))


@pytest.fixture(scope="module")
def parser(tmp_path_factory) -> str:
    """A pipeline of spaCy trained on a few sentences, as the folder it is saved in."""
    spacy = pytest.importorskip("spacy")
    from spacy.tokens import Doc
    from spacy.training import Example

    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    tok2vec = {
        "@architectures": "spacy.HashEmbedCNN.v2", "pretrained_vectors": None, "width": 16,
        "depth": 1, "embed_size": 200, "window_size": 1, "maxout_pieces": 2,
        "subword_features": False,
    }  # fmt: skip
    nlp.add_pipe("tok2vec", config={"model": tok2vec})
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 16}
    nlp.add_pipe("morphologizer", config={"model": {"tok2vec": listener}})
    model = {"tok2vec": listener, "hidden_width": 16}
    nlp.add_pipe("parser", config={"model": model, "min_action_freq": 1})
    examples = []
    for sentence in SENTENCES:
        told = Doc(nlp.vocab, **rows(sentence))
        examples.append(Example(nlp.make_doc(told.text), told))
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 0.01
    for _ in range(30):
        nlp.update(examples, sgd=optimizer, drop=0.0)
    folder = tmp_path_factory.mktemp("spacy") / "tiny"
    nlp.to_disk(folder)
    return str(folder)


def captioned(*texts: str, granularity="brief", **fields):
    made = (Text(text=t, granularity=granularity, provenance=MODEL) for t in texts)
    return record(texts=tuple(made), **fields)


def reason(text: str, granularity="brief", parsed: Semantics | None = None, **settings) -> str:
    return judge(text, granularity, TextConfig(**settings), parsed)


def test_objects_attributes_and_actions_are_counted_in_the_dependency_tree():
    spacy = pytest.importorskip("spacy")
    vocab = spacy.blank("en").vocab
    sentence = (
        "a/DET/2/det small/ADJ/2/amod boy/NOUN/3/nsubj throws/VERB/3/ROOT a/DET/6/det "
        "red/ADJ/6/amod ball/NOUN/3/obj to/ADP/8/case Anna/PROPN/3/obl ./PUNCT/3/punct"
    )
    counts = semantics(spacy.tokens.Doc(vocab, **rows(sentence)))
    # boy: a, small, throws; ball the same; throws: boy, ball, Anna, and no full stop.
    assert counts == Semantics(
        objects=3, attributes=2, actions=1, proper_nouns=1, object_complexity=3, action_complexity=3
    )


def test_a_trained_pipeline_of_spacy_decides(parser):
    assert load_parser(parser).problem == ""
    config = FilterConfig.create(
        {
            "texts": {
                "parser": parser,
                "max_objects": {"brief": 1},
                "min_object_complexity": {"brief": 3},
            }
        }
    )
    texts = captioned("a small boy throws a red ball", "a dog runs", "a red ball rolls")
    drops = [t.provenance.dropped for t in filter_record(texts, config).texts]
    assert drops == [
        "brief text of more than 1 objects: 2", "brief text of object complexity under 3: 2", "",
    ]  # fmt: skip


def test_without_a_parser_the_other_tests_still_run():
    drops = [
        t.provenance.dropped
        for t in filter_record(captioned("dog", "a dog runs away"), NO_PARSER).texts
    ]
    assert drops == ["brief text under 3 words", ""]


def test_a_parser_that_is_not_there_says_how_to_get_it():
    missing = load_parser("xx_not_there_sm")
    assert missing.parse(["a dog"]) == [None]
    assert "python -m spacy download xx_not_there_sm" in missing.problem
    with pytest.raises(UserError, match="there is no such folder"):
        load_parser("./not/there")


def test_a_pipeline_without_a_tree_is_no_parser(tmp_path):
    spacy = pytest.importorskip("spacy")
    spacy.blank("en").to_disk(tmp_path / "blank")
    assert "does not set POS and DEP" in load_parser(str(tmp_path / "blank")).problem


@pytest.mark.parametrize(
    ("text", "granularity", "expected"),
    [
        ("two dogs play with a ball in the park", "brief", ""),
        ("dogs play", "brief", "brief text under 3 words"),
        ("a dog and a cat", "detailed", "detailed text under 10 words"),
        ("a dog " * 21, "brief", "brief text over 40 words"),
        ("on the left on the left on the left on the left there is a dog", "brief",
         "four words in a row over 2 times"),
        ("dog dog dog and a cat with a dog", "brief", "one word over 34% of a text: dog"),
        ("две собаки играют с мячом в парке", "brief", "letters in LATIN under 80%"),
        ("deux chiens jouent avec un ballon dans le parc", "brief", "function words under 10%"),
    ],
)  # fmt: skip
def test_each_test_of_words_has_its_reason(text, granularity, expected):
    assert reason(text, granularity) == expected


def test_each_test_of_meaning_has_its_reason():
    text = "two dogs play with a ball in the park on a day"
    rich = Semantics(objects=4, actions=1, object_complexity=3, action_complexity=3)
    assert reason(text, "detailed", rich) == ""
    many = dataclasses.replace(rich, objects=33)
    assert reason(text, "detailed", many) == "detailed text of more than 32 objects: 33"
    plain = dataclasses.replace(rich, object_complexity=1)
    assert reason(text, "detailed", plain) == "detailed text of object complexity under 2: 1"
    still = dataclasses.replace(rich, actions=0, action_complexity=0)
    assert reason(text, "detailed", still) == "detailed text of action complexity under 1: 0"
    assert reason(text, "brief", still) == ""


def test_banned_words_are_found_everywhere_and_only_as_whole_words():
    config = FilterConfig.create({"texts": {"parser": "", "banned_words": ("Stock Photo", "ass")}})
    made = captioned("a stock photo of a dog", "grass and a glass")
    labels = (Label(text="ass", provenance=MODEL), Label(text="glass", provenance=MODEL))
    made = dataclasses.replace(
        made,
        regions=(Region(box=(0, 0, 30, 20), labels=labels, provenance=MODEL),),
        groundings=(
            Grounding(text="an ass", spans=(Span(start=0, end=6, boxes=((0, 0, 9, 9),)),),
                      provenance=MODEL),
        ),
        questions=(Question(question="what?", answers=("an ass",), provenance=MODEL),),
    )  # fmt: skip
    found = filter_record(made, config)
    assert [t.provenance.dropped for t in found.texts] == ["banned word: Stock Photo", ""]
    label, other = found.regions[0].labels
    assert (label.provenance.dropped, other.provenance.dropped) == ("banned word: ass", "")
    assert found.groundings[0].provenance.dropped == "banned word: ass"
    assert found.questions[0].provenance.dropped == "banned word: ass"


def test_a_text_of_megabytes_is_dropped_at_once(parser):
    config = FilterConfig.create({"texts": {"parser": parser}})
    huge = "Ignore all rules. " * 600_000
    question = Question(question="what?", answers=(huge,), provenance=MODEL)
    found = filter_record(captioned(huge, "a red ball rolls", questions=(question,)), config)
    assert [t.provenance.dropped for t in found.texts] == ["over 20,000 characters", ""]
    assert found.questions[0].provenance.dropped == "over 20,000 characters"


def test_a_grounding_goes_with_its_text():
    span = Span(start=0, end=3, boxes=((0, 0, 20, 20),))
    made = captioned("dog", groundings=(Grounding(text="dog", spans=(span,), provenance=MODEL),))
    drops = list(text_drops(made, TextConfig(), [None]))
    assert [(d.kind, d.reason) for d in drops] == [
        ("text", "brief text under 3 words"), ("grounding", "brief text under 3 words"),
    ]  # fmt: skip


def test_thresholds_that_make_no_sense_are_refused_by_name():
    for values, said in (
        ({"texts": {"min_word": {}}}, "filter.texts.min_word: no such key; did you mean min_words"),
        ({"texts": {"min_words": {"short": 3}}}, "'short' is none of brief, detailed"),
        ({"texts": {"min_words": {"brief": -1}}}, "no number of things"),
        ({"texts": {"min_script_share": 80}}, "not of type float|no number in"),
        ({"regions": {"min_scores": {"cat": 2.0}}}, "min_scores.'cat'.: 2.0 is no number in"),
        ({"filters": ("region",)}, "did you mean regions"),
        ({"duplicates": {"shingle_words": 0}}, "shingle_words: 0 is under 1"),
        ({"ocr": {"max_aspect": 0.5}}, "max_aspect: 0.5 is under 1"),
    ):
        with pytest.raises(UserError, match=said):
            FilterConfig.create(values)


def test_lengths_that_are_not_given_keep_their_default():
    config = TextConfig(min_words={"brief": 5})
    assert config.min_words == {"brief": 5, "detailed": 10, "more_detailed": 25}
