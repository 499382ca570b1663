# SPDX-License-Identifier: Apache-2.0
"""Under the grammar every output parses, and every legal target can be written."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tasks.test_round_trip import (
    LABELS,
    REGION_TASKS,
    SIZE,
    TEXT_TASKS,
    boxes,
    coordinates,
    draw_regions,
    masks,
)

from florence2_jax.tasks.answers import BoxRegion, MaskRegion, parse_answer
from florence2_jax.tasks.grammar import MAX_BOS, Grammar
from florence2_jax.tasks.registry import TASKS, Task
from florence2_jax.tasks.targets import write_region_text, write_regions, write_text
from florence2_jax.text.locations import coordinates_text, location_text
from florence2_jax.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer

Choose = Callable[[list[int], NDArray], int]

# The second line has pieces that hold parts of marks and join them to other text.
TEXTS = ["a red star and a blue car", "two small stars left of a green tree. CAFE", "what is it?"]
TEXTS += ["if a<b and </s> or ></p> loc_5 loc_12 <loc <lo <s s> ></ poly sep pad ls_po"]
MARKS = re.compile(r"<s>|</s>|<pad>|<poly>|</poly>|<sep>|<loc_(?:0|[1-9][0-9]{0,2})>")
FOUR = "<loc_1><loc_2><loc_3><loc_4>"
BUDGETS = (2, 8, 11, 16, 33, 64)
BLANKS = [chr(c) for c in range(0x110000) if chr(c).isspace()]

FRAGMENTS = [
    "<",
    "<s",
    "</",
    "s>",
    ">",
    "<loc_",
    "<loc_1",
    "000>",
    "5>",
    "05>",
    "٥>",
    "poly>",
    "pad",
]
FRAGMENTS += ["<mask>", "<b>", "\xa0", "\u2028", "\u3000", "é", "日本", "\ufffd", "\0", "\t", "x"]
# SentencePiece writes blanks as U+2581 and reads it as one.
WORDS = (LABELS | st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join)).map(
    lambda label: label.replace("▁", "_")
)


def byte_level(folder: Path) -> Tokenizer:
    """A small byte-level BPE as BART's, without the added tokens, as Microsoft ships it."""
    base = tokenizers.ByteLevelBPETokenizer()
    base.train_from_iterator(
        TEXTS * 20, vocab_size=420, special_tokens=["<s>", "<pad>", "</s>", "<unk>"]
    )
    base.save_model(str(folder))
    return Tokenizer.load(folder)


