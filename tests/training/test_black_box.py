# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind when a step goes wrong, and that it can be run again."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_lib
from rich.console import Console

from florence2_jax.parallel.host_rows import HostRows
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.text.tokenizer import PAD_ID
from florence2_jax.training import loop
from florence2_jax.training.black_box import BlackBox, BlackBoxConfig
from florence2_jax.training.recording import read_recording
from florence2_jax.training.replay import replay
from florence2_jax.typing import UserError


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def batch_of(step: int, size: int = 4) -> dict:
    rng = np.random.default_rng(step)
    ids = {"index": np.arange(size) + 10 * step, "store": np.zeros(size, np.int64)}
    return ids | {"image": rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8)}


def box_in(folder, config: BlackBoxConfig = BlackBoxConfig()) -> BlackBox:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    rows = HostRows.of(mesh, 4)
    return BlackBox(folder, config, seed=7, learning_rate=lambda s: s / 10, mesh=mesh, rows=rows)


def metrics(loss: float, grad_norm: float = 1.0) -> dict:
    return {"loss": np.float32(loss), "grad_norm": np.float32(grad_norm)}


@pytest.fixture
def compilation_cache(tmp_path_factory):
    """What is compiled twice, bit for bit the same program, is compiled once: it takes minutes."""
    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache_lib.reset_cache()
        if values is settings:
            yield


def test_a_step_of_a_run_can_be_run_again_to_its_last_bit(small_run, tmp_path, compilation_cache):
    def confuse(number, batch):
        if number == 3:  # The example in row 2 answers at random.
            rng, row = np.random.default_rng(0), batch["target_ids"][2]
            batch["target_ids"][2] = np.where(row == PAD_ID, row, rng.integers(50, 350, row.shape))
        if number == 4:
            raise RuntimeError("the loader fell over")
        return batch

    small_run["checkpoint"] = dict(every_steps=1, keep=3)
    with pytest.raises(RuntimeError):
        loop.run(small_run, tmp_path, console=quiet(), batch_hooks=[confuse])
    file = tmp_path / "black_box" / "step_3.json"
    written = json.loads(file.read_text())
    assert [path.name for path in sorted(file.parent.iterdir())] == ["step_3.json", "step_3.npz"]
    assert written["reason"] == "crash: RuntimeError: the loader fell over"
    assert [row["step"] for row in written["steps"]] == [1, 2, 3]
    assert written["steps"][0]["grad_norms"].keys() >= {"image", "projector", "text/decoder"}
    assert written["rng"] == {"seed": 3, "step": 2} and len(written["steps"][0]["index"]) == 8

    told = replay(file, say=lambda text: None)
    assert told["state"] == {"step": 2, "is_step_before": True} and told["same_mesh"]
    assert told["loss"]["is_same"] and told["grad_norm"]["is_same"]
    assert len(told["examples"]) == 8 and told["non_finite_gradients"] == []
    losses = {one["row"]: one["loss"] for one in told["examples"]}
    assert losses[2] == max(losses.values()) and told["examples"][0]["row"] == 2
    # As step 4, with no checkpoint of the step before; and one of its tokens is none.
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    with np.load(file.with_suffix(".npz")) as saved:
        arrays = dict(saved)
    arrays["target_ids"][5, 0, 1] = 10**6
    np.savez_compressed(file.with_name("step_4.npz"), **arrays)
    file.with_name("step_4.json").write_text(json.dumps(written | {"step": 4}))
    lines = []
    told = replay(file.with_name("step_4.json"), max_examples=6, say=lines.append)
    assert told["state"] == {"step": 2, "is_step_before": False}
    assert any("1 step(s) before the one it needs" in line for line in lines)
    worst, *rest = told["examples"]
    assert (worst["row"], worst["loss"]) == (5, "nan") and worst["index"] == arrays["index"][5]
    assert all(isinstance(one["loss"], float) for one in rest) and len(rest) == 5
    assert "text/shared/embedding" in told["non_finite_gradients"]
    assert told["loss"]["replayed"] == "nan" and not told["loss"]["is_same"]

    shutil.rmtree(tmp_path / "checkpoints" / "2")
    lines = []
    told = replay(file, max_examples=0, catch_up=True, say=lines.append)
    assert "is the checkpoint of step 1, 1 step(s) before the one it needs" in lines[0]
    assert "step 2 of 2 again: loss " in lines[1] and told["examples"] == []
    assert told["state"]["is_step_before"]
    assert told["loss"]["is_same"] and told["grad_norm"]["is_same"]

    report = json.loads(file.read_text())
    report["steps"][1]["index"][0] = 10**6
    file.write_text(json.dumps(report))
    with pytest.raises(UserError, match="step 2 of the run had other examples than its records"):
        replay(file, max_examples=0, catch_up=True, say=lines.append)


def test_a_spike_is_a_multiple_of_the_median(tmp_path):
    box = box_in(tmp_path, BlackBoxConfig(loss_factor=3.0, grad_norm_factor=10.0))
    for step in range(1, 21):
        box.note(step, batch_of(step))
        assert not box.check(step, metrics(2.0 + 0.1 * (step % 3), 5.0))
    box.note(21, batch_of(21))
    assert not box.check(21, metrics(6.2, 49.0))  # Below 3 x 2.1 and 10 x 5.
    box.note(22, batch_of(22))
    assert box.check(22, metrics(6.4, 1.0)).startswith("spike: loss 6.4 after a median of 2.1")
    box.note(23, batch_of(23))
    assert box.check(23, metrics(2.0, 51.0)) == "spike: grad_norm 51 after a median of 5"
    assert box.check(24, metrics(float("inf"), 1.0)).startswith("not finite: loss inf")


