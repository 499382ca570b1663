# SPDX-License-Identifier: Apache-2.0
"""What is said about a drawn scene: labels, texts with grounded phrases, questions with answers.

Everything follows from the `Facts` of a scene, and only what is clear in the picture is said: a
relation needs a margin and a main direction, a phrase or an answer must fit one thing alone. The
grammar is small on purpose, so that a small model learns it.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TypeAlias

from florence2_jax.records.scene_raster import Dice
from florence2_jax.records.scene_shapes import COLORS, KINDS
from florence2_jax.records.schema import Granularity, Span
from florence2_jax.typing import Box, Size

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
MAX_WORDS: dict[Granularity, int] = {"brief": 14, "detailed": 30, "more_detailed": 60}

# Name: the step on each axis towards which it points.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
_OUTERMOST = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}

_CLEAR = 0.15  # Share of the image's side between two centres, for a relation to be said.
_FAINT = 0.03  # Beyond this one might say it, so that the other thing is not the only one.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    """An object in view; `box` is that of its visible pixels."""

    kind: str
    color: str
    texture: str
    size: str
    box: Box


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """A word or a number in view; `box` is the hull of its frame."""

    text: str
    color: str
    box: Box

    @property
    def noun(self) -> str:
        """`word` or `number`."""
        return "number" if self.text.isdigit() else "word"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """All that there is to say about a scene; `size` is `(width, height)` in pixels."""

    size: Size
    things: tuple[Thing, ...]
    writings: tuple[Writing, ...]
    background: str
    finish: str

    def of_kind(self, kind: str) -> list[Thing]:
        """The things of one kind."""
        return [thing for thing in self.things if thing.kind == kind]

    def lone_things(self) -> list[Thing]:
        """The things that are the only ones of their kind, so that "the tree" names them."""
        return [thing for thing in self.things if len(self.of_kind(thing.kind)) == 1]


# --- Places ---------------------------------------------------------------------------------


def _reach(a: Box, b: Box, name: str, size: Size) -> float:
    """How far `a` lies from `b` in the direction of a relation, as a share of the image's side."""
    sx, sy = RELATIONS[name]
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    return sx * dx / size[0] + sy * dy / size[1]


def relation(a: Box, b: Box, size: Size) -> str | None:
    """The name in `RELATIONS` by which `a` clearly relates to `b`, None where it is arguable."""
    reaches = sorted(((_reach(a, b, name, size), name) for name in RELATIONS), reverse=True)
    (main, name), (side, _) = reaches[:2]
    return name if main >= _CLEAR and main >= 1.25 * side else None


def place(box: Box, size: Size) -> str:
    """Where a box's centre is: `at the top left`, `on the right`, `in the middle`, ..."""
    x, y = (box[0] + box[2]) / 2 / size[0], (box[1] + box[3]) / 2 / size[1]
    column = "left" if x < 0.4 else "right" if x > 0.6 else ""
    row = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    if row:
        return f"at the {row} {column}".rstrip()
    return f"on the {column}" if column else "in the middle"


# --- Labels of one thing --------------------------------------------------------------------


def describe(thing: Thing, size: Size) -> str:
    """`a large striped red star at the top left`."""
    texture = "" if thing.texture == "plain" else f"{thing.texture} "
    return f"a {thing.size} {texture}{thing.color} {thing.kind} {place(thing.box, size)}"


def refer(facts: Facts, thing: Thing, dice: Dice) -> str | None:
    """An expression that fits this thing alone, None where there is none.

    Half of the time one that is as short as can be, else any that says one thing more.
    """
    rivals = [other for other in facts.of_kind(thing.kind) if other is not thing]
    by_length: dict[int, list[str]] = {}
    names = ("size", "texture", "color")
    for count in range(len(names) + 1):
        for chosen in itertools.combinations(names, count):
            if not any(all(getattr(r, n) == getattr(thing, n) for n in chosen) for r in rivals):
                words = [*(getattr(thing, n) for n in chosen), thing.kind]
                by_length.setdefault(count, []).append(" ".join(words))
    lengths = sorted(by_length)[:2]
    shortest = by_length[lengths[0]] if lengths else []
    longer = by_length[lengths[1]] if len(lengths) > 1 else []
    others = [*longer, *_by_place(facts, thing, rivals)]
    options = shortest if shortest and (not others or dice.chance(0.5)) else others
    return dice.pick(options) if options else None