@pytest.fixture(scope="module", params=["SentencePiece", "byte-level"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    if request.param == "byte-level":
        return byte_level(tmp_path_factory.mktemp("bpe"))
    return Tokenizer.train(TEXTS * 20, vocab_size=420)


@pytest.fixture(scope="module")
def grammar(tokenizer) -> Grammar:
    return Grammar.build(tokenizer)


def first_refused(grammar: Grammar, task: Task, ids: Sequence[int], *, room: int = 0) -> int | None:
    """Where ids leave the grammar if there is room for `room` tokens more than they are."""
    state = grammar.initial[task.token]
    for i in range(1, len(ids)):
        if not grammar.allowed(state, ids[:i], len(ids) + room - i - 1)[ids[i]]:
            return i
        state = int(grammar.next_state[state, grammar.token_class[ids[i]]])
    return None


def generate(grammar: Grammar, task: Task, choose: Choose, budget: int) -> list[int]:
    """At most `budget` tokens from `<s>` to `</s>`, each chosen among those allowed."""
    state, ids = grammar.initial[task.token], [BOS_ID]
    while ids[-1] != EOS_ID:
        is_allowed = grammar.allowed(state, ids, budget - len(ids) - 1)
        assert is_allowed.any(), f"{task.token}: nothing may follow {ids}"
        ids.append(choose(ids, is_allowed))
        assert is_allowed[ids[-1]]
        state = int(grammar.next_state[state, grammar.token_class[ids[-1]]])
    assert len(ids) <= budget
    return ids


def check_answer(tokenizer: Tokenizer, task: Task, ids: Sequence[int]) -> None:
    """The output parses, and what is read are the tokens that were written: no text fooled it."""
    text = tokenizer.decode(ids)
    answer = parse_answer(task, text, SIZE)
    assert answer.unparsed == (), text
    written = [i - tokenizer.first_location_id for i in ids if tokenizer.piece_bytes(i) is None]
    marks = location_text(k for k in written if 0 <= k < 1000)
    words = runs_of_text(tokenizer, ids)
    if task.grammar in ("text", "region_text"):
        box = getattr(answer, "region", None)
        assert marks == ("" if box is None else coordinates_text(box, SIZE))
        assert box is not None or task.grammar == "text" or not answer.text
        assert [answer.text] * bool(answer.text) == words
        return
    # Boxes come back corner by corner, so none was turned inside out.
    assert marks == "".join(coordinates_text(coordinates(r), SIZE) for r in answer.regions)
    for region in answer.regions:
        assert len(coordinates(region)) == 4 or not isinstance(region, BoxRegion)
        assert all(len(p) >= 6 for p in getattr(region, "polygons", ()))
    labels = [r.label for r in answer.regions if r.label]
    assert list(dict.fromkeys(labels)) == list(dict.fromkeys(words))


def runs_of_text(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    runs: list[list[int]] = [[]]
    for i in ids:
        if tokenizer.piece_bytes(i) is None:
            runs.append([])
        else:
            runs[-1].append(i)
    return [text for run in runs if (text := tokenizer.decode(run).strip())]


# --- Every legal target can be written ------------------------------------------------------------


@pytest.mark.parametrize("task", REGION_TASKS, ids=lambda t: t.name)
@settings(max_examples=40, deadline=None)  # Machines are busy at times.
@given(data=st.data())
def test_targets_of_regions_are_accepted_within_their_own_length(tokenizer, grammar, task, data):
    regions = draw_regions(task, data)
    if task.grammar == "named_boxes":
        polygons = data.draw(st.lists(masks(), max_size=2))
        regions += [MaskRegion(polygons=p) for p in polygons]
    relabelled = [type(r)(**(vars(r) | {"label": data.draw(WORDS)})) for r in regions]
    ids = tokenizer.encode(write_regions(task, relabelled, SIZE).text)
    assert first_refused(grammar, task, [BOS_ID, *ids, EOS_ID]) is None
    check_answer(tokenizer, task, [BOS_ID, *ids, EOS_ID])


@pytest.mark.parametrize("task", TEXT_TASKS, ids=lambda t: t.name)
@settings(max_examples=40, deadline=None)  # Machines are busy at times.
@given(text=WORDS, region=boxes())
def test_targets_of_text_are_accepted_within_their_own_length(
    tokenizer, grammar, task, text, region
):
    is_text = task.grammar == "text"
    target = write_text(text) if is_text else write_region_text(text, region.box, SIZE)
    ids = [BOS_ID, *tokenizer.encode(target.text), EOS_ID]
    assert first_refused(grammar, task, ids) is None
    check_answer(tokenizer, task, ids)


QUAD, SIX = FOUR * 2, FOUR + "<loc_5><loc_6>"


@pytest.mark.parametrize(
    ("token", "text"),
    [  # Facts 3.2, and what the parser reads without loss.
        ("<OD>", f"car{FOUR}door handle{FOUR}wheel{FOUR}{FOUR}"),
        ("<OD>", f"{FOUR}{FOUR}car{FOUR}\n"),
        ("<OD>", ""),
        ("<DENSE_REGION_CAPTION>", f"turquoise Volkswagen Beetle{FOUR}"),
        ("<REGION_PROPOSAL>", FOUR * 3),
        ("<CAPTION_TO_PHRASE_GROUNDING>", f"A green car{FOUR}{FOUR} a yellow building{FOUR}"),
        ("<OPEN_VOCABULARY_DETECTION>", f"wheels{FOUR}wheels{FOUR}{FOUR}"),
        ("<OPEN_VOCABULARY_DETECTION>", f"cat{FOUR}dog<poly>{SIX}<sep>{QUAD}</poly>cat{FOUR}"),
        ("<OCR_WITH_REGION>", f"CUDA{QUAD}\nFOR ENGINEERS{QUAD}{QUAD}"),
        ("<REFERRING_EXPRESSION_SEGMENTATION>", f"{SIX}<sep>{QUAD}"),
        ("<REGION_TO_SEGMENTATION>", f"cat<poly>{SIX}</poly><poly>{SIX}<sep>{SIX}</poly>"),
        ("<REGION_TO_CATEGORY>", f"car{FOUR}"),
        ("<REGION_TO_OCR>", FOUR),
        ("<CAPTION>", "a cat on a mat, 2 < 3 > 1 <loc_1000>"),
        ("<OCR>", "STOP\nGO\n"),
    ],
)
def test_known_outputs_are_accepted(tokenizer, grammar, token, text):
    for start in ([BOS_ID], [BOS_ID] * MAX_BOS):
        ids = [*start, *tokenizer.encode(text), EOS_ID]
        assert first_refused(grammar, TASKS[token], ids) is None
        check_answer(tokenizer, TASKS[token], ids)


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("<OD>", f"car{FOUR}door"),  # No box.
        ("<OD>", "car<loc_1><loc_2><loc_3>"),
        ("<OD>", f"car{FOUR} {FOUR}"),  # A label of blanks.
        ("<OD>", "car<loc_5><loc_2><loc_4><loc_3>"),  # x1 < x0.
        ("<OD>", "car<loc_1><loc_2><loc_1><loc_1>"),  # y1 < y0.
        ("<OD>", f"car<poly>{SIX}</poly>"),
        ("<REGION_PROPOSAL>", f"car{FOUR}"),
        ("<REGION_TO_CATEGORY>", "car"),
        ("<REGION_TO_CATEGORY>", f"car{FOUR}{FOUR}"),
        ("<REGION_TO_CATEGORY>", f"car{FOUR}more"),
        ("<OCR_WITH_REGION>", f"GO{QUAD}<loc_1>"),
        ("<REGION_TO_SEGMENTATION>", FOUR),  # Two points.
        ("<REGION_TO_SEGMENTATION>", SIX + "<loc_1>"),
        ("<REGION_TO_SEGMENTATION>", SIX + "<sep>"),
        ("<REGION_TO_SEGMENTATION>", f"<poly>{SIX}"),
        ("<REGION_TO_SEGMENTATION>", "<poly></poly>"),
        ("<REGION_TO_SEGMENTATION>", f"cat{SIX}"),
        ("<CAPTION>", "a cat<loc_1>"),
        ("<CAPTION>", "a cat<and>a dog"),
        ("<CAPTION>", "a cat<s>"),
        ("<CAPTION>", "<s>" * MAX_BOS),
        ("<CAPTION>", "a cat<pad>"),
        ("<CAPTION>", "<unk>"),
    ],
)
def test_what_is_not_of_the_grammar_is_refused(tokenizer, grammar, token, text):
    ids = [BOS_ID, *tokenizer.encode(text), EOS_ID]
    assert first_refused(grammar, TASKS[token], ids, room=99) is not None


# --- Whatever is written parses -------------------------------------------------------------------


def any_class(grammar: Grammar, rng: np.random.Generator) -> Choose:
    """A random token of a random class: uniform tokens would hardly ever be marks."""

    def choose(_, is_allowed: NDArray) -> int:
        classes = np.unique(grammar.token_class[is_allowed])
        if len(classes) > 1 and rng.random() < 0.8:  # Ends would come too soon.
            classes = classes[classes != grammar.token_class[EOS_ID]]
        wanted = rng.choice(classes)
        return int(rng.choice(np.flatnonzero(is_allowed & (grammar.token_class == wanted))))

    return choose


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda t: t.name)
def test_random_outputs_parse_within_their_budget(tokenizer, grammar, task):
    rng = np.random.default_rng(0)
    lengths = set()
    for budget in BUDGETS:
        for _ in range(40):
            ids = generate(grammar, task, any_class(grammar, rng), budget)
            check_answer(tokenizer, task, ids)
            lengths.add(len(ids))
    assert min(lengths) == 2 and max(lengths) > 33  # Neither always empty nor always short.


