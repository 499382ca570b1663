# SPDX-License-Identifier: Apache-2.0
"""Labels that do not stay: the same region, named otherwise from round to round."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from florence2_jax.engine.auditing.ontology import NO_ONTOLOGY, Ontology
from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import Record, Region

SAME_REGION_IOU = 0.7
"""Regions of two rounds are one if each is the other's best match and they overlap so much."""

_NUM_IDS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unstable:
    """Two names that regions went between: how often, and how often back to an earlier name."""

    names: tuple[str, str]
    num_changes: int
    num_returns: int
    are_synonyms: bool
    ids: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def unstable_labels(
    rounds: Sequence[Iterable[Record]], ontology: Ontology = NO_ONTOLOGY
) -> list[Unstable]:
    """Pairs of names that the same regions have in rounds that follow one another.

    The most frequent first. Synonyms of one name are the ontology's business: list them there, or
    rename. Names are compared without regard to case and blanks.

    Args:
        rounds: per round the records of the same ids.
        ontology: says which names are synonyms.
    """
    histories: dict[str, list[Sequence[Region]]] = defaultdict(list)
    for records in rounds:
        for record in records:
            named = [region for region in record.kept().regions if region.label("category")]
            histories[record.id].append(named)
    changes: Counter[tuple[str, str]] = Counter()
    returns: Counter[tuple[str, str]] = Counter()
    ids: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for id_, history in histories.items():
        for names in _names_of_regions(history):
            for place in range(1, len(names)):
                if names[place] == names[place - 1]:
                    continue
                a, b = sorted((names[place - 1], names[place]))
                pair = a, b
                changes[pair] += 1
                returns[pair] += names[place] in names[: place - 1]
                ids[pair][id_] = None
    return [
        Unstable(
            names=pair,
            num_changes=num,
            num_returns=returns[pair],
            are_synonyms=_are_synonyms(pair, ontology),
            ids=tuple(ids[pair])[:_NUM_IDS],
        )
        for pair, num in changes.most_common()
    ]


def _names_of_regions(history: Sequence[Sequence[Region]]) -> Iterator[list[str]]:
    """Of each region its names, round after round, for as long as it is followed."""
    followed: dict[int, list[str]] = {}
    before: Sequence[Region] = ()
    for regions in history:
        partners = _partners(before, regions)
        yield from (names for old, names in followed.items() if old not in partners.values())
        followed = {
            new: [*followed.get(partners.get(new, -1), []), _name(region)]
            for new, region in enumerate(regions)
        }
        before = regions
    yield from followed.values()


def _partners(before: Sequence[Region], after: Sequence[Region]) -> Mapping[int, int]:
    """Of regions after, by their number, the number that they had before."""
    if not (before and after):
        return {}
    boxes = (
        np.array([region.box for region in regions], np.float64) for regions in (after, before)
    )
    overlap = box_iou(*boxes)
    pairs = enumerate(overlap.argmax(axis=1).tolist())
    return {
        new: old
        for new, old in pairs
        if overlap[new, old] >= SAME_REGION_IOU and overlap[:, old].argmax() == new
    }


def _name(region: Region) -> str:
    return " ".join((region.label("category") or "").split()).casefold()


def _are_synonyms(pair: tuple[str, str], ontology: Ontology) -> bool:
    a, b = pair
    known = ontology.knows(a) and ontology.knows(b)
    return known and ontology.normalise(a) == ontology.normalise(b)
