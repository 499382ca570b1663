# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on a disk that refuses."""

import resource
import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path

import jax.numpy as jnp
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.state import TrainState
from florence2_jax.typing import UserError

params = {"w": jnp.arange(1_000_000, dtype=jnp.float32) ** 2}  # 4 MB that do not compress away.
state = TrainState(step=jnp.asarray(1), params=params, opt_state=params)
try:
    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        checkpoints.save(1, state, force=True)
except UserError as error:
    sys.exit(f"refused: {error}")
"""


def save_in_a_process(directory, *, max_file_bytes=0):
    """Saves 8 MB where no file may grow beyond `max_file_bytes`, if given; returns the exit."""
    limit = max_file_bytes or resource.RLIM_INFINITY
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1))"
    return subprocess.run(
        [sys.executable, "-c", limited + PROGRAM, str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_disk_that_takes_no_more_is_one_line(tmp_path):
    done = save_in_a_process(tmp_path / "checkpoints", max_file_bytes=1_000_000)
    assert done.returncode == 1
    # Orbax's own threads log around it.
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("refused: "))
    assert "could not be written to its end (File too large)" in line
    assert str(tmp_path / "checkpoints") in line
    assert "Make room and run the same command again" in line


def test_the_same_save_with_room_succeeds(tmp_path):
    done = save_in_a_process(tmp_path / "checkpoints")
    assert done.returncode == 0, done.stderr
