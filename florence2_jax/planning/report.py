# SPDX-License-Identifier: Apache-2.0
"""What a compiled step means for a run: memory, time, traffic, input, checkpoints, chip-hours.

MFU = useful FLOPs of a step / (devices x time of a step x bfloat16 peak of a device). Useful FLOPs
are those of `flops`, times follow from the compiled program:

- `RL`: every operation takes the longer of its memory traffic and its matrix products, collectives
  cost nothing. Optimistic.
- `RL + collectives`: the same, and no collective hides behind computation.
- `cyc`: the compiler's own estimate of cycles, collectives not included. Pessimistic, it ranks.

All are estimates of a compiler. Nothing here was timed on a TPU.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from florence2_jax.models.flops import Flops, model_flops
from florence2_jax.planning.chips import Topology
from florence2_jax.planning.compile import Compiled
from florence2_jax.training.config import RunConfig

HOST_MS_PER_IMAGE = 8.0
"""Processor time to read, decode, resize and tokenise one image with its prompts: of photos of
640 x 480 for 384 px. An assumption; `benchmarks/input.py` measures it for your records."""

ESTIMATORS = {
    "RL": "roofline of each operation, collectives hidden: optimistic",
    "RL + collectives": "the same, no collective hidden",
    "cyc": "the compiler's cycles, without collectives: pessimistic",
}

_NO_CODE = "its code was not generated (--quick)"


def make_report(
    config: RunConfig,
    topology: Topology,
    compiled: Compiled,
    *,
    host_ms_per_image: float = HOST_MS_PER_IMAGE,
) -> dict[str, Any]:
    """Every figure that can be had; those that cannot are in `missing`, with the reason."""
    program = compiled.program
    report: dict[str, Any] = {
        "topology": topology.name,
        "slices": topology.num_slices,
        "chips": topology.num_chips,
        "mesh": program["mesh"],
        "versions": program["versions"],
        "compile_s": compiled.compile_s,
        "vocabulary": program["vocabulary"],
        "image_size": program["image_size"],
        "batch_size": config.input.batch_size,
        "images_per_device": program["images_per_device"],
        "hosts": topology.num_hosts,
        "host_cores": topology.chip.cores_per_host,
        "prompts_per_image": config.input.num_prompts,
        "remat": program["remat"],
        "accumulate": program["accumulate"],
        "fits": compiled.fits,
        "has_code": compiled.has_code,
        "memory": _memory(topology, compiled),
        "missing": {},
    }
    if len(config.image_sizes()) > 1:
        report["missing"]["steps of smaller images"] = "the step of the largest size is planned"
    if not compiled.fits:
        report["missing"]["time"] = "nothing was compiled: it does not fit"
        return report
    if not compiled.has_code:
        report["missing"]["the program's own size"] = _NO_CODE
    flops = _flops(config, program)
    report["flops"] = {
        "useful_per_image": flops.per_image,
        "useful_per_annotation": flops.per_annotation,
        "useful_per_step": flops.per_image * config.input.batch_size,
    }
    report["checkpoint"] = {"bytes": program["checkpoint_bytes"]}
    if compiled.analysis is None:
        why = compiled.missing or "the compiled program was not read"
        report["missing"]["time, traffic, collectives"] = why
        return report
    return report | _read(report, config, topology, compiled.analysis, host_ms_per_image)


def _flops(config: RunConfig, program: Mapping[str, Any]) -> Flops:
    text = dataclasses.replace(config.model.text, vocab_size=program["vocabulary"]["size"])
    model = dataclasses.replace(config.model, text=text, image_size=tuple(program["image_size"]))
    inputs = config.input
    return model_flops(
        model,
        num_prompts=inputs.num_prompts,
        prompt_length=inputs.prompt_length,
        target_length=inputs.target_length,
        pack_length=inputs.pack_length,
    )


def _memory(topology: Topology, compiled: Compiled) -> dict[str, int]:
    """Bytes of one device; gradients live among the temporaries and are not told apart."""
    own, chip = compiled.program["bytes_per_device"], topology.chip
    parts = {"available": chip.hbm_bytes} | own
    if compiled.memory is None:
        return parts | ({"needed": compiled.needed_bytes} if compiled.needed_bytes else {})
    found = compiled.memory
    # Outputs that are no donated inputs: metrics, and what could not be donated.
    new_outputs = found["output"] - found["alias"]
    code = found.get("generated_code")
    needed = found["argument"] + new_outputs + found["temp"] + (code or 0)
    sizes = {
        "layout_padding": found["argument"] - sum(own.values()),
        "new_outputs": new_outputs,
        "temporaries": found["temp"],
        "program": code,
        "needed": needed,
        "headroom": chip.hbm_bytes - needed,
    }
    return parts | {name: size for name, size in sizes.items() if size is not None}


def _read(
    report: dict[str, Any],
    config: RunConfig,
    topology: Topology,
    analysis: Mapping[str, Any],
    host_ms_per_image: float,
) -> dict[str, Any]:
    """What follows from the text of the compiled program."""
    batch, chip = config.input.batch_size, topology.chip
    images_per_device = batch / topology.num_devices
    network_s = {
        network: sum(c["seconds"] for c in analysis["collectives"] if c["network"] == network)
        for network in ("ici", "dcn")
    }
    seconds = {"RL": analysis["rl_s"]}
    seconds["RL + collectives"] = analysis["rl_s"] + sum(network_s.values())
    missing = dict(report["missing"])
    if analysis["cyc_s"] is None:
        missing["cyc"] = "the compiler gave no cycles" if report["has_code"] else _NO_CODE
    else:
        seconds["cyc"] = analysis["cyc_s"]
    if analysis["unknown_loops"]:
        loops = ", ".join(analysis["unknown_loops"])
        missing["trips of loops"] = f"counted once, so that times are too small: {loops}"
    if analysis["unknown_kernels"]:
        kernels = ", ".join(analysis["unknown_kernels"])
        missing["products of kernels"] = f"they declare none, only bytes are counted: {kernels}"
    useful = report["flops"]["useful_per_step"]
    executed = analysis["executed_flops"] * topology.num_devices
    peak = topology.num_devices * chip.bf16_flops
    return {
        "missing": missing,
        "flops": report["flops"]
        | {"executed_per_step": executed, "executed_over_useful": executed / useful},
        "estimates": {
            name: _rates(config, topology, step_s, useful / (step_s * peak), host_ms_per_image)
            for name, step_s in seconds.items()
        },
        "checkpoint": report["checkpoint"]
        | {
            "every_steps": config.checkpoint.every_steps,
            "every_s": config.checkpoint.every_steps * seconds["RL"],
            "bytes_per_s": report["checkpoint"]["bytes"]
            / (config.checkpoint.every_steps * seconds["RL"]),
        },
        "traffic": {
            "hbm_bytes_per_step": analysis["hbm_bytes"],
            "hbm_bytes_per_image": analysis["hbm_bytes"] / images_per_device,
            "by_category": analysis["by_category"],
            "costliest": analysis["costliest"],
        },
        "collectives": analysis["collectives"],
        "network_s": network_s,
    }


def _rates(
    config: RunConfig, topology: Topology, step_s: float, mfu: float, host_ms_per_image: float
) -> dict[str, float]:
    """A run whose steps take `step_s`."""
    images_per_s = config.input.batch_size / step_s
    per_host = images_per_s / topology.num_hosts
    return {
        "step_ms": 1000 * step_s,
        "mfu": mfu,
        "images_per_s": images_per_s,
        "images_per_s_per_chip": images_per_s / topology.num_chips,
        "annotations_per_s": images_per_s * config.input.num_prompts,
        "images_per_s_per_host": per_host,
        "cores_per_host": per_host * host_ms_per_image / 1000,
        "hours": config.total_steps * step_s / 3600,
        "chip_hours": topology.num_chips * config.total_steps * step_s / 3600,
    }
