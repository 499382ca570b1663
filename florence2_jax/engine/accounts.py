# SPDX-License-Identifier: Apache-2.0
"""What phase 1 tells: how far it is while it runs, and a report with every failure at its end."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.engine.parts import (
    Range,
    Row,
    Summary,
    parts_of,
    pieces,
    read_part,
    read_summary,
    summarise,
)
from florence2_jax.engine.scaling import Counts
from florence2_jax.engine.specialists.base import Failure, Specialist
from florence2_jax.engine.stages import Job, Member, stage_name
from florence2_jax.records.journal import write_file
from florence2_jax.records.store import splits_of

REPORT = "report.json"
FAILURES = "failures.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a specialist is, what came before a restart included.

    `images_per_s` is of this run and by the clock, `worker_s` the time of all its workers, reading
    included, `money` None where the specialist counts none.
    """

    specialist: str
    images: int
    total: int
    failures: int
    images_per_s: float
    worker_s: float
    money: float | None
    workers: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """A specialist in the report, and what its workers went through in this run."""

    member: Member
    specialist: Specialist
    counts: Counts | None


def write_report(
    parts: Path,
    directory: Path,
    job: Job,
    entries: Sequence[Entry],
    sizes: Mapping[str, int],
    counts: Mapping[str, Any],
    clock_s: float,
) -> dict[str, Any]:
    """Writes `report.json` and `failures.jsonl` from the parts, which are the truth.

    Returns:
        JSON: `specialists` in the order they ran, each with `images`, `failures` by reason,
        `made` by field, `worker_s`, `s_per_image` with its standard error, `money`, `bytes` of
        its parts, and under `workers` what happened in the last run; `counts`, the books of what
        was added and what was not; `store_bytes` and `source_bytes_per_image`; `clock_s` of the
        last run.
    """
    failures: list[str] = []
    rows = [_entry(entry, sizes, failures) for entry in entries]
    write_file(parts / FAILURES, "".join(failures))
    in_source = sum(splits_of(job.source).values())
    report = {
        "source": str(job.source),
        "directory": str(directory),
        "round": job.round,
        "images": sum(sizes.values()),
        "splits": dict(sizes),
        "specialists": rows,
        "counts": counts,
        "failures_file": str(parts / FAILURES),
        "store_bytes": _bytes(directory),
        "source_bytes_per_image": _bytes(job.source) / in_source,
        "clock_s": clock_s,
    }
    write_file(parts / REPORT, json.dumps(report, indent=1))
    return report


def ratio_error(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Standard error of `sum(y) / sum(x)` over independent `(x, y)`; None for fewer than two.

    Source: Cochran, Sampling Techniques (1977), §6.3, the linearised variance of a ratio.
    """
    n, x = len(pairs), sum(x for x, _ in pairs)
    if n < 2 or not x:
        return None
    ratio = sum(y for _, y in pairs) / x
    squares = sum((y - ratio * x) ** 2 for x, y in pairs)
    return math.sqrt(squares / (n * (n - 1))) / (x / n)


def _entry(entry: Entry, sizes: Mapping[str, int], failures: list[str]) -> dict[str, Any]:
    member, specialist = entry.member, entry.specialist
    there = parts_of(member.folder)
    total, each = Summary(), []
    for split, size in sizes.items():
        for part, piece in pieces(there, Range(split, 0, size)):
            one = _summary(member, part, piece, failures)
            total.add(one)
            each.append((float(one.images), one.seconds))
    return {
        "name": specialist.name,
        "version": specialist.version,
        "kinds": list(specialist.kinds),
        "stage": member.stage,
        "stage_name": stage_name(member.stage),
        "parts": member.folder.name,
        "resources": dataclasses.asdict(specialist.resources),
        "images": total.images,
        "failures": dict(total.failures),
        "made": dict(total.made),
        "worker_s": total.seconds,
        "s_per_image": total.seconds / total.images,
        "s_per_image_error": ratio_error(each),
        "money": total.money,
        "bytes": sum(part.path(member.folder).stat().st_size for part in there),
        "workers": None if entry.counts is None else _workers(entry.counts),
    }


def _workers(counts: Counts) -> dict[str, Any]:
    values = dataclasses.asdict(counts)
    load_s = values.pop("load_s")
    return values | {"mean_load_s": sum(load_s) / len(load_s) if load_s else None}


def _summary(member: Member, part: Range, piece: Range, failures: list[str]) -> Summary:
    """Of what a part gives; its failures go into the list."""
    path = part.path(member.folder)
    summary = read_summary(path)
    if part == piece and not summary.failures:
        return summary
    rows = read_part(path)[0][piece.start - part.start : piece.stop - part.start]
    failures += [_failure_line(member, row) for row in rows if isinstance(row[1], Failure)]
    share = len(piece) / len(part)
    money = None if summary.money is None else summary.money * share
    return summarise(rows, summary.seconds * share, money)


def _failure_line(member: Member, row: Row) -> str:
    id_, failure = row
    assert isinstance(failure, Failure)
    name = f"{member.name}@{member.version}"
    value = {"id": id_, "specialist": name, "reason": failure.reason, "detail": failure.detail}
    return json.dumps(value, ensure_ascii=False) + "\n"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
