# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax score`: the literature's metrics over result files, without a model."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2_jax.cli.main import leaf

if TYPE_CHECKING:
    from florence2_jax.evaluation.scoring import Scores

_EXAMPLES = """examples:
  florence2-jax score detection --truth instances_val2017.json --predictions results.json
  florence2-jax score phrase_grounding --truth flickr30k_entities --split test \\
      --predictions mdetr.json --json report.json
  florence2-jax score ocr --truth gt.zip --predictions submit.zip

Values are fractions (0.41, not 41); CIDEr goes up to 10. docs/metrics.md has the protocols.
"""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    # Imported late: `florence2-jax --help` must not wait for it.
    from florence2_jax.evaluation.scoring import RESULT_FAMILIES

    families = "\n".join(
        f"  {name}: {row.protocol}\n      truth: {row.truth}\n      predictions: {row.predictions}"
        for name, row in RESULT_FAMILIES.items()
    )
    command = argparse.ArgumentParser(
        prog="florence2-jax score",
        usage="florence2-jax score FAMILY --truth F --predictions F [--split S] [--json FILE]",
        description="Scores a file of predictions, by any model, against a file of truth.\n\n"
        f"families:\n{families}",
        epilog=_EXAMPLES,
    )
    command.add_argument("family", choices=RESULT_FAMILIES, metavar="FAMILY", help="as above")
    command.add_argument(
        "--truth", type=Path, required=True, metavar="F", help="file or folder of the truth"
    )
    command.add_argument(
        "--predictions", type=Path, required=True, metavar="F", help="file or folder of answers"
    )
    command.add_argument(
        "--split", default="", metavar="S", help="of a truth that holds several, such as RefCOCO"
    )
    leaf(command, _run)
    return command


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.evaluation.scoring import RESULT_FAMILIES, score_files

    scores = score_files(args.family, args.truth, args.predictions, split=args.split)
    family = RESULT_FAMILIES[args.family]
    _show(scores, f"{args.family}: {scores.num_examples} {family.examples}", family.protocol)
    return {
        "family": args.family,
        "protocol": family.protocol,
        "truth": str(args.truth),
        "predictions": str(args.predictions),
        "split": args.split or None,
        "num_examples": scores.num_examples,
        "examples": family.examples,
        # JSON has no NaN: a metric that nothing defines is null.
        "metrics": {k: None if math.isnan(v) else v for k, v in scores.metrics.items()},
        "notes": list(scores.notes),
    }


def _show(scores: "Scores", title: str, protocol: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title=title, caption=escape(protocol))
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in scores.metrics.items():
        table.add_row(escape(name), "undefined" if math.isnan(value) else f"{value:.4f}")
    console.print(table)
    for note in scores.notes:
        console.print(f"- {escape(note)}", highlight=False)
