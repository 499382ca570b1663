# SPDX-License-Identifier: Apache-2.0
"""Looking at whole stores: is it sound, and what is in it."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from array_record.python.array_record_module import ArrayRecordReader

from florence2_jax.records.checks import ImageError, check_decodes, open_image
from florence2_jax.records.columns import parse
from florence2_jax.records.distributions import Distributions
from florence2_jax.records.schema import GRANULARITIES, LABEL_KINDS, LabelKind, Record, RecordError
from florence2_jax.records.store import RecordStore, splits_of

MAX_PROBLEMS = 1000
"""Problems told one by one; all are counted."""


# Is it sound?


def check_store(
    directory: str | os.PathLike[str],
    *,
    num_workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Reads all of a store again: every record is valid, every image decodes at its stated size,
    no id occurs twice, and the metadata count what is there.

    Returns:
        `{"directory", "splits": {split: records}, "num_problems", "problems"}`, of the latter
        `MAX_PROBLEMS` as `{"where", "what"}`.

    Raises:
        UserError: if the directory cannot be opened as a store at all.
    """
    shards: list[tuple[str, Path, int, _ImageOf]] = []
    for split, num in splits_of(directory).items():
        if num:
            store = RecordStore(directory, split)
            pairs = zip(store.shards, store.shard_lengths, strict=True)
            elsewhere = store.image_elsewhere
            shards += [(split, path, length, elsewhere) for path, length in pairs]
    problems: list[dict[str, str]] = []
    places: dict[str, str] = {}
    found: Counter[str] = Counter()
    done, total = 0, sum(length for _, _, length, _ in shards)
    for (split, path, length, _), (num, ids, own) in zip(
        shards, _check_shards([row[1:] for row in shards], num_workers), strict=True
    ):
        problems += own
        found[split] += num
        for id_ in ids:
            if id_ in places:
                what = f"id {id_!r} occurs again, first in {places[id_]}"
                problems.append({"where": path.name, "what": what})
            places.setdefault(id_, path.name)
        done += length
        if on_progress is not None:
            on_progress(done, total)
    return {
        "directory": str(directory),
        "splits": dict(found),
        "num_problems": len(problems),
        "problems": problems[:MAX_PROBLEMS],
    }


_ImageOf: TypeAlias = Callable[[int], bytes]
_ShardReport: TypeAlias = tuple[int, list[str], list[dict[str, str]]]


def _check_shards(
    shards: list[tuple[Path, int, _ImageOf]], num_workers: int
) -> Iterator[_ShardReport]:
    if num_workers <= 1:
        yield from (_check_shard(*shard) for shard in shards)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield from pool.map(_check_shard, *zip(*shards, strict=True))


def _check_shard(path: Path, length: int, image_of: _ImageOf) -> _ShardReport:
    """Number of records in a shard, the ids of the readable ones, and what is wrong.

    `image_of` gives the images that stand in another store.
    """
    problems: list[dict[str, str]] = []
    try:
        reader = ArrayRecordReader(str(path))
        num = reader.num_records()
        if not reader.ok():
            reader.close()  # Which raises what is wrong.
    except Exception as error:  # The reader raises what its C++ side says.
        return 0, [], [{"where": path.name, "what": f"the shard cannot be opened: {error}"}]
    if num != length:
        what = f"holds {num} records, the metadata say {length}"
        problems.append({"where": path.name, "what": what})
    ids = []
    for i in range(num):
        try:
            record = parse(reader.read([i])[0], image_of)
            ids.append(record.id)
            _check_image(record)
        except Exception as error:
            problems.append({"where": f"{path.name} record {i}", "what": f"{error}"})
    reader.close()
    return num, ids, problems


def _check_image(record: Record) -> None:
    try:
        image = open_image(record.image)
        size = image.size
        check_decodes(image)
    except ImageError as error:
        raise RecordError(f"record {record.id}: the image is {error}") from error
    if size != record.size:
        raise RecordError(
            f"record {record.id}: the image is of {size}, the record says {record.size}"
        )


# What is in it?

FLD5B: dict[tuple[str, str], dict[str, float]] = {
    ("text", "brief"): dict(num_texts=235e6, avg_tokens=7.95),
    ("text", "detailed"): dict(num_texts=126e6, avg_tokens=31.65),
    ("text", "more_detailed"): dict(num_texts=126e6, avg_tokens=70.53),
    ("region-text", "phrase"): dict(num_regions=681e6, avg_regions=5.42, avg_region_tokens=1.19),
    ("region-text", "brief"): dict(num_regions=681e6, avg_regions=5.42, avg_region_tokens=2.55),
    ("text-phrase-region", "brief"): dict(
        num_texts=235e6, avg_tokens=7.95, num_regions=1007e6, avg_regions=4.27,
        avg_region_tokens=1.93,
    ),
    ("text-phrase-region", "detailed"): dict(
        num_texts=126e6, avg_tokens=31.65, num_regions=1289e6, avg_regions=10.25,
        avg_region_tokens=1.49,
    ),
    ("text-phrase-region", "more_detailed"): dict(
        num_texts=126e6, avg_tokens=70.53, num_regions=1278e6, avg_regions=10.17,
        avg_region_tokens=1.35,
    ),
}  # fmt: skip
"""The rows of FLD-5B, of 126 million images. Source: Florence-2 §4, statistics of FLD-5B."""


