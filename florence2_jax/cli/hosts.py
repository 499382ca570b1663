# SPDX-License-Identifier: Apache-2.0
"""Flags that say where a process is in its run, for commands that start on several hosts."""

import argparse
import os
from typing import Any

from florence2_jax.typing import UserError

_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


def add_hosts(command: argparse.ArgumentParser) -> None:
    """The flags."""
    group = command.add_argument_group("hosts", "only where JAX does not find them by itself")
    for flag, kind, name, text in (
        ("--coordinator", str, "HOST:PORT", "where process 0 can be reached"),
        ("--num-processes", int, "N", "how many processes the run has; 1: this one, alone"),
        ("--process-id", int, "I", "which of them this is, from 0"),
    ):
        group.add_argument(flag, type=kind, metavar=name, help=text)


def place(args: argparse.Namespace) -> dict[str, Any]:
    """Where this process is in its run: flags before environment variables."""
    found: dict[str, Any] = {}
    for name, variable in _VARIABLES.items():
        value = getattr(args, name)
        if value is None and (text := os.environ.get(variable, "")):
            is_number = name != "coordinator"
            if is_number and not text.isdecimal():
                raise UserError(f"{variable}={text}: not a number")
            value = int(text) if is_number else text
        if value is not None:
            found[name] = value
    return found
