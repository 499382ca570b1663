# SPDX-License-Identifier: Apache-2.0
"""Questions: the official VQA accuracy, its quirks included, since published numbers have them."""

import re
from collections.abc import Sequence

from florence2_jax.evaluation.scored import Scored, mean

_NUM_ANSWERS = 10  # Of every question of VQA v2, and the people agreeing decide the score.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate("one two three four five six seven eight nine ten".split(), 1)
}
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def _one_apostrophe_lost() -> dict[str, str]:
    """`dont` -> `don't`: each contraction by the spellings that lack one of its apostrophes."""
    table = {"somebody'd": "somebodyd"}  # The wrong way round in the official table.
    for word in _CONTRACTIONS.split():
        for match in re.finditer("'", word):
            table[word[: match.start()] + word[match.end() :]] = word
    return table


_MENDED = _one_apostrophe_lost()


def vqa_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """The mean of `vqa_accuracy` over questions; NaN of none."""
    return {
        "accuracy": mean(
            [vqa_accuracy(one.text, one.true_texts) for one in scored if one.true_texts]
        )
    }


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """How many people agree with an answer, in [0, 1].

    With ten references or more: the mean, over each person left out in turn, of `min(1, matches
    among the others / 3)`; one, two, three and four or more of ten that match give 0.3, 0.6, 0.9
    and 1. Texts are normalised only if the references differ: ten times "Yes" is not met by "yes".

    With fewer: 1 if the answer equals any of them, both normalised, else 0 (ours; the official
    code would call no single person right).

    Source: VQA (arXiv:1505.00468) and its released evaluation code.
    """
    if len(references) < _NUM_ANSWERS:
        return float(normalize_answer(answer) in map(normalize_answer, references))
    return official_vqa_accuracy(answer, references)


def official_vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy of ten answers, and by the same formula of any other number of them.

    Raises ValueError without a reference. An empty answer is right only where a person gave none.
    """
    if not references:
        raise ValueError("VQA accuracy of a question without answers of people")
    if len(set(references)) > 1:
        answer, references = normalize_answer(answer), list(map(normalize_answer, references))
    return _agreement(_one_line(answer), [_one_line(text) for text in references])


def textvqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The accuracy of TextVQA: VQA's formula, but texts are always normalised, and otherwise.

    Commas and question marks vanish first, and `'s` is split off.

    Raises ValueError without a reference. An empty answer is right only where a person gave none.

    Source: TextVQA (arXiv:1904.08920), the evaluator released with MMF.
    """
    if not references:
        raise ValueError("TextVQA accuracy of a question without answers of people")
    found, *true = (_normalize_textvqa(text) for text in (answer, *references))
    return _agreement(found, true)


def _agreement(answer: str, references: Sequence[str]) -> float:
    """The mean, over each person left out in turn, of `min(1, matches among the others / 3)`."""
    matches = [text == answer for text in references]
    return mean([min(1.0, (sum(matches) - match) / 3) for match in matches])


def _one_line(text: str) -> str:
    return re.sub("[\n\t]", " ", text).strip()


def _normalize_textvqa(text: str) -> str:
    text = re.sub("[,?]", "", text.lower()).replace("'s", " 's").strip()
    return normalize_answer(text)


def normalize_answer(text: str) -> str:
    """The official normal form: `red/blue` -> `red blue`, `Two dogs!` -> `2 dogs`.

    Line breaks, punctuation, case, number words (`none` is 0), articles and lost apostrophes. A
    mark beside a blank vanishes, another becomes a blank, and all vanish if any comma stands
    between digits. Periods stay before a digit only, and at most 32 are taken out.
    """
    text = _one_line(text)
    has_thousands = re.search(r"\d,\d", text) is not None
    is_beside_blank = {mark: f"{mark} " in text or f" {mark}" in text for mark in _PUNCTUATION}
    for mark, is_beside in is_beside_blank.items():
        text = text.replace(mark, "" if is_beside or has_thousands else " ")
    text = re.sub(r"\.(?!\d)", "", text, count=32)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)
