# SPDX-License-Identifier: Apache-2.0
"""Real processes meet, agree, wait and part; no device is asked for anything."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest

from florence2_jax.parallel import processes
from florence2_jax.parallel.processes import HostsConfig
from florence2_jax.typing import UserError

PROLOGUE = """
import sys, time
from florence2_jax.parallel import processes
from florence2_jax.parallel.processes import HostsConfig, LostHost
from florence2_jax.typing import UserError

port, count, me = map(int, sys.argv[1:])
hosts = dict(coordinator=f"localhost:{port}", num_processes=count, process_id=me)
times = dict(init_timeout_s=60, heartbeat_timeout_s=20, barrier_timeout_s=20)

def told(call, *args):
    try:
        call(*args)
        return "nothing"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


def together(count: int, body: str) -> list[subprocess.CompletedProcess]:
    """Runs a script in several processes at once."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = PROLOGUE + textwrap.dedent(body)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(port), str(count), str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(count)
    ]
    ends = [process.communicate(timeout=180) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *end)
        for process, end in zip(started, ends, strict=True)
    ]


def test_hosts_that_differ_are_named_and_late_ones_too():
    ends = together(
        3,
        """
        processes.start(HostsConfig(**hosts, **times))
        print(told(processes.agree, {"code": "same"}, 60))
        facts = {"code": "old" if me == 2 else "new", "config.seed": "3"}
        print(told(processes.agree, facts, 60))
        processes.post("times", f"of {me}")
        print(told(processes.barrier, "start", 60))
        print(processes.posted("times"))
        if me:
            print(told(processes.barrier, "save", 1))
        processes.barrier("end", 60)
        """,
    )
    host = socket.gethostname()
    for index, end in enumerate(ends):
        assert end.returncode == 0, end.stderr
        same, other, here, posts, *late = end.stdout.splitlines()
        assert same == here == "nothing"
        assert other.startswith(
            f"UserError: the hosts do not agree: code is old on {host} (process 2) and new on "
            f"{host} (process 0), {host} (process 1)"
        )
        assert "seed" not in other
        assert posts == "{0: 'of 0', 1: 'of 1', 2: 'of 2'}"
        assert len(late) == (index > 0)
        for line in late:
            assert line.startswith(f"LostHost: {host} (process 0) did not come to 'barrier save'")


def test_a_host_that_fails_ends_at_once_and_tells_the_others_why():
    ends = together(
        2,
        """
        processes.start(HostsConfig(**hosts, **times))
        start_s = time.monotonic()
        with processes.departure():
            if me:
                raise UserError("/data: no such directory")
            processes.barrier("start", 100)
        print("not reached")
        """,
    )
    assert [end.returncode for end in ends] == [2, 2]
    assert all("not reached" not in end.stdout for end in ends)
    assert "florence2-jax: /data: no such directory\n" in ends[1].stderr
    assert f"{socket.gethostname()} (process 1) stopped: /data: no such" in ends[0].stderr


def test_a_host_that_never_comes_is_an_error_and_no_hang():
    (end,) = together(
        1,
        """
        hosts |= dict(num_processes=2)
        processes.start(HostsConfig(**hosts, **times | dict(init_timeout_s=1)))
        """,
    )
    assert end.returncode == 75
    host = socket.gethostname()
    assert f"florence2-jax: process 0 on {host} did not meet 1 others at localhost" in end.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(coordinator="a:1"), "go together"),
        (dict(coordinator="a:1", num_processes=2, process_id=2), "2 is not one of 0 to 1"),
        (dict(heartbeat_timeout_s=0), "heartbeat_timeout_s: 0 must be at least 1"),
    ],
)
def test_a_place_that_cannot_be_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        HostsConfig(**values)


def test_one_process_waits_for_nobody():
    processes.start(HostsConfig(num_processes=1))
    assert processes.is_alone()
    processes.agree({"code": "any"}, 1)
    processes.barrier("any", 1)
    with pytest.raises(ValueError, match="as it was"), processes.departure():
        raise ValueError("as it was")
