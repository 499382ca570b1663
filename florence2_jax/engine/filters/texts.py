# SPDX-License-Identifier: Apache-2.0
"""Texts: too many objects, too little in them, too long, repeating, foreign, or with banned words.

Source: Florence-2 §4 for the number of objects and the complexity of objects and actions; the
other tests, and all thresholds, are ours.
"""

import dataclasses
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from florence2_jax.engine.filters.limits import by_granularity, check_counts, check_shares
from florence2_jax.engine.filters.marking import Drop
from florence2_jax.engine.filters.syntax import MAX_CHARACTERS, Semantics
from florence2_jax.records.schema import Granularity, Record

ENGLISH = tuple(
    """a an the this that these those it its he she his her they their there and or but while as of
    in on at to with by for from into over under near is are was were be been has have""".split()
)
"""Function words that no English text of some length does without."""

_TOO_LONG = f"over {MAX_CHARACTERS:,} characters"

_MIN_WORDS = dict(brief=3, detailed=10, more_detailed=25)
_MAX_WORDS = dict(brief=40, detailed=120, more_detailed=300)
_MAX_OBJECTS = dict(brief=10, detailed=32, more_detailed=64)
_MIN_OBJECT_COMPLEXITY = dict(brief=1, detailed=2, more_detailed=2)
_MIN_ACTION_COMPLEXITY = dict(brief=0, detailed=1, more_detailed=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Thresholds on texts; those of words, objects and complexity for each length of text.

    Lengths that are not given keep their default. Averages of FLD-5B are 3.23, 13.31 and 28.06
    objects; the limits are two to three times that.

    Attributes:
        parser: spaCy pipeline, a name or a folder with a `/` in it; "" for none.
        max_word_share: of the most frequent word among all, function words aside; in texts of
            `min_words_judged` words or more.
        max_ngram_repeats: how often the same four words in a row may stand in a text.
        script: of letters, as Unicode names them (LATIN, CYRILLIC, HIRAGANA); "" for any.
        min_script_share: of letters in that script among all letters.
        function_words: of the language; none for any language.
        min_function_share: of those among the words, in texts of `min_words_judged` or more.
        banned_words: no text, label, grounding or question may hold one, whatever the case.
    """

    parser: str = "en_core_web_sm"
    min_words: Mapping[str, int] = dataclasses.field(default_factory=dict)
    max_words: Mapping[str, int] = dataclasses.field(default_factory=dict)
    max_objects: Mapping[str, int] = dataclasses.field(default_factory=dict)
    min_object_complexity: Mapping[str, int] = dataclasses.field(default_factory=dict)
    min_action_complexity: Mapping[str, int] = dataclasses.field(default_factory=dict)
    max_word_share: float = 0.34
    max_ngram_repeats: int = 2
    min_words_judged: int = 8
    script: str = "LATIN"
    min_script_share: float = 0.8
    function_words: tuple[str, ...] = ENGLISH
    min_function_share: float = 0.1
    banned_words: tuple[str, ...] = ()

    def __post_init__(self):
        check_shares(self, "max_word_share", "min_script_share", "min_function_share")
        check_counts(self, max_ngram_repeats=1, min_words_judged=1)
        by_granularity(
            self,
            min_words=_MIN_WORDS,
            max_words=_MAX_WORDS,
            max_objects=_MAX_OBJECTS,
            min_object_complexity=_MIN_OBJECT_COMPLEXITY,
            min_action_complexity=_MIN_ACTION_COMPLEXITY,
        )


def text_drops(
    record: Record, config: TextConfig, parsed: Sequence[Semantics | None]
) -> Iterator[Drop]:
    """Texts that fail a test, and groundings of such texts; banned words anywhere.

    Args:
        parsed: counts for each text of the record; where one is None, the tests of objects,
            actions and their complexity are left out.
    """
    reasons: dict[str, str] = {}
    for i, text in enumerate(record.texts):
        if reason := judge(text.text, text.granularity, config, parsed[i]):
            reasons[text.text] = reason
            yield Drop("text", (i,), reason)
    for i, grounding in enumerate(record.groundings):
        if reason := reasons.get(grounding.text) or _foul(grounding.text, config):
            yield Drop("grounding", (i,), reason)
    yield from _other_words(record, config)


def judge(text: str, granularity: Granularity, config: TextConfig, parsed: Semantics | None) -> str:
    """Why a text is dropped, "" if it is not. The first of the tests that fails tells."""
    if len(text) > MAX_CHARACTERS:
        return _TOO_LONG
    words = words_of(text)
    length = granularity.replace("_", " ")
    if len(words) < (least := config.min_words[granularity]):
        return f"{length} text under {least} words"
    if len(words) > (most := config.max_words[granularity]):
        return f"{length} text over {most} words"
    if reason := _foul(text, config):
        return reason
    if parsed is None:
        return ""
    if parsed.objects > (most := config.max_objects[granularity]):
        return f"{length} text of more than {most} objects: {parsed.objects}"
    for what in ("object", "action"):
        found = getattr(parsed, f"{what}_complexity")
        if found < (least := getattr(config, f"min_{what}_complexity")[granularity]):
            return f"{length} text of {what} complexity under {least}: {found}"
    return ""


def words_of(text: str) -> list[str]:
    """The words of a text without case and punctuation; apostrophes and hyphens join.

    Of a text of over `MAX_CHARACTERS` those of its beginning.
    """
    return re.findall(r"\w+(?:['’-]\w+)*", text[:MAX_CHARACTERS].casefold())


def _foul(text: str, config: TextConfig) -> str:
    """The tests that know no length of text."""
    if reason := _unfit(text, config):
        return reason
    words = words_of(text)
    return _repetition(words, config) or _foreign(text, words, config)


def _unfit(text: str, config: TextConfig) -> str:
    """The tests of any words at all."""
    if len(text) > MAX_CHARACTERS:
        return _TOO_LONG
    word = _banned_word(text, config.banned_words)
    return f"banned word: {word}" if word else ""


def _repetition(words: Sequence[str], config: TextConfig) -> str:
    ngrams = Counter(zip(*(words[k:] for k in range(4)), strict=False))
    if ngrams and ngrams.most_common(1)[0][1] > config.max_ngram_repeats:
        return f"four words in a row over {config.max_ngram_repeats} times"
    told = Counter(word for word in words if word not in config.function_words)
    if len(words) >= config.min_words_judged and told:
        word, number = told.most_common(1)[0]
        if number / len(words) > config.max_word_share:
            return f"one word over {config.max_word_share:.0%} of a text: {word}"
    return ""


def _foreign(text: str, words: Sequence[str], config: TextConfig) -> str:
    letters = [character for character in text if character.isalpha()]
    if config.script and letters:
        known = sum(_script(character).startswith(config.script) for character in letters)
        if known / len(letters) < config.min_script_share:
            return f"letters in {config.script} under {config.min_script_share:.0%}"
    if config.function_words and len(words) >= config.min_words_judged:
        share = sum(word in config.function_words for word in words) / len(words)
        if share < config.min_function_share:
            return f"function words under {config.min_function_share:.0%}"
    return ""


@functools.lru_cache(maxsize=4096)
def _script(character: str) -> str:
    return unicodedata.name(character, "")


def _other_words(record: Record, config: TextConfig) -> Iterator[Drop]:
    """Labels and questions; texts and groundings have been judged."""
    for i, region in enumerate(record.regions):
        for j, label in enumerate(region.labels):
            if reason := _unfit(label.text, config):
                yield Drop("label", (i, j), reason)
    for i, question in enumerate(record.questions):
        said = (question.question, *question.answers)
        if reason := next(filter(None, (_unfit(text, config) for text in said)), ""):
            yield Drop("question", (i,), reason)


def _banned_word(text: str, banned: Sequence[str]) -> str:
    """The first banned word, or run of words, in a text."""
    if not banned:
        return ""
    said = f" {' '.join(words_of(text))} "
    return next((word for word in banned if f" {' '.join(words_of(word))} " in said), "")
