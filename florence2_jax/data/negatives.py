# SPDX-License-Identifier: Apache-2.0
"""Open-vocabulary questions that can be answered with "none", and with several names.

A model that is only ever asked for what is there learns to find everything. Some of its questions
therefore name what is absent, alone or among names that are present, joined by `<and>`. Boxes are
written for what is there; the target of names that are all absent is empty, nothing but `</s>`,
which reads back as no box. (What the released models were taught for absent names is not known; an
empty answer is what their parser and our grammar read as "none".)

Absent means: the record has no region of that name nor of one that holds it or is held by it ("car"
where there is a "sports car"), whatever the case, number and blanks, and no text, label, question
or answer of the record says the word. True synonyms ("sofa", "couch") are not known here, nor what
nobody annotated: ask for absent names of stores whose categories were annotated exhaustively.

Absent names come from the store itself and are drawn as often as they occur in it; else how rare a
name is would tell that it is absent.

Source: ours; negatives in the prompt follow open-vocabulary detectors such as GLIP
(arXiv:2112.03857).
"""

import bisect
import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from florence2_jax.data.examples import Example
from florence2_jax.data.texts import record_texts
from florence2_jax.records.schema import Record
from florence2_jax.tasks.targets import clean_text
from florence2_jax.typing import UserError

_AND = "<and>"
_TRIES_PER_NAME = 20
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "oxen": "ox", "knives": "knife",
    "leaves": "leaf", "shelves": "shelf", "loaves": "loaf", "wolves": "wolf", "calves": "calf",
    "scarves": "scarf", "halves": "half",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegativesConfig:
    """How open-vocabulary questions vary; by default they do not.

    Raises:
        UserError: naming the key (`negatives.share`) of a value out of its range.
    """

    share: float = 0.0  # Of the questions, those that also name what is absent.
    alone: float = 0.5  # Of these, those that name nothing else.
    max_absent: int = 3  # Most absent names in a question; their number is drawn evenly.
    max_names: int = 0  # Most names that are present: some are drawn; 0 asks for all, in order.

    def __post_init__(self):
        for name in ("share", "alone"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"negatives.{name}: {getattr(self, name)} is not in [0, 1]")
        if self.max_absent < 1:
            raise UserError(f"negatives.max_absent: {self.max_absent} must be at least 1")
        if self.max_names < 0:
            raise UserError(f"negatives.max_names: {self.max_names} must not be negative")


@dataclasses.dataclass(frozen=True)
class NamePool:
    """Category names of a store, in order of falling frequency; none by default.

    Attributes:
        names: as targets spell them.
        keys: what `name_key` makes of them.
        totals: in how many records each name or one before it occurs: counts, summed up.
    """

    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    totals: tuple[int, ...] = ()

    @classmethod
    def of(cls, records: Iterable[Record], *, max_names: int = 10_000) -> "NamePool":
        """The most frequent names of some records; spellings with one key count as one name."""
        counts: collections.Counter[str] = collections.Counter()
        spellings: dict[str, str] = {}
        for record in records:
            labels = (label for region in record.regions for label in region.labels)
            names = {clean_text(label.text) for label in labels if label.kind == "category"}
            by_key = {name_key(name): name for name in sorted(names)}
            by_key.pop("", None)
            counts.update(by_key.keys())
            spellings = by_key | spellings  # The first spelling stays.
        rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))[:max_names]
        return cls(
            names=tuple(spellings[key] for key, _ in rows),
            keys=tuple(key for key, _ in rows),
            totals=tuple(itertools.accumulate(count for _, count in rows)),
        )

    def draw(self, rng: np.random.Generator) -> int:
        """The index of a name, as often as it occurs."""
        return bisect.bisect_right(self.totals, int(rng.integers(self.totals[-1])))


def collect_names(
    store: Sequence[Record], *, sample: int = 2048, max_names: int = 10_000
) -> NamePool:
    """The pool of an even sample of a store; records that cannot be read are passed over.

    Raises:
        UserError: if the sample has no category names.
    """

    def readable():
        for index in range(0, len(store), max(1, len(store) // sample)):
            try:
                yield store[index]
            except UserError:
                continue  # Training sets it aside, with its reason.

    pool = NamePool.of(readable(), max_names=max_names)
    if not pool.names:
        raise UserError(f"negatives.share: {store!r} has no category names to ask for; set it to 0")
    return pool


def vary_names(
    example: Example,
    record: Record,
    pool: NamePool,
    rng: np.random.Generator,
    config: NegativesConfig,
) -> Example:
    """An open-vocabulary example that may ask for fewer names, and for absent ones.

    Examples of other tasks come back as they are, and so does one for which twenty draws per name
    find nothing absent. Names asked for together are in random order where any were added or taken.

    Args:
        record: what the example was made of; where a crop was made, the record before it, so that
            nothing counts as absent that is half in view.
    """
    if example.task.grammar != "named_boxes":
        return example
    names = example.text_input.split(_AND)
    if config.max_names and len(names) > 1:
        number = int(rng.integers(1, min(config.max_names, len(names)) + 1))
        names = [names[i] for i in rng.permutation(len(names))[:number]]
    if config.share and rng.random() < config.share:  # Off, it leaves the generator alone.
        absent = draw_absent(record, pool, int(rng.integers(1, config.max_absent + 1)), rng)
        if absent:
            names = absent if rng.random() < config.alone else names + absent
            names = [names[i] for i in rng.permutation(len(names))]
    wanted = set(names)
    regions = tuple(region for region in example.regions if region.label in wanted)
    return dataclasses.replace(example, text_input=_AND.join(names), regions=regions)


def draw_absent(record: Record, pool: NamePool, number: int, rng: np.random.Generator) -> list[str]:
    """Up to `number` names of the pool that are absent from a record and unlike each other."""
    if not pool.names:
        return []
    labels = (label for region in record.regions for label in region.labels)
    # Crowds among them: nobody is asked for them, but they are there.
    taken = {name_key(label.text) for label in labels if label.kind == "category"}
    taken.discard("")
    said = "|".join(map(_spoken, record_texts(record)))
    absent: list[str] = []
    for _ in range(_TRIES_PER_NAME * number):
        index = pool.draw(rng)
        name, key = pool.names[index], pool.keys[index]
        if any(key in other or other in key for other in taken):
            continue
        if _spoken(name) in said:
            continue
        absent.append(name)
        taken.add(key)
        if len(absent) == number:
            break
    return absent


def name_key(name: str) -> str:
    """What spellings of one name share: no case, no plural, nothing but letters and digits.

    Not meant to be read: `Fire-Trucks` and `firetruck` are "firetruck", `Houses` is "hous".
    """
    words = _words(name)
    return "".join([*words[:-1], *map(_stem, words[-1:])])


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _spoken(text: str) -> str:
    """The stems of a text between blanks, so that whole words can be looked for."""
    return f" {' '.join(map(_stem, _words(text)))} "


def _stem(word: str) -> str:
    """An English noun without its plural; without a last "e", as no rule tells houses from buses.

    Words that only differ in that ("plan", "plane") count as one, which loses a question, no truth.
    """
    if word in _IRREGULAR:
        word = _IRREGULAR[word]
    elif len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return word[:-2] + "y" if word.endswith("ie") else word.removesuffix("e")
