# SPDX-License-Identifier: Apache-2.0
"""One run on several hosts: how its processes meet, agree, wait for each other and part.

They talk through the key-value store of JAX's coordination service, which process 0 serves: no
device is touched, so a host that differs or is late is named before it can hang a collective.
"""

import collections
import contextlib
import dataclasses
import errno
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from florence2_jax.typing import UserError

STATUS_CRASHED, STATUS_USER_ERROR, STATUS_AGAIN, STATUS_ABORTED = 1, 2, 75, 130
"""Exit statuses: a defect; what the user must mend; nothing is wrong here, start it again; a second
SIGINT."""


class LostHost(RuntimeError):
    """Another host is late, gone or stopped: start the run again on all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """How the processes of a run find each other, and how long they wait.

    With no `coordinator` JAX finds the others by itself (TPU VM, GKE JobSet, Slurm, Open MPI);
    where it finds nothing, the run is one process. The first three are also flags of `train`.
    """

    coordinator: str = ""  # HOST:PORT of process 0.
    num_processes: int = 0  # 1 is a run by itself, whatever the machine says.
    process_id: int = -1
    init_timeout_s: int = 1800  # Machines of a pod come up minutes apart.
    heartbeat_timeout_s: int = 300  # Longer than the longest compilation, which may hold it up.
    barrier_timeout_s: int = 1800

    def __post_init__(self):
        for name in ("init_timeout_s", "heartbeat_timeout_s", "barrier_timeout_s"):
            if getattr(self, name) < 1:
                raise UserError(f"hosts.{name}: {getattr(self, name)} must be at least 1")
        by_hand = (bool(self.coordinator), self.num_processes > 1, self.process_id >= 0)
        if any(by_hand) and not all(by_hand):
            raise UserError(
                "hosts: coordinator, num_processes (2 or more) and process_id go together; leave "
                "out all three where JAX finds the hosts by itself"
            )
        if all(by_hand) and not self.process_id < self.num_processes:
            raise UserError(
                f"hosts.process_id: {self.process_id} is not one of 0 to {self.num_processes - 1}"
            )


def start(hosts: HostsConfig) -> None:
    """Joins the processes of the run; to be called before anything asks JAX for its devices.

    If they do not meet within `hosts.init_timeout_s` the process ends with `STATUS_AGAIN`.
    """
    if hosts.num_processes == 1:
        return
    by_hand: dict[str, Any] = {}
    if hosts.coordinator:
        by_hand = dict(
            coordinator_address=hosts.coordinator,
            num_processes=hosts.num_processes,
            process_id=hosts.process_id,
        )
    # JAX itself aborts the process then, with a stack trace and no word on who waited for whom.
    give_up = threading.Timer(hosts.init_timeout_s, _give_up, [hosts])
    give_up.daemon = True
    give_up.start()
    try:
        jax.distributed.initialize(
            **by_hand,
            initialization_timeout=hosts.init_timeout_s + 60,
            heartbeat_timeout_seconds=hosts.heartbeat_timeout_s,
            shutdown_timeout_seconds=hosts.barrier_timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        # JAX knows no cluster here, or was at work before: one process.
        is_alone_here = any(text in str(error) for text in ("coordinator_address", "before any"))
        if by_hand or not is_alone_here:
            raise
        return
    finally:
        give_up.cancel()
    _state().client.key_value_set(f"{_ROOT}/names/{_state().process_id}", socket.gethostname())


def is_alone() -> bool:
    """Whether the run is this process only."""
    return not jax.distributed.is_initialized() or _state().num_processes == 1


def agree(facts: Mapping[str, str], timeout_s: float) -> None:
    """Compares facts that must be the same on every host.

    Raises:
        UserError: naming the hosts that differ from most, the fact and both values.
        LostHost: if a host is late or has failed.
    """
    if is_alone():
        return
    told = {i: json.loads(x) for i, x in _gather("agree", json.dumps(facts), timeout_s).items()}
    differences = []
    for fact in dict.fromkeys(name for own in told.values() for name in own):
        values = {index: own.get(fact, "missing") for index, own in told.items()}
        usual = collections.Counter(values.values()).most_common(1)[0][0]
        if others := [index for index, value in values.items() if value != usual]:
            differences.append(
                f"{fact} is {values[others[0]]} on {_named(others)} and {usual} on "
                f"{_named([index for index in values if index not in others])}"
            )
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"the hosts do not agree: {'; '.join(differences[:3])}{more}. Start every host with "
            "the same code, run file and records"
        )


def barrier(name: str, timeout_s: float) -> None:
    """Waits until every process is here.

    Raises:
        LostHost: naming the hosts that did not come in time, or the one that failed meanwhile.
    """
    if not is_alone():
        _gather(f"barrier {name}", "here", timeout_s)


def post(name: str, text: str) -> None:
    """Leaves a text under a name for the other processes to see, over the one before."""
    if not is_alone():
        key = f"{_ROOT}/posts/{name}/{_state().process_id}"
        _state().client.key_value_set(key, text, allow_overwrite=True)


def posted(name: str) -> dict[int, str]:
    """What processes left under a name, by process; those that left nothing are missing."""
    return {} if is_alone() else _read(f"{_ROOT}/posts/{name}/")


@contextlib.contextmanager
def departure() -> Iterator[None]:
    """With several processes, an error ends this one at once, and the others hear its reason.

    Leaving in the usual way would wait for hosts that wait for this one. The exit status is one of
    `STATUS_*`.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if is_alone():
            raise
        _leave(error)


