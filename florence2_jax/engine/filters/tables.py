# SPDX-License-Identifier: Apache-2.0
"""What a filtered store kept and dropped, read from its books and its marks."""

import dataclasses
import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from florence2_jax.engine.filters.marking import counted
from florence2_jax.engine.filters.syntax import FLD5B, MAX_CHARACTERS, Semantics
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import STORE
from florence2_jax.typing import UserError

NUM_SAMPLES, MAX_SCANNED = 8, 4000
"""Samples told of a reason, and records looked through for them, spread over the store."""

TOO_LONG = f"over {MAX_CHARACTERS:,} characters"
UNTESTED = "number of objects, complexity of objects and actions"


def filter_report(
    directory: Path, *, num_samples: int = NUM_SAMPLES, max_scanned: int = MAX_SCANNED
) -> dict[str, Any]:
    """What the filter kept and dropped of a store it wrote; JSON.

    Returns:
        - `store`, `source`, `config`, `parser` and `splits` with their numbers of records;
        - `kinds`: by kind of annotation `kept`, `dropped`, and both by `makers`;
        - `reasons`: `kind`, `reason`, `number` and `samples`, from the most frequent on; a sample
          is the `split`, `index` and `id` of a record;
        - `agreement`: by kind `makers`, how many annotations each has (`numbers`) and the matrix
          `shares` of a row's maker that the column's said too;
        - `semantics`: averages of the texts of each length, those of `fld5b` beside them; {} where
          none was parsed;
        - `not_tested`: `texts`, `what` was not tested and `why`.

    Raises:
        UserError: if `filter_store` did not write the store.
    """
    path = directory / STORE
    books = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    job = books.get("job", {}).get("job", {})
    if job.get("format") != "filter":
        raise UserError(f"{directory}: is no filtered store; make one with: florence2-jax annotate")
    notes = {kind: counts["noted"] for kind, counts in books["report"]["counts"].items()}
    reasons = _reasons(notes)
    samples = _samples(directory, books["report"]["splits"], set(reasons), num_samples, max_scanned)
    untested = notes.get("texts not parsed", {}).get("text", 0)
    return {
        "store": str(directory),
        "source": job["store"],
        "config": job["config"],
        "parser": job["parser"],
        "splits": books["report"]["splits"],
        "kinds": _kinds(notes),
        "reasons": [
            {"kind": kind, "reason": reason, "number": number, "samples": samples[kind, reason]}
            for (kind, reason), number in reasons.most_common()
        ],
        "agreement": _agreement(notes),
        "semantics": _semantics(notes),
        "not_tested": {
            "texts": untested,
            "what": UNTESTED if untested else "",
            "why": (job["parser_problem"] or TOO_LONG) if untested else "",
        },
    }


def _kinds(notes: dict[str, dict[str, int]]) -> dict[str, Any]:
    kinds: dict[str, Any] = {}
    for kind, rows in _named(notes, "filtered "):
        makers: dict[str, Any] = defaultdict(lambda: {"kept": 0, "dropped": {}})
        for key, number in rows.items():
            maker, reason = json.loads(key)
            if reason:
                makers[maker]["dropped"][reason] = number
            else:
                makers[maker]["kept"] += number
        kinds[kind] = {
            "kept": sum(row["kept"] for row in makers.values()),
            "dropped": sum(sum(row["dropped"].values()) for row in makers.values()),
            "makers": dict(makers),
        }
    return kinds


def _reasons(notes: dict[str, dict[str, int]]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for kind, rows in _named(notes, "filtered "):
        for key, number in rows.items():
            if reason := json.loads(key)[1]:
                found[kind, reason] += number
    return found


def _samples(
    directory: Path,
    splits: dict[str, int],
    wanted: set[tuple[str, str]],
    num_samples: int,
    max_scanned: int,
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Records with an annotation that was dropped for each reason."""
    samples: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    missing = set(wanted)
    step = max(1, sum(splits.values()) // max(max_scanned, 1))
    places = ((split, i) for split, num in splits.items() for i in range(0, num, step))
    stores = {split: RecordStore(directory, split) for split in splits}
    for split, index in itertools.islice(places, max_scanned):
        if not missing:
            break
        record = stores[split][index]
        for key in {(kind, reason) for kind, _, reason, _ in counted(record) if reason} & missing:
            samples[key].append({"split": split, "index": index, "id": record.id})
            if len(samples[key]) >= num_samples:
                missing.discard(key)
    return samples


def _agreement(notes: dict[str, dict[str, int]]) -> dict[str, Any]:
    tables = {}
    for kind, rows in _named(notes, "agreement "):
        counts = {tuple(json.loads(key)): number for key, number in rows.items()}
        makers = sorted({maker for maker, _ in counts})
        numbers = {maker: counts[maker, maker] for maker in makers}
        shares = [[counts.get((a, b), 0) / numbers[a] for b in makers] for a in makers]
        tables[kind] = {"makers": makers, "numbers": numbers, "shares": shares}
    return tables


def _semantics(notes: dict[str, dict[str, int]]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(Semantics)]
    return {
        granularity: {
            "texts": counts["texts"],
            **{name: counts[name] / counts["texts"] for name in names},
            "fld5b": dict(zip(names, FLD5B[granularity], strict=True)),
        }
        for granularity, counts in _named(notes, "semantics ")
    }


def _named(notes: dict[str, dict[str, int]], prefix: str) -> list[tuple[str, dict[str, int]]]:
    return [(k.removeprefix(prefix), rows) for k, rows in notes.items() if k.startswith(prefix)]
