# SPDX-License-Identifier: Apache-2.0
"""The same function over many lists of arguments: in processes of this machine, or on Ray.

The calls leave their results on disk, so nothing but the fact that a call ended comes back. That is
why Ray's tasks are used and not Ray Data: no data flows from call to call, and its blocks would put
what all calls work on into the object store at once, while here few calls wait at a time.
"""

import concurrent.futures
import contextlib
import importlib
import itertools
import multiprocessing
import os
import re
import socket
import threading
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from florence2_jax.typing import UserError

LOCAL = "local"
"""Instead of an address: a Ray of this machine that ends with the work."""

_Call = tuple[Any, ...]


def run_in_processes(
    function: Callable[..., None], calls: Iterable[_Call], *, num_workers: int
) -> Generator[_Call, None, None]:
    """Runs `function(*call)` for each of the calls; yields them as they end, in any order.

    Processes are spawned and end with this one, even if it is killed.

    Raises:
        UserError: if a process died; else what a call raises, after those at work have ended.
    """
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),  # Threads of other libraries do not fork.
        initializer=end_with_parent,
    )

    def ended(futures: Collection[Any]) -> Iterable[Any]:
        done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            future.result()
        return done

    def submit(*call: Any) -> Any:
        return pool.submit(function, *call)

    try:
        yield from _few_at_a_time(calls, 2 * num_workers, submit, ended)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps for want of memory; run the same command again with "
            "fewer workers, finished shards are kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_on_ray(
    function: Callable[..., None], calls: Iterable[_Call], *, num_workers: int, address: str
) -> Generator[_Call, None, None]:
    """Runs `function(*call)` for each of the calls as tasks of Ray, a core each; yields as above.

    A task whose machine or process died is run again by Ray, so a call may run twice, or still run
    when its caller is gone: it must be one that may. Machines of a cluster need this package, and
    the same file system under the same paths.

    Args:
        address: of a cluster ("auto", "HOST:PORT", "ray://HOST:PORT"), or `LOCAL`.
        num_workers: cores of a `LOCAL` Ray; a cluster has those it has.

    Raises:
        UserError: if Ray is not installed, no cluster answers, or a task is lost again and again;
            else what a call raises.
    """
    ray = import_ray()
    with connected(ray, address, num_workers):
        task = ray.remote(num_cpus=1)(function)
        window = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        running: set[Any] = set()

        def submit(*call: Any) -> Any:
            running.add(reference := task.remote(*call))
            return reference

        def ended(references: Collection[Any]) -> Iterable[Any]:
            done, _ = ray.wait(list(references), num_returns=1)
            running.difference_update(done)
            ray.get(done)
            return done

        try:
            yield from _few_at_a_time(calls, window, submit, ended)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # What the call raised, without Ray's own traceback.
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"Ray lost a task again and again ({reason}); run the same command again, perhaps "
                "with fewer workers, finished shards are kept"
            ) from error
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _few_at_a_time(
    calls: Iterable[_Call],
    window: int,
    submit: Callable[..., Any],
    ended: Callable[[Collection[Any]], Iterable[Any]],
) -> Iterator[_Call]:
    """Keeps `window` calls submitted, so that the arguments of few are pickled at once."""
    waiting, running = iter(calls), {}
    while True:
        for call in itertools.islice(waiting, window - len(running)):
            running[submit(*call)] = call
        if not running:
            return
        for handle in ended(running.keys()):
            yield running.pop(handle)


def import_ray() -> Any:
    """Ray, with its reports home switched off. Raises UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Else Ray reports to its makers.
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            'Ray is not installed; run: pip install "florence2-jax[engine]", or work without --ray'
        ) from error


@contextlib.contextmanager
def connected(ray: Any, address: str, num_workers: int) -> Iterator[None]:
    """A Ray to give tasks to: the one this process has already, or one for as long as the block."""
    if ray.is_initialized():
        yield
        return
    own = {"num_cpus": num_workers, "include_dashboard": False} if address == LOCAL else {}
    try:
        if place := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):
            # Ray itself would try for minutes, and then end the process.
            socket.create_connection((place[1], int(place[2])), timeout=10).close()
        with warnings.catch_warnings():
            # JAX warns of every fork; what Ray forks here becomes another program at once.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--ray {address}: no Ray answers there ({reason}); start one with: ray start --head, "
            "or give no address"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def end_with_parent() -> None:
    """Lets a worker die when its parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
