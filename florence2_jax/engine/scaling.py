# SPDX-License-Identifier: Apache-2.0
"""Who annotates what when: pools of workers that grow, shrink, lose workers and still finish.

Every specialist has a pool and a list of ranges. A worker has one range at a time, so what is under
way is bounded by the number of workers. A pool starts with `min_workers` and doubles while ranges
wait, up to `max_workers`; with none waiting, idle workers go, and their resources with them.

When a worker dies, its range is done again; when workers die of one range repeatedly, it is halved,
down to the single image that kills them, which becomes a failure. When nothing waits, a range that
takes far longer than the others is given to an idle worker too; the first to finish counts.
"""

import collections
import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

from florence2_jax.engine.parts import Range, Summary
from florence2_jax.engine.specialists.base import Resources
from florence2_jax.engine.workers import Event, Load, Worker, Workers
from florence2_jax.typing import UserError

_DEATHS_OF_ONE_IMAGE = 3  # Before it counts as the cause: workers are also killed by accident.
_LOADING_DEATHS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """How work is cut and spread; none of it changes what is annotated.

    Attributes:
        images_per_part: of one file, and of what is done again after a kill.
        min_workers: of one specialist, to begin with.
        max_workers: of one specialist; 0 for as many as fit.
        deaths_per_range: workers that die over a range before it is halved.
        max_deaths_in_a_row: of one specialist, with no range finished in between.
        straggler_factor: a straggler takes so many times the median time of an image.
        straggler_min_s: and no less than this.
        start_timeout_s: how long to wait for the first worker.
    """

    images_per_part: int = 256
    min_workers: int = 1
    max_workers: int = 0
    deaths_per_range: int = 2
    max_deaths_in_a_row: int = 32
    straggler_factor: float = 4.0
    straggler_min_s: float = 30.0
    start_timeout_s: float = 900.0

    def __post_init__(self):
        for name in ("images_per_part", "min_workers", "deaths_per_range", "max_deaths_in_a_row"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: must be 1 or more")
        if self.straggler_factor <= 1:
            raise UserError(f"straggler_factor {self.straggler_factor}: must be more than 1")


@dataclasses.dataclass
class Counts:
    """What a pool went through. `lost_s` are seconds of workers that came to nothing."""

    started: int = 0
    died: int = 0
    done_again: int = 0
    halved: int = 0
    second_copies: int = 0
    lost_s: float = 0.0
    load_s: list[float] = dataclasses.field(default_factory=list)


class Pool:
    """The workers of one specialist and what is left for them to do.

    Args:
        name: of the specialist.
        load: makes a worker ready, in the worker.
        ranges: what to do.
        on_done: called once per finished range, with what the worker said.
        on_lost: called for a range of one image that kills its workers, with how they died.
    """

    def __init__(
        self,
        name: str,
        load: Load,
        resources: Resources,
        ranges: Sequence[Range],
        config: ScalingConfig,
        *,
        on_done: Callable[[Range, Summary], None],
        on_lost: Callable[[Range, str], None],
    ):
        self.name, self.load, self.resources, self.config = name, load, resources, config
        self.counts = Counts()
        self._on_done, self._on_lost = on_done, on_lost
        self._waiting = collections.deque(ranges)
        self._loading: dict[Worker, float] = {}
        self._running: dict[Worker, tuple[Range, float]] = {}
        self._idle: list[Worker] = []
        self._deaths: Counter[Range] = collections.Counter()
        self._in_a_row = self._loading_deaths = 0
        self._seconds_per_image: list[float] = []

    @property
    def num_workers(self) -> int:
        """Workers that are loading, at work or idle."""
        return len(self._loading) + len(self._running) + len(self._idle)

    @property
    def is_ready(self) -> bool:
        """Whether a worker has loaded."""
        return bool(self._running or self._idle)

    def owns(self, worker: Worker) -> bool:
        """Whether a worker is of this pool."""
        return worker in self._loading or worker in self._running or worker in self._idle

    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self._waiting and not self._running

    def step(self, workers: Workers) -> None:
        """Gives work to idle workers, starts new ones, lets go of those that are not needed."""
        while self._idle and (place := self._next()) is not None:
            worker = self._idle.pop()
            self._running[worker] = place, time.monotonic()
            workers.submit(worker, place)
        self._grow(workers)
        spare = 1 if self._running and not self._waiting else 0  # For a straggler.
        if not self._waiting:
            for worker in [*self._idle[spare:], *self._loading]:
                self._let_go(worker, workers)

    def handle(self, event: Event, workers: Workers) -> None:
        """Takes note of what happened to a worker of this pool."""
        if event.kind == "died":
            self._bury(event)
            return
        self._idle.append(event.worker)
        now = time.monotonic()
        if event.kind == "ready":
            self.counts.load_s.append(now - self._loading.pop(event.worker))
            self._loading_deaths = 0
            return
        place, since = self._running.pop(event.worker)
        self._seconds_per_image.append((now - since) / len(place))
        self._in_a_row = 0
        for worker, (other, began) in list(self._running.items()):
            if other == place:  # The slower of two copies.
                self.counts.lost_s += now - began
                self._let_go(worker, workers)
        self._on_done(place, event.value)

    def stop(self, workers: Workers) -> None:
        """Ends all workers."""
        for worker in [*self._loading, *self._running, *self._idle]:
            self._let_go(worker, workers)

    def _let_go(self, worker: Worker, workers: Workers) -> None:
        self._forget(worker)
        workers.stop(worker)

    def _forget(self, worker: Worker) -> None:
        self._loading.pop(worker, None)
        self._running.pop(worker, None)
        if worker in self._idle:
            self._idle.remove(worker)

    def _grow(self, workers: Workers) -> None:
        if not self._waiting or self._loading:
            return
        most = self.config.max_workers or max(1, workers.capacity(self.resources))
        wanted = max(self.config.min_workers, 2 * self.num_workers)
        wanted = min(wanted, most, len(self._waiting) + len(self._running))
        for _ in range(wanted - self.num_workers):
            self._loading[workers.start(self.load, self.resources)] = time.monotonic()
            self.counts.started += 1

    def _next(self) -> Range | None:
        """What an idle worker does next: a waiting range, or a straggler's."""
        if self._waiting:
            return self._waiting.popleft()
        if not self._seconds_per_image:
            return None
        usual = self.config.straggler_factor * statistics.median(self._seconds_per_image)
        now, copies = time.monotonic(), Counter(place for place, _ in self._running.values())
        for place, since in sorted(self._running.values(), key=lambda running: running[1]):
            limit_s = max(self.config.straggler_min_s, usual * len(place))
            if copies[place] == 1 and now - since > limit_s:
                self.counts.second_copies += 1
                return place
        return None

    def _bury(self, event: Event) -> None:
        self.counts.died += 1
        loading_since, running = self._loading.get(event.worker), self._running.get(event.worker)
        self._forget(event.worker)
        if loading_since is not None:
            self._loading_deaths += 1
            if self._loading_deaths >= _LOADING_DEATHS:
                raise UserError(
                    f"{self.name}: its workers die while they load it ({event.value}); does it "
                    "fit into memory?"
                )
        if running is None:
            return
        place, since = running
        self.counts.lost_s += time.monotonic() - since
        self._in_a_row += 1
        if self._in_a_row >= self.config.max_deaths_in_a_row:
            raise UserError(
                f"{self.name}: {self._in_a_row} workers died one after the other ({event.value}), "
                f"the last at {place.split} {place.start} to {place.stop}; what is finished is kept"
            )
        self._deaths[place] += 1
        if all(place != other for other, _ in self._running.values()):
            self._do_again(place, str(event.value))

    def _do_again(self, place: Range, reason: str) -> None:
        if len(place) == 1 and self._deaths[place] >= _DEATHS_OF_ONE_IMAGE:
            self._on_lost(place, reason)
            self._in_a_row = 0
        elif len(place) > 1 and self._deaths[place] >= self.config.deaths_per_range:
            self.counts.halved += 1
            self._waiting.extendleft(reversed(place.halves()))
        else:
            self.counts.done_again += 1
            self._waiting.appendleft(place)


def run(
    pools: Sequence[Pool], workers: Workers, on_tick: Callable[[], None], *, poll_s: float = 0.5
) -> None:
    """Works until all pools are finished; ends all their workers in any case.

    Raises:
        UserError: if workers cannot start, or die one after the other; else what workers raise.
    """
    began = time.monotonic()
    try:
        while unfinished := [pool for pool in pools if not pool.is_finished()]:
            for pool in unfinished:
                pool.step(workers)
            for event in workers.wait(poll_s):
                pool = next((pool for pool in pools if pool.owns(event.worker)), None)
                if pool is not None:  # Else it was let go a moment ago.
                    pool.handle(event, workers)
                    pool.step(workers)
            if any(pool.is_ready for pool in pools):
                began = time.monotonic()
            _check_started(unfinished, workers, time.monotonic() - began)
            on_tick()
    finally:
        for pool in pools:
            pool.stop(workers)


def _check_started(pools: Sequence[Pool], workers: Workers, waited_s: float) -> None:
    pool = pools[0]
    if waited_s > pool.config.start_timeout_s:
        raise UserError(
            f"{pool.name}: no worker of it could start within {waited_s:.0f} s; each needs "
            f"{pool.resources}, and there is room for {workers.capacity(pool.resources)} of them"
        )
