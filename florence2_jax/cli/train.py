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
import ast
import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2_jax.cli.hosts import add_hosts, place
from florence2_jax.cli.main import leaf
from florence2_jax.typing import UserError

if TYPE_CHECKING:
    from florence2_jax.training.config import RunConfig
    from florence2_jax.training.loop import Hook

_EXAMPLES = """examples:
  florence2-jax train --config configs/scenes.py --workdir runs/scenes
  florence2-jax train --config configs/pretrain.py:large --workdir runs/large \\
      --config.input.records=/data/fld --config.mesh.fsdp=8

Any value can be replaced, also one that the run file leaves out: --config.optimizer.peak_lr=3e-4,
--config.ema.decay=0.999, "--config.freeze=('image/*',)". Run the same command
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
    add_hosts(command)
    leaf(command, _run)
    return command


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line; `--config.KEY=VALUE` go to the run file."""
    args, overrides = parser().parse_known_args(arguments)
    args.overrides = overrides
    return args


def load_config(config: str, overrides: list[str]) -> dict[str, Any]:
    """The values of a run file with overrides, as a plain dict.

    An override may name a key that the run file leaves to its default; whether there is such a key
    is for `RunConfig.create` to say.

    Raises:
        UserError: if the file is missing or broken, or an override has the wrong type.
    """
    path = config.partition(":")[0]
    if not Path(path).is_file():
        raise UserError(f"--config {path}: no such file; the run files are in configs/")
    # ml_collections replaces keys, of the same type, but adds none.
    own = _read_run_file(config, [])
    added = [match for text in overrides if (match := _is_new(text, own))]
    taken = {match.string for match in added}
    loaded = _read_run_file(config, [text for text in overrides if text not in taken])
    for match in added:
        *sections, key = match["keys"].split(".")
        place = loaded
        for name in sections:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise UserError(f"--config.{match['keys']}: {name} is a value, not a section")
        place[key] = _value(match["value"])
    return loaded


_OVERRIDE = re.compile(r"--config\.(?P<keys>\w+(\.\w+)*)=(?P<value>.*)", re.DOTALL)


def _is_new(override: str, own: Mapping[str, Any]) -> re.Match[str] | None:
    """An override of a key that the run file does not have."""
    if (match := _OVERRIDE.fullmatch(override)) is None:
        return None
    place: Any = own
    for name in match["keys"].split("."):
        if not isinstance(place, Mapping) or name not in place:
            return match
        place = place[name]
    return None


def _value(text: str) -> Any:
    """A Python literal, else the text itself; `true` and `false` as ml_collections reads them."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _read_run_file(config: str, overrides: list[str]) -> dict[str, Any]:
    from absl import flags
    from ml_collections import config_flags

    command = ["train", f"--config={config}", *overrides]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
    try:
        rest = values(command)
        loaded = holder.value.to_dict()
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        # Of what a run file raised absl tells the whole trace; its last line is the reason.
        reason = f"{type(error).__name__}: {error}"
        if "Traceback" in reason:
            reason = reason.strip().splitlines()[-1]
        raise UserError(f"--config {config}: {reason}") from error
    except (ImportError, SyntaxError, NameError) as error:
        path = config.partition(":")[0]
        raise UserError(f"--config {path}: the run file is broken, {error}") from error
    if len(rest) > 1:
        raise UserError(f"unknown arguments: {' '.join(rest[1:])}; see florence2-jax train --help")
    return loaded


def _run(args: argparse.Namespace) -> dict[str, Any]:
    config = load_config(args.config, args.overrides)
    from florence2_jax.parallel import processes
    from florence2_jax.training import loop
    from florence2_jax.training.config import RunConfig

    # The others start with the same values; only their places differ.
    run = RunConfig.create(config, args.workdir)
    processes.start(dataclasses.replace(run.hosts, **place(args)))
    hooks = _evaluation(run, args.workdir)
    report = loop.run(config, args.workdir, stop_after=args.stop_after, hooks=hooks)
    if report["stopped"]:
        sys.exit(processes.STATUS_AGAIN)
    return report


def _evaluation(run: "RunConfig", workdir: Path) -> "list[Hook]":
    """The hook that evaluates as the run goes, if the run file asks for it."""
    if not run.evaluation.every_steps:
        return []
    from florence2_jax.evaluation.during_training import EvaluationHook

    return [EvaluationHook(run.evaluation, run, workdir)]
