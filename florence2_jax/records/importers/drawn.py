# SPDX-License-Identifier: Apache-2.0
"""Drawn scenes as the plan of a store, beside the importers of what others drew."""

import dataclasses
import functools

from florence2_jax.records.ledger import Ledger
from florence2_jax.records.scenes import VERSION, SceneConfig, draw_scene
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan, split_by_hash
from florence2_jax.typing import UserError

FRACTIONS = {"train": 0.9, "validation": 0.1}


def plan_scenes(
    num: int, config: SceneConfig, *, seed: int = 0, num_validation: int | None = None
) -> Plan:
    """Scenes 0 to `num` - 1, in splits "train" and "validation".

    Of the scenes, the first `num_validation` are held out, so that a larger set of the same seed
    holds out the same ones. Without a number, the hash of a scene's key holds out about a tenth.

    Raises:
        UserError: if the numbers do not leave a scene to train on.
    """
    if num < 1:
        raise UserError(f"number of scenes {num}: draw 1 or more")
    if num_validation is None:
        held_out = {i for i in range(num) if split_by_hash(_key(i), FRACTIONS) == "validation"}
    else:
        held_out = set(range(num_validation))
        if not 0 <= num_validation < num:
            raise UserError(f"--validation {num_validation}: hold out 0 or more of {num}, not all")
    units = {
        "train": [i for i in range(num) if i not in held_out],
        "validation": sorted(held_out),
    }
    job = {"format": "scenes", "version": VERSION, "seed": seed}
    job |= {"config": dataclasses.asdict(config), "validation": num_validation}
    return Plan(
        units={split: indices for split, indices in units.items() if indices},
        make=functools.partial(_draw, config=config, seed=seed),
        job=job,
    )


def _key(index: int) -> str:
    return f"scene-{index:06d}"  # The split key of `draw_scene`.


def _draw(index: int, ledger: Ledger, *, config: SceneConfig, seed: int) -> Record:
    record = draw_scene(index, config, seed)
    for kind, things in (
        ("image", [record]),
        ("caption", record.texts),
        ("region", record.regions),
        ("grounding", record.groundings),
        ("question", record.questions),
    ):
        ledger.read(kind, len(things))
        ledger.keep(kind, len(things))
    return record
