# SPDX-License-Identifier: Apache-2.0
"""METEOR, a Java program that comes with pycocoevalcap: used where both are installed.

SPICE is left out: pycocoevalcap fetches a further 400 MB of Stanford CoreNLP for it at first use.
"""

import importlib
import importlib.util
import shutil
from collections.abc import Sequence

from florence2_jax.evaluation.captions import tokenize_caption
from florence2_jax.typing import UserError


def why_no_meteor() -> str:
    """What is missing for METEOR; empty if nothing is."""
    missing = []
    if shutil.which("java") is None:
        missing.append("Java")
    if importlib.util.find_spec("pycocoevalcap") is None:
        missing.append("pycocoevalcap")
    return f"{' and '.join(missing)} not installed" if missing else ""


def meteor(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """METEOR 1.5 of the corpus, which is no mean, and of each caption; both in [0, 1].

    Texts are tokenised by `tokenize_caption`. Of no captions: NaN. A caption without words: 0.

    Raises:
        UserError: if Java or pycocoevalcap is missing.

    Source: METEOR (WMT 2014), by pycocoevalcap.
    """
    if why := why_no_meteor():
        raise UserError(f"METEOR: {why}; install them, or use the other caption metrics")
    if not captions:
        return float("nan"), []
    program = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
    true = {i: [_words(text) for text in texts] for i, texts in enumerate(references)}
    found = {i: [_words(text)] for i, text in enumerate(captions)}
    try:
        score, scores = program.compute_score(true, found)
    finally:  # It leaves this to the garbage collector.
        process = program.meteor_p
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
    return float(score), [float(one) for one in scores]


def _words(text: str) -> str:
    return " ".join(tokenize_caption(text))
