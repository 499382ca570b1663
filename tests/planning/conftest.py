# SPDX-License-Identifier: Apache-2.0
"""The TPU compiler in the test's own process."""

from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(autouse=True, scope="package")
def without_compilation_cache() -> Iterator[None]:
    """Programs for absent chips can be put into the cache of compiled ones, and not taken out."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()
