# SPDX-License-Identifier: Apache-2.0
"""The report of a round: `report.html` for people, `report.json` for programs."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.engine.filters.marking import cleared
from florence2_jax.engine.filters.tables import filter_report
from florence2_jax.records.inspection import statistics
from florence2_jax.records.journal import write_file
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore, splits_of
from florence2_jax.viewing.engine_page import write_engine_page

PAGE, NUMBERS = "report.html", "report.json"
NUM_SAMPLES, MAX_COUNTED = 12, 20_000
"""Records drawn, and records counted for the statistics, spread over the store."""


def write_report(
    directory: Path,
    *,
    filtered: Path | None = None,
    audits: Sequence[Mapping[str, Any]] = (),
    guard: Sequence[Mapping[str, Any]] = (),
    annotate: Mapping[str, Any] | None = None,
    difference: Mapping[str, Any] | None = None,
    title: str = "",
    num_samples: int = NUM_SAMPLES,
    max_counted: int = MAX_COUNTED,
) -> dict[str, Any]:
    """Gathers what is known of a round and writes its page and its numbers.

    Args:
        directory: of the round; gets `report.html` and `report.json`.
        filtered: the store that `filter_store` wrote, `directory/filtered` if None.
        audits: of this round and those before it, as `RoundAudit.to_json` gives them.
        guard: what the guard decided, as `Decision.to_json` gives it; stops are shown on top.
        annotate: the report of phase 1.
        difference: what changed since the round before.
        title: of the page, by default the name of the directory.

    Returns:
        What `report.json` holds: the arguments, and
        `statistics: {"num_records", "num_all", "before", "after"}` (rows as of
        `records.inspection.statistics`) and `filters` (`filters.tables.filter_report`), with the
        ids of the `samples` drawn.

    Raises:
        UserError: if the filtered store cannot be read.
    """
    store = directory / "filtered" if filtered is None else filtered
    filters = filter_report(store)
    samples = list(_samples(store, filters, num_samples))
    report = {
        "title": title or directory.resolve().name.replace("-", " ").capitalize(),
        "filtered": str(store),
        "statistics": _statistics(store, max_counted),
        "filters": filters,
        "audits": [dict(audit) for audit in audits],
        "guard": [dict(decision) for decision in guard],
        "annotate": annotate,
        "difference": difference,
        "samples": [record.id for record in samples],
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_file(directory / NUMBERS, json.dumps(report, indent=1, ensure_ascii=False))
    write_engine_page(report, samples, directory / PAGE)
    return report


def _statistics(store: Path, max_counted: int) -> dict[str, Any]:
    splits = splits_of(store)
    total = sum(splits.values())
    step = max(1, -(-total // max_counted))

    def records() -> Iterator[Record]:
        for split, num in splits.items():
            found = RecordStore(store, split)
            yield from (found[i] for i in range(0, num, step))

    before, after = (statistics(map(view, records()))["rows"] for view in (cleared, Record.kept))
    counted = sum(-(-num // step) for num in splits.values())
    return {"num_records": counted, "num_all": total, "before": before, "after": after}


def _samples(store: Path, filters: Mapping[str, Any], num_samples: int) -> Iterator[Record]:
    """Records that between them show every reason, the frequent ones more often, then any."""
    stores = {split: RecordStore(store, split) for split in filters["splits"]}
    lists = [row["samples"] for row in filters["reasons"]]
    rounds = itertools.zip_longest(*lists)  # One of each reason, then another one of each.
    places = [(one["split"], one["index"]) for row in rounds for one in row if one]
    split = next(iter(stores))
    places += [(split, i) for i in range(min(num_samples, len(stores[split])))]
    for split, index in list(dict.fromkeys(places))[:num_samples]:
        yield stores[split][index]
