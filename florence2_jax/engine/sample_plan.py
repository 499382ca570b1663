# SPDX-License-Identifier: Apache-2.0
"""What a run file's phase 1 would take for N images, by a sample of its own images."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2_jax.engine.annotate import annotate
from florence2_jax.engine.extrapolation import SampleRules, extrapolate
from florence2_jax.engine.round_config import EngineConfig
from florence2_jax.engine.subsets import write_spread

NUM_PARTS = 8
"""Parts of a sample: how unlike they are says how sure the time of an image is."""


def plan_by_sample(
    config: Mapping[str, Any],
    num_images: int,
    directory: Path,
    *,
    sample: int,
    workers: int | None = None,
    hours: float | None = None,
    num_workers: int = 1,
    ray: str | None = None,
    on_progress: Any = None,
) -> dict[str, Any]:
    """Annotates a sample, spread evenly over the source, and multiplies what it took.

    Args:
        config: a run file's values.
        directory: where the sample and its labels are kept; given again, they are not made anew.
        workers: of every specialist; or
        hours: how long all of it may take.

    Returns:
        What `extrapolation.extrapolate` says.

    Raises:
        UserError: if the run file is unfit, or the sample says too little.
    """
    engine = EngineConfig.create({**config, "rounds": 0})
    source, split = Path(engine.source.records).absolute(), engine.source.split
    directory = Path(directory).absolute()
    images = directory / f"images-{sample}"
    sample = write_spread(source, images, split, sample)
    scaling = dataclasses.replace(engine.scale, images_per_part=max(1, sample // NUM_PARTS))
    annotate(
        images,
        directory / f"annotated-{sample}",
        engine.specialists,
        splits=(split,),
        combining=engine.combine,
        scaling=scaling,
        num_workers=num_workers,
        ray=ray,
        on_progress=on_progress,
    )
    report = directory / f"annotated-{sample}.parts" / "report.json"
    return extrapolate(
        json.loads(report.read_text("utf-8")),
        num_images,
        workers=workers,
        hours=hours,
        rules=SampleRules(min_images=min(sample, SampleRules().min_images)),
    )
