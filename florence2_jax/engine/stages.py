# SPDX-License-Identifier: Apache-2.0
"""What one worker does in phase 1: a specialist looks at a range of records and leaves a part.

Specialists run in stages, in the order of `KINDS`: one of a later kind sees records with what all
earlier stages said. One that makes several kinds runs in the stage of the last of them; readers of
human labels run before all others.

A folder of parts is named by a digest of all that its answers depend on: the source, the round, the
specialist with its settings, and all specialists of earlier stages. So another setting makes new
parts of that specialist and of those that build on it, and of no others.
"""

import dataclasses
import functools
import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence2_jax.engine.combining import CombineConfig, combine
from florence2_jax.engine.parts import (
    Range,
    Row,
    Summary,
    read_rows,
    read_summary,
    row_json,
    summarise,
    write_part,
)
from florence2_jax.engine.specialists.asking import ask
from florence2_jax.engine.specialists.base import KINDS, Annotations, Failure, Outcome, Specialist
from florence2_jax.engine.workers import Work
from florence2_jax.records.checks import ImageError, check_decodes, open_image
from florence2_jax.records.columns import as_stored
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.splitting import copy_record, open_store
from florence2_jax.typing import UserError

HUMAN_STAGE = 0
LAST_STAGE = len(KINDS) + 1


