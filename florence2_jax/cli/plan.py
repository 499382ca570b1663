# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax plan`: will a run fit its TPUs, how fast is it; without a TPU."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.cli.train import load_config
from florence2_jax.typing import UserError

_EXAMPLES = """examples:
  florence2-jax plan --config configs/pretrain.py:base --topology v5e:16x16
  florence2-jax plan --config configs/pretrain.py:large --topology v5p:8x8x8 --json plan.json
  florence2-jax plan --config configs/pretrain.py:base --topology v5e:16x16 --slices 4 \\
      --images-per-chip 8 --config.model.remat=full

Compiles the run's own train step with the TPU compiler, ahead of time, on this machine: minutes
for a model of full size. Slices of v4, v5p and tpu7x have three sides, those of v5e and v6e two.
Any value of the run file can be replaced: --config.mesh.fsdp=16.
"""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax plan",
        description="Will it fit, how fast is it, what does it move: a run on TPUs, without a TPU.",
        epilog=_EXAMPLES,
    )
    command.add_argument(
        "--config", required=True, metavar="FILE[:VARIANT]", help="run file, see configs/"
    )
    command.add_argument(
        "--topology", required=True, metavar="NAME", help="a slice of TPUs: v5e:16x16, v5p:4x4x4"
    )
    command.add_argument("--slices", type=int, default=1, metavar="N", help="of that shape (1)")
    command.add_argument(
        "--images-per-chip",
        type=int,
        metavar="N",
        help="sets input.batch_size to this times the chips",
    )
    command.add_argument(
        "--host-ms",
        type=float,
        default=8.0,
        metavar="MS",
        help="processor time to prepare an image; measure it with benchmarks/input.py (8)",
    )
    command.add_argument(
        "--quick",
        action="store_true",
        help="stop before code is generated: an eighth of the time, all estimates but by cycles",
    )
    command.add_argument(
        "--no-search", action="store_true", help="where it does not fit, do not look for what does"
    )
    leaf(command, _run)
    return command


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line; `--config.KEY=VALUE` go to the run file."""
    args, overrides = parser().parse_known_args(arguments)
    args.overrides = overrides
    return args


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from florence2_jax.planning.chips import Topology
    from florence2_jax.planning.plan import plan

    config = load_config(args.config, args.overrides)
    topology = Topology.parse(args.topology, args.slices)
    if args.images_per_chip is not None:
        config["input"]["batch_size"] = args.images_per_chip * topology.num_chips
    console = Console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("")
        report = plan(
            config,
            topology,
            host_ms_per_image=args.host_ms,
            with_search=not args.no_search,
            quick=args.quick,
            on_progress=lambda words: progress.update(bar, description=words),
        )
    _show(console, report, f"{args.config} on {topology}")
    if not report["fits"]:
        if args.json is not None:  # An error ends the command before it writes its report.
            args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        raise UserError(_does_not_fit(report))
    return report


def _show(console: Any, report: Mapping[str, Any], title: str) -> None:
    from rich.table import Table

    from florence2_jax.planning import tables

    console.print(f"[bold]{title}[/]", highlight=False)
    *lines, verdict = tables.headline(report)
    for line in lines:
        console.print(f"  {line}", highlight=False)
    console.print(f"  {verdict}", style="green" if report["fits"] else "red", highlight=False)
    for one in tables.tables(report):
        is_headed = any(one.header)
        drawn = Table(title=one.title, title_justify="left", box=None, show_header=is_headed)
        for index, name in enumerate(one.header):
            is_number = index > 0 and name != "because"
            drawn.add_column(name, justify="right" if is_number else "left")
        for row in one.rows:
            drawn.add_row(*row)
        console.print()
        console.print(drawn)
    console.print(f"\n{tables.footnote(report)}", highlight=False)


def _does_not_fit(report: Mapping[str, Any]) -> str:
    memory, remedies = report["memory"], report.get("remedies")
    needed = f"{memory['needed'] / 2**30:.1f} GiB of" if "needed" in memory else "more than"
    what = "leave out --no-search to see what does"
    if remedies is not None:
        what = "what does: " + ", or ".join(remedies["overrides"])
    return f"it does not fit, it needs {needed} {memory['available'] / 2**30:.1f} GiB; {what}"
