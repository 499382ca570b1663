# SPDX-License-Identifier: Apache-2.0
"""The layout of every vocabulary here: control tokens, base pieces, the 1,024 added tokens.

    0 <s>   1 <pad>   2 </s>   3 <unk>   4.. pieces   B.. the 1,024 added tokens   B+1024 <image>

B is 50,265 for BART, whose last piece is `<mask>`.

Source: the names and order of the added tokens are those of the released processors.
"""

import re

from florence2_jax.text.locations import NUM_BINS

BOS, PAD, EOS, UNK = CONTROL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
BOS_ID, PAD_ID, EOS_ID, UNK_ID = range(4)
DECODER_START_ID = EOS_ID

# "desciption": spelt as shipped.
_TASK_TOKENS = """<cap> </cap> <ncap> </ncap> <dcap> </dcap> <grounding> </grounding> <seg> </seg>
<sep> <region_cap> </region_cap> <region_to_desciption> </region_to_desciption> <proposal>
</proposal> <poly> </poly> <and>""".split()

ADDED_TOKENS: tuple[str, ...] = (
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{k}>" for k in range(NUM_BINS)),
    *_TASK_TOKENS,
)
IMAGE_TOKEN = "<image>"  # Only in native transformers vocabularies; never in our texts.
MASK_TOKEN = "<mask>"  # Only in BART's; Florence-2 does not use it.

_LOCATION = r"<loc_(?:0|[1-9][0-9]{0,2})>"
_OTHERS = [t for t in ADDED_TOKENS if not t.startswith("<loc_")] + [*CONTROL_TOKENS, IMAGE_TOKEN]
SPECIAL_PATTERN = re.compile("|".join([_LOCATION, *map(re.escape, _OTHERS)]))
SPELLING_PATTERN = re.compile("|".join([SPECIAL_PATTERN.pattern, MASK_TOKEN]))


def special_ids(base_size: int) -> dict[str, int]:
    """Ids of the control, added and image tokens around a base vocabulary of `base_size` pieces."""
    behind = (*ADDED_TOKENS, IMAGE_TOKEN)
    return {token: index for index, token in enumerate(CONTROL_TOKENS)} | {
        token: base_size + index for index, token in enumerate(behind)
    }


def neutralize(text: str) -> str:
    """Rewrites text that spells a special token: `<loc_5>` becomes `‹loc_5>`.

    Labels and captions are data. One that reads `<loc_5>` or `</s>` would otherwise turn into a
    location, or the end of the target, when it is tokenized.
    """
    return SPELLING_PATTERN.sub(lambda match: "‹" + match.group()[1:], text)
