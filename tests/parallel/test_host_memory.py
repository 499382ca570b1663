# SPDX-License-Identifier: Apache-2.0
"""What a step on a CPU frees stays with the process, where there is no accelerator."""

import os
import subprocess
import sys

import pytest

from florence2_jax.parallel.host_memory import has_accelerator

FAULTS = """
import resource, sys, threading
from florence2_jax.parallel.host_memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    print("not glibc")
    raise SystemExit

def step():
    for _ in range(10):
        b"1" * 40_000_000  # Freed at once.

def faults():
    thread = threading.Thread(target=step)  # As XLA's, with a heap of its own if it may.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def test_pages_are_taken_from_the_system_once():
    others = ("MALLOC_", "LD_PRELOAD")  # Another allocator, or one that was told the same.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(others)}

    def of(what: str) -> str:
        command = [sys.executable, "-c", FAULTS, what]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.strip()

    if (kept := of("keep")) == "not glibc":
        pytest.skip("the C library has no mallopt")
    assert int(kept) < 1000 < int(of("as it is"))


def test_accelerators_are_seen_by_their_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert not has_accelerator(tmp_path)
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # The driver alone.
    assert not has_accelerator(tmp_path)
    (tmp_path / "vfio" / "0").touch()
    assert has_accelerator(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not has_accelerator(tmp_path)
