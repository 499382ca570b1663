# SPDX-License-Identifier: Apache-2.0
"""Pools grow while work waits, give back what they do not need, and end all they started."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from import_helpers import message

from florence2_jax.engine.parts import Range, Summary
from florence2_jax.engine.scaling import Pool, ScalingConfig, run
from florence2_jax.engine.specialists.base import Resources
from florence2_jax.engine.workers import Event, Load, Worker
from florence2_jax.typing import UserError


class Threads:
    """Workers in threads of this process; a call that raises MemoryError kills its worker."""

    def __init__(self, room: int = 100):
        self.room = room
        self.alive: dict[Worker, queue.Queue] = {}
        self.most = self.most_calls = self.calls = 0
        self.started: list[int] = []  # How many were alive after each start.
        self._events: queue.Queue[Event] = queue.Queue()

    def start(self, load: Load, resources: Resources) -> Worker:
        worker, calls = object(), queue.Queue()
        self.alive[worker] = calls
        self.started.append(len(self.alive))
        self.most = max(self.most, len(self.alive))
        threading.Thread(target=self._live, args=(worker, calls, load), daemon=True).start()
        return worker

    def _live(self, worker: Worker, calls: queue.Queue, load: Load) -> None:
        try:
            work = load()
            self._events.put(Event(worker, "ready"))
            while (call := calls.get()) is not None:
                self._events.put(Event(worker, "done", work(call)))
        except MemoryError as error:
            self._events.put(Event(worker, "died", str(error)))

    def submit(self, worker: Worker, call: Any) -> None:
        assert self.alive[worker].empty(), "one call at a time"
        self.alive[worker].put(call)

    def stop(self, worker: Worker) -> None:
        self.alive.pop(worker).put(None)

    def wait(self, timeout_s: float) -> list[Event]:
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return []
        if event.kind == "died":
            self.alive.pop(event.worker, None)
        return [event]

    def capacity(self, resources: Resources) -> int:
        return self.room


def nothing(place: Range) -> Summary:
    time.sleep(0.01)
    return Summary(images=len(place))


def pool(work: Callable[[Range], Summary], num: int, load: Load | None = None, **config: Any):
    """A pool over `num` images in ranges of two; what was done and lost."""
    done, lost = [], []
    made = Pool(
        "tester",
        load or (lambda: work),
        Resources(),
        list(Range("train", 0, num).cut(2)),
        ScalingConfig(**config),
        on_done=lambda place, summary: done.append(place),
        on_lost=lambda place, reason: lost.append((place, reason)),
    )
    return made, done, lost


def covered(done: list[Range]) -> list[int]:
    return sorted(i for place in done for i in range(place.start, place.stop))


def test_a_pool_starts_small_doubles_while_work_waits_and_stays_below_its_most():
    workers = Threads()
    made, done, _ = pool(nothing, 60, min_workers=2, max_workers=5)
    run([made], workers, lambda: None, poll_s=0.05)
    assert covered(done) == list(range(60))
    assert workers.started[:5] == [1, 2, 3, 4, 5] and workers.most == 5
    assert not workers.alive  # All were stopped.


def test_a_pool_takes_no_more_than_fits_and_no_more_than_it_has_ranges():
    for room, num, most in ((3, 60, 3), (100, 4, 2)):
        workers = Threads(room)
        made, done, _ = pool(nothing, num, min_workers=50)
        run([made], workers, lambda: None, poll_s=0.05)
        assert covered(done) == list(range(num)) and workers.most == most


def test_a_finished_pool_gives_its_workers_back_while_another_works():
    workers, left = Threads(), []
    quick, quick_done, _ = pool(nothing, 8, max_workers=2)

    def slow(place: Range) -> Summary:
        time.sleep(0.2)
        return Summary(images=len(place))

    other, other_done, _ = pool(slow, 8, max_workers=1)

    def tick() -> None:
        if quick.is_finished() and not other.is_finished():
            left.append((quick.num_workers, len(workers.alive)))

    run([quick, other], workers, tick, poll_s=0.05)
    assert covered(quick_done) == covered(other_done) == list(range(8))
    assert left and set(left) == {(0, 1)}


def test_ranges_that_kill_workers_are_halved_down_to_the_image():
    def work(place: Range) -> Summary:
        if place.start <= 5 < place.stop:
            raise MemoryError("killed by image 5")
        return nothing(place)

    made, done, lost = pool(work, 20, deaths_per_range=2)
    run([made], Threads(2), lambda: None, poll_s=0.05)
    assert [place for place, _ in lost] == [Range("train", 5, 6)]
    assert covered(done) == [i for i in range(20) if i != 5]
    counts = made.counts
    assert (counts.died, counts.halved, counts.done_again) == (5, 1, 3)


def test_workers_that_only_die_end_the_run_with_advice():
    def load() -> Callable:
        raise MemoryError("no room for the model")

    made, *_ = pool(nothing, 4, load)
    said = message(lambda: run([made], Threads(1), lambda: None, poll_s=0.05))
    assert said.startswith("tester: its workers die while they load it (no room for the model)")

    def work(place: Range) -> Summary:
        raise MemoryError("killed")

    made, *_ = pool(work, 400, max_deaths_in_a_row=4)
    said = message(lambda: run([made], Threads(1), lambda: None, poll_s=0.05))
    assert said.startswith("tester: 4 workers died one after the other (killed)")


def test_waiting_for_a_worker_has_an_end():
    def load() -> Callable:
        time.sleep(60)
        return nothing

    made, *_ = pool(nothing, 4, load, start_timeout_s=0.2)
    workers = Threads(7)
    with pytest.raises(UserError, match=r"no worker of it could start within .* room for 7"):
        run([made], workers, lambda: None, poll_s=0.05)
    assert not workers.alive


@pytest.mark.parametrize("bad", [{"images_per_part": 0}, {"straggler_factor": 1.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        ScalingConfig(**bad)
