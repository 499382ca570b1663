# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax convert`: checkpoints to and from PyTorch, tokenizer and processor with them."""

import argparse
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.typing import UserError

_EXAMPLES = """examples:
  florence2-jax convert microsoft/Florence-2-base runs/base --to jax
  florence2-jax convert runs/scenes exported/scenes --to hf --verify
  florence2-jax convert runs/scenes exported/small --to hf --dtype bfloat16 --round
  florence2-jax convert runs/lora exported/adapters --to peft
"""

_TOLERANCE = 1e-3  # Of the largest logit. In float32 the two reach 1e-5.


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax convert",
        description="Writes a model as another kind of folder. SRC is a workdir, a folder of "
        "transformers' or Microsoft's layout, or a hub name; DST is a new folder.",
        epilog=_EXAMPLES,
    )
    command.add_argument("source", metavar="SRC", help="workdir, folder, hub name or scenes-tiny")
    command.add_argument("target", metavar="DST", type=Path, help="a new folder")
    command.add_argument(
        "--to",
        required=True,
        choices=("jax", "hf", "microsoft", "peft"),
        help="a workdir, a folder of transformers, or of Microsoft's layout; peft: only the "
        "adapters of a workdir that trains them (all others get them merged)",
    )
    command.add_argument(
        "--last-step",
        action="store_true",
        help="of a workdir that keeps an average (EMA), the parameters of its last step instead",
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the tensors of a folder (float32)",
    )
    command.add_argument(
        "--round", action="store_true", help="let numbers change to fit into --dtype"
    )
    command.add_argument(
        "--licence",
        "--license",
        metavar="NAME",
        default="",
        help="of the weights, for the model card, as hubs write it: apache-2.0 (the source's)",
    )
    command.add_argument(
        "--verify",
        action="store_true",
        help="run SRC and DST on random input, PyTorch's with transformers, and compare",
    )
    leaf(command, _run)
    return command


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from florence2_jax.conversion.export import convert
    from florence2_jax.conversion.load import find
    from florence2_jax.conversion.verify import check_installed, compare

    if args.verify:
        check_installed()  # Before minutes are spent.
    if args.verify and (args.to == "peft" or args.last_step):
        raise UserError("--verify: compares whole models as they load; leave it out here")
    report = convert(
        args.source,
        args.target,
        args.to,
        dtype=args.dtype,
        rounds=args.round,
        ema=not args.last_step,
        licence=args.licence,
    )
    console = Console(highlight=False)
    console.print(
        f"{args.target}: {report['parameters']:,} parameters, {report['dtype']}, "
        f"{report['bytes'] / 1e6:,.1f} MB",
        markup=False,
    )
    if args.verify:
        report["differences"] = compare(find(args.source), args.target)
        for name, value in report["differences"].items():
            console.print(f"  {name}: {value:.3g}")
        difference, largest = (report["differences"][name] for name in ("logits", "largest logit"))
        if not args.round and not difference <= _TOLERANCE * largest:
            raise UserError(
                f"{args.target} computes something else than {args.source}: logits differ by "
                f"{difference:.3g} of {largest:.3g}. Please report this, with both config.json"
            )
    return report
