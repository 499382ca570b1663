# SPDX-License-Identifier: Apache-2.0
"""What a region is: the accuracy of its category. Its description is scored as a caption."""

from collections.abc import Sequence

from florence2_jax.evaluation.scored import Scored, mean


def category_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Share of regions named by one of their categories, letter by letter but for case.

    Source: ours; the paper reports no number for this task.
    """
    return {
        "accuracy": mean(
            [
                one.text.strip().lower() in {text.lower() for text in one.true_texts}
                for one in scored
                if one.true_texts
            ]
        )
    }
