# SPDX-License-Identifier: Apache-2.0
"""Where the time of scripted runs went, with answers that are known; and of one that is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from florence2_jax.training import ledger as ledger_lib
from florence2_jax.training.goodput import read_goodput
from florence2_jax.training.ledger import Ledger
from florence2_jax.typing import UserError


class Clock:
    """A clock that goes on only when told."""

    def __init__(self):
        self.now = 1000.0

    def time(self) -> float:
        return 5e8 + self.now

    def perf_counter(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ledger_lib, "time", clock)
    monkeypatch.setattr(ledger_lib.os, "getpid", lambda: int(clock.now))  # Every start has its own.
    return clock


def start(ledger: Ledger, clock: Clock, *, step: int) -> None:
    """2 s of init, 1 s of restore, 4 s to compile."""
    clock.pass_(2)
    with ledger.span("restore"):
        clock.pass_(1)
    ledger.begin_steps(step)
    with ledger.span("compile"):
        clock.pass_(4)


def steps(ledger: Ledger, clock: Clock, first: int, last: int) -> None:
    """2 s each, of them 0.5 s for data."""
    for number in range(first, last + 1):
        with ledger.span("data_wait"):
            clock.pass_(0.5)
        clock.pass_(1.5)
        assert ledger.step_done(number) == pytest.approx(2.0)


def kill(ledger: Ledger) -> None:
    """Leaves the books as a killed process does."""
    assert ledger._file is not None
    ledger._file.close()
    ledger._file = None


def test_a_run_without_trouble_loses_nothing(tmp_path, clock):
    with Ledger(tmp_path) as ledger:
        start(ledger, clock, step=0)
        steps(ledger, clock, 1, 10)
        with ledger.span("save"):
            clock.pass_(0.5)
        with ledger.span("eval"):
            clock.pass_(3)
        ledger.committed(10)
        clock.pass_(1)  # Nobody says for what.
    goodput = read_goodput(tmp_path)
    known = dict(init=2, restore=1, compile=4, data_wait=5, step=15, save=0.5, eval=3, other=1)
    assert goodput.seconds == pytest.approx(known | dict(lost=0, down=0))
    assert goodput.goodput == pytest.approx(15 / 31.5)
    (one,) = goodput.attempts
    assert (one.first_step, one.last_step, one.committed_step, one.end) == (0, 10, 10, "done")


def test_steps_after_the_last_commit_of_a_killed_attempt_are_lost(tmp_path, clock):
    killed = Ledger(tmp_path)
    start(killed, clock, step=0)
    steps(killed, clock, 1, 6)
    with killed.span("save"):
        clock.pass_(0.5)
    killed.write()
    steps(killed, clock, 7, 10)
    killed.write()
    kill(killed)
    clock.pass_(1)  # Half a step that nobody hears of.
    clock.pass_(7)
    with Ledger(tmp_path) as ledger:
        start(ledger, clock, step=6)
        steps(ledger, clock, 7, 12)
    goodput = read_goodput(tmp_path)
    known = dict(init=4, restore=2, compile=8, data_wait=8, step=18, save=0.5, lost=6, down=8)
    assert goodput.seconds == pytest.approx(known | dict(eval=0, other=0))
    first, second = goodput.attempts
    assert (first.lost_steps, first.end, first.seconds["lost"]) == (4, "", pytest.approx(6))
    assert (second.lost_steps, second.end) == (0, "done")
    assert goodput.goodput == pytest.approx(18 / sum(known.values()))


def test_a_line_that_spans_the_restored_step_is_lost_in_part(tmp_path, clock):
    killed = Ledger(tmp_path)
    start(killed, clock, step=0)
    steps(killed, clock, 1, 4)  # One line for all of them,
    killed.write()
    kill(killed)
    with Ledger(tmp_path) as ledger:  # and the next start goes on after step 3.
        start(ledger, clock, step=3)
        steps(ledger, clock, 4, 5)
    goodput = read_goodput(tmp_path)
    assert goodput.attempts[0].lost_steps == 1
    assert goodput.seconds["lost"] == pytest.approx(1.5)
    assert goodput.seconds["step"] == pytest.approx(5 * 1.5)


def test_falling_back_twice_loses_what_both_attempts_did(tmp_path, clock):
    for first, last in ((0, 10), (8, 12), (4, 6)):  # The last one had to take an older checkpoint.
        with Ledger(tmp_path) as ledger:
            start(ledger, clock, step=first)
            for number in range(first + 1, last + 1):
                steps(ledger, clock, number, number)
                ledger.write()
    assert [one.lost_steps for one in read_goodput(tmp_path).attempts] == [6, 4, 0]


def test_an_attempt_that_never_reached_a_step_takes_time_and_loses_none(tmp_path, clock):
    with Ledger(tmp_path) as ledger:
        start(ledger, clock, step=0)
        steps(ledger, clock, 1, 3)
    with pytest.raises(UserError), Ledger(tmp_path):
        clock.pass_(9)
        raise UserError("no records")
    goodput = read_goodput(tmp_path)
    assert goodput.attempts[1].end == "UserError" and goodput.attempts[1].first_step is None
    assert goodput.seconds["init"] == pytest.approx(2 + 9) and goodput.seconds["lost"] == 0


def test_a_torn_line_is_left_out_and_does_not_swallow_the_next(tmp_path, clock):
    killed = Ledger(tmp_path)
    start(killed, clock, step=0)
    steps(killed, clock, 1, 2)
    killed.write()
    kill(killed)
    file = tmp_path / "goodput.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    with Ledger(tmp_path) as ledger:
        start(ledger, clock, step=0)
        steps(ledger, clock, 1, 2)
    goodput = read_goodput(tmp_path)
    assert goodput.num_damaged == 1
    assert [one.end for one in goodput.attempts] == ["", "done"]
    assert goodput.attempts[1].seconds["init"] == pytest.approx(2)
    assert goodput.seconds["step"] == pytest.approx(3) and goodput.seconds["lost"] == 0


def test_lines_of_a_process_that_outlives_its_successor_s_start_are_its_own(tmp_path, clock):
    old = Ledger(tmp_path)
    start(old, clock, step=0)
    steps(old, clock, 1, 2)
    old.write()
    new = Ledger(tmp_path)
    start(new, clock, step=2)
    clock.pass_(2)
    old.step_done(3)
    old.write()
    new.close()
    kill(old)
    first, second = read_goodput(tmp_path).attempts
    assert (first.last_step, first.lost_steps, second.first_step) == (3, 1, 2)
    assert first.seconds["down"] == 0


def test_a_span_within_a_span_is_booked_once(tmp_path, clock):
    with Ledger(tmp_path) as ledger:
        ledger.begin_steps(0)
        with ledger.span("eval"):
            clock.pass_(1)
            with ledger.span("compile"):
                clock.pass_(5)
            clock.pass_(2)
        clock.pass_(4)
        ledger.step_done(1)
    seconds = read_goodput(tmp_path).seconds
    assert seconds["eval"] == pytest.approx(3) and seconds["compile"] == pytest.approx(5)
    assert seconds["step"] == pytest.approx(4) and seconds["other"] == pytest.approx(0)


def test_a_kind_that_does_not_exist_is_refused(tmp_path):
    with Ledger(tmp_path) as ledger, pytest.raises(ValueError, match="'lunch' is not one of init"):
        ledger.book("lunch", 1.0)


def test_only_one_process_writes(tmp_path, clock):
    with Ledger(tmp_path, is_active=False) as ledger:
        start(ledger, clock, step=0)
        steps(ledger, clock, 1, 3)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"holds no books \(goodput\.jsonl is missing\)"):
        read_goodput(tmp_path)


def test_a_disk_that_is_full_stops_no_run(tmp_path):
    """`/dev/full` refuses every byte, as a full disk does."""
    (tmp_path / "goodput.jsonl").symlink_to("/dev/full")
    with Ledger(tmp_path) as ledger:
        ledger.begin_steps(0)
        ledger.step_done(1)
        ledger.committed(1)


_STEPS_WITHOUT_END = """
import sys, time
from pathlib import Path
from florence2_jax.training.ledger import Ledger
with Ledger(Path(sys.argv[1]), write_every_s=0.05) as ledger:
    ledger.begin_steps(0)
    for number in range(1, 10**6):
        time.sleep(0.001)
        ledger.step_done(number)
"""


def test_the_books_survive_a_kill(tmp_path):
    """A real process, killed between two lines: at most `write_every_s` is missing."""
    command = [sys.executable, "-c", _STEPS_WITHOUT_END, str(tmp_path)]
    process = subprocess.Popen(command)
    file = tmp_path / "goodput.jsonl"
    deadline = time.monotonic() + 60
    while not (file.is_file() and file.read_bytes().count(b"\n") > 8):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    last = json.loads(file.read_text().splitlines()[-1])
    (one,) = read_goodput(tmp_path).attempts
    assert one.end == "" and one.last_step == last["steps"][1] > 100
    assert one.seconds["step"] == pytest.approx(one.wall_s, rel=0.3)
