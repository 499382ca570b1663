# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax checkpoint`: what a run has saved, and whether it is still what was saved."""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.typing import UserError

_EXAMPLES = """examples:
  florence2-jax checkpoint list runs/scenes
  florence2-jax checkpoint verify runs/scenes
  florence2-jax checkpoint verify runs/scenes --step 4000 --json report.json
"""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax checkpoint",
        description="Looks at the checkpoints of a run; works beside a run that goes on.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = command.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="step, time, size, format, metrics, and whether it was verified",
        description="Lists what was saved, without reading the arrays.",
        epilog=_EXAMPLES,
    )
    verify = actions.add_parser(
        "verify",
        help="read every array and hold it against its digest",
        description="Reads every array on the CPU; status 2 if a step is not what was saved.",
        epilog=_EXAMPLES,
    )
    verify.add_argument("--step", type=int, metavar="N", help="this step only")
    for action, run in ((listing, _list), (verify, _verify)):
        action.add_argument(
            "directory", type=Path, metavar="DIR", help="a workdir, or its checkpoints folder"
        )
        leaf(action, run)
    return command


def _list(args: argparse.Namespace) -> dict[str, Any]:
    from rich.table import Table

    directory = _folder(args.directory)
    rows = list(_rows(directory))
    if not rows:
        raise UserError(f"{directory} holds no checkpoint: train first")
    table = Table("step", "saved", "size", "format", "metrics", "state", box=None)
    for row in rows:
        measured = ", ".join(f"{name} {value:.4g}" for name, value in row["metrics"].items())
        size = f"{row['bytes'] / 1e6:,.1f} MB"
        saved = row["time"][:16].replace("T", " ")
        table.add_row(row["name"], saved, size, str(row["format"]), measured, row["state"])
    _console().print(table)
    return {"directory": str(directory), "checkpoints": rows}


def _rows(directory: Path) -> Iterator[dict[str, Any]]:
    """What is in a checkpoints folder: steps, then what is no step any more, or not yet."""
    from florence2_jax.training.saved_step import Damaged, saved_steps

    known, steps = _read_verdicts(directory), saved_steps(directory)
    for step in steps:
        row = _row(step.path)
        try:
            manifest = step.manifest()
        except (Damaged, UserError) as problem:
            yield row | {"format": "?", "state": str(problem)}
            continue
        if manifest is None:
            yield row | {"format": 0, "state": "no digests, cannot be verified"}
            continue
        verdict = known.get(step.path.name, {})
        is_known = verdict.get("checksum") == manifest["checksum"]
        yield row | {
            "time": manifest["time"],
            "format": manifest["format"],
            "metrics": manifest["metrics"],
            "state": verdict["state"] if is_known else "not verified yet",
        }
    finished = {step.path for step in steps}
    for path in sorted(path for path in directory.iterdir() if path.is_dir()):
        if path.name.startswith("corrupt-"):
            yield _row(path) | {"state": "did not verify when a run resumed, moved aside"}
        elif path not in finished and path.name.split(".")[0].isdigit():
            yield _row(path) | {"state": "unfinished: being written, or left by a killed run"}


def _row(path: Path) -> dict[str, Any]:
    saved = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(path.stat().st_mtime))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"name": path.name, "time": saved, "bytes": size, "format": "", "metrics": {}}


def _verify(args: argparse.Namespace) -> dict[str, Any]:
    import jax

    from florence2_jax.training.saved_step import saved_steps

    jax.config.update("jax_platforms", "cpu")  # A run may hold this host's accelerators.
    directory = _folder(args.directory)
    steps = saved_steps(directory)
    if args.step is not None:
        found = ", ".join(step.path.name for step in steps) or "none"
        steps = [step for step in steps if step.number == args.step]
        if not steps:
            raise UserError(f"--step {args.step}: {directory} has {found}")
    if not steps:
        raise UserError(f"{directory} holds no checkpoint: train first")
    console, rows, verdicts = _console(), [], _read_verdicts(directory)
    for step in steps:
        problems = list(step.audit())
        if not step.path.is_dir():  # A run that goes on has deleted it meanwhile.
            continue
        manifest = None if problems else step.manifest()
        state = "not verified: it has no digests" if manifest is None else "OK"
        for text in problems or [f"{state}, {len(step.arrays())} arrays"]:
            console.print(f"step {step.number}: {text}", highlight=False, soft_wrap=True)
        rows.append({"step": step.number, "verified": manifest is not None, "problems": problems})
        verdicts[step.path.name] = _verdict(step, problems)
    _write_verdicts(directory, verdicts)
    report = {"directory": str(directory), "steps": rows}
    if bad := [row for row in rows if row["problems"]]:
        if args.json is not None:  # The error below takes the place of the report.
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
        good = [str(row["step"]) for row in rows if row["verified"]]
        rest = f"the newest that verifies is step {good[-1]}" if good else "none other was verified"
        numbers = ", ".join(str(row["step"]) for row in bad)
        raise UserError(
            f"{directory}: step {numbers} is not what was saved; {rest}. `train` falls back by "
            "itself to the newest step that verifies"
        )
    return report


VERDICTS = "verified.json"
"""In the checkpoints folder: what `verify` found of each step, good for this manifest only."""


def _verdict(step: Any, problems: list[str]) -> dict[str, Any]:
    from florence2_jax.training.saved_step import Damaged

    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        checksum = (step.manifest() or {}).get("checksum")
    except Damaged:
        checksum = None
    state = f"damaged, found {when}: {problems[0]}" if problems else f"verified {when[:10]}"
    return {"checksum": checksum, "state": state}


def _read_verdicts(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / VERDICTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_verdicts(directory: Path, verdicts: dict[str, Any]) -> None:
    there = {name: x for name, x in verdicts.items() if (directory / name).is_dir()}
    temporary = directory / f"{VERDICTS}.tmp"
    try:
        temporary.write_text(json.dumps(there, indent=1) + "\n", encoding="utf-8")
        temporary.rename(directory / VERDICTS)
    except OSError:
        pass  # A folder that is only read stays as it is; the answer was printed.


def _folder(directory: Path) -> Path:
    from florence2_jax.training.workdir import CHECKPOINTS

    for folder in (directory / CHECKPOINTS, directory):
        if folder.is_dir():
            return folder.absolute()
    raise UserError(f"{directory}: no such folder; give a workdir, or its checkpoints folder")


def _console() -> Any:
    from rich.console import Console

    return Console()
