# SPDX-License-Identifier: Apache-2.0
"""`checkpoint list` and `verify`, as a person types them: with a folder, without a run file."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from florence2_jax.cli.main import main
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.saved_step import saved_steps
from florence2_jax.training.state import TrainState


def make_state(step):
    rng = np.random.default_rng(step)
    params = {"kernel": jnp.asarray(rng.normal(size=(528, 512)), jnp.float32)}
    params["bias"] = jnp.asarray(rng.normal(size=64), jnp.bfloat16)
    moments = optax.adam(1e-3).init(params)
    moments = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), moments)
    return TrainState(step=jnp.asarray(step), params=params, opt_state=moments)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (2, 4):
            metrics = {"loss": 1 / step}
            checkpoints.save(step, make_state(step), data={"at": step}, metrics=metrics)
    return folder


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def run(*command):
    """The exit status and the report of a command."""
    *rest, folder = map(str, command)
    report = folder + ".json"
    status = main(["checkpoint", *rest, folder, "--json", report])
    return status, json.loads(Path(report).read_text(encoding="utf-8"))


def test_list_says_step_size_metrics_and_state(workdir, capsys):
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "2", folder / "corrupt-6")
    (folder / "8.orbax-checkpoint-tmp").mkdir()
    status, report = run("list", workdir)
    assert status == 0
    rows = report["checkpoints"]
    assert [row["name"] for row in rows] == ["2", "4", "8.orbax-checkpoint-tmp", "corrupt-6"]
    assert [row["format"] for row in rows[:2]] == [1, 1]
    assert [row["metrics"] for row in rows[:2]] == [{"loss": 0.5}, {"loss": 0.25}]
    assert all(row["bytes"] > 1_000_000 for row in rows[:2])
    assert [row["state"].split(":")[0] for row in rows] == [
        "not verified yet",
        "not verified yet",
        "unfinished",
        "did not verify when a run resumed, moved aside",
    ]
    assert "loss 0.25" in capsys.readouterr().out


def test_verify_says_ok_and_list_remembers_it(workdir, capsys):
    status, report = run("verify", workdir / "checkpoints")
    assert status == 0
    assert report["steps"] == [{"step": step, "verified": True, "problems": []} for step in (2, 4)]
    assert "step 4: OK, 8 arrays" in capsys.readouterr().out
    _, listed = run("list", workdir)
    assert all(row["state"].startswith("verified 2") for row in listed["checkpoints"])
    with Checkpoints(workdir / "checkpoints") as checkpoints:  # The same step, saved anew.
        shutil.rmtree(workdir / "checkpoints" / "4")
        checkpoints.save(4, make_state(5))
    _, listed = run("list", workdir)
    assert listed["checkpoints"][-1]["state"] == "not verified yet"


def test_verify_names_the_arrays_and_ends_with_status_2(workdir, capsys):
    files = [p for p in (workdir / "checkpoints" / "4" / "params").rglob("*") if p.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    status, report = run("verify", workdir)
    assert status == 2
    good, bad = report["steps"]
    assert good == {"step": 2, "verified": True, "problems": []}
    (problem,) = bad["problems"]
    assert problem.startswith("params/kernel ")
    shown = capsys.readouterr()
    assert "step 4: params/kernel " in shown.out
    assert "step 4 is not what was saved; the newest that verifies is step 2" in shown.err
    assert run("verify", "--step", "2", workdir)[0] == 0
    _, listed = run("list", workdir)
    assert listed["checkpoints"][1]["state"].startswith("damaged, found 2")


def test_every_unreadable_array_is_named(workdir):
    files = [p for p in (workdir / "checkpoints" / "4" / "training").rglob("*") if p.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    path.unlink()
    status, report = run("verify", "--step", "4", workdir)
    assert status == 2
    problems = report["steps"][0]["problems"]
    assert problems
    assert all("training/" in text and "cannot be read" in text for text in problems)
    assert any("/kernel" in text for text in problems)


def test_arrays_are_read_in_groups_that_fit_in_memory(workdir):
    step = saved_steps(workdir / "checkpoints")[-1]
    assert list(step.audit(group_bytes=1)) == list(step.audit()) == []


def test_a_checkpoint_without_digests_is_read_and_not_called_verified(tmp_path, capsys):
    state = make_state(3)
    trees = {"params": state.params, "training": {"step": state.step, "opt_state": state.opt_state}}
    with ocp.CheckpointManager(tmp_path) as manager:
        saves = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        manager.save(3, args=ocp.args.Composite(**saves))
    status, report = run("verify", tmp_path)
    assert status == 0
    assert report["steps"] == [{"step": 3, "verified": False, "problems": []}]
    assert "step 3: not verified: it has no digests, 8 arrays" in capsys.readouterr().out
    assert run("list", tmp_path)[1]["checkpoints"][0]["state"] == "no digests, cannot be verified"


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        (["verify", "--step", "3"], "--step 3: "),
        (["list", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(workdir, capsys, rest, told):
    folder = [] if rest[-1].startswith("/") else [str(workdir)]
    assert main(["checkpoint", *rest, *folder]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_relative_folder_is_read_as_any_other(workdir, monkeypatch, capsys):
    monkeypatch.chdir(workdir.parent)
    assert main(["checkpoint", "verify", "run"]) == 0
    assert "step 4: OK" in capsys.readouterr().out
    assert main(["checkpoint", "list", "run"]) == 0
    assert "unfinished" not in capsys.readouterr().out
