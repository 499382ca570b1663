# SPDX-License-Identifier: Apache-2.0
"""What may come next: an automaton under which every generated output parses.

Three layers, each small enough to read:

1. `_RULES`: per grammar, which phrases (`words`, `box`, `<poly>`, ...) may follow each other. This
   is the grammar of the targets, every row a place between two phrases.
2. Text, byte by byte: words must not spell a mark (`<loc_5>` out of `<`, `loc`, `_5`, `>`), which
   the parser could not tell from the token, and a label must not be made of blanks alone, which
   the parser sets aside. Bytes, because a token need not end where a character ends; what is no
   valid UTF-8 is read as U+FFFD, which is no blank.
3. Their product over classes of tokens: tokens that move every state alike are one class, so that
   the decoding loop looks up a table of some hundred states and classes, whatever the vocabulary.

One table serves all tasks; a task chooses where it starts.

Source: the grammars are those of the released targets (`targets.py` writes, `answers.py` reads
them). What the parser reads without loss stays possible: a name may own several boxes, blanks may
come before `</s>`, and `<s>` may be repeated at the start as the large released model does.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.locations import NUM_BINS
from florence2_jax.text.tokenizer import BOS, BOS_ID, EOS, EOS_ID, PAD, Tokenizer

MAX_BOS = 3
"""`<s>` at the start, the forced one included: the large released model writes three."""

_END, _LOCATION = "end", "<loc>"
_MARKS = (BOS, EOS, _LOCATION, "<poly>", "</poly>", "<sep>")

# Phrases made of locations. Where it says True, a location must not be smaller than the one two
# tokens back: x1 >= x0, y1 >= y0.
_PHRASES: dict[str, tuple[bool, ...]] = {
    "box": (False, False, True, True),
    "quad": (False,) * 8,
    "polygon": (False,) * 6,  # The three points it needs at least.
    "point": (False,) * 2,
}

_BOXES = {
    "item": {"words": "named", "box": "item", EOS: _END},
    "named": {"box": "item"},
}
# grammar -> place -> {what may be written there: the place behind it}. The first place is the
# start. `words` are text that is more than blanks.
_RULES: dict[str, dict[str, dict[str, str]]] = {
    "text": {
        "start": {"words": "told", EOS: _END},
        "told": {EOS: _END},
    },
    "region_text": {
        "start": {"words": "told", "box": "echoed", EOS: _END},
        "told": {"box": "echoed"},
        "echoed": {EOS: _END},
    },
    "boxes": _BOXES,
    "phrases": _BOXES,
    "proposals": {
        "item": {"box": "item", EOS: _END},
    },
    "named_boxes": {
        "item": {"words": "named", "box": "item", "<poly>": "opened", EOS: _END},
        "named": {"box": "item", "<poly>": "opened"},
        "opened": {"polygon": "drawn"},
        "drawn": {"point": "drawn", "<sep>": "opened", "</poly>": "item"},
    },
    "quads": {
        "item": {"words": "read", "quad": "item", EOS: _END},
        "read": {"quad": "item"},
    },
    "masks": {
        # One instance needs no frame ...
        "start": {"words": "named", "<poly>": "opened", "polygon": "bare", EOS: _END},
        "bare": {"point": "bare", "<sep>": "more", EOS: _END},
        "more": {"polygon": "bare"},
        # ... several do.
        "item": {"words": "named", "<poly>": "opened", EOS: _END},
        "named": {"<poly>": "opened"},
        "opened": {"polygon": "drawn"},
        "drawn": {"point": "drawn", "<sep>": "opened", "</poly>": "item"},
    },
}

_FORBIDDEN = 0  # The class of tokens that no grammar has: `<pad>`, `<unk>`, `<mask>`, `<od>`, ...
_MARK_CLASS = {mark: 1 + i for i, mark in enumerate(_MARKS)}
_FIRST_TEXT_CLASS = 1 + len(_MARKS)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Grammar:
    """The table, and what it is looked up with; `allowed` is its definition.

    Attributes:
        token_class: the class of every token id, `V = len(tokenizer)`.
        next_state: the state after a token of a class, -1 where it is forbidden.
        finish_cost: the fewest tokens from a state to the end, `</s>` included; 0 after `</s>`.
        is_floored: whether a location written here must not be smaller than that two tokens back.
        location_bin: the bin of a location token, -1 for any other token.
        initial: task token -> the state after the forced `<s>`.
    """

    token_class: Int[NDArray, "V"]
    next_state: Int[NDArray, "Q C"]
    finish_cost: Int[NDArray, "Q"]
    is_floored: Bool[NDArray, "Q"]
    location_bin: Int[NDArray, "V"]
    initial: Mapping[str, int]

    @classmethod
    def build(cls, tokenizer: Tokenizer) -> "Grammar":
        """The table for the tokens of a vocabulary; takes a second for 50,000 of them."""
        token_class, texts = _classify(tokenizer)
        starts = {name: _State(name, next(iter(rows)), BOS, 1) for name, rows in _RULES.items()}
        states, rows = _explore(starts.values(), texts)
        next_state = np.array(rows, np.int32)
        first = tokenizer.first_location_id
        location_bin = np.full(len(tokenizer), -1, np.int32)
        location_bin[first : first + NUM_BINS] = np.arange(NUM_BINS)
        return cls(
            token_class=token_class,
            next_state=next_state,
            finish_cost=_finish_costs(next_state, end=states[_THE_END]),
            is_floored=np.array([_is_floored(state) for state in states]),
            location_bin=location_bin,
            initial={task.token: states[starts[task.grammar]] for task in TASKS.values()},
        )

    def allowed(
        self, state: int, ids_so_far: Sequence[int], tokens_left: int
    ) -> Bool[NDArray, "V"]:
        """Which tokens may be written in a state.

        A token is allowed if the grammar has it here, if the output can still be finished behind
        it, and, in a floored state, if its bin is not below that of the token two back. There is
        always one as long as `tokens_left + 1 >= finish_cost[state]`.

        Args:
            ids_so_far: the tokens before this one.
            tokens_left: how many tokens there is room for after this one.
        """
        following = self.next_state[state][self.token_class]
        is_allowed = (following >= 0) & (self.finish_cost[following] <= tokens_left)
        if self.is_floored[state]:
            is_allowed &= self.location_bin >= self.location_bin[ids_so_far[-2]]
        return is_allowed


# --- Text, byte by byte ---------------------------------------------------------------------------


class _Text(NamedTuple):
    """What of a run of text matters: all blanks so far, and what the next bytes could complete."""

    is_blank: bool
    pending: frozenset[bytes]  # The rests of a blank's UTF-8, or of the spelling of a mark.


# Every mark that the parser acts on.
_SPELLINGS = (BOS, EOS, PAD, "<poly>", "</poly>", "<sep>", *(f"<loc_{k}>" for k in range(NUM_BINS)))
_AFTER_ANGLE = frozenset(mark[1:].encode() for mark in _SPELLINGS)
# What `str.strip` takes off, and what SentencePiece (but no other tokenizer) reads as a blank.
_BLANKS = (*(chr(c) for c in range(0x3001) if chr(c).isspace()), "▁")
_NO_TEXT = _Text(is_blank=True, pending=frozenset())


def _read_byte(text: _Text, byte: int, blanks: frozenset[bytes]) -> _Text | None:
    """The text one byte later; None if that completes the spelling of a mark."""
    if text.is_blank:
        rests = _rests(text.pending or blanks, byte)
        if rests:
            return _NO_TEXT if b"" in rests else _Text(True, rests)
    if byte == ord("<"):
        return _Text(False, _AFTER_ANGLE)
    # Words begin with no mark pending: the rests of a blank are none of a mark.
    rests = frozenset() if text.is_blank else _rests(text.pending, byte)
    return None if b"" in rests else _Text(False, rests)


def _rests(pending: frozenset[bytes], byte: int) -> frozenset[bytes]:
    return frozenset(rest[1:] for rest in pending if rest[0] == byte)


@functools.cache
def _text_table(blanks: frozenset[bytes]) -> tuple[tuple[_Text, ...], Int[NDArray, "texts 256"]]:
    """All states of a text, `_NO_TEXT` first, and where a byte leads.

    The table has one row more: the dead end of texts that have spelt a mark.
    """
    numbers: dict[_Text | None, int] = {_NO_TEXT: 0}
    queue, rows = [_NO_TEXT], []
    for text in queue:
        following = [_read_byte(text, byte, blanks) for byte in range(256)]
        for new in following:
            if new is not None and new not in numbers:
                numbers[new] = len(numbers)
                queue.append(new)
        rows.append(following)
    numbers[None] = len(queue)
    rows.append([None] * 256)
    return tuple(queue), np.array([[numbers[text] for text in row] for row in rows])


class _Texts(NamedTuple):
    """The states of a text, and where each class of its tokens leads: behind the last, nowhere."""

    states: tuple[_Text, ...]
    moves: Int[NDArray, "classes texts"]


def _classify_pieces(
    pieces: Sequence[bytes], blanks: frozenset[bytes]
) -> tuple[Int[NDArray, "pieces"], _Texts]:
    """The class of every piece of text, and where the classes lead."""
    states, table = _text_table(blanks)
    lengths = np.array([len(piece) for piece in pieces])
    padded = np.zeros((len(pieces), lengths.max()), np.uint8)
    padded[np.arange(lengths.max()) < lengths[:, None]] = np.frombuffer(b"".join(pieces), np.uint8)
    moves = np.tile(np.arange(len(states)), (len(pieces), 1))
    for position in range(padded.shape[1]):
        rows = np.flatnonzero(lengths > position)
        moves[rows] = table[moves[rows], padded[rows, position, None]]
    moves, classes = np.unique(moves, axis=0, return_inverse=True)
    return classes.reshape(-1), _Texts(states, moves)


def _classify(tokenizer: Tokenizer) -> tuple[Int[NDArray, "V"], _Texts]:
    """The class of every token, and where the classes of text lead."""
    blanks = frozenset(
        c.encode() for c in _BLANKS if not tokenizer.decode(tokenizer.encode(c)).strip()
    )
    pieces = {i: piece for i in range(len(tokenizer)) if (piece := tokenizer.piece_bytes(i))}
    classes, texts = _classify_pieces(list(pieces.values()), blanks)
    token_class = np.full(len(tokenizer), _FORBIDDEN, np.int32)
    token_class[list(pieces)] = _FIRST_TEXT_CLASS + classes
    token_class[[BOS_ID, EOS_ID]] = _MARK_CLASS[BOS], _MARK_CLASS[EOS]
    first = tokenizer.first_location_id
    token_class[first : first + NUM_BINS] = _MARK_CLASS[_LOCATION]
    for mark in ("<poly>", "</poly>", "<sep>"):
        token_class[tokenizer.encode(mark)] = _MARK_CLASS[mark]
    return token_class, texts


# --- Grammars x text ------------------------------------------------------------------------------


class _State(NamedTuple):
    """A place of a grammar, or the middle of a phrase.

    phrase  place            progress
    ------  ---------------  ---------------------------------
    ""      here             0
    `<s>`   the start        `<s>` written
    blanks  before the text  state of the text (all blanks)
    words   after the text   state of the text (a label by now)
    box...  after the box    locations written
    """

    grammar: str
    place: str
    phrase: str = ""
    progress: int = 0


_THE_END = _State("", _END)


def _after_mark(state: _State, texts: _Texts) -> Iterator[tuple[str, _State]]:
    """The marks that may follow, each with the state behind it."""
    if state == _THE_END:
        return
    if state.phrase in _PHRASES:
        is_whole = state.progress + 1 == len(_PHRASES[state.phrase])
        rest = ("", 0) if is_whole else (state.phrase, state.progress + 1)
        yield _LOCATION, _State(state.grammar, state.place, *rest)
        return
    if state.phrase == BOS and state.progress < MAX_BOS:
        yield BOS, state._replace(progress=state.progress + 1)
    rules = _RULES[state.grammar]
    exits = rules[state.place]
    if state.phrase == "blanks":
        # Blanks count for nothing before `</s>`; a blank cut short is U+FFFD, so words.
        is_cut = bool(texts.states[state.progress].pending)
        exits = rules[exits["words"]] if is_cut else {k: v for k, v in exits.items() if k == EOS}
    for phrase, place in exits.items():
        if phrase in _PHRASES:
            yield _LOCATION, _State(state.grammar, place, phrase, 1)
        elif phrase == EOS:
            yield EOS, _THE_END
        elif phrase != "words":
            yield phrase, _State(state.grammar, place)


def _after_text(state: _State, texts: _Texts) -> Iterator[tuple[int, _State]]:
    """The classes of text that may follow, counted from 0, each with the state behind it."""
    if state == _THE_END or state.phrase in _PHRASES:
        return
    place = state.place
    if state.phrase != "words":
        if "words" not in _RULES[state.grammar][place]:
            return
        place = _RULES[state.grammar][place]["words"]
    before = state.progress if state.phrase in ("blanks", "words") else 0
    for index, after in enumerate(texts.moves[:, before].tolist()):
        if after < len(texts.states):
            is_blank = texts.states[after].is_blank
            where = ("blanks", after) if is_blank else ("words", after)
            yield index, _State(state.grammar, state.place if is_blank else place, *where)


def _explore(starts: Iterable[_State], texts: _Texts) -> tuple[dict[_State, int], list[list[int]]]:
    """Numbers every state within reach and lists where each class leads from it (-1: nowhere)."""
    numbers = {state: number for number, state in enumerate((_THE_END, *starts))}
    queue, rows = list(numbers), []
    for state in queue:
        row = [-1] * (_FIRST_TEXT_CLASS + len(texts.moves))
        steps = [(_MARK_CLASS[mark], after) for mark, after in _after_mark(state, texts)]
        steps += [(_FIRST_TEXT_CLASS + index, after) for index, after in _after_text(state, texts)]
        for token_class, after in steps:
            if after not in numbers:
                numbers[after] = len(numbers)
                queue.append(after)
            assert row[token_class] == -1, f"{state} has two ways to go on"
            row[token_class] = numbers[after]
        rows.append(row)
    return numbers, rows


def _is_floored(state: _State) -> bool:
    return state.phrase in _PHRASES and _PHRASES[state.phrase][state.progress]


def _finish_costs(next_state: Int[NDArray, "Q C"], *, end: int) -> Int[NDArray, "Q"]:
    """The fewest tokens from each state to the end."""
    never = np.iinfo(np.int32).max - 1
    costs = np.full(len(next_state), never, np.int32)
    costs[end] = 0
    while True:
        behind = np.where(next_state >= 0, costs[next_state], never).min(axis=1)
        closer = np.minimum(costs, behind + 1)
        if (closer == costs).all():
            assert (costs < never).all(), "a state from which there is no end"
            return costs
        costs = closer.astype(np.int32)
