# SPDX-License-Identifier: Apache-2.0
"""Phase 1 of the data engine: specialists annotate the images of a store.

    DIR              the store with what they said, which takes its images from the source
    DIR.parts/       a folder of parts per specialist, failures.jsonl, report.json

The unit of work is a range of records and one specialist (`stages.py`); its result is a part
(`parts.py`). A part that exists is never made again, so whatever is killed, the same command goes
on, and every image is annotated once by every specialist. Who does which range when is decided in
`scaling.py`. Parts stay when the store is written: one more specialist, and only it is asked.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from florence2_jax.engine.accounts import REPORT, Entry, Progress, write_report
from florence2_jax.engine.combining import CombineConfig
from florence2_jax.engine.parts import Range, Summary, held, missing, parts_of, read_summary
from florence2_jax.engine.scaling import Pool, ScalingConfig, run
from florence2_jax.engine.specialists import create
from florence2_jax.engine.specialists.base import Specialist
from florence2_jax.engine.stages import (
    Job,
    Member,
    create_members,
    give_up,
    make_record,
    open_worker,
    stage_of,
)
from florence2_jax.engine.workers import Here, Processes, RayWorkers, Workers
from florence2_jax.records import running
from florence2_jax.records.journal import UNFINISHED, difference
from florence2_jax.records.store import splits_of
from florence2_jax.records.writing import INFO, STORE, Plan, write_store
from florence2_jax.typing import UserError

OnProgress: TypeAlias = Callable[[Sequence[Progress]], None]

_PROGRESS_S = 1.0  # Between two calls of it.
_POOL_SETTINGS = ("min_workers", "max_workers")


def annotate(
    source: Path,
    directory: Path,
    specialists: Sequence[Mapping[str, Any] | Specialist],
    *,
    round: int = 0,
    splits: Sequence[str] = ("train",),
    num_workers: int = 1,
    ray: str | None = None,
    combining: CombineConfig = CombineConfig(),
    scaling: ScalingConfig = ScalingConfig(),
    examples_per_shard: int = 512,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Annotates all images of a store, or goes on with that, and writes a store.

    What is written depends neither on `num_workers` nor on `ray`, as long as specialists give the
    same answer twice. With more than one worker they run in spawned processes, so a script that
    calls this must guard its top level with `if __name__ == "__main__"`.

    Args:
        source: a store of records; it keeps the images.
        directory: of the store to write; `directory.parts` beside it takes the parts.
        specialists: per specialist its `type` and settings, as `create` takes them, and perhaps
            `min_workers` and `max_workers` of its own; or a specialist that is made already.
        round: of the data engine, stamped on what they say.
        splits: which splits to annotate.
        num_workers: processes; cores of a Ray of this machine.
        ray: address of a Ray cluster, or "local"; all its machines must see the source and the
            directory under the same absolute paths.
        on_progress: called now and then, with a row per specialist.

    Returns:
        What is also in `report.json`, see `write_report`.

    Raises:
        UserError: if the source, a specialist or Ray cannot be used, the directory holds something
            else, or workers die again and again; what is finished is kept.
    """
    began = time.perf_counter()
    source, directory = Path(source).absolute(), Path(directory).absolute()
    sizes = _sizes(source, splits)
    made = sorted((_created(one, scaling) for one in specialists), key=lambda m: stage_of(m[0]))
    if not made:
        raise UserError("annotate: no specialist is given")
    parts = directory.with_name(f"{directory.name}.parts")
    basis = [_digest_of(source), round, dataclasses.asdict(combining)]
    members = create_members([specialist for specialist, _ in made], parts, basis)
    what = {"format": "annotate", "parts": [member.folder.name for member in members]}
    if _is_finished(directory, what) and (parts / REPORT).is_file():
        return json.loads((parts / REPORT).read_text("utf-8"))
    job = Job(source, round, combining, scaling.images_per_part, members)
    with held(parts):
        runs = [_Run(m, *pair, job, sizes) for m, pair in zip(members, made, strict=True)]
        with _workers(num_workers, ray) as workers:
            _run_stages(runs, workers, num_workers, ray, on_progress)
            written = write_store(
                directory,
                Plan(
                    units={split: _Places(split, num) for split, num in sizes.items()},
                    make=functools.partial(make_record, job=job),
                    job=what,
                    images=source,
                ),
                examples_per_shard=examples_per_shard,
                num_workers=num_workers,
                ray=ray,
            )
        entries = [Entry(run.member, run.specialist, run.counts) for run in runs]
        clock_s = time.perf_counter() - began
        return write_report(parts, directory, job, entries, sizes, written["counts"], clock_s)


