# SPDX-License-Identifier: Apache-2.0
"""Shards written on Ray are those of one process, also after a kill."""

import functools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from import_helpers import message

from florence2_jax.records.running import run_in_processes, run_on_ray
from florence2_jax.records.store import RecordStore
from florence2_jax.typing import UserError

SCRIPT = """
import functools, sys, time
from florence2_jax.records.schema import Record
from florence2_jax.records.store import Plan, write_store
from florence2_jax.typing import UserError

def make(index, ledger, bad):
    time.sleep(0.004)
    if index == bad:
        raise UserError(f"unit {bad} is bad")
    ledger.read("image")
    ledger.keep("image")
    return Record(id=f"r{index}", image=b"pixels %d" % index, width=1, height=1)

if __name__ == "__main__":
    directory, ray, bad = sys.argv[1:]
    made = functools.partial(make, bad=int(bad))
    plan = Plan(units={"train": range(300)}, make=made, job={})
    write_store(directory, plan, examples_per_shard=10, num_workers=2, ray=ray or None)
"""


def mark(folder: Path, number: int) -> None:
    if number < 0:
        raise UserError("a negative number")
    (folder / str(number)).write_text("x")


def test_calls_are_made_once_each_and_few_wait(tmp_path):
    taken = []

    def calls():
        for i in range(9):
            taken.append(i)
            yield tmp_path, i

    ended = []
    for _, number in run_in_processes(mark, calls(), num_workers=1):
        assert len(taken) <= len(ended) + 3  # Two under way, and one to take the place of this.
        ended.append(number)
    assert sorted(ended) == list(range(9)) == sorted(int(p.name) for p in tmp_path.iterdir())


def test_what_a_call_raises_comes_back(tmp_path):
    calls = [(tmp_path, 1), (tmp_path, -1)]
    with pytest.raises(UserError, match="a negative number"):
        list(run_in_processes(mark, calls, num_workers=1))


def test_without_ray_there_is_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    run = functools.partial(run_on_ray, mark, [], num_workers=1, address="local")
    assert message(lambda: list(run())) == (
        'Ray is not installed; run: pip install "florence2-jax[engine]", or work without --ray'
    )


@pytest.mark.slow
def test_ray_writes_the_bytes_of_one_process_also_after_a_kill(tmp_path):
    pytest.importorskip("ray")
    script = tmp_path / "writer.py"
    script.write_text(SCRIPT)
    on_ray, alone = tmp_path / "ray", tmp_path / "alone"
    command = [sys.executable, str(script), str(on_ray), "local", "-1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(on_ray.glob("unfinished/*-*.json"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(on_ray.glob("unfinished/*-*.json"))) < 30
    finished = {p: p.stat().st_mtime_ns for p in on_ray.glob("unfinished/*.array_record")}
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run([sys.executable, str(script), str(alone), "", "-1"], check=True)
    assert [r.id for r in RecordStore(on_ray, "train")] == [f"r{i}" for i in range(300)]
    files = {path.name: path.read_bytes() for path in on_ray.iterdir()}
    assert files == {path.name: path.read_bytes() for path in alone.iterdir()}
    # What was whole before the kill was not written again.
    kept = [p.stat().st_mtime_ns for p in on_ray.glob("*.array_record*")]
    assert set(finished.values()) <= set(kept)
    failed = subprocess.run(
        [*command[:2], str(tmp_path / "bad"), "local", "150"], capture_output=True, text=True
    )
    assert failed.stderr.rstrip().endswith("UserError: unit 150 is bad")
    lost = subprocess.run(
        [*command[:2], str(tmp_path / "none"), "127.0.0.1:1", "-1"], capture_output=True, text=True
    )
    assert "--ray 127.0.0.1:1: no Ray answers there" in lost.stderr