def favour(*wanted: NDArray) -> Callable[..., Choose]:
    """Takes the first kind of tokens of which one is allowed, now and then any other."""

    def adversary(rng: np.random.Generator) -> Choose:
        def choose(_, is_allowed: NDArray) -> int:
            some = [kind & is_allowed for kind in wanted if (kind & is_allowed).any()]
            is_wanted = some[0] if some and rng.random() < 0.9 else is_allowed
            return int(rng.choice(np.flatnonzero(is_wanted)))

        return choose

    return adversary


def speller(tokenizer: Tokenizer) -> Callable[..., Choose]:
    """Always goes on with the spelling of a mark, whatever pieces that takes."""
    pieces = {i: piece for i in range(len(tokenizer)) if (piece := tokenizer.piece_bytes(i))}
    marks = [b"<s>", b"</s>", b"<pad>", b"<poly>", b"</poly>", b"<sep>", b"<loc_5>", b"<loc_120>"]

    @functools.cache
    def continuations(tail: bytes) -> NDArray:
        spelt = [i for i, p in pieces.items() if any(m.startswith(tail + p) for m in marks)]
        is_one = np.zeros(len(tokenizer), bool)
        is_one[spelt] = True
        return is_one

    def adversary(rng: np.random.Generator) -> Choose:
        def choose(ids: list[int], is_allowed: NDArray) -> int:
            text = b"".join(pieces.get(i, b" ") for i in ids[-12:])
            tail = text[text.rfind(b"<") :] if b"<" in text else b""
            wanted = continuations(tail) & is_allowed
            wanted = wanted if wanted.any() else continuations(b"") & is_allowed
            return int(rng.choice(np.flatnonzero(wanted if wanted.any() else is_allowed)))

        return choose

    return adversary