class _Run:
    """One specialist's share of the work, and how far it has come."""

    def __init__(
        self,
        member: Member,
        specialist: Specialist,
        scaling: ScalingConfig,
        job: Job,
        sizes: Mapping[str, int],
    ):
        self.member, self.specialist, self.scaling, self.job = member, specialist, scaling, job
        there = [part for part in parts_of(member.folder) if part.split in sizes]
        self.ranges = [
            place
            for split, size in sizes.items()
            for hole in missing(there, Range(split, 0, size))
            for place in hole.cut(job.images_per_part)
        ]
        self.total = sum(sizes.values())
        self.summary = Summary()
        for place in there:
            self.summary.add(read_summary(place.path(member.folder)))
        self.summary.images = self._before = self.total - sum(map(len, self.ranges))
        self.pool: Pool | None = None
        self._began = self._ended = time.monotonic()

    @property
    def counts(self) -> Any:
        """What its pool went through in this run; None where nothing was left to do."""
        return None if self.pool is None else self.pool.counts

    def begin(self, scaling: ScalingConfig) -> Pool:
        """The pool that does what is left."""
        self._began = self._ended = time.monotonic()
        self.pool = Pool(
            self.specialist.name,
            functools.partial(open_worker, self.job, self.member, self.specialist),
            self.specialist.resources,
            self.ranges,
            scaling,
            on_done=self._done,
            on_lost=self._lost,
        )
        return self.pool

    def progress(self) -> Progress:
        """How far it is."""
        seconds = self._ended - self._began
        return Progress(
            specialist=self.specialist.name,
            images=self.summary.images,
            total=self.total,
            failures=self.summary.failures.total(),
            images_per_s=(self.summary.images - self._before) / seconds if seconds else 0.0,
            worker_s=self.summary.seconds,
            money=self.summary.money,
            workers=0 if self.pool is None else self.pool.num_workers,
        )

    def _done(self, place: Range, summary: Summary) -> None:
        if not (path := place.path(self.member.folder)).exists():
            raise UserError(
                f"{path}: written by a machine of the Ray cluster, and not to be seen here; give a "
                "directory that all of them share"
            )
        self.summary.add(summary)
        self._ended = time.monotonic()

    def _lost(self, place: Range, reason: str) -> None:
        self._done(place, give_up(place, reason, job=self.job, member=self.member))


def _run_stages(
    runs: Sequence[_Run],
    workers: Workers,
    num_workers: int,
    ray: str | None,
    on_progress: OnProgress | None,
) -> None:
    """One stage after the other; on Ray all specialists of a stage at once."""
    told = [0.0]

    def tick(is_last: bool = False) -> None:
        if on_progress and (is_last or time.monotonic() - told[0] >= _PROGRESS_S):
            told[0] = time.monotonic()
            on_progress([one.progress() for one in runs])

    for _, group in itertools.groupby(runs, key=lambda one: (one.member.stage, ray or one)):
        pools = [one.begin(_fitted(one, workers, num_workers, ray)) for one in group if one.ranges]
        run(pools, workers, tick)
    tick(is_last=True)


def _fitted(one: _Run, workers: Workers, num_workers: int, ray: str | None) -> ScalingConfig:
    """How many workers: on Ray what the run file says, else what the caller says."""
    if ray is None:
        return dataclasses.replace(one.scaling, min_workers=num_workers, max_workers=num_workers)
    if ray == running.LOCAL and not workers.capacity(one.specialist.resources):
        raise UserError(
            f"specialist {one.specialist.name}: needs {one.specialist.resources}, more than a Ray "
            f"of {num_workers} cores has here; give more workers"
        )
    return one.scaling


@contextlib.contextmanager
def _workers(num_workers: int, ray: str | None) -> Iterator[Workers]:
    if ray is None:
        yield Here() if num_workers <= 1 else Processes(num_workers)
        return
    module = running.import_ray()
    with running.connected(module, ray, num_workers):
        yield RayWorkers(module)


class _Places(Sequence[tuple[str, int]]):
    """Where the images are: all records of a split, in order, without a list of them."""

    def __init__(self, split: str, size: int):
        self._split, self._size = split, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Any:
        at = range(self._size)[index]
        return [(self._split, i) for i in at] if isinstance(at, range) else (self._split, at)


def _sizes(source: Path, splits: Sequence[str]) -> dict[str, int]:
    there = splits_of(source)
    if unknown := [split for split in splits if split not in there]:
        raise UserError(f"{source}: no split {unknown[0]!r}; there are {sorted(there)}")
    return {split: there[split] for split in splits}


def _created(
    settings: Mapping[str, Any] | Specialist, scaling: ScalingConfig
) -> tuple[Specialist, ScalingConfig]:
    if isinstance(settings, Specialist):
        return settings, scaling
    pool = {name: settings[name] for name in _POOL_SETTINGS if name in settings}
    own = {name: value for name, value in settings.items() if name not in pool}
    if "type" not in own:
        raise UserError(f"a specialist without a type: {own}")
    return create(**own), dataclasses.replace(scaling, **pool)


def _digest_of(source: Path) -> str:
    """What the source holds, as its own books tell it."""
    files = [source / name for name in (INFO, STORE)]
    texts = [path.read_bytes() for path in files if path.is_file()]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def _is_finished(directory: Path, what: Mapping[str, Any]) -> bool:
    """Whether the store is there. Raises UserError, before work starts, if it is another one."""
    if (directory / STORE).is_file():
        there = json.loads((directory / STORE).read_text("utf-8"))["job"]["job"]
        if there != what:
            raise UserError(
                f"{directory}: holds the store of another job ({difference(there, dict(what))}); "
                "give another directory, or remove this one first"
            )
        return (directory / INFO).is_file()
    if directory.exists() and any(directory.iterdir()) and not (directory / UNFINISHED).is_dir():
        raise UserError(f"{directory}: is not empty; give a new or empty directory")
    return False
