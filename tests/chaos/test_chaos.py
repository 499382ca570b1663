# SPDX-License-Identifier: Apache-2.0
"""A run that is ended in many ways is, in the end, the run that was not: the short matrix.

Real processes on CPU; `benchmarks/chaos.py` is the long one, with more faults and hosts.
"""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import cluster
import faults
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

# TensorStore and dead processes leave files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STEPS = 32


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    with cluster.Nursery(tmp_path_factory.mktemp("xla")) as nursery:
        yield nursery


@pytest.fixture
def new_run(nursery, scenes, tmp_path):
    return lambda name: cluster.Run(nursery, tmp_path / name, scenes)


@pytest.fixture(scope="module")
def straight_alone(nursery, scenes, tmp_path_factory):
    """One process with two devices, which nothing happens to."""
    run = cluster.Run(nursery, tmp_path_factory.mktemp("alone"), scenes)
    life = faults.Life(run, (1, 2), STEPS, random.Random(0))
    assert life.finish().wait() == [0], run.attempts[-1].text()
    return run


def sha256_of_arrays(run: cluster.Run) -> str:
    """Of everything that the last checkpoint holds, read by Orbax alone."""
    folder = run.workdir / "checkpoints" / str(max(run.checkpoints()))
    digest = hashlib.sha256()
    for item in ("params", "training"):
        reader = ocp.PyTreeCheckpointer()
        names = reader.metadata(folder / item).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        tree = reader.restore(folder / item, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def live(run: cluster.Run, shape: tuple[int, int], names: list[str], seed: int) -> faults.Life:
    """A run that meets these faults, one a start, and then ends."""
    life = faults.Life(run, shape, STEPS, random.Random(seed))
    for name in names:
        event = faults.FAULTS[name][0](life)
        assert event.is_as_told, (event, run.attempts[-1].text())
    assert set(life.finish().wait()) == {0}, run.attempts[-1].text()
    return life


def assert_nothing_was_lost(life: faults.Life, straight: cluster.Run) -> None:
    account = life.run.account()
    assert account.is_whole and account.ids == straight.account().ids
    assert faults.final_state(life.run) == faults.final_state(straight)
    assert sha256_of_arrays(life.run) == sha256_of_arrays(straight)


def test_one_host_goes_on_bit_for_bit_after_every_fault(new_run, straight_alone):
    names = ["nan_batch", "deleted_shard", "kill_in_save", "flipped_bit", "read_only", "disk_full"]
    life = live(new_run("life"), (1, 2), names, seed=1)
    assert_nothing_was_lost(life, straight_alone)
    assert "falling back" in "".join(attempt.text() for attempt in life.run.attempts)


def test_two_hosts_go_on_bit_for_bit_and_train_what_one_does(new_run, straight_alone):
    straight = faults.Life(new_run("straight"), (2, 1), STEPS, random.Random(0))
    assert straight.finish().wait() == [0, 0]
    life = live(new_run("life"), (2, 1), ["sigterm", "sigkill"], seed=2)
    assert_nothing_was_lost(life, straight.run)
    assert max(event.lost_steps for event in life.events) <= 2 * faults.EVERY_STEPS
    ours, theirs = straight.run.losses(), straight_alone.losses()
    assert ours.keys() == theirs.keys() == set(range(1, STEPS + 1))
    # Sums over two devices in float32, in one process or by gloo: the last bits may differ.
    np.testing.assert_allclose([ours[i] for i in ours], [theirs[i] for i in ours], rtol=1e-4)
    assert straight.run.account().ids == straight_alone.account().ids


def test_hosts_with_another_run_file_are_refused_by_name(scenes, tmp_path):
    words = [sys.executable, "-m", "florence2_jax", "train", "--num-processes", "2"]
    words += ["--config", f"{cluster.RUN_FILE}:{scenes}", "--workdir", str(tmp_path / "run")]
    words += ["--coordinator", f"localhost:{cluster.free_port()}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [*words, "--process-id", str(index), f"--config.optimizer.peak_lr={rate}"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, rate in enumerate((1e-3, 2e-3))
    ]
    texts = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2], texts
    for text in texts:
        assert "config.optimizer.peak_lr is 0.002 on" in text and "(process 1)" in text
    assert not (tmp_path / "run").exists()


def test_the_harness_sees_a_step_that_was_skipped(tmp_path):
    run = cluster.Run.__new__(cluster.Run)
    for name, steps in (("a", (1, 2, 3)), ("b", (3, 4)), ("c", (6, 7))):
        rows = [f'{{"step": {step}, "ids": [{step}], "time": 0}}' for step in steps]
        Path(tmp_path / name).write_text("\n".join(rows))
    attempts = {name: cluster.Attempt([], [tmp_path / name], 0.0) for name in "abc"}
    run.attempts = [attempts["a"], attempts["b"]]
    account = run.account()
    assert account.is_whole and account.lost_steps == [1] and list(account.ids) == [1, 2, 3, 4]
    run.attempts.append(attempts["c"])
    assert not run.account().is_whole
