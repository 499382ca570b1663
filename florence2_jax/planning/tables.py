# SPDX-License-Identifier: Apache-2.0
"""A plan's report as tables of words, for a terminal or a page."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from florence2_jax.planning.chips import CHIPS, Chip
from florence2_jax.planning.report import ESTIMATORS

GIB = 1 << 30

_MEMORY = {
    "parameters": "parameters, float32",
    "optimizer": "optimizer state",
    "batch": "batch",
    "layout_padding": "padding of these by their layouts",
    "new_outputs": "metrics",
    "temporaries": "temporaries: activations, gradients, gathered parameters",
    "program": "the program itself",
    "needed": "needed",
    "available": "available",
    "headroom": "headroom",
}

_RATES = {
    "step_ms": "time of a step, ms",
    "mfu": "MFU",
    "images_per_s_per_chip": "images/s, a chip",
    "images_per_s": "images/s, all chips",
    "annotations_per_s": "annotations/s, all chips",
    "images_per_s_per_host": "images/s that a host must load",
    "cores_per_host": "cores that this takes",  # Of how many is added.
    "hours": "hours of the whole run",
    "chip_hours": "chip-hours of the whole run",
}


def number(x: float) -> str:
    """Three digits that matter, or all before the point: 0.284, 12.3, 1,537,365, 8."""
    if abs(x) >= 100 or x == round(x):
        return f"{x:,.0f}"
    return f"{x:.{min(4, 2 - math.floor(math.log10(abs(x))))}f}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Words in rows; all columns but the first are numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def headline(report: Mapping[str, Any]) -> list[str]:
    """What is planned, and whether it fits, in a few lines."""
    slices = f"{report['slices']} x " if report["slices"] > 1 else ""
    mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
    width, height = report["image_size"]
    parts = f" in {report['accumulate']} parts" if report["accumulate"] > 1 else ""
    memory, vocabulary = report["memory"], report["vocabulary"]
    unit = _unit(report)
    verdict = "fits" if report["fits"] else "DOES NOT FIT"
    needed = f"{memory['needed'] / GIB:.2f} of" if "needed" in memory else "more than"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return [
        f"{slices}{report['topology']}, {report['chips']:,} chips, {report['hosts']:,} host(s), "
        f"mesh {mesh}",
        f"{report['batch_size']:,} images a step{parts}, {report['images_per_device']} at a time "
        f"per {unit}, {width} x {height} px, {report['prompts_per_image']} prompts each, "
        f"remat {report['remat']}",
        f"{vocabulary['size']:,} tokens ({vocabulary['source']})",
        f"{_done(report)} in {report['compile_s']:.0f} s by {versions}",
        f"{verdict}: {needed} {memory['available'] / GIB:.2f} GiB per {unit}",
    ]


def _done(report: Mapping[str, Any]) -> str:
    if not report["fits"]:
        return "given up"
    return "compiled" if report["has_code"] else "scheduled, without generating code,"


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Every figure of a report."""
    memory = report["memory"]
    rows = tuple(
        (words, number(memory[name] / GIB)) for name, words in _MEMORY.items() if name in memory
    )
    found = [Table(f"memory of a {_unit(report)}", ("", "GiB"), rows)]
    if "estimates" in report:
        found += [_estimates(report), _categories(report), _work(report), _collectives(report)]
    elif "flops" in report:
        found.append(Table("work", ("", ""), tuple(_useful(report))))
    if report["missing"]:
        rows = tuple(report["missing"].items())
        found.append(Table("could not be computed", ("", "because"), rows))
    return found


def footnote(report: Mapping[str, Any]) -> str:
    """What the figures mean."""
    peak = _chip(report).bf16_flops / 1e12
    names = "; ".join(f"{name}: {words}" for name, words in ESTIMATORS.items())
    return (
        f"MFU = useful FLOPs / (time of a step x {_unit(report)}s x {peak:,.0f} TFLOP/s). {names}. "
        "Estimates out of the compiled program; nothing ran on a TPU."
    )


def _chip(report: Mapping[str, Any]) -> Chip:
    return CHIPS[report["topology"].partition(":")[0]]


def _unit(report: Mapping[str, Any]) -> str:
    """What a program runs on: a chip of tpu7x is two devices."""
    return "chip" if _chip(report).devices_per_chip == 1 else "half chip"


def _estimates(report: Mapping[str, Any]) -> Table:
    columns = report["estimates"]
    labels = _RATES | {"cores_per_host": f"cores that this takes, of {report['host_cores']}"}
    rows = (
        (words, *(number(column[name]) for column in columns.values()))
        for name, words in labels.items()
    )
    return Table("estimates", ("", *columns), tuple(rows))


def _categories(report: Mapping[str, Any]) -> Table:
    rows = tuple(
        (name, number(1000 * cost["seconds"]), number(cost["hbm_bytes"] / 1e9))
        for name, cost in report["traffic"]["by_category"].items()
    )
    return Table("where the time goes, by RL", ("", "ms", "HBM GB"), rows)


def _useful(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    flops = report["flops"]
    return [
        ("useful GFLOP per image", number(flops["useful_per_image"] / 1e9)),
        ("useful GFLOP per annotation", number(flops["useful_per_annotation"] / 1e9)),
        ("checkpoint, GB", number(report["checkpoint"]["bytes"] / 1e9)),
    ]


def _work(report: Mapping[str, Any]) -> Table:
    traffic, network, saving = report["traffic"], report["network_s"], report["checkpoint"]
    rows = [
        *_useful(report),
        ("executed / useful FLOPs", number(report["flops"]["executed_over_useful"])),
        ("HBM traffic per image, GB", number(traffic["hbm_bytes_per_image"] / 1e9)),
        ("collectives within slices (ICI), ms", number(1000 * network["ici"])),
        ("collectives between slices (DCN), ms", number(1000 * network["dcn"])),
        (
            f"bandwidth to write one within its {saving['every_steps']:,} steps, MB/s",
            number(saving["bytes_per_s"] / 1e6),
        ),
    ]
    return Table("work, traffic, checkpoints", ("", ""), tuple(rows))


def _collectives(report: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            f"{c['kind']} over {c['axes']} ({c['network'].upper()})",
            f"{c['count']:,}",
            number(c["bytes"] / 1e6),
            number(1000 * c["seconds"]),
        )
        for c in report["collectives"]
    )
    return Table(f"collectives of a {_unit(report)} and step", ("", "times", "MB", "ms"), rows)
