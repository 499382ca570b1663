# SPDX-License-Identifier: Apache-2.0
"""What comes back from the compiler's process, however it ends."""

import importlib.util

import pytest

from florence2_jax.planning import compile as compile_lib
from florence2_jax.planning.chips import Topology
from florence2_jax.planning.compile import compile_run
from florence2_jax.planning.report import make_report
from florence2_jax.planning.worker import needed_bytes
from florence2_jax.training.config import RunConfig
from florence2_jax.typing import UserError

TOPOLOGY = Topology.parse("v5e:2x2")


def test_a_quick_plan_has_time_and_memory_but_no_code(small_run):
    found = compile_run(small_run, TOPOLOGY, quick=True)
    assert found.fits and not found.has_code and not found.missing
    assert found.analysis is not None and found.analysis["rl_s"] > 0
    assert found.analysis["cyc_s"] is None
    report = make_report(RunConfig.create(small_run), TOPOLOGY, found)
    assert "cyc" in report["missing"] and "cyc" not in report["estimates"]
    assert report["estimates"]["RL"]["mfu"] > 0 and "program" not in report["memory"]


def test_a_missing_compiler_is_named_with_how_to_get_it(small_run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'florence2_jax\[plan\]'"):
        compile_run(small_run, TOPOLOGY)


def test_a_crash_of_the_compiler_is_one_line(small_run, monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--no_such_flag=1")  # It ends the process.
    with pytest.raises(UserError, match="the TPU compiler failed for v5e:2x2: it") as error:
        compile_run(small_run, TOPOLOGY)
    assert "pip install -U libtpu" in str(error.value) and "\n" not in str(error.value)


def test_a_user_s_mistake_comes_back_as_it_is(small_run):
    small_run["mesh"] = dict(fsdp=3)
    with pytest.raises(UserError, match=r"^mesh: .* needs 3 devices, but 4 are present"):
        compile_run(small_run, TOPOLOGY)


def test_a_state_that_no_chip_holds_is_refused_before_the_compilation(small_run):
    small_run["model"]["text"] |= dict(d_model=8192, mlp_dim=65_536, num_heads=64)
    small_run["mesh"] = dict(replica=4, fsdp=1)
    with pytest.raises(UserError, match=r"optimizer state alone take \d\d\.\d of the 15\.8 GiB"):
        compile_run(small_run, TOPOLOGY)


def test_what_was_known_before_a_crash_is_kept():
    facts = {"program": {"remat": "none"}, "memory": {"temp": 1}, "compile_s": 3.0}
    compiled = compile_lib._compiled(facts | {"failed": "it crashed with signal 6"}, TOPOLOGY)
    assert compiled.fits and compiled.analysis is None
    assert compiled.missing == "it crashed with signal 6"
    with pytest.raises(UserError, match="failed for v5e:2x2: it was killed, most likely"):
        failed = compile_lib._how_it_ended(-9, "")
        compile_lib._compiled({"program": facts["program"], "failed": failed}, TOPOLOGY)


def test_the_end_of_a_process_names_its_last_words():
    errors = "I0000 start\nF0000 00:00:1 flags.cc:1] Check failed: ok\n*** stack ***\n"
    said = compile_lib._how_it_ended(-6, errors)
    assert said == "it crashed with signal 6: F0000 00:00:1 flags.cc:1] Check failed: ok"
    assert compile_lib._how_it_ended(3, "") == "it ended with status 3"


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        # Of libtpu 0.0.52, and of the versions before.
        ("the total memory required for HLO temporaries (288.00G) exceeds available HBM", 288),
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded", 20.5),
        ("Used 512.00M of 15.75G hbm", 0.5),
        ("INTERNAL: something else", None),
    ],
)
def test_messages_about_memory_are_read(message, gib):
    assert needed_bytes(message) == (None if gib is None else round(gib * 2**30))
