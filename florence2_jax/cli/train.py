# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax train`: pretrain or fine-tune from a run file.

On several hosts the same command is started on each, with the same code, run file, records and
workdir. JAX finds the hosts of a TPU pod, a GKE JobSet or a Slurm job by itself; elsewhere each
gets `--coordinator HOST:PORT --num-processes N --process-id I`, or the same in the environment as
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

Exit statuses:
    0    the run's last step is done
    2    something the user must mend, told in one line; starting again will not help
    75   stopped by SIGTERM or SIGINT and saved, or another host was lost: start again on all hosts
    130  aborted by a second SIGINT: start again, from the last checkpoint
    134  JAX ended the process because another host is gone (SIGABRT): start again on all hosts
    1, 137 and others: a defect, or killed (out of memory): look at the log; starting again is safe

So a restarter starts again unless the status is 0 or 2, and gives up after some crashes in a row.
"""

import argparse
import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.typing import UserError

_EXAMPLES = """examples:
  florence2-jax train --config configs/scenes.py --workdir runs/scenes
  florence2-jax train --config configs/pretrain.py:large --workdir runs/large \\
      --config.input.records=/data/fld --config.mesh.fsdp=8

Any value of the run file can be replaced: --config.optimizer.peak_lr=3e-4. Run the same command
again and it goes on after its newest checkpoint. Ctrl-C or SIGTERM: it saves and stops.

On several hosts start the same command on each; JAX finds TPU, GKE and Slurm hosts by itself.

exit status: 0 done; 2 mend what is said and start again; 75 saved before its end, or another host
is gone: start again; anything else: a crash, see the log.
"""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax train",
        description="Pretrains or fine-tunes a model; run again, it goes on where it was.",
        epilog=_EXAMPLES,
    )
    command.add_argument(
        "--config", required=True, metavar="FILE[:VARIANT]", help="run file, see configs/"
    )
    command.add_argument(
        "--workdir", required=True, type=Path, help="the run's own directory, made if missing"
    )
    command.add_argument(
        "--stop-after", type=int, metavar="STEP", help="stop and save after this step"
    )
    group = command.add_argument_group("hosts", "only where JAX does not find them by itself")
    for flag, kind, name, text in (
        ("--coordinator", str, "HOST:PORT", "where process 0 can be reached"),
        ("--num-processes", int, "N", "how many processes the run has; 1: this one, alone"),
        ("--process-id", int, "I", "which of them this is, from 0"),
    ):
        group.add_argument(flag, type=kind, metavar=name, help=text)
    leaf(command, _run)
    return command


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line; `--config.KEY=VALUE` go to the run file."""
    args, overrides = parser().parse_known_args(arguments)
    args.overrides = overrides
    return args


def load_config(config: str, overrides: list[str]) -> dict[str, Any]:
    """The values of a run file with overrides, as a plain dict.

    Raises:
        UserError: if the file is missing or broken, or an override names no key or a wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    path = config.partition(":")[0]
    if not Path(path).is_file():
        raise UserError(f"--config {path}: no such file; the run files are in configs/")
    # ml_collections replaces keys but adds none, and a run file names only some tasks.
    weights = [match for text in overrides if (match := _WEIGHT.fullmatch(text))]
    command = ["train", f"--config={config}"]
    command += [text for text in overrides if not _WEIGHT.fullmatch(text)]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
    try:
        rest = values(command)
        loaded = holder.value.to_dict()
        for match in weights:
            loaded["input"]["tasks"][match.group(1)] = float(match.group(2))
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"--config {config}: {type(error).__name__}: {error}") from error
    except (ImportError, SyntaxError, NameError) as error:
        raise UserError(f"--config {path}: the run file is broken, {error}") from error
    if len(rest) > 1:
        raise UserError(f"unknown arguments: {' '.join(rest[1:])}; see florence2-jax train --help")
    return loaded


_WEIGHT = re.compile(r"--config\.input\.tasks\.(\w+)=(.+)")


_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


def _place(args: argparse.Namespace) -> dict[str, Any]:
    """Where this process is in its run: flags before environment variables."""
    place: dict[str, Any] = {}
    for name, variable in _VARIABLES.items():
        value = getattr(args, name)
        if value is None and (text := os.environ.get(variable, "")):
            is_number = name != "coordinator"
            if is_number and not text.isdecimal():
                raise UserError(f"{variable}={text}: not a number")
            value = int(text) if is_number else text
        if value is not None:
            place[name] = value
    return place


def _run(args: argparse.Namespace) -> dict[str, Any]:
    config = load_config(args.config, args.overrides)
    from florence2_jax.parallel import processes
    from florence2_jax.training import loop
    from florence2_jax.training.config import RunConfig

    # The others start with the same values; only their places differ.
    processes.start(dataclasses.replace(RunConfig.create(config).hosts, **_place(args)))
    report = loop.run(config, args.workdir, stop_after=args.stop_after)
    if report["stopped"]:
        sys.exit(processes.STATUS_AGAIN)
    return report
