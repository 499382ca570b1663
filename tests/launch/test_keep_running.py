# SPDX-License-Identifier: Apache-2.0
"""The restart wrapper, with real processes and signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "tpu_vm" / "keep_running.py"


def command(folder: Path, program: str, *options: str) -> list[str]:
    """The wrapper around a shell program that counts its runs in the file `runs`."""
    (folder / "program.sh").write_text(f"echo run >>runs\n{program}\n", encoding="utf-8")
    flags = ["--pause-s", "0", "--status", "status", *options]
    return [sys.executable, str(SCRIPT), *flags, "--", "bash", "program.sh"]


def ended(folder: Path, program: str, *options: str) -> tuple[int, int, str]:
    """Exit status, number of runs and the word in the status file."""
    run = subprocess.run(
        command(folder, program, *options), cwd=folder, capture_output=True, timeout=30, check=False
    )
    runs = len((folder / "runs").read_text("utf-8").split())
    return run.returncode, runs, (folder / "status").read_text("utf-8").strip()


def test_a_run_that_ends_is_done(tmp_path):
    assert ended(tmp_path, "exit 0") == (0, 1, "done")


def test_a_mistake_of_the_user_is_not_tried_again(tmp_path):
    assert ended(tmp_path, "exit 2") == (2, 1, "failed 2")


@pytest.mark.parametrize("status", [1, 75, 134])
def test_a_crash_is_tried_again_until_it_is_done(tmp_path, status):
    program = f"[ $(wc -l <runs) -gt 3 ] || exit {status}"
    assert ended(tmp_path, program) == (0, 4, "done")


@pytest.mark.parametrize(("end", "status"), [("exit 7", 7), ("exit 75", 75), ("kill -9 $$", 137)])
def test_tries_in_a_row_are_limited(tmp_path, end, status):
    assert ended(tmp_path, end, "--retries", "2") == (status, 3, f"failed {status}")


def test_a_steady_try_begins_a_new_row(tmp_path):
    program = "[ $(wc -l <runs) -gt 4 ] || exit 1"
    assert ended(tmp_path, program, "--retries", "1") == (1, 2, "failed 1")
    assert ended(tmp_path, program, "--retries", "1", "--steady-s", "0") == (0, 5, "done")


def stopped(
    folder: Path, word: str, number: signal.Signals, program: str, *options: str
) -> tuple[int, str]:
    """Exit status and word, of a run that gets a signal once a word is in its log."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command(folder, program, *options), cwd=folder, stderr=log)
        deadline_s = time.monotonic() + 20
        while word not in (folder / "log").read_text() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        process.send_signal(number)
        return process.wait(20), (folder / "status").read_text("utf-8").strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_run_save_and_is_not_answered_by_another_run(tmp_path, number):
    program = "trap 'sleep 0.3; touch saved; exit 75' TERM; echo ready >&2\n"
    program += "for _ in {1..400}; do sleep 0.05; done"
    assert stopped(tmp_path, "ready", number, program) == (75, "stopped")
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "runs").read_text("utf-8").split() == ["run"]


def test_a_signal_between_two_tries_ends_the_waiting(tmp_path):
    start_s = time.monotonic()
    result = stopped(tmp_path, "in 60 s", signal.SIGTERM, "exit 9", "--pause-s", "60")
    assert result == (9, "stopped") and time.monotonic() - start_s < 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--retries", "3"], "give the command after --"),
        (["--retries", "many", "--", "true"], "argument --retries: invalid int value"),
        (["--forever", "1", "--", "true"], "unrecognized arguments: --forever"),
        (["--pause-s", "-1", "--", "true"], "--steady-s are not negative"),
    ],
)
def test_a_wrong_option_is_named(arguments, message):
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2 and message in run.stderr