def _give_up(hosts: HostsConfig) -> NoReturn:
    own = f"process {hosts.process_id}" if hosts.coordinator else "this process"
    others = f"{hosts.num_processes - 1} others at {hosts.coordinator}"
    _end(
        STATUS_AGAIN,
        f"{own} on {socket.gethostname()} did not meet "
        f"{others if hosts.coordinator else 'the others'} within hosts.init_timeout_s="
        f"{hosts.init_timeout_s}: is every host started, and may they reach that port?",
    )


_ROOT = "florence2_jax"
_rounds: collections.Counter[str] = collections.Counter()
"""How often this process waited under each name: a key of the store is written once."""


def _state() -> Any:
    # JAX has no public name for its client of the coordination service; Orbax takes it here too.
    return multihost_utils.distributed.global_state  # pyright: ignore[reportPrivateImportUsage]


def _gather(name: str, value: str, timeout_s: float) -> dict[int, str]:
    """What every process said under a name, by process; waits for them."""
    client, count = _state().client, _state().num_processes
    _rounds[name] += 1
    place = f"{_ROOT}/{name}/{_rounds[name]}/"
    client.key_value_set(f"{place}{_state().process_id}", value)
    deadline_s, pause_s = time.monotonic() + timeout_s, 0.01
    while True:
        found = _read(place)
        if len(found) == count:
            return dict(sorted(found.items()))
        if failure := _failure():
            raise failure
        if time.monotonic() > deadline_s:
            late = [index for index in range(count) if index not in found]
            raise LostHost(
                f"{_named(late)} did not come to {name!r} within {timeout_s:g} s; the other "
                f"{len(found)} of {count} processes wait. Look at its log, then start the run again"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)


def _read(place: str) -> dict[int, str]:
    return {
        int(key.rpartition("/")[2]): value
        for key, value in _state().client.key_value_dir_get(place)
    }


def _named(indices: list[int]) -> str:
    """`host-b (process 1), host-c (process 2) and 5 more`."""
    names = _read(f"{_ROOT}/names/")
    shown = [f"{names.get(index, 'a host')} (process {index})" for index in indices[:3]]
    more = f" and {len(indices) - 3} more" if len(indices) > 3 else ""
    return ", ".join(shown) + more


def _failure() -> Exception | None:
    """The first failure that another process told."""
    own = _state().process_id
    for index, text in sorted(_read(f"{_ROOT}/failed/").items()):
        told = json.loads(text)
        if index != own:
            kind = UserError if told["status"] == STATUS_USER_ERROR else LostHost
            return kind(f"{_named([index])} stopped: {told['reason']}")
    return None


_LOST = re.compile(r"gloo|UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|coordination|connection", re.I)


_DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def _status(error: BaseException) -> int:
    is_disk = isinstance(error, OSError) and error.errno in _DISK_REFUSES
    if isinstance(error, UserError) or is_disk:
        return STATUS_USER_ERROR
    if isinstance(error, KeyboardInterrupt):
        return STATUS_ABORTED
    return STATUS_AGAIN if isinstance(error, LostHost) else STATUS_CRASHED


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _leave(error: BaseException) -> NoReturn:
    """Says why, tells the others, and ends the process."""
    if _status(error) == STATUS_CRASHED and _LOST.search(str(error)):
        error = _why_lost(error)
    status = _status(error)
    # The disk of the log may be full, the service may be gone with its host.
    with contextlib.suppress(Exception):
        if status == STATUS_CRASHED:
            traceback.print_exception(error)
    with contextlib.suppress(Exception):
        told = json.dumps({"status": status, "reason": _first_line(error)})
        _state().client.key_value_set(f"{_ROOT}/failed/{_state().process_id}", told)
        if _state().process_id == 0:
            time.sleep(_GRACE_S)  # The others read it here.
    _end(status, str(error) or type(error).__name__)


def _end(status: int, reason: str) -> NoReturn:
    """Ends the process without a word to JAX, which would wait for the other hosts."""
    try:
        sys.stderr.write(f"florence2-jax: {reason}\n")
        sys.stderr.flush()
        sys.stdout.flush()
    finally:  # The disk that is full may be that of the log.
        os._exit(status)


_GRACE_S = 3.0


def _why_lost(error: BaseException) -> Exception:
    """What another process said before it went, if it could."""
    deadline_s = time.monotonic() + _GRACE_S / 2
    while time.monotonic() < deadline_s:
        with contextlib.suppress(Exception):
            if failure := _failure():
                return failure
        time.sleep(0.1)
    return LostHost(
        f"another host is gone ({_first_line(error)}); start the run again on all hosts"
    )
