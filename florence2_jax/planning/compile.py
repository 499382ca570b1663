# SPDX-License-Identifier: Apache-2.0
"""Compiles a run file's train step for TPUs that are not here, in a process of its own.

A process, because libtpu reads its settings from the environment, takes a lock, and may crash: then
what was known before the crash is kept and the rest is named as missing.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2_jax.planning.chips import Topology, nearest_names
from florence2_jax.typing import UserError

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # The compiler is asked for by name; no TPU is looked for.
    "TPU_SKIP_MDS_QUERY": "1",  # Nor is the metadata server of a TPU host.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # There is no chip that its lock could protect.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What is known of a program that was compiled, or could not be.

    Bytes are per device. What is missing is None, and `missing` says why.
    """

    program: Mapping[str, Any]  # See `worker.describe`.
    memory: Mapping[str, int] | None = None  # See `worker.memory`; quick: without generated code.
    needed_bytes: int | None = None  # Where it does not fit and the compiler says how much it is.
    analysis: Mapping[str, Any] | None = None  # See `worker.analyse`.
    compile_s: float | None = None  # Until it was scheduled, if quick.
    missing: str = ""

    @property
    def has_code(self) -> bool:
        """Whether it was compiled to its end."""
        return self.memory is not None and "generated_code" in self.memory

    @property
    def fits(self) -> bool:
        """Whether the compiler found a place for everything."""
        return self.memory is not None


def compile_run(
    config: Mapping[str, Any],
    topology: Topology,
    *,
    with_analysis: bool = True,
    quick: bool = False,
) -> Compiled:
    """Compiles the train step of a run file. Takes minutes for a model of full size.

    Args:
        config: a run file's values.
        with_analysis: also read the compiled program: time, traffic, collectives.
        quick: stop once the program is scheduled and every buffer has its place, which is a small
            part of the work. Then the code is not generated: its size, the compiler's cycles, and
            whether it comes to its end are not known.

    Raises:
        UserError: if the run does not fit the topology, libtpu is not installed, or it failed
            before there was anything to report.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "libtpu, the TPU compiler, is not installed: pip install 'florence2_jax[plan]'"
        )
    request = {
        "config": config,
        "topology": topology.name,
        "slices": topology.num_slices,
        "with_analysis": with_analysis,
        "quick": quick,
    }
    with tempfile.TemporaryDirectory(prefix="plan") as folder:
        answers, errors = Path(folder, "answers.jsonl"), Path(folder, "errors.txt")
        command = [sys.executable, "-P", "-m", "florence2_jax.planning.worker", folder]
        with errors.open("wb") as file:
            status = subprocess.run(
                command,
                input=json.dumps(request).encode(),
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=_environment(),
                check=False,
            ).returncode
        facts: dict[str, Any] = {}
        if answers.exists():
            for line in answers.read_text(encoding="utf-8").splitlines():
                facts |= json.loads(line)
        if status and "failed" not in facts and "user_error" not in facts:
            facts["failed"] = _how_it_ended(status, errors.read_text("utf-8", errors="replace"))
    return _compiled(facts, topology)


def _compiled(facts: dict[str, Any], topology: Topology) -> Compiled:
    if "unknown_topology" in facts:
        raise UserError(
            f"--topology {topology}: this libtpu does not know it ({facts['unknown_topology']}); "
            f"others are {', '.join(nearest_names(topology.name))}"
        )
    if "user_error" in facts:
        raise UserError(facts["user_error"])
    if "memory" not in facts and "does_not_fit" not in facts:
        raise UserError(
            f"the TPU compiler failed for {topology}: {facts.get('failed', 'it said nothing')}; "
            "try another generation, --config.model.scan=False, or another version of libtpu "
            "(pip install -U libtpu)"
        )
    return Compiled(
        program=facts["program"],
        memory=facts.get("memory"),
        needed_bytes=facts.get("needed_bytes"),
        analysis=facts.get("analysis"),
        compile_s=facts.get("compile_s"),
        missing=facts.get("failed", ""),
    )


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | ENVIRONMENT


def _how_it_ended(status: int, errors: str) -> str:
    """One line about a process that did not end by itself."""
    if status == -9:
        return "it was killed, most likely because this machine ran out of memory"
    said = [line.strip() for line in errors.splitlines() if line.strip()]
    last = next((line for line in said if line.startswith("F0")), said[-1] if said else "")
    how = f"it crashed with signal {-status}" if status < 0 else f"it ended with status {status}"
    return f"{how}: {last[:300]}" if last else how
