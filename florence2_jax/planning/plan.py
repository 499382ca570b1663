# SPDX-License-Identifier: Apache-2.0
"""A run on TPUs that are not here: compile its step, report on it, and where it does not fit,
look for what does."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from florence2_jax.planning.chips import Topology
from florence2_jax.planning.compile import Compiled, compile_run
from florence2_jax.planning.report import HOST_MS_PER_IMAGE, make_report
from florence2_jax.planning.search import find_remedies
from florence2_jax.training.config import RunConfig


def plan(
    config: Mapping[str, Any],
    topology: Topology,
    *,
    host_ms_per_image: float = HOST_MS_PER_IMAGE,
    with_search: bool = True,
    quick: bool = False,
    on_progress: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """The report of a run file on a topology, see `report.make_report`.

    Where the run does not fit, `remedies` say what does, see `search.Remedies`.

    Args:
        quick: see `compile_run`; the search is always quick.

    Raises:
        UserError: for whatever of config, topology and compiler cannot work.
    """
    run = RunConfig.create(config)
    on_progress(f"compiling the train step for {topology}; minutes for a model of full size")
    compiled = compile_run(config, topology, quick=quick)
    report = make_report(run, topology, compiled, host_ms_per_image=host_ms_per_image)
    if compiled.fits or not with_search:
        return report

    def try_out(changed: Mapping[str, Any], topology: Topology) -> Compiled:
        remat, batch = changed["model"]["remat"], changed["input"]["batch_size"]
        parts = f" in {changed['accumulate']} parts" if changed.get("accumulate", 1) > 1 else ""
        on_progress(f"it does not fit; trying {batch} images{parts} with remat {remat}")
        return compile_run(changed, topology, with_analysis=False, quick=True)

    remedies = find_remedies(config, topology, compiled, try_out)
    own = dataclasses.asdict(remedies)
    return report | {"remedies": own | {"overrides": remedies.overrides()}}
