# SPDX-License-Identifier: Apache-2.0
"""Figures of a report against figures worked out by hand from the same facts."""

import dataclasses

import pytest

from florence2_jax.models.flops import model_flops
from florence2_jax.planning import tables
from florence2_jax.planning.chips import Topology
from florence2_jax.planning.compile import Compiled
from florence2_jax.planning.report import make_report
from florence2_jax.training.config import RunConfig

GIB = 1 << 30
V5E_HBM = round(15.75 * GIB)


@pytest.fixture
def run() -> RunConfig:
    """`base` at 384 px for 3 M images, 512 at a time."""
    return RunConfig.create(
        dict(
            total_samples=3_072_000,
            model=dict(variant="base", image_size=384),
            input=dict(records="/data", batch_size=512, num_prompts=4, target_length=64),
            tokenizer=dict(train_size=32_000),
            optimizer=dict(peak_lr=1e-4, warmup_steps=10),
            checkpoint=dict(every_steps=500),
        )
    )


@pytest.fixture
def compiled() -> Compiled:
    """32 images on each of the 16 chips of v5e:4x4: facts that make round figures."""
    program = {
        "mesh": {"replica": 2, "fsdp": 8, "tensor": 1},
        "image_size": [384, 384],
        "vocabulary": {"size": 33_025, "first_location_id": 32_004, "source": "assumed"},
        "images_per_device": 32,
        "accumulate": 1,
        "remat": "none",
        "bytes_per_device": {"parameters": GIB, "optimizer": 2 * GIB, "batch": GIB // 4},
        "checkpoint_bytes": 2_500_000_000,
        "versions": {"jax": "0.0.1", "libtpu": "0.0.2"},
    }
    memory = {"argument": 4 * GIB, "output": 3 * GIB, "alias": 3 * GIB, "temp": 8 * GIB}
    collectives = [
        {"kind": "all-gather", "axes": "fsdp", "network": "ici", "count": 3, "bytes": 10**9},
        {"kind": "all-reduce", "axes": "replica", "network": "dcn", "count": 1, "bytes": 10**8},
    ]
    analysis = {
        "rl_s": 0.2,
        "cyc_s": 0.5,
        "hbm_bytes": 64e9,
        "executed_flops": 10e12,
        "by_category": {"window attention": {"seconds": 0.05, "hbm_bytes": 2e9}},
        "costliest": [],
        "unknown_loops": [],
        "unknown_kernels": [],
        "collectives": [c | {"seconds": s} for c, s in zip(collectives, (0.04, 0.01), strict=True)],
    }
    return Compiled(
        program=program,
        memory=memory | {"generated_code": GIB // 4},
        analysis=analysis,
        compile_s=12.0,
    )


@pytest.fixture
def report(run, compiled) -> dict:
    return make_report(run, Topology.parse("v5e:4x4"), compiled, host_ms_per_image=10.0)


def test_memory_adds_up(report):
    memory = report["memory"]
    assert memory["available"] == V5E_HBM
    assert memory["layout_padding"] == 3 * GIB // 4  # 4 GiB of arguments, 3.25 of them known.
    assert memory["needed"] == 12 * GIB + GIB // 4  # Outputs are donated inputs.
    assert memory["headroom"] == V5E_HBM - memory["needed"]


def test_mfu_and_rates_follow_from_the_time_of_a_step(report, run):
    text = dataclasses.replace(run.model.text, vocab_size=33_025)
    model = dataclasses.replace(run.model, text=text)
    lengths = dict(prompt_length=64, target_length=64)
    useful = model_flops(model, num_prompts=4, **lengths).per_image
    assert report["flops"]["useful_per_image"] == useful
    assert report["flops"]["executed_over_useful"] == pytest.approx(10e12 / (32 * useful))
    step_ms = {name: column["step_ms"] for name, column in report["estimates"].items()}
    assert step_ms == pytest.approx({"RL": 200, "RL + collectives": 250, "cyc": 500})
    rl = report["estimates"]["RL"]
    assert rl["mfu"] == pytest.approx(32 * useful / 0.2 / 197e12)
    assert rl["images_per_s"] == pytest.approx(2560)
    assert rl["images_per_s_per_chip"] == pytest.approx(160)
    assert rl["annotations_per_s"] == pytest.approx(10_240)
    assert rl["images_per_s_per_host"] == pytest.approx(640)  # Four chips.
    assert rl["cores_per_host"] == pytest.approx(6.4)
    assert rl["hours"] == pytest.approx(6000 * 0.2 / 3600)
    assert rl["chip_hours"] == pytest.approx(16 * 6000 * 0.2 / 3600)
    assert report["traffic"]["hbm_bytes_per_image"] == pytest.approx(2e9)
    assert report["checkpoint"]["bytes_per_s"] == pytest.approx(25e6)  # 2.5 GB in 100 s.
    assert report["network_s"] == pytest.approx({"ici": 0.04, "dcn": 0.01})


def test_what_could_not_be_computed_is_named_and_not_printed(run, compiled):
    crashed = dataclasses.replace(compiled, analysis=None, missing="it crashed with signal 11")
    report = make_report(run, Topology.parse("v5e:4x4"), crashed)
    assert report["fits"] and "estimates" not in report and "traffic" not in report
    assert report["missing"] == {"time, traffic, collectives": "it crashed with signal 11"}
    words = "\n".join(str(row) for one in tables.tables(report) for row in one.rows)
    assert "signal 11" in words and "useful GFLOP" in words and "MFU" not in words


def test_missing_cycles_leave_out_their_column(run, compiled):
    analysis = {**compiled.analysis, "cyc_s": None, "unknown_loops": ["while.3"]}
    changed = dataclasses.replace(compiled, analysis=analysis)
    report = make_report(run, Topology.parse("v5e:4x4"), changed)
    assert list(report["estimates"]) == ["RL", "RL + collectives"]
    assert set(report["missing"]) == {"cyc", "trips of loops"}
    assert "while.3" in report["missing"]["trips of loops"]


def test_what_does_not_fit_says_by_how_much(run, compiled):
    failed = dataclasses.replace(compiled, memory=None, analysis=None, needed_bytes=20 * GIB)
    report = make_report(run, Topology.parse("v5e:4x4"), failed)
    assert not report["fits"] and "estimates" not in report and "flops" not in report
    assert "DOES NOT FIT: 20.00 of 15.75 GiB per chip" in tables.headline(report)


def test_every_figure_is_in_the_tables(report):
    shown = tables.tables(report)
    assert [one.title.partition(",")[0] for one in shown] == [
        "memory of a chip",
        "estimates",
        "where the time goes",
        "work",
        "collectives of a chip and step",
    ]
    for one in shown:
        assert {len(row) for row in one.rows} == {len(one.header)}, one.title
    assert ("all-gather over fsdp (ICI)", "3", "1,000", "40") in shown[4].rows
    assert "197 TFLOP/s" in tables.footnote(report)
