# SPDX-License-Identifier: Apache-2.0
"""From the report of a measured sample to N images: hours, accelerators, storage, money.

Only what was measured is multiplied; `FORMULAS` says how, and is part of the answer. A sample that
is too small, or too uneven, is refused. What cannot be computed (the money of a specialist that
counts none) is None and shown as `-`.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from florence2_jax.typing import UserError

FORMULAS = {
    "hours of a specialist": "(load_s + N * s_per_image / workers) / 3600",
    "hours": "sum over stages of the slowest specialist's hours in it",
    "range": "s_per_image -/+ 2 standard errors, over the parts of the sample",
    "workers for given hours": "ceil(N * s_per_image / (hours of its stage in seconds - load_s)), "
    "stages sharing the hours by their worker time",
    "accelerators": "the most that any stage uses: sum of workers * num_gpus",
    "storage": "N * bytes of the sample / images of the sample",
    "money": "N * money of the sample / images of the sample",
}

ASSUMPTIONS = (
    "workers of the sample's kind of machine, none slowed down by the others or by storage",
    "images like those of the sample, with its share of failures",
    "specialists of a stage run side by side, stages one after the other",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRules:
    """What a sample must be: so many images, and a time per image known to this share of it."""

    min_images: int = 200
    max_relative_error: float = 0.25


def extrapolate(
    report: Mapping[str, Any],
    num_images: int,
    *,
    workers: int | Mapping[str, int] | None = None,
    hours: float | None = None,
    rules: SampleRules = SampleRules(),
) -> dict[str, Any]:
    """What annotating `num_images` takes.

    Args:
        report: of `annotate`, over the sample.
        workers: of every specialist, or by name of the specialist; either these are given
        hours: or how long it may take; workers are then computed.

    Returns:
        JSON: a row per specialist, the sums, `formulas` and `assumptions`.

    Raises:
        UserError: if the sample is too small, or the hours are too few.
    """
    if num_images < 1:
        raise UserError(f"{num_images} images: must be 1 or more")
    if (workers is None) == (hours is None):
        raise UserError("give either the number of workers or the hours there are")
    for one in report["specialists"]:
        _check_sample(one, rules)
    if hours is None:
        counts = [_count(workers, one["name"]) for one in report["specialists"]]
    else:
        counts = _counts_within(report["specialists"], num_images, hours)
    rows = [
        _row(one, num_images, count)
        for one, count in zip(report["specialists"], counts, strict=True)
    ]
    share = num_images / report["images"]
    storage = {
        "annotations_bytes": round(report["store_bytes"] * share),
        "parts_bytes": sum(row["parts_bytes"] for row in rows),
        "images_bytes": round(report["source_bytes_per_image"] * num_images),
    }
    money = [row["money"] for row in rows if row["money"] is not None]
    return {
        "num_images": num_images,
        "sample_images": report["images"],
        "specialists": rows,
        **{key: _by_stage(rows, key, max, sum) for key in ("hours", "hours_low", "hours_high")},
        "accelerators": _by_stage(rows, "accelerators", sum, max),
        "cpus": _by_stage(rows, "cpus", sum, max),
        "accelerator_hours": sum(row["accelerator_hours"] for row in rows),
        "money": sum(money) if money else None,
        "storage": storage,
        "formulas": FORMULAS,
        "assumptions": list(ASSUMPTIONS),
    }


COLUMNS = (
    "specialist", "stage", "workers", "accelerators", "images/s", "hours", "hours, low to high",
    "money", "failures",
)  # fmt: skip


def table(extrapolation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of `COLUMNS` for a terminal, the last of them the sums."""
    rows = [
        (
            row["name"],
            row["stage_name"],
            f"{row['workers']:,}",
            f"{row['accelerators']:,g}",
            f"{row['workers'] / row['s_per_image']:,.1f}",
            *_times(row),
            _money(row["money"]),
            f"{row['failures']:,}",
        )
        for row in extrapolation["specialists"]
    ]
    accelerators, money = f"{extrapolation['accelerators']:,g}", _money(extrapolation["money"])
    return [*rows, ("all", "", "", accelerators, "", *_times(extrapolation), money, "")]


def _check_sample(one: Mapping[str, Any], rules: SampleRules) -> None:
    images, error = one["images"], one["s_per_image_error"]
    if images < rules.min_images:
        raise UserError(
            f"{one['name']}: a sample of {images} images says too little; annotate "
            f"{rules.min_images} or more"
        )
    if error is None or error > rules.max_relative_error * one["s_per_image"]:
        said = "unknown" if error is None else f"{error:.3g} s"
        raise UserError(
            f"{one['name']}: {one['s_per_image']:.3g} s an image, with a standard error that is "
            f"{said}; annotate more images, or the same in smaller parts"
        )


def _count(workers: int | Mapping[str, int] | None, name: str) -> int:
    count = workers.get(name) if isinstance(workers, Mapping) else workers
    if count is None or count < 1:
        raise UserError(f"workers of {name}: give 1 or more, got {count}")
    return count


def _counts_within(
    specialists: Sequence[Mapping[str, Any]], num_images: int, hours: float
) -> list[int]:
    """Workers of each, about as many in every stage."""
    whole = sum(one["s_per_image"] for one in specialists)
    counts = []
    for _, group in itertools.groupby(specialists, key=lambda one: one["stage"]):
        members = list(group)
        share = sum(one["s_per_image"] for one in members) / whole
        for one in members:
            left_s = hours * 3600 * share - (_load_s(one) or 0.0)
            if left_s <= 0:
                raise UserError(
                    f"{hours:g} hours are too few: {one['name']} takes {_load_s(one):.0f} s to load"
                )
            counts.append(math.ceil(num_images * one["s_per_image"] / left_s))
    return counts


def _load_s(one: Mapping[str, Any]) -> float | None:
    return None if one["workers"] is None else one["workers"]["mean_load_s"]


def _row(one: Mapping[str, Any], num_images: int, workers: int) -> dict[str, Any]:
    share = num_images / one["images"]
    num_gpus, load_s = one["resources"]["num_gpus"], _load_s(one)
    mean, margin = one["s_per_image"], 2 * one["s_per_image_error"]
    low, middle, high = (
        ((load_s or 0.0) + num_images * s / workers) / 3600
        for s in (max(0.0, mean - margin), mean, mean + margin)
    )
    return {
        "name": one["name"],
        "stage": one["stage"],
        "stage_name": one["stage_name"],
        "workers": workers,
        "s_per_image": mean,
        "load_s": load_s,
        "hours": middle,
        "hours_low": low,
        "hours_high": high,
        "accelerators": workers * num_gpus,
        "accelerator_hours": workers * num_gpus * middle,
        "cpus": workers * one["resources"]["num_cpus"],
        "money": None if one["money"] is None else one["money"] * share,
        "failures": round(sum(one["failures"].values()) * share),
        "parts_bytes": round(one["bytes"] * share),
    }


def _by_stage(rows: Sequence[Mapping[str, Any]], key: str, within: Any, across: Any) -> float:
    groups = itertools.groupby(rows, key=lambda row: row["stage"])
    return across([within([row[key] for row in group]) for _, group in groups])


def _times(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"{row['hours']:,.2f}", f"{row['hours_low']:,.2f} to {row['hours_high']:,.2f}"


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"