def adversaries(tokenizer: Tokenizer, grammar: Grammar) -> dict[str, Callable[..., Choose]]:
    pieces = [tokenizer.piece_bytes(i) for i in range(len(tokenizer))]
    is_text = np.array([p is not None for p in pieces])
    is_location = grammar.location_bin >= 0
    blank_bytes = set(b"".join(c.encode() for c in BLANKS))
    is_blank = np.array([p is not None and set(p) <= blank_bytes for p in pieces])
    is_broken = np.array([p is not None and len(p) == 1 and p[0] >= 0x80 for p in pieces])
    is_mark = ~is_text & ~is_location
    is_end = np.arange(len(tokenizer)) == EOS_ID
    return {
        "locations in text": favour(is_location),
        "text in locations": favour(is_text & ~is_blank),
        "marks": favour(is_mark & ~is_end, is_location),
        "the end": favour(is_end, is_location),
        "blanks": favour(is_blank, is_location),
        "broken characters": favour(is_broken, is_location),
        "small locations": favour(grammar.location_bin == 0),
        "turned boxes": favour(grammar.location_bin == 999, grammar.location_bin == 0),
        "`<s>`": favour(np.arange(len(tokenizer)) == BOS_ID, is_blank),
        "spelt marks": speller(tokenizer),
    }


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda t: t.name)
def test_hostile_models_cannot_break_an_output(tokenizer, grammar, task):
    for adversary in adversaries(tokenizer, grammar).values():
        for budget in BUDGETS:
            for seed in range(2):
                choose = adversary(np.random.default_rng(seed))
                check_answer(tokenizer, task, generate(grammar, task, choose, budget))


@functools.cache
def critical_pieces(tokenizer: Tokenizer) -> list[int]:
    """Those of which blanks and marks can be made."""
    critical = set(b"".join(c.encode() for c in BLANKS)) | set(b"<>/slocpadey_019x")
    return [i for i in range(len(tokenizer)) if set(tokenizer.piece_bytes(i) or b"?") <= critical]


@settings(max_examples=500, deadline=None)
@given(picks=st.lists(st.integers(0, 10**6), min_size=1, max_size=9))
def test_a_label_is_refused_only_if_it_is_blank_or_spells_a_mark(tokenizer, grammar, picks):
    pieces = critical_pieces(tokenizer)
    label = [pieces[pick % len(pieces)] for pick in picks]
    ids = [BOS_ID, *label, *tokenizer.encode(FOUR), EOS_ID]
    # Where decoding finds a broken character, it may give up the marks around it, too.
    text = b"".join(tokenizer.piece_bytes(i) or b"" for i in label).decode(errors="replace")
    is_fine = bool(text.strip()) and not MARKS.search(text)
    assert (first_refused(grammar, TASKS["<OD>"], ids) is None) == is_fine


