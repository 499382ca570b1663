# SPDX-License-Identifier: Apache-2.0
"""A stall is told while it lasts; profiles of the steps that were asked for."""

import ctypes
import subprocess
import sys
import textwrap
import time

from florence2_jax.training.watch import StallWatch

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


def run_apart(code: str, folder) -> None:
    """Runs code in a process of its own: JAX's profiler crashes one that has loaded libtpu."""
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_windows_are_profiled_by_step_and_on_a_signal(tmp_path):
    code = """
        import os, signal, sys
        from pathlib import Path
        import jax.numpy as jnp
        from florence2_jax.training.watch import Profiler

        folder = Path(sys.argv[1])
        said, before = [], signal.getsignal(signal.SIGUSR1)
        options = dict(first_step=2, num_steps=2, num_steps_on_signal=1)
        with Profiler(folder, **options, say=said.append) as profiler:
            for number in range(1, 8):
                profiler.before(number)
                jnp.ones(number).sum().block_until_ready()
                if number == 5:
                    os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) == before
        place = f"the profile is in {folder}"
        assert said == ["profiling steps 2 to 3", place, "profiling steps 6 to 6", place], said
    """
    run_apart(code, tmp_path / "profile")
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_window_that_is_open_at_the_end_is_closed(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from florence2_jax.training.watch import Profiler

        for name in "ab":  # The second would be refused while the first is open.
            with Profiler(Path(sys.argv[1], name), first_step=1, num_steps=100) as profiler:
                profiler.before(1)
    """
    run_apart(code, tmp_path)
    for name in "ab":
        assert list((tmp_path / name).rglob("*.xplane.pb"))
