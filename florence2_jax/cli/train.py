# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax train`: pretrain or fine-tune from a run file."""

import argparse
import re
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.typing import UserError

_EXAMPLES = """examples:
  florence2-jax train --config configs/scenes.py --workdir runs/scenes
  florence2-jax train --config configs/pretrain.py:large --workdir runs/large \\
      --config.input.records=/data/fld --config.mesh.fsdp=8

Any value of the run file can be replaced: --config.optimizer.peak_lr=3e-4. Run the same command
again and it goes on after its newest checkpoint.
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


def _run(args: argparse.Namespace) -> dict[str, Any]:
    config = load_config(args.config, args.overrides)
    from florence2_jax.training import loop

    return loop.run(config, args.workdir, stop_after=args.stop_after)
