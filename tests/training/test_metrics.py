# SPDX-License-Identifier: Apache-2.0
"""What a report says, and where it goes."""

import dataclasses
import importlib.util
import io
import json
import struct

import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from florence2_jax.models.flops import model_flops
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.parallel.peaks import PEAK_BF16_FLOPS, num_chips, peak_flops
from florence2_jax.planning.chips import CHIPS
from florence2_jax.tasks.registry import TASKS
from florence2_jax.training import metrics as metrics_lib
from florence2_jax.training.config import RunConfig
from florence2_jax.training.metrics import HostTimes, Machine, Reporter, Window
from florence2_jax.training.writers import choose_writers
from florence2_jax.typing import UserError

KEYS = {
    *("loss", "images_per_s", "annotations_per_s", "tokens_per_s", "step_s", "data_wait_share"),
    *("padding_share", "prompt_padding_share", "substituted_records", "dropped_regions"),
    "unplaced_targets",
    "skipped_steps",
}
"""What other programs read from `metrics.jsonl`; names may be added, none goes."""


@pytest.fixture
def window(monkeypatch) -> Window:
    """Ten seconds of five steps."""
    window = Window(steps=5, images=40, annotations=120.0, cells=1000, prompt_tokens=300)
    window.prompt_cells, window.wait_s, window.device_wait_s = 400, 1.0, 7.0
    window.flops, window.step_times_s = 2e13, [1.0, 2.0, 2.0, 2.0, 3.0]
    window.task_loss_sums[0], window.task_token_sums[0] = 900.0, 600.0
    now = window.start_s + 10
    monkeypatch.setattr(metrics_lib.time, "perf_counter", lambda: now)
    return window


def machine(peak: float | None) -> Machine:
    return Machine(num_chips=4, peak_flops=peak, flops_per_image=lambda shape: 0.0)


def test_a_window_sums_up_to_rates_and_shares(window):
    scalars = window.summary(machine(peak=1e13))
    assert scalars.keys() >= KEYS
    known = dict(images_per_s=4, images_per_s_per_chip=1, annotations_per_s=12, tokens_per_s=60)
    known |= dict(step_s=2, step_s_p50=2, data_wait_share=0.1, device_wait_share=0.7)
    known |= dict(padding_share=0.4, prompt_padding_share=0.25, loss=1.5, mfu=0.2)
    assert {name: scalars[name] for name in known} == pytest.approx(known)
    assert 2 < scalars["step_s_p99"] <= 3
    assert scalars[f"loss/{next(iter(TASKS.values())).name}"] == 1.5


def test_mfu_is_not_told_where_the_peak_is_not_known(window):
    assert "mfu" not in window.summary(machine(peak=None))
    assert peak_flops(jax.devices()) is None  # Processors.
    assert num_chips(jax.devices()) == 8


def test_useful_flops_are_those_of_the_shape_of_the_batch(small_run):
    run = RunConfig.create(small_run)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    of = Machine.of(mesh, run.model, run.batch_spec()).flops_per_image
    lengths = dict(num_prompts=3, prompt_length=24, target_length=40)
    assert of((8, 64, 64, 3)) == model_flops(run.model, **lengths).per_image
    wide = dataclasses.replace(run.model, image_size=(128, 64))
    assert of((8, 64, 128, 3)) == model_flops(wide, **lengths).per_image > of((8, 64, 64, 3))


def test_peaks_are_those_of_the_planner():
    kinds = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
    for name, chip in CHIPS.items():
        assert PEAK_BF16_FLOPS[kinds.get(name, "TPU7x")] == chip.bf16_flops, name


class Kept:
    """A writer that keeps what it is told."""

    def __init__(self):
        self.rows, self.is_open = [], True

    def log_scalar(self, event, value, **kwargs):
        self.rows.append((kwargs["step"], event, value))

    def close(self):
        self.is_open = False


def reporter(folder, writers=None, *, is_active=True) -> Reporter:
    console = Console(file=io.StringIO(), width=300)
    settings = dict(total_steps=10, console=console, is_active=is_active)
    return Reporter(folder, **settings, writers=writers)