def test_blanks_alone_are_no_label(tokenizer, grammar):
    for blank in (*BLANKS, "".join(BLANKS)):
        for label, is_fine in ((blank, False), (f"{blank}x", True), (f"x{blank}", True)):
            ids = [BOS_ID, *tokenizer.encode(label + FOUR), EOS_ID]
            assert (first_refused(grammar, TASKS["<OD>"], ids) is None) == is_fine
        assert first_refused(grammar, TASKS["<OD>"], [*tokenizer.encode(f"<s>{blank}</s>")]) is None


def test_bytes_that_are_no_character_make_a_label(tokenizer, grammar):
    byte = {p: i for i in range(len(tokenizer)) if (p := tokenizer.piece_bytes(i)) and p[0] > 0x7F}
    for label in (b"\xc2", b"\xe2\x80", b"\xc0\xa0", b"\x80", b"\xe3\x80\xc2\xa0"):
        pieces = [byte[bytes([value])] for value in label]
        ids = [BOS_ID, *pieces, *tokenizer.encode(FOUR), EOS_ID]
        assert first_refused(grammar, TASKS["<OD>"], ids) is None
        check_answer(tokenizer, TASKS["<OD>"], ids)


# --- The table ------------------------------------------------------------------------------------


def test_padding_and_other_tokens_are_never_allowed(tokenizer, grammar):
    never = [PAD_ID, UNK_ID, len(tokenizer) - 1]  # The last is `<image>`.
    never += [tokenizer.encode(token)[0] for token in ("<and>", "<od>", "</proposal>")]
    assert (grammar.next_state[:, grammar.token_class[never]] == -1).all()


def test_costs_count_the_way_to_the_end(tokenizer, grammar):
    def cost(token: str, text: str) -> int:
        state = grammar.initial[token]
        for i in tokenizer.encode(text):
            state = grammar.next_state[state, grammar.token_class[i]]
        return int(grammar.finish_cost[state])

    assert [cost(task, "") for task in TASKS] == [1] * len(TASKS)
    assert cost("<CAPTION>", "a cat") == 1 and cost("<CAPTION>", "a cat</s>") == 0
    assert cost("<OD>", "car") == 5 and cost("<OD>", "car<loc_1>") == 4
    assert cost("<OCR_WITH_REGION>", "GO") == 9
    assert cost("<REGION_TO_SEGMENTATION>", f"{SIX}<sep>") == 7
    assert cost("<REGION_TO_SEGMENTATION>", "cat") == 9  # `<poly>`, six locations, `</poly>`, end.


def test_the_table_is_small(tokenizer, grammar):
    num_states, num_classes = grammar.next_state.shape
    assert grammar.token_class.shape == grammar.location_bin.shape == (len(tokenizer),)
    assert grammar.token_class.max() == num_classes - 1
    assert num_states < 300 and num_classes < 200


# --- The parser -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "text", "unparsed"),
    [
        ("<OD>", "car<loc_1><loc_2><loc_3", "car<loc_1><loc_2><loc_3"),
        ("<OD>", f"car{FOUR}<loc_3", "<loc_3"),
        ("<OD>", f"car{FOUR}door<loc_3", "door<loc_3"),
        ("<OCR_WITH_REGION>", f"GO{QUAD}<loc_1><", "<loc_1><"),
        ("<REGION_TO_SEGMENTATION>", f"{SIX}<sep><loc_1><loc_", "<loc_1><loc_"),
        ("<REGION_TO_SEGMENTATION>", f"{SIX}<loc_1><loc_4", "<loc_1><loc_4"),
        ("<REGION_TO_SEGMENTATION>", f"<poly>{SIX}</po", "</po"),
        ("<REGION_TO_CATEGORY>", "car<loc_1><loc_2><loc_3", "<loc_1><loc_2><loc_3"),
    ],
)
def test_a_cut_mark_stays_with_the_marks_before_it(token, text, unparsed):
    assert parse_answer(TASKS[token], text, SIZE).unparsed == (unparsed,)


@pytest.mark.parametrize("label", ["<loc_05>", "<loc_٥>", "<loc_1٥>", "<loc_1000>"])
def test_what_is_no_location_token_is_no_location(label):
    (region,) = parse_answer(TASKS["<OD>"], label + FOUR, SIZE).regions
    assert region.label == label
