# SPDX-License-Identifier: Apache-2.0
"""Where workers live: in this process, in spawned ones, or as actors of Ray.

A worker loads once, then does one call after the other; that it is ready, done or dead comes back
as an event. What a worker raises is raised here. Who works when is decided in `scaling.py`, alike
for all three.

Why actors of Ray and not `map_batches` of Ray Data (2.60): Ray Data runs no straggler a second
time, and what kills its worker again and again (an image that crashes a decoder) it tries for ever.
Nor does any data flow here: a call is a range of records, its result a file, and each worker reads
its images from the store itself.
"""

import collections
import dataclasses
import multiprocessing
import multiprocessing.connection
import signal
import traceback
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from florence2_jax.engine.specialists.base import Resources
from florence2_jax.records import running
from florence2_jax.typing import UserError

Work: TypeAlias = Callable[[Any], Any]
Load: TypeAlias = Callable[[], Work]
Worker: TypeAlias = Any
"""A handle, only good for being given back."""


@dataclasses.dataclass(frozen=True)
class Event:
    """What happened to a worker. `value` is the result of a call, or why a worker died."""

    worker: Worker
    kind: Literal["ready", "done", "died"]
    value: Any = None


@runtime_checkable
class Workers(Protocol):
    """A place where workers live."""

    def start(self, load: Load, resources: Resources) -> Worker:
        """A worker that begins to load; an event says when it is ready."""
        ...

    def submit(self, worker: Worker, call: Any) -> None:
        """Gives a call to a worker that has none."""
        ...

    def stop(self, worker: Worker) -> None:
        """Ends a worker, whatever it does."""
        ...

    def wait(self, timeout_s: float) -> list[Event]:
        """What happened; waits for something, but no longer than that. Raises what workers raise.

        With neither a call nor a loading worker it returns at once.
        """
        ...

    def capacity(self, resources: Resources) -> int:
        """How many workers with these needs fit, as far as is known."""
        ...


@dataclasses.dataclass(eq=False)
class _Local:
    work: Work | None = None


class Here:
    """One worker, which is this process; it works while it is waited for."""

    def __init__(self):
        self._calls: collections.deque[tuple[_Local, Callable[[], Event]]] = collections.deque()

    def start(self, load: Load, resources: Resources) -> Worker:
        worker = _Local()

        def ready() -> Event:
            worker.work = load()
            return Event(worker, "ready")

        self._calls.append((worker, ready))
        return worker

    def submit(self, worker: Worker, call: Any) -> None:
        self._calls.append((worker, lambda: Event(worker, "done", worker.work(call))))

    def stop(self, worker: Worker) -> None:
        worker.work = None  # Lets go of the model.
        self._calls = collections.deque(one for one in self._calls if one[0] is not worker)

    def wait(self, timeout_s: float) -> list[Event]:
        return [self._calls.popleft()[1]()] if self._calls else []

    def capacity(self, resources: Resources) -> int:
        return 1


@dataclasses.dataclass(eq=False)
class _Child:
    process: Any
    pipe: Any
    is_busy: bool = True


class Processes:
    """Spawned processes of this machine, which end with this one even if it is killed.

    They share its accelerators: nothing is assigned to one of them.
    """

    def __init__(self, num_workers: int):
        self.num_workers = num_workers
        self._children: dict[Any, _Child] = {}

    def start(self, load: Load, resources: Resources) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, load))
        process.start()
        theirs.close()  # So that the pipe ends with the process.
        child = _Child(process, ours)
        self._children[ours] = child
        return child

    def submit(self, worker: _Child, call: Any) -> None:
        worker.is_busy = True
        try:
            worker.pipe.send(call)
        except OSError:
            return  # It died idle; `wait` will say so.

    def stop(self, worker: _Child) -> None:
        self._children.pop(worker.pipe, None)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()

    def wait(self, timeout_s: float) -> list[Event]:
        pipes = [pipe for pipe, child in self._children.items() if child.is_busy]
        ready: list[Any] = multiprocessing.connection.wait(pipes, timeout_s) if pipes else []
        return [self._event(self._children[pipe]) for pipe in ready]

    def _event(self, child: _Child) -> Event:
        child.is_busy = False
        try:
            kind, value = child.pipe.recv()
        except (EOFError, OSError):
            child.process.join()
            del self._children[child.pipe]
            return Event(child, "died", f"exit code {child.process.exitcode}")
        if kind == "raised":
            raise value
        return Event(child, kind, value)

    def capacity(self, resources: Resources) -> int:
        return self.num_workers


def _serve(pipe: Any, load: Load) -> None:
    """What a spawned process does until its pipe ends."""
    running.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us.
    try:
        work = load()
        pipe.send(("ready", None))
        while True:
            pipe.send(("done", work(pipe.recv())))
    except (EOFError, BrokenPipeError):
        return
    except UserError as error:
        pipe.send(("raised", error))
    except Exception:
        pipe.send(("raised", RuntimeError(f"in a worker:\n{traceback.format_exc()}")))


class RayWorkers:
    """Actors, spread over the nodes of a connected Ray, each with the resources it needs."""

    def __init__(self, ray: Any):
        self._ray = ray
        self._pending: dict[Any, tuple[Any, str]] = {}  # By reference: the actor, what it is at.

    def start(self, load: Load, resources: Resources) -> Worker:
        options: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
        if resources.memory_bytes:
            options["memory"] = resources.memory_bytes
        # Restarts are ours: only we know what killed it, and how often.
        options |= {"max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        actor = self._ray.remote(**options)(_Actor).remote(load)
        self._pending[actor.load.remote()] = actor, "ready"
        return actor

    def submit(self, worker: Worker, call: Any) -> None:
        self._pending[worker.work.remote(call)] = worker, "done"

    def stop(self, worker: Worker) -> None:
        for reference in [ref for ref, (actor, _) in self._pending.items() if actor is worker]:
            del self._pending[reference]
        self._ray.kill(worker, no_restart=True)

    def wait(self, timeout_s: float) -> list[Event]:
        if not self._pending:
            return []
        self._ray.wait(list(self._pending), num_returns=1, timeout=timeout_s)
        num = len(self._pending)
        ended, _ = self._ray.wait(list(self._pending), num_returns=num, timeout=0)
        return [self._event(reference) for reference in ended]

    def _event(self, reference: Any) -> Event:
        errors = self._ray.exceptions
        actor, kind = self._pending.pop(reference)
        try:
            return Event(actor, kind, self._ray.get(reference))  # pyright: ignore[reportArgumentType]
        except errors.RayTaskError as error:
            raise error.cause from None  # What the call raised, without Ray's own traceback.
        except errors.RayError as error:  # The actor or its node died, or cannot be reached.
            self._ray.kill(actor, no_restart=True)
            lines = str(error).strip().splitlines()
            return Event(actor, "died", " ... ".join(dict.fromkeys((lines[0], lines[-1]))))

    def capacity(self, resources: Resources) -> int:
        return sum(self._fit(node["Resources"], resources) for node in self._ray.nodes()
                   if node["Alive"])  # fmt: skip

    @staticmethod
    def _fit(there: dict[str, float], resources: Resources) -> int:
        needs = {"CPU": resources.num_cpus, "GPU": resources.num_gpus}
        needs["memory"] = resources.memory_bytes
        return int(min(there.get(name, 0) // need for name, need in needs.items() if need))


class _Actor:
    """The worker on Ray."""

    def __init__(self, load: Load):
        self._load = load
        self._work: Work | None = None

    def load(self) -> None:
        self._work = self._load()

    def work(self, call: Any) -> Any:
        assert self._work is not None
        return self._work(call)
