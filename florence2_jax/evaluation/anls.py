# SPDX-License-Identifier: Apache-2.0
"""Questions about documents: ANLS, which forgives a misread letter but not a wrong answer."""

from collections.abc import Sequence

from florence2_jax.evaluation.ocr import edit_distance
from florence2_jax.evaluation.scored import Scored, mean

ANLS_THRESHOLD = 0.5


def anls_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """The mean of `anls` over questions; NaN of none."""
    return {"anls": mean([anls(one.text, one.true_texts) for one in scored if one.true_texts])}


def anls(answer: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer, in {0} or [0.5, 1].

    The best over references of `1 - edits / characters of the longer text`, in lower case and with
    blanks and line breaks alike; below 0.5 it counts 0. No answer against no text is a perfect
    match, as in the released code. Raises ValueError without a reference.

    Source: ST-VQA (arXiv:1905.13648) and DocVQA (arXiv:2007.00398), tau 0.5. The paper scores 0
    from a distance of 0.5 on, the code of the competition only beyond it; this does as the code.
    """
    if not references:
        raise ValueError("ANLS of a question without a reference")
    found = " ".join(answer.lower().split())
    best = max(_similarity(found, " ".join(text.lower().split())) for text in references)
    return best if best >= ANLS_THRESHOLD else 0.0


def _similarity(a: str, b: str) -> float:
    length = max(len(a), len(b))
    return 1 - edit_distance(a, b) / length if length else 1.0