@dataclasses.dataclass(frozen=True)
class Member:
    """A specialist of a job, and where its parts are."""

    name: str
    version: str
    stage: int
    folder: Path


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker knows of a run of phase 1."""

    source: Path
    round: int
    combining: CombineConfig
    images_per_part: int
    members: tuple[Member, ...]


def stage_of(specialist: Specialist) -> int:
    """When it runs. Raises UserError if it makes nothing that is known."""
    unknown = [kind for kind in specialist.kinds if kind not in KINDS]
    if unknown or not specialist.kinds:
        raise UserError(
            f"specialist {specialist.name}: makes {unknown or 'nothing'}, not one of {KINDS}"
        )
    if specialist.maker_kind == "human":
        return HUMAN_STAGE
    return 1 + max(map(KINDS.index, specialist.kinds))


def create_members(
    specialists: Sequence[Specialist], parts: Path, basis: Sequence[Any]
) -> tuple[Member, ...]:
    """Where the parts of each specialist go.

    Args:
        specialists: in the order of their stages.
        basis: what all answers depend on, as JSON.

    Raises:
        UserError: if a specialist is given twice.
    """
    members: list[Member] = []
    said: list[tuple[int, Any]] = []
    for specialist in specialists:
        stage = stage_of(specialist)
        own = [specialist.name, specialist.version, specialist.kinds, specialist.maker_kind]
        before = [one for at, one in said if at < stage]
        digest = hashlib.sha256(json.dumps([basis, before, own]).encode()).hexdigest()
        name = re.sub(r"[^a-z0-9]+", "-", specialist.name.lower()).strip("-")[:60]
        folder = parts / f"{stage}-{stage_name(stage)}-{name}-{digest[:12]}"
        if any(member.folder == folder for member in members):
            raise UserError(f"specialist {specialist.name}: given twice with equal settings")
        members.append(Member(specialist.name, specialist.version, stage, folder))
        said.append((stage, own))
    return tuple(members)


def stage_name(stage: int) -> str:
    """What is made in a stage, in a word."""
    return "human" if stage == HUMAN_STAGE else KINDS[stage - 1]


def open_worker(job: Job, member: Member, specialist: Specialist) -> Work:
    """Loads the specialist, once for all ranges that this worker will do."""
    specialist.load()
    return functools.partial(annotate_range, job=job, member=member, specialist=specialist)


def annotate_range(place: Range, *, job: Job, member: Member, specialist: Specialist) -> Summary:
    """Makes a part, if it is not there. Raises SpecialistError if the specialist cannot work."""
    path = place.path(member.folder)
    if path.exists():
        return read_summary(path)
    began, paid = time.perf_counter(), _paid(specialist)
    rows: list[Row] = []
    for start in range(place.start, place.stop, specialist.batch_size):
        stop = min(start + specialist.batch_size, place.stop)
        records = [record_at(job, place.split, i, member.stage) for i in range(start, stop)]
        outcomes = _asked(specialist, records, job)
        rows += [(record.id, one) for record, one in zip(records, outcomes, strict=True)]
    now_paid = _paid(specialist)
    money = None if now_paid is None or paid is None else now_paid - paid
    summary = summarise(rows, time.perf_counter() - began, money)
    write_part(member.folder, place, rows, summary)
    return summary


def give_up(place: Range, reason: str, *, job: Job, member: Member) -> Summary:
    """Makes the part of an image that kills the workers of a specialist."""
    failure = Failure("error", f"its worker died each time: {reason}")
    store = open_store(job.source, place.split)
    rows: list[Row] = [(store[i].id, failure) for i in range(place.start, place.stop)]
    summary = summarise(rows, 0.0, None)
    write_part(member.folder, place, rows, summary)
    return summary


def record_at(job: Job, split: str, index: int, stage: int) -> Record:
    """A record of the source with what all stages before the given one said about it."""
    return _with_said(open_store(job.source, split)[index], job, split, index, stage, None)


def make_record(unit: tuple[str, int], ledger: Ledger, *, job: Job) -> Record:
    """The record of the store that phase 1 leaves."""
    record = copy_record(unit, ledger, directory=job.source)
    return _with_said(record, job, *unit, LAST_STAGE, ledger)


def _with_said(
    record: Record, job: Job, split: str, index: int, stage: int, ledger: Ledger | None
) -> Record:
    start = index - index % job.images_per_part
    size = len(open_store(job.source, split))
    place = Range(split, start, min(start + job.images_per_part, size))
    said: dict[int, dict[str, Annotations]] = {}
    for member, rows in _said(job, stage, place):
        id_, outcome = rows[index - start]
        if id_ != record.id:
            raise UserError(
                f"{member.folder}: has {id_!r} where {job.source} has {record.id!r}; remove the "
                "folder, it is then made again"
            )
        if isinstance(outcome, Annotations):
            said.setdefault(member.stage, {})[member.folder.name] = outcome
    for at in sorted(said):
        record = combine(record, said[at], job.round, config=job.combining, ledger=ledger)
    return record


@functools.lru_cache(maxsize=2)
def _said(job: Job, stage: int, place: Range) -> tuple[tuple[Member, list[Row]], ...]:
    members = [member for member in job.members if member.stage < stage]
    return tuple((member, read_rows(member.folder, place)) for member in members)


def _asked(specialist: Specialist, records: Sequence[Record], job: Job) -> list[Outcome]:
    outcomes: list[Outcome | None] = [_unreadable(record) for record in records]
    whole = [i for i, failure in enumerate(outcomes) if failure is None]
    answers = ask(specialist, [records[i] for i in whole]) if whole else []
    for i, answer in zip(whole, answers, strict=True):
        outcomes[i] = _storable(records[i], answer, job)
    return [outcome for outcome in outcomes if outcome is not None]


def _unreadable(record: Record) -> Failure | None:
    try:
        check_decodes(open_image(record.image))
    except ImageError as error:
        return Failure("unreadable image", str(error))
    return None


def _storable(record: Record, outcome: Outcome, job: Job) -> Outcome:
    """The outcome, or a failure if it makes no record that a store takes."""
    if isinstance(outcome, Failure):
        return outcome
    bare = dataclasses.replace(record, image=b"-")
    try:
        row_json((record.id, outcome))
        as_stored(combine(bare, {"": outcome}, job.round, config=job.combining))
    except Exception as error:  # Whatever a stranger's answer leads to.
        return Failure("garbage answer", f"{type(error).__name__}: {error}"[:500])
    return outcome


def _paid(specialist: Specialist) -> float | None:
    """What a specialist of a paid service has spent so far, which it counts in `usage`."""
    usage = getattr(specialist, "usage", None)
    return None if usage is None else float(usage.cost)
