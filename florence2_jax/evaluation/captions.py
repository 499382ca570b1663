# SPDX-License-Identifier: Apache-2.0
"""Captions: CIDEr-D, BLEU, ROUGE-L, and which objects and colours are named rightly.

The corpus metrics follow pycocoevalcap to the last digit on tokenised text. They are written here
because that package weighs 100 MB and its tokenizer and other metrics start Java; METEOR, which is
a Java program, is asked for where it is present (`java_metrics.py`).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from florence2_jax.evaluation.scored import Scored, f1_score, mean

Tokens: TypeAlias = Sequence[str]

BASIC_COLORS = frozenset(
    "black white red green yellow blue brown purple pink orange gray grey".split()
)
_MAX_ORDER = 4  # Words in the longest n-gram.
_CIDER_SIGMA = 6.0
_ROUGE_BETA = 1.2
_ABBREVIATIONS = (  # Those of words that captions have; "no.", "apt." and "oz." lose the period.
    "st rd dr mr mrs ms jr sr ave blvd etc vs inc co corp ltd prof gen col sgt capt lt gov sen rep "
    "rev hon mt ft ct dept bros bldg mon tue tues wed thu thurs fri jan feb mar apr jun jul aug "
    "sep sept oct nov dec est tel sq pres univ calif fla va md mich minn tenn ph.d"
)
_TOKEN = re.compile(
    rf"\b(?:{'|'.join(map(re.escape, _ABBREVIATIONS.split()))})\."  # etc.
    r"|\b[a-z](?:\.[a-z])+\."  # u.s.a.
    r"|\bcan(?=not\b)|\bgon(?=na\b)|\bgot(?=ta\b)|\bwan(?=na\b)"  # can not
    r"|\by'(?=all\b)|\b[od]'\w+"  # y' all, o'clock
    r"|\w+?(?=n't\b)|n't\b"  # is n't
    r"|'(?:s|m|d|re|ve|ll)\b"  # man 's
    r"|\w+(?:[-/&]\w+|(?<=\d)[.,:]\d+)*"  # dog, close-up, either/or, at&t, 1,000, 5:55
    r"|[!?]{2,}"  # !!, which is no punctuation there
    r"|[^\w\s]"
)
_DROPPED = frozenset(".?!,:;-'\"`…“”‘’–—")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def caption_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """`caption_scores` of answers: each is one image, or one region, with its references."""
    asked = [one for one in scored if one.true_texts]
    return caption_scores([one.text for one in asked], [one.true_texts for one in asked])


def caption_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Corpus CIDEr-D, BLEU-1 to 4 and ROUGE-L (mean over images).

    The inverse document frequencies of CIDEr come from these references, so the scores of two sets
    of images do not compare, and a single image has CIDEr 0. A caption without words scores 0; of
    no images all are NaN. Texts are tokenised by `tokenize_caption`.

    Source: the COCO caption protocol (arXiv:1504.00325), which prints all of these times 100.
    """
    candidates = [tokenize_caption(text) for text in captions]
    true = [[tokenize_caption(text) for text in texts] for texts in references]
    bleus = dict(zip(("bleu1", "bleu2", "bleu3", "bleu4"), bleu(candidates, true), strict=True))
    return {
        "cider": mean(cider_d(candidates, true)),
        "bleu4": float(bleus.pop("bleu4")),
        "rouge_l": mean([rouge_l(*pair) for pair in zip(candidates, true, strict=True)]),
        **{name: float(value) for name, value in bleus.items()},
    }


def rouge_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """ROUGE-L alone, the one of the three that speaks for a single caption."""
    asked = [one for one in scored if one.true_texts]
    values = rouge_similarity([one.text for one in asked], [one.true_texts for one in asked])
    return {"rouge_l": mean(values)}


