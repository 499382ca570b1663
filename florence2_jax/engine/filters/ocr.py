# SPDX-License-Identifier: Apache-2.0
"""Writing: scores, characters that are no writing, sizes, words read twice in one place.

All thresholds are ours; Florence-2 names none for its text regions.
"""

import dataclasses
import math
from collections.abc import Iterator

from florence2_jax.engine.filters.limits import check_counts, check_shares
from florence2_jax.engine.filters.marking import Drop, is_human, score_of
from florence2_jax.engine.filters.regions import boxes_of, is_writing, normal, size_reason
from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import Record, Region, is_dropped


@dataclasses.dataclass(frozen=True, kw_only=True)
class OcrConfig:
    """Thresholds on places of writing. What has no score passes that on scores.

    Attributes:
        min_printable_share: of characters that are seen or are blanks: no replacement characters,
            none that Unicode has not assigned.
        min_word_share: of letters and digits among the characters that are no blanks.
        min_height_px: of the lower side of the quad, or box.
        max_aspect: of the longer side to the shorter one.
        min_character_width: of the width of a line per character, in heights of it: less is more
            text than fits. A line is as long as the longer side, for writing may be upright.
        doubled_iou: of two places with the same words that are one.
    """

    min_score: float = 0.4
    min_printable_share: float = 1.0
    min_word_share: float = 0.5
    min_height_px: float = 4.0
    min_area_share: float = 0.00001
    max_area_share: float = 0.9
    max_aspect: float = 100.0
    min_character_width: float = 0.1
    doubled_iou: float = 0.5

    def __post_init__(self):
        pixels = ("min_height_px", "max_aspect")
        check_shares(self, *(f.name for f in dataclasses.fields(self) if f.name not in pixels))
        check_counts(self, max_aspect=1, min_height_px=0)


def ocr_drops(record: Record, config: OcrConfig) -> Iterator[Drop]:
    """Places of writing that go, and the doubles of others."""
    seen: list[tuple[str, Region]] = []
    live = [
        i
        for i, region in enumerate(record.regions)
        if is_writing(region) and not is_dropped(region)
    ]
    for i in sorted(live, key=lambda i: _rank(record.regions[i]), reverse=True):
        region = record.regions[i]
        text = normal(region.label("text") or "")
        reason = _judge(region, record, config) or _double(text, region, seen, config)
        if reason and not is_human(region):
            yield Drop("region", (i,), reason)
        else:
            seen.append((text, region))


def _judge(region: Region, record: Record, config: OcrConfig) -> str:
    score = score_of(region)
    if score is not None and score < config.min_score - 1e-6:  # float32 in stores.
        return f"OCR score under {config.min_score:.2f}"
    text = region.label("text") or ""
    shown = [character for character in text if not character.isspace()]
    if shown and (reason := _judge_characters(shown, config)):
        return reason
    short, long = _sides(region)
    if short < config.min_height_px:
        return f"writing under {config.min_height_px:g} px high"
    if shown and long / len(shown) < config.min_character_width * short:
        return "more characters than fit"
    return size_reason(
        region,
        record,
        min_area_share=config.min_area_share,
        max_area_share=config.max_area_share,
        max_aspect=config.max_aspect,
    )


def _judge_characters(shown: list[str], config: OcrConfig) -> str:
    printable = sum(c.isprintable() and c != "\N{REPLACEMENT CHARACTER}" for c in shown)
    if printable / len(shown) < config.min_printable_share:
        return f"characters to be seen under {config.min_printable_share:.0%}"
    if sum(c.isalnum() for c in shown) / len(shown) < config.min_word_share:
        return f"letters and digits under {config.min_word_share:.0%}"
    return ""


def _double(text: str, region: Region, seen: list[tuple[str, Region]], config: OcrConfig) -> str:
    same = [other for said, other in seen if said == text]
    if not same:
        return ""
    overlap = float(box_iou(boxes_of([region]), boxes_of(same)).max())
    return f"same words in one place: IoU {overlap:.2f}" if overlap >= config.doubled_iou else ""


def _sides(region: Region) -> tuple[float, float]:
    """The shorter and the longer side of a quad, averages of opposite sides, or of the box."""
    if region.quad is None:
        x0, y0, x1, y1 = region.box
        sides = (x1 - x0, y1 - y0)
    else:
        points = [region.quad[k : k + 2] for k in range(0, 8, 2)]
        lengths = [math.dist(points[k], points[(k + 1) % 4]) for k in range(4)]
        sides = ((lengths[0] + lengths[2]) / 2, (lengths[1] + lengths[3]) / 2)
    return min(sides), max(sides)


def _rank(region: Region) -> tuple[bool, float]:
    return is_human(region), score_of(region) or 0.0
