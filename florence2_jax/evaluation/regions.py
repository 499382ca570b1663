# SPDX-License-Identifier: Apache-2.0
"""What a region is: the accuracy of its category. Its description is scored as a caption."""

from collections.abc import Sequence

from florence2_jax.evaluation.scored import Scored, mean


def category_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """`category_accuracy` of answers."""
    return {
        "accuracy": category_accuracy(
            [(one.text, one.true_texts) for one in scored if one.true_texts]
        )
    }


def category_accuracy(named: Sequence[tuple[str, Sequence[str]]]) -> float:
    """Share of regions named by one of their categories, letter by letter but for case.

    No regions: NaN. An empty name is wrong.

    Source: ours; the paper reports no number for this task.
    """
    return mean(
        [
            float(name.strip().lower() in {text.strip().lower() for text in categories})
            for name, categories in named
        ]
    )
