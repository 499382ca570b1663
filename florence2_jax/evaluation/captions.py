# SPDX-License-Identifier: Apache-2.0
"""Captions: CIDEr-D, BLEU-4, ROUGE-L, and which objects and colours are named rightly.

The three corpus metrics follow pycocoevalcap to the last digit on tokenised text. They are written
here because that package weighs 100 MB and its tokenizer and other metrics start Java.
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
_TOKEN = re.compile(
    r"\w+?(?=n't\b)|n't\b"  # is n't
    r"|'(?:s|m|d|re|ve|ll)\b"  # man 's
    r"|\w+(?:[-/]\w+|(?<=\d)[.,:]\d+)*"  # dog, close-up, either/or, 1,000, 5:55
    r"|[^\w\s]"
)
_DROPPED = frozenset(".?!,:;-'\"`()[]{}…“”‘’–—")


def caption_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Corpus CIDEr-D, BLEU-4 and ROUGE-L (mean over images).

    Each `Scored` is one image (one region for `<REGION_TO_DESCRIPTION>`) with its references; the
    inverse document frequencies of CIDEr come from these references, so the scores of two sets of
    images do not compare, and a single image has CIDEr 0. An answer without words scores 0.

    Source: the COCO caption protocol (arXiv:1504.00325), which prints all of these times 100.
    """
    pairs = _tokenized(scored)
    candidates, references = [c for c, _ in pairs], [r for _, r in pairs]
    return {
        "cider": mean(cider_d(candidates, references)),
        "bleu4": float(bleu(candidates, references)[-1]),
        **rouge_metrics(scored),
    }


def rouge_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """ROUGE-L alone, the one of the three that speaks for a single caption."""
    return {"rouge_l": mean([rouge_l(*pair) for pair in _tokenized(scored)])}


def _tokenized(scored: Sequence[Scored]) -> list[tuple[list[str], list[list[str]]]]:
    return [
        (tokenize_caption(one.text), [tokenize_caption(text) for text in one.true_texts])
        for one in scored
        if one.true_texts
    ]


def tokenize_caption(text: str) -> list[str]:
    """Lower-case words, clitics split off, punctuation dropped.

    It does what the Penn Treebank tokenizer of the protocol does to captions: `isn't` -> `is n't`,
    `man's` -> `man 's`, hyphenated words and numbers stay whole. Of 6,000 COCO captions 8 come out
    otherwise, all because an abbreviation (`st.`) loses its period here.
    """
    text = text.lower().replace("’", "'")
    return [token for token in _TOKEN.findall(text) if token not in _DROPPED]


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
