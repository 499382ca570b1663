# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Eight devices before JAX starts, so that sharded and single-device runs compare in one process.
# Most of the time goes into compiling programs that run a few times: less optimised, half of it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=2",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The TPU compiler looks for no TPU, and several of these processes may have it open.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# Commands keep compiled programs in the user's cache; tests leave it alone. They share one of their
# own, made by the first process and left to its workers and to the commands that they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache = tempfile.mkdtemp(prefix="compiled")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Lets go of what a module compiled: over all of them it came to many gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real datasets beside the checkout; tests skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real datasets are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A store of 40 training and 8 validation scenes of 48 px, which feeds every task."""
    from florence2_jax.cli.main import main

    folder = tmp_path_factory.mktemp("scenes") / "store"
    command = ["records", "scenes", "48", str(folder), "--validation", "8", "--size-px", "64"]
    assert main([*command, "--workers", "1"]) == 0
    return folder


@pytest.fixture
def small_run(scenes) -> dict:
    """A run file's values: a model of 60,000 parameters, a few steps on the scenes."""
    davit = dict(dims=(8, 16), num_heads=(1, 2), depths=(1, 1), window_size=4)
    davit |= dict(patch_kernels=(7, 3), patch_strides=(4, 4), pre_norm=(False, True))
    text = dict(d_model=32, encoder_layers=1, decoder_layers=1, num_heads=2, mlp_dim=64)
    return dict(
        seed=3,
        total_steps=6,
        model=dict(variant="tiny", image_size=64, dtype="float32", davit=davit, text=text),
        input=dict(
            records=str(scenes), batch_size=8, num_prompts=3, prompt_length=24, target_length=40
        ),
        tokenizer=dict(train_size=400),
        optimizer=dict(peak_lr=1e-3, warmup_steps=2),
        checkpoint=dict(every_steps=2, keep=3),
        log=dict(every_steps=1),
    )
