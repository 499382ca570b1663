# SPDX-License-Identifier: Apache-2.0
"""A stall is told while it lasts; profiles of the steps that were asked for."""

import ctypes
import os
import signal
import time

import jax.numpy as jnp

from florence2_jax.training.watch import Profiler, StallWatch

SECONDS = 0.3


def test_a_hang_in_c_that_holds_the_interpreter_is_told_while_it_lasts(tmp_path, capsys):
    path = tmp_path / "stalls" / "host0.txt"
    with StallWatch(SECONDS, path) as watch:
        watch.beat()
        ctypes.PyDLL(None).usleep(int(2e6 * SECONDS))  # No Python thread can run meanwhile.
        size_after = path.stat().st_size
    assert size_after > 0
    text = path.read_text()
    assert "test_a_hang_in_c_that_holds" in text and "no step for 0.3 s" in text
    assert "test_a_hang_in_c_that_holds" in capsys.readouterr().err


def test_one_dump_for_each_stall(tmp_path):
    path = tmp_path / "host0.txt"
    with StallWatch(SECONDS, path) as watch:
        watch.beat()
        time.sleep(4 * SECONDS)
        assert path.read_text().count("Timeout") == 1
        watch.beat()
        time.sleep(2 * SECONDS)
    assert path.read_text().count("Timeout") == 2


def test_beats_keep_the_watch_quiet_and_leave_no_file(tmp_path):
    path = tmp_path / "stalls" / "host0.txt"
    with StallWatch(20 * SECONDS, path) as watch:
        for _ in range(50):
            watch.beat()
            time.sleep(0.01)
    time.sleep(SECONDS)
    assert not list(tmp_path.iterdir())


def test_a_start_that_never_reaches_a_step_is_a_stall_too(tmp_path):
    path = tmp_path / "host0.txt"
    with StallWatch(SECONDS, path):
        time.sleep(2 * SECONDS)
    assert path.read_text().count("Timeout") == 1


def test_zero_seconds_switch_the_watch_off(tmp_path):
    with StallWatch(0, tmp_path / "stalls" / "host0.txt") as watch:
        watch.beat()
    assert not list(tmp_path.iterdir())


def test_windows_are_profiled_by_step_and_on_a_signal(tmp_path):
    said, before = [], signal.getsignal(signal.SIGUSR1)
    options = dict(first_step=2, num_steps=2, num_steps_on_signal=1)
    with Profiler(tmp_path / "profile", **options, say=said.append) as profiler:
        for number in range(1, 8):
            profiler.before(number)
            jnp.ones(number).sum().block_until_ready()
            if number == 5:
                os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) == before
    place = f"the profile is in {tmp_path / 'profile'}"
    assert said == ["profiling steps 2 to 3", place, "profiling steps 6 to 6", place]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_window_that_is_open_at_the_end_is_closed(tmp_path):
    with Profiler(tmp_path, first_step=1, num_steps=100, num_steps_on_signal=0) as profiler:
        profiler.before(1)
    assert list(tmp_path.rglob("*.xplane.pb"))
    with Profiler(tmp_path / "next", first_step=1, num_steps=1) as profiler:
        profiler.before(1)  # Would be refused while one is open.
    assert list((tmp_path / "next").rglob("*.xplane.pb"))
