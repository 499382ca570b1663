# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax replay`: runs a step that went wrong once more, on this machine's processor."""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf

_EXAMPLES = """examples:
  florence2-jax replay step_90210.json --workdir runs/large --examples 0
  florence2-jax replay runs/large/black_box/step_90210.json

Takes the parameters from the run's newest checkpoint before that step. If it is that of the very
step before (or with --catch-up, which does the steps in between again), and the run was on
processors too, loss and gradient norm are those of the run to the last bit. Each image is then run
by itself, which takes as long as a step of one image.
"""
_MOST_DEVICES = 64


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax replay",
        description="Runs a step from a run's black box once more and names what is wrong in it.",
        epilog=_EXAMPLES,
    )
    command.add_argument("file", type=Path, metavar="FILE", help="DIR/black_box/step_N.json")
    command.add_argument(
        "--workdir", type=Path, metavar="DIR", help="the run's, if the file was moved elsewhere"
    )
    command.add_argument(
        "--examples", type=int, metavar="N", help="run only the first N by themselves (all)"
    )
    command.add_argument(
        "--catch-up",
        action="store_true",
        help="do the steps since the checkpoint again first; needs the run's records",
    )
    leaf(command, _run)
    return command


def _run(args: argparse.Namespace) -> dict[str, Any]:
    _take_processors(args.file)
    from rich.console import Console

    from florence2_jax.training.replay import replay

    console = Console()
    report = replay(
        args.file,
        args.workdir,
        max_examples=args.examples,
        catch_up=args.catch_up,
        say=lambda text: console.print(f"[dim]{text}[/]", highlight=False),
    )
    _show(console, report)
    return report


def _take_processors(file: Path) -> None:
    """As many devices as the run had, if they were processors; JAX is not imported yet."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        number = math.prod(report["mesh"].values()) if report["platform"] == "cpu" else 1
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # The library says what is wrong with the file.
    flag = "--xla_force_host_platform_device_count"
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags and 1 < number <= _MOST_DEVICES:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={number}".strip()


def _show(console: Any, report: dict[str, Any]) -> None:
    from rich.table import Table

    console.print(f"[bold]step {report['step']}[/]: {report['reason']}", highlight=False)
    for name in ("loss", "grad_norm"):
        row = report[name]
        line = f"  {name.replace('_', ' ')} {row['replayed']}"
        if "recorded" in row:
            same = "the same bits" if row["is_same"] else "not the same"
            line += f", recorded {row['recorded']}: {same}"
        console.print(line, highlight=False)
    if not report["state"]["is_step_before"] or not report["same_mesh"]:
        console.print(
            f"  the state is that of step {report['state']['step']}"
            + ("" if report["same_mesh"] else ", the devices are others")
            + ": the numbers need not agree"
            + ("" if report["state"]["is_step_before"] else " (--catch-up does the rest again)"),
            highlight=False,
        )
    if report["examples"]:
        table = Table(box=None, title="worst examples", title_justify="left")
        for name in ("row", "host", "store", "index", "loss", "grad norm", "tasks"):
            table.add_column(name, justify="left" if name == "tasks" else "right")
        for one in report["examples"][:10]:
            numbers = (f"{float(one[name]):.4g}" for name in ("loss", "grad_norm"))
            places = (str(one[name]) for name in ("row", "host", "store", "index"))
            tasks = sorted(one["tasks"].items(), key=lambda item: -_size(item[1]))
            worst = ", ".join(f"{name} {float(value):.3g}" for name, value in tasks[:3])
            table.add_row(*places, *numbers, worst)
        console.print(table)
    if names := report["non_finite_gradients"]:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        console.print(f"gradients that are not finite: {', '.join(names[:5])}{more}")
    elif report["examples"]:
        console.print("every gradient of every example by itself is finite")


def _size(value: Any) -> float:
    value = float(value)
    return value if math.isfinite(value) else math.inf