def test_the_first_steps_are_never_spikes(tmp_path):
    box = box_in(tmp_path)
    for step, loss in enumerate((0.1, 90.0, 1.0, 70.0), start=1):
        box.note(step, batch_of(step))
        assert not box.check(step, metrics(loss))


def test_the_step_that_was_found_is_written_and_not_the_one_after(tmp_path):
    box = box_in(tmp_path, BlackBoxConfig(steps=3))
    for step in range(1, 6):
        box.note(step, batch_of(step))
        if step > 1:
            box.check(step - 1, metrics(1.0))
    box.note(6, batch_of(6))
    reason = box.check(5, metrics(float("nan")))  # Read one step late.
    path = box.write(reason)
    assert path == tmp_path / "black_box" / "step_5.json"
    written = json.loads(path.read_text())
    assert [row["step"] for row in written["steps"]] == [4, 5]
    assert written["steps"][-1] | {"loss": "nan", "learning_rate": 0.4} == written["steps"][-1]
    recording = read_recording(path)
    np.testing.assert_array_equal(recording.batch["image"], batch_of(5)["image"])
    np.testing.assert_array_equal(recording.batch["index"], batch_of(5)["index"])


def test_a_run_writes_only_so_many_files(tmp_path):
    config = BlackBoxConfig(files=2)
    for start in range(3):
        box = box_in(tmp_path, config)
        box.note(start, batch_of(start))
        assert (box.write("asked") is None) == (start == 2)
    assert len(list((tmp_path / "black_box").iterdir())) == 4


def test_a_batch_that_is_too_large_leaves_its_ids(tmp_path):
    box = box_in(tmp_path, BlackBoxConfig(batch_mb=0))
    box.note(1, batch_of(1))
    path = box.write("asked")
    assert json.loads(path.read_text())["steps"][0]["index"] == [10, 11, 12, 13]
    with pytest.raises(UserError, match=r"larger than black_box\.batch_mb"):
        read_recording(path)


def test_a_crash_is_written(tmp_path):
    with pytest.raises(RuntimeError), box_in(tmp_path) as box:
        box.note(1, batch_of(1))
        raise RuntimeError("the loader fell over")
    written = json.loads((tmp_path / "black_box" / "step_1.json").read_text())
    assert written["reason"] == "crash: RuntimeError: the loader fell over"


def test_of_crashes_only_the_last_one_stays_and_it_does_not_count(tmp_path):
    for step in range(1, 4):
        with pytest.raises(RuntimeError), box_in(tmp_path, BlackBoxConfig(files=1)) as box:
            box.note(step, batch_of(step))
            raise RuntimeError("another host is gone")
    names = {path.name for path in (tmp_path / "black_box").iterdir()}
    assert names == {"step_3.json", "step_3.npz"}
    box = box_in(tmp_path, BlackBoxConfig(files=1))
    for step in (5, 6):
        box.note(step, batch_of(step))
        assert (box.write("spike") is None) == (step == 6)


def test_a_user_s_error_and_an_interrupt_are_no_crash(tmp_path):
    for error in (UserError, KeyboardInterrupt):
        with pytest.raises(error), box_in(tmp_path) as box:
            box.note(1, batch_of(1))
            raise error
    assert not (tmp_path / "black_box").exists()


def test_only_the_newest_batches_are_kept_in_memory(tmp_path):
    box = box_in(tmp_path)
    for step in range(1, 10):
        box.note(step, batch_of(step))
    assert sum(entry.batch is not None for entry in box._entries) == 2


def test_rows_of_several_hosts_come_back_in_the_order_of_the_devices(tmp_path):
    """Two hosts whose devices take turns in the batch, as on a square of chips."""
    folder = tmp_path / "black_box"
    folder.mkdir()
    whole = batch_of(1, size=8)
    for host, starts in enumerate(((0, 4), (2, 6))):
        taken = np.concatenate([np.arange(start, start + 2) for start in starts])
        rows = {
            "block": host,
            "num_blocks": 2,
            "offsets": [[s, 2 * i] for i, s in enumerate(starts)],
        }
        report = {"step": 1, "host": host, "num_hosts": 2, "has_batch": True}
        report |= {"rows": rows, "steps": [{}]}
        stem = "step_1" + ("_host1" if host else "")
        (folder / f"{stem}.json").write_text(json.dumps(report))
        np.savez_compressed(folder / f"{stem}.npz", **{n: x[taken] for n, x in whole.items()})
    recording = read_recording(folder / "step_1_host1.json")
    np.testing.assert_array_equal(recording.batch["image"], whole["image"])
    assert recording.hosts.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    (folder / "step_1.npz").unlink()
    (folder / "step_1.json").unlink()
    with pytest.raises(UserError, match="1 of 2 blocks of the batch were not written"):
        read_recording(folder / "step_1_host1.json")


def test_what_is_no_recording_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no such file; a run writes them to black_box/"):
        read_recording(tmp_path / "step_1.json")
    (tmp_path / "step_1.json").write_text('{"steps": []}')
    with pytest.raises(UserError, match="is no file of a run's black box"):
        read_recording(tmp_path / "step_1.json")