def rouge_similarity(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each caption, in [0, 1]."""
    return [
        rouge_l(tokenize_caption(text), [tokenize_caption(true) for true in texts])
        for text, texts in zip(captions, references, strict=True)
    ]


def tokenize_caption(text: str) -> list[str]:
    """Lower-case words, clitics split off, punctuation dropped.

    It does what the Penn Treebank tokenizer of the protocol does to captions, its quirks included:
    `isn't` -> `is n't`, `man's` -> `man 's`, `cannot` -> `can not`, `(` -> `-lrb-` and `!!` are
    words, `etc.` keeps its period; hyphenated words and numbers stay whole. Addresses of the
    internet, slang (`rock 'n' roll`), initials and numbers with a unit (`5pm`) come out otherwise.
    """
    tokens: list[str] = _TOKEN.findall(text.lower().replace("’", "'"))
    return [_BRACKETS.get(token, token) for token in tokens if token not in _DROPPED]


def cider_d(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> Float[NDArray, "N"]:
    """CIDEr-D of every image, each in [0, 10]; the corpus score is their mean.

    Source: CIDEr (arXiv:1411.5726) as released for COCO: tf-idf clipped at the reference, sigma 6,
    and a length penalty that counts bigrams.
    """
    references_ngrams = [[_ngrams(text) for text in texts] for texts in references]
    frequency = Counter(gram for texts in references_ngrams for gram in set().union(*texts))
    log_images = math.log(len(references)) if references else 0.0

    def weigh(ngrams: Counter) -> tuple[list[dict], list[float]]:
        orders: list[dict] = [{} for _ in range(_MAX_ORDER)]
        for gram, count in ngrams.items():
            idf = log_images - math.log(max(1, frequency[gram]))
            orders[len(gram) - 1][gram] = count * idf
        return orders, [math.sqrt(sum(w * w for w in order.values())) for order in orders]

    scores = []
    for candidate, texts, ngrams in zip(candidates, references, references_ngrams, strict=True):
        found = weigh(_ngrams(candidate))
        similarities = [
            _cosine(found, weigh(grams)) * _length_penalty(candidate, text)
            for text, grams in zip(texts, ngrams, strict=True)
        ]
        scores.append(10 * float(np.mean(similarities)))
    return np.array(scores, np.float64)


def _ngrams(tokens: Tokens) -> Counter:
    """How often each n-gram of one to four words occurs."""
    orders = (zip(*(tokens[i:] for i in range(n)), strict=False) for n in range(1, _MAX_ORDER + 1))
    return Counter(gram for grams in orders for gram in grams)


def _cosine(found: tuple[list[dict], list[float]], true: tuple[list[dict], list[float]]) -> float:
    """Clipped cosine of two tf-idf vectors, the mean over orders."""
    total = 0.0
    for ours, our_norm, theirs, their_norm in zip(*found, *true, strict=True):
        if our_norm and their_norm:
            shared = ((w, theirs[gram]) for gram, w in ours.items() if gram in theirs)
            total += sum(min(w, v) * v for w, v in shared) / (our_norm * their_norm)
    return total / _MAX_ORDER


def _length_penalty(candidate: Tokens, reference: Tokens) -> float:
    difference = max(len(candidate) - 1, 0) - max(len(reference) - 1, 0)
    return math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))


def bleu(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> Float[NDArray, "4"]:
    """Corpus BLEU-1 to BLEU-4, against the reference of closest length; NaN of nothing.

    Source: BLEU (ACL 2002) with the tiny terms of the COCO code, which leave a small value where no
    n-gram matches.
    """
    if not candidates:
        return np.full(_MAX_ORDER, math.nan)
    correct, guessed = np.zeros(_MAX_ORDER), np.zeros(_MAX_ORDER)
    length = reference_length = 0
    for candidate, texts in zip(candidates, references, strict=True):
        allowed: Counter = Counter()
        for text in texts:
            allowed |= _ngrams(text)
        for gram, count in (_ngrams(candidate) & allowed).items():
            correct[len(gram) - 1] += count
        guessed += [max(len(candidate) - n, 0) for n in range(_MAX_ORDER)]
        length += len(candidate)
        reference_length += min((abs(len(t) - len(candidate)), len(t)) for t in texts)[1]
    precision = np.cumprod((correct + 1e-15) / (guessed + 1e-9))
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    penalty = math.exp(min(0.0, 1 - 1 / ratio))
    return precision ** (1 / np.arange(1, _MAX_ORDER + 1)) * penalty


def rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    """ROUGE-L of one caption, in [0, 1]: best precision and best recall of its references.

    Source: ROUGE (ACL 2004) with beta 1.2, as released for COCO.
    """
    common = [_longest_common_subsequence(candidate, text) for text in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(n / len(text) for n, text in zip(common, references, strict=True) if text)
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def _longest_common_subsequence(a: Tokens, b: Tokens) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        above = row
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return row[-1]


def content_vocabulary(
    names: Iterable[str], *, colors: Iterable[str] = BASIC_COLORS
) -> frozenset[str]:
    """The words of category names and colours, for `object_color_f1`."""
    return frozenset(word for name in (*names, *colors) for word in tokenize_caption(name))


def object_color_f1(scored: Sequence[Scored], *, content_words: frozenset[str]) -> float:
    """Micro-averaged F1 of the object nouns and colours that captions mention.

    Both captions are read as multisets of vocabulary words, plurals folded; of several references
    the one that agrees best counts. Which colour belongs to which object is not looked at: "a red
    star and a blue box" equals "a blue star and a red box". NaN if no reference has such a word.

    Source: ours; CIDEr hardly sees a wrong colour in a long sentence.
    """
    totals = np.zeros(3, int)
    for one in scored:
        found = _mentions(one.text, content_words)
        counts = []
        for text in one.true_texts:
            true = _mentions(text, content_words)
            if true:
                counts.append(((found & true).total(), found.total(), true.total()))
        if counts:
            totals += max(counts, key=lambda count: f1_score(*count)[0])
    return f1_score(*totals.tolist())[0]


def _mentions(text: str, vocabulary: frozenset[str]) -> Counter:
    folded = (_fold(token, vocabulary) for token in tokenize_caption(text))
    return Counter(word for word in folded if word)


def _fold(word: str, vocabulary: frozenset[str]) -> str | None:
    """The vocabulary word that this is, or is the regular plural of: stars, boxes, ponies."""
    forms = [word]
    forms += [word[: -len(end)] + new for end, new in _PLURALS if word.endswith(end)]
    return next((form for form in forms if form in vocabulary), None)


_PLURALS = (("s", ""), ("es", ""), ("ies", "y"))