@dataclasses.dataclass
class _Row:
    texts: int = 0
    tokens: int = 0
    images: int = 0
    regions: int = 0
    region_tokens: int = 0

    def report(self, kind: str, text: str) -> dict[str, Any]:
        has_texts, has_regions = kind != "region-text", kind != "text"
        num = self.texts if kind == "text-phrase-region" else self.images
        return {
            "type": kind,
            "text": text,
            "num_images": self.images,
            "num_texts": self.texts if has_texts else None,
            "avg_tokens": _mean(self.tokens, self.texts),
            "num_regions": self.regions if has_regions else None,
            "avg_regions": _mean(self.regions, num) if has_regions else None,
            "avg_region_tokens": _mean(self.region_tokens, self.regions),
            "fld5b": FLD5B.get((kind, text)),
        }


def statistics(
    records: Iterable[Record], count_tokens: Callable[[str], int] | None = None
) -> dict[str, Any]:
    """Counts in the shape of the FLD-5B table, so that a store can be held beside it.

    Rows: "text" by granularity; "region-text" by kind of label, averages of regions per image that
    has some; "text-phrase-region" by granularity of the grounded text (that of the record's text
    with the same words, "other" where there is none), regions being boxes, averages per text.
    Tokens are words between blanks unless a tokenizer counts. Each row has that of FLD-5B beside
    it, where there is one.

    What filters of the data engine dropped is counted as that and as nothing else. Records are
    read once, one at a time, and memory does not grow with their number.

    Returns:
        `{"rows", "totals", "categories": {name: count}, "distributions"}`; of the categories the
        most frequent, with what was dropped under `distributions` (`Distributions.report`).

    Source: Florence-2 §4, statistics of FLD-5B.
    """
    count = count_tokens or (lambda text: len(text.split()))
    rows: dict[tuple[str, str], _Row] = defaultdict(_Row)
    totals: Counter[str] = Counter()
    spread = Distributions(count)
    for record in records:
        totals["dropped"] += record.num_dropped
        record = record.kept()
        totals.update(_totals(record))
        _count_texts(record, rows, count)
        _count_regions(record, rows, count)
        spread.add(record)
        _count_groundings(record, rows, count)
    order = [("text", name) for name in GRANULARITIES]
    order += [("region-text", kind) for kind in LABEL_KINDS]
    order += [("text-phrase-region", name) for name in (*GRANULARITIES, "other")]
    return {
        "rows": [rows[key].report(*key) for key in order],
        "totals": {name: totals[name] for name in _TOTALS},
        "categories": dict(spread.labels["category"].most_common()),
        "distributions": spread.report(),
    }


_TOTALS = (
    *("images", "texts", "regions", "crowds", "polygons", "quads", "groundings", "questions"),
    "dropped",
)


def _totals(record: Record) -> dict[str, int]:
    return {
        "images": 1,
        "texts": len(record.texts),
        "regions": len(record.regions),
        "crowds": sum(region.is_crowd for region in record.regions),
        "polygons": sum(len(region.polygons) for region in record.regions),
        "quads": sum(region.quad is not None for region in record.regions),
        "groundings": len(record.groundings),
        "questions": len(record.questions),
    }


def _count_texts(record: Record, rows: dict, count: Callable[[str], int]) -> None:
    for text in record.texts:
        row = rows["text", text.granularity]
        row.texts += 1
        row.tokens += count(text.text)
    for name in {text.granularity for text in record.texts}:
        rows["text", name].images += 1


def _count_regions(record: Record, rows: dict, count: Callable[[str], int]) -> None:
    seen: set[LabelKind] = set()
    for region in record.regions:
        # One region counts once per kind; a second category of the same box is no second region.
        kinds: set[LabelKind] = {label.kind for label in region.labels}
        for kind in kinds:
            row = rows["region-text", kind]
            row.regions += 1
            row.region_tokens += count(region.label(kind) or "")
            seen.add(kind)
    for kind in seen:
        rows["region-text", kind].images += 1


def _count_groundings(record: Record, rows: dict, count: Callable[[str], int]) -> None:
    granularity = {text.text: text.granularity for text in record.texts}
    seen = set()
    for grounding in record.groundings:
        name = granularity.get(grounding.text, "other")
        row = rows["text-phrase-region", name]
        row.texts += 1
        row.tokens += count(grounding.text)
        for span in grounding.spans:
            row.regions += len(span.boxes)
            row.region_tokens += len(span.boxes) * count(grounding.phrase(span))
        seen.add(name)
    for name in seen:
        rows["text-phrase-region", name].images += 1


def _mean(total: int, num: int) -> float | None:
    return round(total / num, 4) if num else None