def test_a_report_goes_to_every_writer_and_to_one_line(tmp_path, window):
    kept = Kept()
    scalars = window.summary(machine(peak=1e13)) | dict(learning_rate=1e-3, grad_norm=2.0)
    with reporter(tmp_path, {"kept": lambda: kept}) as report:
        report.progress(7, scalars, hosts={"step_s_p99": [1.0, None]})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row == {"step": 7, **scalars, "hosts": {"step_s_p99": [1.0, None]}}
    assert {(7, name, value) for name, value in scalars.items()} == set(kept.rows)
    assert not kept.is_open
    text = report.console.file.getvalue()
    assert "4.0 images/s" in text and "MFU 20.0%" in text and "left 0:00:06" in text


def test_writers_are_opened_with_the_first_scalars_and_by_one_process_only(tmp_path):
    opened = []

    def open_one():
        opened.append(Kept())
        return opened[-1]

    with reporter(tmp_path, {"kept": open_one}, is_active=False) as report:
        report.report(1, {"loss": 1.0})
    with reporter(tmp_path, {"kept": open_one}) as report:
        report.say("nothing to report yet")
    assert not opened
    with reporter(tmp_path, {"kept": open_one}) as report:
        report.report(1, {"loss": 1.0})
        report.report(2, {"loss": 1.0})
    assert len(opened) == 1 and not opened[0].is_open


def test_a_writer_that_fails_is_left_out_and_the_others_go_on(tmp_path):
    kept = Kept()

    def fail():
        raise ConnectionError("no route to the server")

    with reporter(tmp_path, {"server": fail, "kept": lambda: kept}) as report:
        report.report(1, {"loss": 1.0})
        report.report(2, {"loss": 2.0})
    assert [value for _, _, value in kept.rows] == [1.0, 2.0]
    text = report.console.file.getvalue()
    assert text.count("no more scalars for server: ConnectionError: no route to the server") == 1


def test_tensorboard_reads_the_scalars_back(tmp_path):
    with reporter(tmp_path) as report:
        report.report(3, {"loss/caption": 1.5, "mfu": 0.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    found, data = {}, file.read_bytes()
    while data:  # Records: length, its checksum, an event, its checksum.
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + length :]
    assert found == {"loss/caption": (3, 1.5), "mfu": (3, 0.25)}


def test_wandb_writes_a_run_per_start_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):
        openers = choose_writers(tmp_path, tensorboard=False, wandb="scenes", config={"seed": 3})
        with reporter(tmp_path, openers) as report:
            report.report(3, {"loss": 1.5})
        assert "no more scalars" not in report.console.file.getvalue()
    runs = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({path.name for path in runs}) == 2


def test_wandb_that_is_not_installed_is_named_before_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"log\.wandb: wandb is not installed; pip install"):
        choose_writers(tmp_path, tensorboard=True, wandb="scenes", config={})
    assert not choose_writers(tmp_path, tensorboard=False, wandb="", config={})


def test_hosts_tell_their_own_times_and_nobody_waits(window):
    board: dict[int, str] = {}
    scalars = window.summary(machine(peak=None))
    hosts = [
        HostTimes(lambda name, text, i=i: board.update({i: text}), lambda name: board, 3)
        for i in range(3)
    ]
    assert hosts[2].share(scalars | {"step_s_p99": 9.0}, is_reader=False) == {}
    told = hosts[0].share(scalars)  # Host 1 has said nothing yet.
    assert told["step_s_p99"] == [scalars["step_s_p99"], None, 9.0]
    assert told["step_s_p50"] == [2.0, None, 2.0]
    assert HostTimes(lambda name, text: None, lambda name: {}, 1).share(scalars) == {}


def test_step_times_are_those_of_all_steps_since_the_last_report(window):
    window.step_times_s = list(np.linspace(0.1, 1.0, 100))
    scalars = window.summary()
    assert scalars["step_s_p50"] == pytest.approx(0.55)
    assert scalars["step_s_p99"] == pytest.approx(0.991, abs=1e-3)
