# SPDX-License-Identifier: Apache-2.0
"""Texts that say the same: in one record, and in many records of a shard.

Two texts are near duplicates if their sets of three words in a row overlap enough (Jaccard). What
is said of very many images of a shard in the same words says little of each.
"""

import dataclasses
import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from florence2_jax.engine.filters.limits import check_counts, check_shares
from florence2_jax.engine.filters.marking import Drop, is_human, score_of
from florence2_jax.engine.filters.texts import words_of
from florence2_jax.records.schema import Record, Text, is_dropped
from florence2_jax.records.splitting import open_store


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicateConfig:
    """When texts of one length say the same. The values are ours.

    Attributes:
        shingle_words: words in a row that are compared as one.
        min_overlap: of the sets of such rows, from which on two texts are near duplicates.
        max_images_per_text: of a shard of the source for which near the same text may stand, the
            first ones; 0 for any number.
    """

    shingle_words: int = 3
    min_overlap: float = 0.8
    max_images_per_text: int = 32

    def __post_init__(self):
        check_shares(self, "min_overlap")
        check_counts(self, shingle_words=1, max_images_per_text=0)


def duplicate_drops(
    record: Record, config: DuplicateConfig, worn: Mapping[int, int]
) -> Iterator[Drop]:
    """Texts said already in this record, and texts that too many others of the shard have.

    Args:
        worn: by number of a text, how many images of the shard have near the same (`worn_texts`).
    """
    live = [i for i, text in enumerate(record.texts) if not is_dropped(text)]
    order = sorted(live, key=lambda i: _rank(record.texts[i]), reverse=True)
    groups = near_groups([record.texts[i] for i in order], config)
    taken: set[int] = set()
    gone: dict[int, str] = {}
    for i, group in zip(order, groups, strict=True):
        if group in taken:
            gone[i] = "near-duplicate text in the record"
        elif i in worn and not is_human(record.texts[i]):
            gone[i] = f"near the same text in a shard: {worn[i]} images"
        taken.add(group)
    yield from (Drop("text", (i,), reason) for i, reason in gone.items())
    stays = {record.texts[i].text for i in live if i not in gone}
    reasons = {record.texts[i].text: reason for i, reason in gone.items()}
    for i, grounding in enumerate(record.groundings):
        if grounding.text in reasons.keys() - stays:
            yield Drop("grounding", (i,), reasons[grounding.text])


@functools.lru_cache(maxsize=4)
def worn_texts(
    directory: Path, split: str, shard: int, config: DuplicateConfig
) -> Mapping[int, Mapping[int, int]]:
    """By index of a record of a shard, its texts that more images have than may.

    A pure function of the store, so that processes which each write a part of the filtered store
    come to the same; one that works from front to back reads a shard once more.
    """
    if not config.max_images_per_text:
        return {}
    store = open_store(directory, split)
    start = sum(store.shard_lengths[:shard])
    places: list[tuple[int, int]] = []
    texts: list[Text] = []
    for index in range(start, start + store.shard_lengths[shard]):
        for number, text in enumerate(store[index].texts):
            places.append((index, number))
            texts.append(text)
    images: dict[int, dict[int, None]] = defaultdict(dict)  # By group, in order.
    groups = near_groups(texts, config)
    for (index, _), group in zip(places, groups, strict=True):
        images[group][index] = None
    first = {g: set(list(found)[: config.max_images_per_text]) for g, found in images.items()}
    worn: dict[int, dict[int, int]] = defaultdict(dict)
    for (index, number), group in zip(places, groups, strict=True):
        if index not in first[group]:
            worn[index][number] = len(images[group])
    return dict(worn)


def shard_of(lengths: Sequence[int], index: int) -> int:
    """The shard that holds a record."""
    for shard, length in enumerate(lengths):
        if index < length:
            return shard
        index -= length
    raise IndexError(f"record {index} beyond the last shard")


def near_groups(texts: Sequence[Text], config: DuplicateConfig) -> list[int]:
    """A number for each text, the same for near duplicates of one length.

    A text joins the first text before it that is near enough and has founded a group. Only the
    rarest shingles of a text are looked up: near duplicates share one of as many.

    Source: the idea of prefix filtering (Chaudhuri, Ganti, Kaushik; ICDE 2006), which is exact.
    """
    least = config.min_overlap
    sets = [{(t.granularity, *s) for s in _shingles(t.text, config.shingle_words)} for t in texts]
    often = Counter(shingle for shingles in sets for shingle in shingles)
    founders: list[set[tuple[str, ...]]] = []
    having: dict[tuple[str, ...], list[int]] = defaultdict(list)
    groups = []
    for shingles in sets:
        num_rare = len(shingles) - math.ceil(least * len(shingles) - 1e-9) + 1
        rare = sorted(shingles, key=lambda shingle: (often[shingle], shingle))[:num_rare]
        found = (
            group
            for group in sorted({group for shingle in rare for group in having[shingle]})
            if _overlap(shingles, founders[group]) >= least
        )
        if (group := next(found, None)) is None:
            group = len(founders)
            founders.append(shingles)
            for shingle in rare:
                having[shingle].append(group)
        groups.append(group)
    return groups


def _overlap(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def _shingles(text: str, num_words: int) -> set[tuple[str, ...]]:
    """All runs of that many words; a shorter text is one run. No words: the text itself."""
    words = words_of(text) or [text]
    last = max(len(words) - num_words, 0)
    return {tuple(words[k : k + num_words]) for k in range(last + 1)}


def _rank(text: Text) -> tuple[bool, float]:
    return is_human(text), score_of(text) or 0.0
