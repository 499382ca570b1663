# SPDX-License-Identifier: Apache-2.0
"""The process that holds the TPU compiler: a request on its standard input, answers in a file.

    python -m florence2_jax.planning.worker FOLDER < REQUEST

Answers are lines of JSON in FOLDER, written as soon as they are known: what can be had before the
compiler crashes is not lost with it.
"""

import dataclasses
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from florence2_jax.planning import collectives, dump, estimate, hlo
from florence2_jax.planning.chips import Topology
from florence2_jax.planning.program import Program
from florence2_jax.typing import UserError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NEEDED = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM"),
)


ANSWERS = "answers.jsonl"


def main(folder: Path) -> None:
    """Answers one request."""
    # A program for absent chips can be put into JAX's cache of compiled ones, and not taken out.
    jax.config.update("jax_enable_compilation_cache", False)
    request = json.load(sys.stdin)

    def answer(**facts: Any) -> None:
        with (folder / ANSWERS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    try:
        _answer(request, folder / "hlo", answer)
    except UserError as error:
        answer(user_error=str(error))
    except Exception as error:  # Whatever it is, the other process turns it into one line.
        answer(failed=_first_line(error))


def _answer(request: dict[str, Any], dumps: Path, answer: Callable[..., None]) -> None:
    topology = Topology.parse(request["topology"], request["slices"])
    try:
        devices = describe_devices(topology)
    except JaxRuntimeError as error:
        answer(unknown_topology=_first_line(error))
        return
    program = Program.of(request["config"], devices)
    answer(program=describe(program))
    check_state(program, topology)
    started_s = time.perf_counter()

    def answer_early() -> None:
        """Ends the process once the program is scheduled."""
        try:
            text, memory = dump.await_schedule(dumps)
            answer(memory=memory, compile_s=time.perf_counter() - started_s)
            if request["with_analysis"]:
                answer(analysis=analyse(text, program, topology))
        except Exception as error:
            answer(failed=_first_line(error))
        os._exit(0)  # The compiler cannot be stopped in another way.

    early = threading.Thread(target=answer_early, daemon=True)
    if request["quick"]:
        early.start()
    try:
        compiled = program.compile(dump.options(dumps))
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed, seconds = needed_bytes(str(error)), time.perf_counter() - started_s
        answer(does_not_fit=True, needed_bytes=needed, compile_s=seconds)
        return
    if request["quick"]:
        early.join()
    answer(memory=memory(compiled), compile_s=time.perf_counter() - started_s)
    if request["with_analysis"]:
        answer(analysis=analyse(dump.finished_text(dumps), program, topology))


def check_state(program: Program, topology: Topology) -> None:
    """Refuses, before the minutes of a compilation, what no batch and no policy makes fit."""
    own, available = program.bytes_per_device(), topology.chip.hbm_bytes
    state = own["parameters"] + own["optimizer"]
    if state > available:
        raise UserError(
            f"{topology}: parameters and optimizer state alone take {state / 2**30:.1f} of the "
            f"{available / 2**30:.1f} GiB of a device with mesh {dict(program.mesh.shape)}; spread "
            "them over more devices (mesh.fsdp, mesh.tensor)"
        )


def describe_devices(topology: Topology) -> list[Any]:
    """The devices of slices that are not here."""
    options: dict[str, Any] = {}
    if topology.num_slices > 1:
        options["num_slices"] = topology.num_slices
    if topology.chip.chip_config:
        options["chip_config_name"] = topology.chip.chip_config
    return topologies.get_topology_desc(topology.name, "tpu", **options).devices


def describe(program: Program) -> dict[str, Any]:
    """What is known of a program before it is compiled."""
    run = program.run
    return {
        "mesh": dict(program.mesh.shape),
        "image_size": list(program.image_size),
        "vocabulary": dataclasses.asdict(program.vocabulary),
        "images_per_device": program.images_per_device,
        "accumulate": run.accumulate,
        "remat": run.model.remat,
        "bytes_per_device": program.bytes_per_device(),
        "checkpoint_bytes": program.checkpoint_bytes(),
        "versions": {name: version(name) for name in ("jax", "libtpu")},
    }


def memory(compiled: Any) -> dict[str, int]:
    """Bytes per device by the compiler."""
    stats = compiled.memory_analysis()
    kinds = ("argument", "output", "alias", "temp", "generated_code")
    return {kind: getattr(stats, f"{kind}_size_in_bytes") for kind in kinds}


def needed_bytes(message: str) -> int | None:
    """Bytes per device that a program would need, if the compiler's message says so."""
    for pattern in _NEEDED:
        if match := pattern.search(message):
            return round(float(match[1]) * _UNITS[match[2]])
    return None


def analyse(text: str, program: Program, topology: Topology) -> dict[str, Any]:
    """Estimates out of the text of the compiled program."""
    module = hlo.parse(text)
    found = estimate.estimate(module, topology.chip)
    return {
        "rl_s": found.seconds,
        "cyc_s": found.cycle_seconds or None,
        "hbm_bytes": found.hbm_bytes,
        "executed_flops": found.executed_flops,
        "by_category": {
            name: {"seconds": cost.seconds, "hbm_bytes": cost.hbm_bytes}
            for name, cost in found.categories.items()
        },
        "costliest": [
            {
                "name": one.name,
                "category": one.category,
                "op_name": one.op_name,
                "trips": one.trips,
                "seconds": one.cost.seconds,
            }
            for one in found.costliest
        ],
        "unknown_loops": list(found.unknown_loops),
        "unknown_kernels": list(found.unknown_kernels),
        "collectives": sum_collectives(collectives.find(module, program.mesh), topology),
    }


def sum_collectives(
    found: list[collectives.Collective], topology: Topology
) -> list[dict[str, Any]]:
    """Collectives by kind, mesh axes and network, the longest first; bytes are those sent."""
    sums: dict[tuple[str, str, str], dict[str, Any]] = {}
    for one in found:
        key = one.kind, " ".join(one.axes), one.network
        named = dict(zip(("kind", "axes", "network"), key, strict=True))
        total = sums.setdefault(key, named | {"count": 0, "bytes": 0.0, "seconds": 0.0})
        total["count"] += one.trips
        total["bytes"] += one.sent_bytes
        total["seconds"] += one.seconds(topology.chip)
    return sorted(sums.values(), key=lambda total: -total["seconds"])


def _first_line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(Path(sys.argv[1]))
