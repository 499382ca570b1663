# SPDX-License-Identifier: Apache-2.0
"""Texts that small tokenizers are trained on, and texts that try them."""

import unicodedata
from collections.abc import Iterator

import numpy as np

TEXTS = [
    "a red star and a blue car, two small stars left of a green tree. CAFÉ",
    "What is the region <loc_1>? Locate the objects with category name in the image.",
    "aaa aaaa aaaaa ababab banana bananas bandana scatter concat aabaab abaaba",
    "日本語の文章 カタカナ  x  y   z\t\ttab   1234 55 <0x41>",
]
_SPELLINGS = """<loc_0> <loc_5> <loc_999> <loc_1000> <loc_05> <s> </s> <pad> <unk> <image> <mask>
<poly> </poly> <sep> <and> <od> < > <loc_ <0x41> <0xAB> ▁ ▁▁ Ġ Ċ e\u0301 \u200d \ufeff \ufffd
\U0001f469\u200d\U0001f680 don't""".split()
_CONTROLS = ["\n", "\n\n", "\t", "\r\n", "\0", "\x1f", "\x85", "\u00a0", "\u2028", "\u3000"]


def random_texts(count: int, seed: int = 0) -> Iterator[str]:
    """Words, runs of blanks, special spellings, controls and characters of every plane, mixed."""
    rng = np.random.default_rng(seed)
    words = " ".join(TEXTS).split()
    letters = list("abnstcr ")
    planes = (0x80, 0x250, 0x3000, 0x10000, 0x110000)

    def part() -> str:
        kind = rng.integers(6)
        if kind == 0:
            return str(rng.choice(words))
        if kind == 1:
            return " " * rng.integers(1, 5)
        if kind == 2:
            return "".join(rng.choice(letters, rng.integers(1, 12)))
        if kind == 3:
            return _SPELLINGS[rng.integers(len(_SPELLINGS))]
        if kind == 4:
            return _CONTROLS[rng.integers(len(_CONTROLS))]
        character = chr(rng.integers(planes[rng.integers(len(planes))]))
        return "" if unicodedata.category(character) == "Cs" else character

    yield ""
    for _ in range(count - 1):
        yield "".join(part() for _ in range(rng.integers(1, 25)))
