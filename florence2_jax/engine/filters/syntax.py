# SPDX-License-Identifier: Apache-2.0
"""What a text speaks of, counted in its dependency tree: objects, attributes, actions.

The complexity of an object or an action is the number of words that its word is tied to: its degree
in the undirected dependency tree. Punctuation and blanks are no words.

Source: Florence-2 §4 (filtering of texts, statistics of semantics), after DiHT (arXiv:2301.02280).
Which parts of speech count as what is ours: neither gives a list.
"""

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence2_jax.typing import UserError

MAX_CHARACTERS = 20_000
"""Longer texts are not looked into: no target is nearly as long, and some answers are garbage."""

NO_WORDS = ("PUNCT", "SPACE")
OBJECTS, ATTRIBUTES, ACTIONS = ("NOUN", "PROPN"), ("ADJ",), ("VERB",)
"""Parts of speech of Universal Dependencies. Auxiliaries are no actions."""


FLD5B = {
    "brief": (3.23, 2.80, 0.58, 1.10, 2.80, 1.14),
    "detailed": (13.31, 7.27, 4.21, 2.40, 4.00, 3.63),
    "more_detailed": (28.06, 16.25, 8.76, 2.41, 4.02, 4.38),
}
"""Averages per text in FLD-5B, in the order of `Semantics`. Source: Florence-2 §4."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Semantics:
    """Counts of one text; complexities are the highest of it, 0 where there is nothing."""

    objects: int = 0
    attributes: int = 0
    actions: int = 0
    proper_nouns: int = 0
    object_complexity: int = 0
    action_complexity: int = 0


@dataclasses.dataclass(frozen=True)
class Parser:
    """A spaCy pipeline, or why there is none."""

    identity: str
    problem: str = ""
    pipeline: Any = None

    def parse(self, texts: Sequence[str]) -> list[Semantics | None]:
        """Counts for each text; None without a pipeline, and for texts of over `MAX_CHARACTERS`."""
        if self.pipeline is None:
            return [None] * len(texts)
        short = [text for text in texts if len(text) <= MAX_CHARACTERS]
        parsed = dict(zip(short, map(semantics, self.pipeline.pipe(short)), strict=True))
        return [parsed.get(text) for text in texts]


def semantics(doc: Any) -> Semantics:
    """Counts of a parsed `spacy.tokens.Doc`."""
    words = [token for token in doc if token.pos_ not in NO_WORDS]
    degrees = {token.i: 0 for token in words}
    for token in words:
        if token.head.i != token.i and token.head.i in degrees:
            degrees[token.i] += 1
            degrees[token.head.i] += 1
    objects, attributes, actions = (
        [token for token in words if token.pos_ in parts]
        for parts in (OBJECTS, ATTRIBUTES, ACTIONS)
    )
    return Semantics(
        objects=len(objects),
        attributes=len(attributes),
        actions=len(actions),
        proper_nouns=sum(token.pos_ == "PROPN" for token in objects),
        object_complexity=max((degrees[token.i] for token in objects), default=0),
        action_complexity=max((degrees[token.i] for token in actions), default=0),
    )


@functools.lru_cache(maxsize=4)
def load_parser(name: str) -> Parser:
    """The spaCy pipeline of a name, loaded once in a process.

    Args:
        name: of an installed pipeline (`en_core_web_sm`), its folder, or "" for none.

    Returns:
        Without a pipeline where spaCy or the pipeline is not installed, or does not tell parts of
        speech and a dependency tree; `problem` then says so.

    Raises:
        UserError: if the name is that of a folder which is not there or cannot be loaded.
    """
    if not name:
        return Parser("none", "no parser is named (`parser`)")
    if "/" in name and not Path(name).is_dir():
        raise UserError(f"filter, parser: {name}: there is no such folder")
    try:
        spacy = importlib.import_module("spacy")
    except ImportError:
        return Parser("none", "spaCy is not installed; run: pip install spacy")
    try:
        pipeline = spacy.load(name, exclude=["ner", "lemmatizer", "textcat"])
    except OSError as error:
        if "/" in name:
            reason = str(error).partition("\n")[0]
            raise UserError(f"filter, parser: {name} is no spaCy pipeline ({reason})") from error
        advice = f"run: python -m spacy download {name}"
        return Parser("none", f"the spaCy pipeline {name} is not installed; {advice}")
    meta = pipeline.meta
    identity = (
        f"{meta.get('lang')}_{meta.get('name')} {meta.get('version')}, spaCy {spacy.__version__}"
    )
    doc = pipeline("a dog runs")
    missing = [what for what in ("POS", "DEP") if not doc.has_annotation(what)]
    if missing:
        return Parser(identity, f"the spaCy pipeline {name} does not set {' and '.join(missing)}")
    return Parser(identity, pipeline=pipeline)
