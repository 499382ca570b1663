# SPDX-License-Identifier: Apache-2.0
"""What would fit, where a run does not: another remat policy, the batch in parts, fewer images."""

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from florence2_jax.planning.chips import Topology
from florence2_jax.planning.compile import Compiled
from florence2_jax.typing import UserError

POLICIES = ("none", "dots", "full")
"""Of remat, by what they cost: recomputing nothing, all but the dense products, whole blocks."""

_MOST_TRIES = 3

CompileRun = Callable[[Mapping[str, Any], Topology], Compiled]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remedies:
    """Changes to a run file after which it fits; each was compiled."""

    remat: str | None  # The cheapest policy that holds the batch that was asked for.
    policy: str  # With this policy
    images_per_device: int  # so many images fit at a time (0: not even one),
    batch_size: int  # which is this batch over all devices.
    accumulate: int | None = None  # Or the whole batch, with that policy, in so many parts.

    def overrides(self) -> list[str]:
        """As flags of the command line."""
        flags = [f"--config.model.remat={self.remat}"] if self.remat else []
        policy = f"--config.model.remat={self.policy}"
        if self.accumulate:
            flags.append(f"{policy} --config.accumulate={self.accumulate}")
        if self.batch_size:
            flags.append(f"{policy} --config.input.batch_size={self.batch_size}")
        return flags


def find_remedies(
    config: Mapping[str, Any], topology: Topology, failed: Compiled, compile_run: CompileRun
) -> Remedies:
    """Searches with as few compilations as it can: mostly two or three, each of minutes.

    Args:
        config: a run file's values.
        failed: what came of compiling it.

    Raises:
        UserError: if not even one image per device fits with the policy that recomputes most.
    """
    program = failed.program
    own = POLICIES.index(program["remat"])
    remat, best = None, failed
    for policy in POLICIES[own + 1 :]:
        best = compile_run(changed(config, remat=policy), topology)
        if best.fits:
            remat = policy
            break
    # The largest batch: of the run's own policy if another one held it all, else of the last one.
    policy, start = (program["remat"], failed) if remat else (best.program["remat"], best)
    images = _largest(config, topology, policy, start, compile_run)
    if not images and remat is None:
        raise UserError(
            f"{topology}: one image per device with model.remat={policy} needs more than the "
            f"{topology.chip.hbm_bytes / 2**30:.1f} GiB of a device: spread the parameters over "
            "more of them (mesh.fsdp, mesh.tensor), shorten input.target_length or num_prompts, "
            "or take a generation with more memory"
        )
    shards = config["input"]["batch_size"] // program["images_per_device"]
    return Remedies(
        remat=remat,
        policy=policy,
        images_per_device=images,
        batch_size=images * shards,
        accumulate=_parts(config, topology, policy, program, images, compile_run),
    )


def _parts(
    config: Mapping[str, Any],
    topology: Topology,
    policy: str,
    program: Mapping[str, Any],
    images: int,
    compile_run: CompileRun,
) -> int | None:
    """`accumulate` with which the whole batch fits, if `images` per device do; else None."""
    whole = program["images_per_device"]
    parts = [n for n in range(2, whole + 1) if whole % n == 0 and whole // n <= images]
    if not parts:
        return None
    accumulate = program["accumulate"] * parts[0]
    tried = compile_run(changed(config, remat=policy, accumulate=accumulate), topology)
    return accumulate if tried.fits else None


def changed(
    config: Mapping[str, Any],
    *,
    remat: str | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
) -> dict[str, Any]:
    """A copy of a run file's values with some replaced; a run of samples keeps their number."""
    config = copy.deepcopy(dict(config))
    if remat is not None:
        config["model"]["remat"] = remat
    if batch_size is not None:
        config["input"]["batch_size"] = batch_size
    if accumulate is not None:
        config["accumulate"] = accumulate
    return config


def _largest(
    config: Mapping[str, Any],
    topology: Topology,
    policy: str,
    failed: Compiled,
    compile_run: CompileRun,
) -> int:
    """Most images per device that fit, to a step of an eighth; 0 if not even one does.

    What does not depend on the batch is known, the rest grows with it, so a line through the last
    try predicts the next one.
    """
    program = failed.program
    too_many = program["images_per_device"]
    shards = config["input"]["batch_size"] // too_many
    images = _predict(failed, topology)
    largest = 0
    for _ in range(_MOST_TRIES):
        images = min(images, too_many - 1)
        if images <= largest:
            break
        tried = compile_run(changed(config, remat=policy, batch_size=images * shards), topology)
        if tried.fits:
            largest = images
            images = images + max(1, images // 8)
        else:
            too_many = images
            images = min(_predict(tried, topology), (largest + images) // 2)
    if not largest and too_many > 1:
        tried = compile_run(changed(config, remat=policy, batch_size=shards), topology)
        largest = int(tried.fits)
    return largest


def _predict(failed: Compiled, topology: Topology) -> int:
    """Images per device that should just fit."""
    own, images = failed.program["bytes_per_device"], failed.program["images_per_device"]
    fixed = own["parameters"] + own["optimizer"]
    each = max(1.0, ((failed.needed_bytes or 0) - fixed) / images)
    return math.floor((topology.chip.hbm_bytes - fixed) / each)