def _by_place(facts: Facts, thing: Thing, rivals: Sequence[Thing]) -> list[str]:
    """Expressions that tell a thing from others of its kind by where it is."""
    phrases = []
    for word, name in _OUTERMOST.items():
        reaches = [_reach(thing.box, rival.box, name, facts.size) for rival in rivals]
        if reaches and min(reaches) >= _CLEAR:
            phrases.append(f"{word} {thing.kind}")
    for anchor in facts.lone_things():
        name = relation(thing.box, anchor.box, facts.size)
        if name and all(_reach(r.box, anchor.box, name, facts.size) < _FAINT for r in rivals):
            phrases.append(f"the {thing.kind} {name} the {anchor.kind}")
    return phrases


# --- Texts ----------------------------------------------------------------------------------

Piece: TypeAlias = str | tuple[str, tuple[Box, ...]]  # Words, or a phrase and what it speaks of.
Pieces: TypeAlias = list[Piece]


def _join(pieces: Sequence[Piece]) -> tuple[str, tuple[Span, ...]]:
    text, spans = "", []
    for piece in pieces:
        words, boxes = (piece, ()) if isinstance(piece, str) else piece
        if boxes:
            spans.append(Span(start=len(text), end=len(text) + len(words), boxes=boxes))
        text += words
    return text, tuple(spans)


def _length(pieces: Sequence[Piece]) -> int:
    return len(_join(pieces)[0].split())


def _sentence(pieces: Pieces) -> Pieces:
    """With a capital and a full stop."""
    first, *rest = pieces
    if isinstance(first, str):
        return [first[0].upper() + first[1:], *rest, "."]
    return [(first[0][0].upper() + first[0][1:], first[1]), *rest, "."]


def _groups(facts: Facts) -> list[list[Thing]]:
    """Things alike in kind and colour, in the order of the things."""
    groups: dict[tuple[str, str], list[Thing]] = {}
    for thing in facts.things:
        groups.setdefault((thing.kind, thing.color), []).append(thing)
    return list(groups.values())


def _boxes(group: Sequence[Thing]) -> tuple[Box, ...]:
    return tuple(thing.box for thing in group)


def _noun_phrase(group: Sequence[Thing], *, sized: bool) -> Piece:
    """`a red star`, `two small red stars`; the size only where all have it."""
    first = group[0]
    size = f"{first.size} " if sized and len({thing.size for thing in group}) == 1 else ""
    if len(group) == 1:
        return f"a {size}{first.color} {first.kind}", _boxes(group)
    number, plural = NUMBERS[len(group)], KINDS[first.kind].plural
    return f"{number} {size}{first.color} {plural}", _boxes(group)


def _named(writing: Writing) -> Piece:
    return f"the {writing.noun} {writing.text}", (writing.box,)


def _listed(phrases: Sequence[Piece]) -> Pieces:
    """`A, B and C`."""
    pieces: Pieces = []
    for i, phrase in enumerate(phrases):
        if i:
            pieces.append(" and " if i == len(phrases) - 1 else ", ")
        pieces.append(phrase)
    return pieces


def brief(facts: Facts) -> Pieces:
    """`a red star, two blue cars and the word CAFE`; as many of them as the length allows."""
    words = [_named(writing) for writing in facts.writings]
    chosen: list[Piece] = []
    for group in _groups(facts):
        phrase = _noun_phrase(group, sized=False)
        if not chosen or _length(_listed([*chosen, phrase, *words])) <= MAX_WORDS["brief"]:
            chosen.append(phrase)
    return _listed([*chosen, *words])


def detailed(facts: Facts, dice: Dice) -> Pieces:
    """`A small blue car is left of a large green tree. The word CAFE is at the bottom.`"""
    groups = _groups(facts)
    linked = []
    for a, b in itertools.permutations(range(len(groups)), 2):
        names = {relation(x.box, y.box, facts.size) for x in groups[a] for y in groups[b]}
        if len(names) == 1 and None not in names:
            linked.append((a, b, names.pop()))
    sentences: list[Pieces] = []
    if linked:
        a, b, name = dice.pick(linked)
        verb = " is " if len(groups[a]) == 1 else " are "
        first, second = _noun_phrase(groups[a], sized=True), _noun_phrase(groups[b], sized=True)
        sentences.append(_sentence([first, f"{verb}{name} ", second]))
        groups = [group for i, group in enumerate(groups) if i not in (a, b)]
    for group in groups:
        phrase = _noun_phrase(group, sized=True)
        places = {place(thing.box, facts.size) for thing in group}
        if len(places) == 1:
            verb = " is " if len(group) == 1 else " are "
            sentences.append(_sentence([phrase, verb + places.pop()]))
        else:
            sentences.append(_sentence(["there are ", phrase]))
    background = _sentence([f"the background is {facts.background}"])
    words = [
        _sentence([_named(writing), f" is {place(writing.box, facts.size)}"])
        for writing in facts.writings
    ]
    return _paragraph([*sentences[:1], *words, *sentences[1:], background], MAX_WORDS["detailed"])


