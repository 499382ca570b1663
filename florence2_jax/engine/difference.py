# SPDX-License-Identifier: Apache-2.0
"""What changed from one round's labels to the next: counts per kind and class, with samples.

Compared is what is kept. An annotation is the same if what it says and where it says it is; then
its score may have gone up or down. A region that is gone, where another of another name has come,
is relabelled.
"""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from florence2_jax.engine.claims import claim, name_of
from florence2_jax.geometry import box_iou
from florence2_jax.records.schema import Record, Region
from florence2_jax.records.store import RecordStore
from florence2_jax.typing import UserError

CHANGES = ("added", "gone", "relabelled", "score up", "score down", "same")

_SAMPLES = 8
_SAME_PLACE_IOU = 0.5
_SAME_SCORE = 1e-4  # Scores are float32 in a store.

_Key = tuple[Any, ...]


def difference(
    before: Path,
    after: Path,
    *,
    splits: Sequence[str] = ("train",),
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """What changed between two stores of the same records in the same order.

    Returns:
        JSON: `records`, `changed` (records with any change but of scores) and per kind of
        annotation `counts`, one number per change of `CHANGES`; `classes`, the same by class,
        "a -> b" for what was relabelled; `samples`, up to 8 ids of records by change, drawn by the
        hash of their ids.

    Raises:
        UserError: if the stores do not hold the same records.
    """
    books, done = _Books(), 0
    for split in splits:
        stores = RecordStore(before, split), RecordStore(after, split)
        if len(stores[0]) != len(stores[1]):
            raise UserError(
                f"{after}: {len(stores[1])} records in split {split!r}, but {len(stores[0])} in "
                f"{before}; compare two rounds of one workdir"
            )
        for i in range(len(stores[0])):
            books.compare(stores[0][i], stores[1][i])
            done += 1
            if on_progress and done % 256 == 0:
                on_progress(done, len(stores[0]))
    return {"before": str(before), "after": str(after)} | books.report()


def changes(before: Record, after: Record) -> Iterator[tuple[str, str, str]]:
    """`(kind, class, change)` of every annotation that is kept before or after."""
    before, after = before.kept(), after.kept()
    yield from _region_changes(before.regions, after.regions)
    for kind, read in _READERS.items():
        old, new = read(before), read(after)
        for key in sorted(old.keys() | new.keys(), key=repr):
            yield kind, _class_of(kind, key), _change(old, new, key)


class _Books:
    def __init__(self):
        self.records = self.changed = 0
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.classes: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self.samples: dict[str, dict[str, list[tuple[int, str]]]] = defaultdict(
            lambda: defaultdict(list)
        )

    def compare(self, before: Record, after: Record) -> None:
        if before.id != after.id:
            raise UserError(
                f"record {before.id!r} stands where the other store has {after.id!r}; compare two "
                "rounds of one workdir"
            )
        self.records += 1
        seen: set[tuple[str, str]] = set()
        for kind, name, change in changes(before, after):
            self.counts[kind][change] += 1
            if name:
                self.classes[kind][name][change] += 1
            seen.add((kind, change))
        self.changed += any(c in ("added", "gone", "relabelled") for _, c in seen)
        place = -int.from_bytes(hashlib.blake2b(before.id.encode(), digest_size=8).digest())
        for kind, change in seen - {(kind, "same") for kind in self.counts}:
            heap = self.samples[kind][change]
            add = heapq.heappush if len(heap) < _SAMPLES else heapq.heappushpop
            add(heap, (place, before.id))

    def report(self) -> dict[str, Any]:
        kinds = {}
        for kind, counts in sorted(self.counts.items()):
            classes = sorted(self.classes[kind].items(), key=lambda row: -row[1].total())
            kinds[kind] = {
                "counts": {change: counts[change] for change in CHANGES},
                "classes": {name: dict(row) for name, row in classes},
                "samples": {
                    change: sorted(id_ for _, id_ in heap)
                    for change, heap in sorted(self.samples[kind].items())
                },
            }
        return {"records": self.records, "changed": self.changed, "kinds": kinds}


def _change(old: dict[_Key, float | None], new: dict[_Key, float | None], key: _Key) -> str:
    if key not in old:
        return "added"
    if key not in new:
        return "gone"
    a, b = old[key], new[key]
    if a is None or b is None:
        return "same" if a is b else "score up" if a is None else "score down"
    if abs(a - b) <= _SAME_SCORE:
        return "same"
    return "score up" if b > a else "score down"


def _region_changes(
    before: Sequence[Region], after: Sequence[Region]
) -> Iterator[tuple[str, str, str]]:
    old = {_region_key(region): region for region in before}
    new = {_region_key(region): region for region in after}
    scores = [{key: claim(r).score for key, r in side.items()} for side in (old, new)]
    for key in old.keys() & new.keys():
        yield "regions", key[0][1], _change(scores[0], scores[1], key)
    gone = [region for key, region in old.items() if key not in new]
    come = [region for key, region in new.items() if key not in old]
    renamed = _renamed(gone, come)
    for i, j in renamed.items():
        yield "regions", f"{name_of(gone[i])[1]} -> {name_of(come[j])[1]}", "relabelled"
    for i, region in enumerate(gone):
        if i not in renamed:
            yield "regions", name_of(region)[1], "gone"
    for j, region in enumerate(come):
        if j not in renamed.values():
            yield "regions", name_of(region)[1], "added"


def _region_key(region: Region) -> _Key:
    maker = claim(region)
    return name_of(region), region.box, maker.name, maker.round


def _renamed(gone: Sequence[Region], come: Sequence[Region]) -> dict[int, int]:
    if not gone or not come:
        return {}
    boxes = (np.array([region.box for region in some], float) for some in (gone, come))
    overlaps = box_iou(*boxes)
    pairs: dict[int, int] = {}
    for i, j in sorted(
        np.argwhere(overlaps >= _SAME_PLACE_IOU).tolist(), key=lambda p: -overlaps[*p]
    ):
        other = name_of(gone[i])[1] != name_of(come[j])[1]
        if other and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return pairs


def _texts(record: Record) -> dict[_Key, float | None]:
    return {(t.granularity, t.text): t.provenance.score for t in record.texts}


def _questions(record: Record) -> dict[_Key, float | None]:
    return {(q.question, q.answers[0]): q.provenance.score for q in record.questions}


def _labels(record: Record) -> dict[_Key, float | None]:
    """Labels beside the name of a region: phrases and descriptions."""
    return {
        (label.kind, region.box, label.text): (label.provenance or region.provenance).score
        for region in record.regions
        for label in region.labels
        if label.kind != name_of(region)[0]
    }


def _masks(record: Record) -> dict[_Key, float | None]:
    return {
        (name_of(region), region.box): (region.mask_provenance or region.provenance).score
        for region in record.regions
        if region.polygons
    }


def _phrases(record: Record) -> dict[_Key, float | None]:
    return {
        (grounding.text, span.start, span.end, box): (
            span.box_scores[i] if span.box_scores else grounding.provenance.score
        )
        for grounding in record.groundings
        for span in grounding.spans
        for i, box in enumerate(span.boxes)
    }


_READERS: dict[str, Callable[[Record], dict[_Key, float | None]]] = {
    "texts": _texts,
    "labels": _labels,
    "masks": _masks,
    "phrases": _phrases,
    "questions": _questions,
}


def _class_of(kind: str, key: _Key) -> str:
    """By granularity for texts, by kind for labels; other annotations have no classes."""
    return key[0] if kind in ("texts", "labels") else ""
