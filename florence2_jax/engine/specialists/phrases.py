# SPDX-License-Identifier: Apache-2.0
"""Which characters of a caption name things.

With a spaCy model its noun chunks. Without one a rule: runs of words between punctuation and words
of grammar, an article beginning a new one. It knows no parts of speech, so some of what it finds is
no noun; what grounds or compares phrases gives those low scores.
"""

import functools
import re
from typing import Any

from florence2_jax.engine.specialists.base import SpecialistError
from florence2_jax.engine.specialists.configured import needs
from florence2_jax.text.phrases import BANNED_PHRASES

_PIECE = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[^\w\s]|_")
_BEFORE_NOUNS = frozenset(
    """a an the this that these those his her its their our my your some any each every another
    both several many two three four five six seven eight nine ten""".split()
)
_GRAMMAR = frozenset(
    """and or but nor so yet if while as than then when where because although of in on at by to
    from with without into onto over under above below behind beside besides between among through
    across along against around near next before after during inside outside off out up down
    toward towards upon via for about like i you he she it we they him them us who whom whose
    which what there here is are was were be been being am has have had having do does did can
    could will would shall should may might must not no very too also just only it's there's
    appears appear seems seem looks look shows show features feature stands stand sits sit lies
    lie holds hold wears wear walks walk runs run rides ride""".split()
)
_NOUNS_IN_ING = frozenset(
    """building ceiling clothing painting railing string spring morning evening wing king ring
    lighting awning swing thing earring wedding parking dining living swimming landing something
    sling crossing drawing sing bring""".split()
)


def phrase_spans(text: str, *, nlp: Any = None) -> list[tuple[int, int]]:
    """Characters `[start, end)` of the phrases of a text, in order, none of them banned.

    Args:
        nlp: a spaCy pipeline with a parser, see `load_parser`.

    Source of the list of banned phrases: the released processor of Florence-2.
    """
    if nlp is not None:
        spans = [(chunk.start_char, chunk.end_char) for chunk in nlp(text).noun_chunks]
    else:
        spans = _by_rule(text)
    return [(start, end) for start, end in spans if _says_something(text[start:end])]


def _says_something(phrase: str) -> bool:
    words = phrase.lower().split()
    return (
        bool(words)
        and words[-1] not in _BEFORE_NOUNS
        and phrase not in BANNED_PHRASES
        and " ".join(words) not in BANNED_PHRASES
    )


def _by_rule(text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    is_open = False
    for match in _PIECE.finditer(text):
        word = match.group().lower()
        is_verb = len(word) > 4 and word.endswith("ing") and word not in _NOUNS_IN_ING
        if not match.group()[0].isalnum() or word in _GRAMMAR or is_verb:
            is_open = False
        elif is_open and word not in _BEFORE_NOUNS:
            spans[-1] = spans[-1][0], match.end()
        else:
            spans.append(match.span())
            is_open = True
    return spans


@functools.lru_cache(maxsize=2)
def load_parser(name: str) -> Any:
    """A spaCy pipeline that finds noun chunks, None for no name.

    Raises:
        SpecialistError: if spaCy or the pipeline is missing, or it has no parser.
    """
    if not name:
        return None
    spacy = needs("spacy", '"florence2-jax[engine]"')
    try:
        nlp = spacy.load(name, exclude=["ner"])
        list(nlp("A red car.").noun_chunks)
    except OSError as error:
        raise SpecialistError(
            f"{name}: no pipeline of spaCy; run: python -m spacy download {name}, or give none"
        ) from error
    except (ValueError, NotImplementedError) as error:  # E029: no parse; or no chunks at all.
        raise SpecialistError(f"{name}: has no parser that finds noun chunks") from error
    return nlp
