# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

# Eight devices before JAX starts, so that sharded and single-device runs compare in one process.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real datasets beside the checkout; tests skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real datasets are not at {folder}")
    return folder