def more_detailed(facts: Facts, dice: Dice) -> Pieces:
    """A paragraph: the count, the background, then every thing with texture, place, relation."""
    count = len(facts.things)
    verb, noun = ("is", "object") if count == 1 else ("are", "objects")
    opening = (
        f"there {verb} {NUMBERS[count]} {noun} on a {facts.finish} {facts.background} background"
    )
    words: list[Pieces] = []
    for writing in facts.writings:
        where = place(writing.box, facts.size)
        words.append(_sentence([_named(writing), f" is written in {writing.color} {where}"]))
    sentences: list[Pieces] = []
    lone = facts.lone_things()
    for i, thing in enumerate(facts.things):
        phrase = f"a {thing.size} {thing.texture} {thing.color} {thing.kind}"
        pieces: Pieces = [(phrase, (thing.box,)), f" is {place(thing.box, facts.size)}"]
        said = [other for other in facts.things[:i] if other in lone]
        links = [(relation(thing.box, other.box, facts.size), other) for other in said]
        links = [(name, other) for name, other in links if name]
        if links:
            name, other = dice.pick(links)
            pieces += [f", {name} ", (f"the {other.kind}", (other.box,))]
        sentences.append(_sentence(pieces))
    return _paragraph([_sentence([opening]), *words, *sentences], MAX_WORDS["more_detailed"])


def _paragraph(sentences: Sequence[Pieces], max_words: int) -> Pieces:
    """As many sentences as the length allows; the first ones matter most."""
    pieces: Pieces = []
    for sentence in sentences:
        longer = [*pieces, *([" "] if pieces else []), *sentence]
        if not pieces or _length(longer) <= max_words:
            pieces = longer
    return pieces


def texts(facts: Facts, dice: Dice) -> dict[Granularity, tuple[str, tuple[Span, ...]]]:
    """A text per granularity, at most `MAX_WORDS` long, with the phrases that speak of boxes."""
    return {
        "brief": _join(brief(facts)),
        "detailed": _join(detailed(facts, dice)),
        "more_detailed": _join(more_detailed(facts, dice)),
    }


# --- Questions ------------------------------------------------------------------------------


def questions(facts: Facts, dice: Dice) -> list[tuple[str, str]]:
    """Two to four questions, each with its one answer; what is written is always asked."""
    others = [_ask_count(facts, dice), _ask_presence(facts, dice)]
    lone = facts.lone_things()
    if lone:
        thing = dice.pick(lone)
        others.append((f"what color is the {thing.kind}?", thing.color))
    related = _ask_relations(facts)
    if related:
        others.append(dice.pick(related))
    asked = []
    if len(facts.writings) == 1:
        writing = facts.writings[0]
        asked.append((f"what {writing.noun} is written?", writing.text))
    return (asked + dice.shuffled(others))[: 2 + dice.below(3)]


def _ask_count(facts: Facts, dice: Dice) -> tuple[str, str]:
    kinds = sorted({thing.kind for thing in facts.things})
    several = [kind for kind in kinds if len(facts.of_kind(kind)) > 1]
    if len(facts.things) > 1 and dice.chance(0.5):
        return "how many objects are there?", NUMBERS[len(facts.things)]
    kind = dice.pick(several or kinds)
    return f"how many {KINDS[kind].plural} are there?", NUMBERS[len(facts.of_kind(kind))]


def _ask_presence(facts: Facts, dice: Dice) -> tuple[str, str]:
    """As often yes as no; a no is another kind, or a kind that is there in another colour."""
    present = {(thing.color, thing.kind) for thing in facts.things}
    kinds = {kind for _, kind in present}
    with_color = dice.chance(0.5)
    if dice.chance(0.5):
        color, kind = dice.pick(sorted(present))
        answer = "yes"
    else:
        answer = "no"
        recolored = [(c, k) for k in sorted(kinds) for c in COLORS if (c, k) not in present]
        with_color = with_color and bool(recolored)
        absent = recolored if with_color else [("", kind) for kind in KINDS if kind not in kinds]
        color, kind = dice.pick(absent)
    return f"is there a {f'{color} ' if with_color else ''}{kind}?", answer


def _ask_relations(facts: Facts) -> list[tuple[str, str]]:
    """Questions such as "what is left of the tree?" with one thing there, and clearly there."""
    found = []
    everything = (*facts.things, *facts.writings)
    for anchor in facts.lone_things():
        for name in RELATIONS:
            there = [
                item
                for item in everything
                if item is not anchor and _reach(item.box, anchor.box, name, facts.size) > _FAINT
            ]
            is_clear = [relation(item.box, anchor.box, facts.size) == name for item in there]
            if is_clear == [True] and isinstance(there[0], Thing):
                found.append((f"what is {name} the {anchor.kind}?", there[0].kind))
    return found
