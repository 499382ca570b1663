# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax annotate`: the data engine, `annotate plan` and `annotate filter`."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.cli.terminal import number, positive, print_table, say
from florence2_jax.typing import UserError

_EXAMPLES = """examples:
  florence2-jax annotate --config configs/annotate.py:/data/photos --workdir runs/engine --rounds 0
  florence2-jax annotate --config configs/annotate.py:/data/photos --workdir runs/engine --workers 4
  florence2-jax annotate --config configs/annotate.py:/data/photos --workdir /mnt/engine --ray auto

Round 0 asks the specialists of the run file about every image and filters what they say. Every
further round trains a model on the labels, lets it annotate the same images and merges the two.
Before all that a part of the images is frozen: no label of theirs is learnt from, and what people
say about them judges every round (florence2-jax audit serve).

Any value of the run file can be replaced: --config.filter.regions.min_score=0.4. Run the same
command again, or with more rounds, and it goes on where it was.

exit status: 0 done, or stopped by the guard, which then says why; 2 mend what is said and start
again; 75 saved before its end: start again
"""

_FILTER_EXAMPLES = """examples:
  florence2-jax annotate filter runs/engine --config.filter.regions.min_score=0.5
  florence2-jax annotate filter runs/engine --round 1 --out /tmp/trial

Filters the labels of a round again, by other thresholds than those of its run file; nothing is
annotated again. Without --out the round's filtered labels are replaced, which is refused once
a later round has learnt from them.
"""

_PLAN_EXAMPLES = """examples:
  florence2-jax annotate plan --config configs/annotate.py:/data/photos --images 126000000 \\
      --workdir /tmp/sample --hours 240

Asks every specialist of the run file about a sample of the images, and says what all of them would
take: hours, accelerators, storage and money.
"""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax annotate",
        usage="florence2-jax annotate --config FILE --workdir DIR [options]\n"
        "       florence2-jax annotate plan --config FILE --workdir DIR --images N [options]\n"
        "       florence2-jax annotate filter DIR [options]",
        description="Makes labels: specialists annotate, filters clean, trained models refine.",
        epilog=_EXAMPLES,
    )
    _add_config(command)
    command.add_argument(
        "--workdir", required=True, type=Path, help="the engine's own directory, made if missing"
    )
    command.add_argument(
        "--rounds", type=_count, metavar="N", help="of refinement (those of the run file)"
    )
    _add_place(command)
    leaf(command, _run)
    return command


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line; `--config.KEY=VALUE` go to the run file."""
    kinds = {"plan": _plan_parser, "filter": _filter_parser}
    if arguments[:1] and arguments[0] in kinds:
        args, overrides = kinds[arguments[0]]().parse_known_args(arguments[1:])
    else:
        args, overrides = parser().parse_known_args(arguments)
    args.overrides = overrides
    return args


def _plan_parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="florence2-jax annotate plan",
        description="What annotating so many images takes, by a measured sample.",
        epilog=_PLAN_EXAMPLES,
    )
    _add_config(command)
    command.add_argument("--images", required=True, type=positive, metavar="N", help="to annotate")
    command.add_argument(
        "--sample", type=positive, default=256, metavar="S", help="images to measure (256)"
    )
    command.add_argument(
        "--workdir", required=True, type=Path, help="takes the sample and what is said about it"
    )
    has = command.add_mutually_exclusive_group()
    has.add_argument(
        "--with-workers", type=positive, metavar="M", help="workers of every specialist then (8)"
    )
    has.add_argument("--hours", type=float, metavar="H", help="or the hours that there are")
    _add_place(command)
    leaf(command, _plan)
    return command


def _filter_parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="florence2-jax annotate filter",
        description="Filters the labels of a round again, by other thresholds.",
        epilog=_FILTER_EXAMPLES,
    )
    command.add_argument("workdir", metavar="DIR", type=Path, help="workdir of the engine")
    command.add_argument("--round", type=_count, default=0, metavar="N", help="(0)")
    command.add_argument("--out", type=Path, metavar="DIR", help="a new store, for a trial")
    _add_place(command)
    leaf(command, _filter)
    return command


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        required=True,
        metavar="FILE[:RECORDS]",
        help="run file, see configs/annotate.py",
    )


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers",
        type=positive,
        default=1,
        metavar="W",
        help="processes, each with models of its own (1)",
    )
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="auto",
        help='work on a Ray cluster: "auto", HOST:PORT, or "local" for W cores here',
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.cli.train import load_config
    from florence2_jax.engine.rounds import Stopped, run
    from florence2_jax.parallel.processes import STATUS_AGAIN

    config = load_config(args.config, args.overrides)
    if args.rounds is not None:
        config["rounds"] = args.rounds
    try:
        with Stages() as stages:
            report = run(config, args.workdir, num_workers=args.workers, ray=args.ray, tell=stages)
    except Stopped as stopped:
        say(str(stopped))
        sys.exit(STATUS_AGAIN)
    show_rounds(report)
    return report


def _filter(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.engine.refiltering import refilter

    with Stages() as stages:
        report = refilter(
            args.workdir,
            args.round,
            _values(args.overrides),
            out=args.out,
            num_workers=args.workers,
            ray=args.ray,
            tell=stages,
        )
    show_kinds(report["before"], report["after"])
    say(f"filtered: {report['store']}")
    return report


def _values(overrides: Sequence[str]) -> dict[str, Any]:
    """`--config.filter.SECTION.KEY=VALUE` as the nested values of a filter's section."""
    import ast

    values: dict[str, Any] = {}
    for text in overrides:
        name, mark, value = text.partition("=")
        *_, keys = name.rpartition("--config.filter.")
        if not mark or not keys or not name.startswith("--config.filter."):
            raise UserError(
                f"unknown argument {text!r}: thresholds are --config.filter.KEY=VALUE; see "
                "florence2-jax annotate filter --help"
            )
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            read = value
        *path, last = keys.split(".")
        place = values
        for key in path:
            place = place.setdefault(key, {})
        place[last] = read
    return values


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.cli.train import load_config
    from florence2_jax.engine.extrapolation import COLUMNS, table
    from florence2_jax.engine.round_files import by_specialist
    from florence2_jax.engine.sample_plan import plan_by_sample

    config = load_config(args.config, args.overrides)
    with Stages() as stages:
        plan = plan_by_sample(
            config,
            args.images,
            args.workdir,
            sample=args.sample,
            workers=None if args.hours else args.with_workers or 8,
            hours=args.hours,
            num_workers=args.workers,
            ray=args.ray,
            on_progress=by_specialist(stages, "annotating the sample"),
        )
    print_table(f"{args.images:,} images", COLUMNS, table(plan))
    kept = {name.removesuffix("_bytes"): size for name, size in plan["storage"].items()}
    say("storage: " + ", ".join(f"{name} {size / 1e9:,.2f} GB" for name, size in kept.items()))
    for one in plan["assumptions"]:
        say(f"assumed: {one}")
    return plan


class Stages:
    """What is done now, as a bar with the time left; each stage leaves a line when it is over.

    Where there is no terminal, a line is printed when a stage begins.
    """

    def __init__(self):
        self._what, self._since = "", time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None:
        if what != self._what:
            self._end()
            self._what, self._since = what, time.monotonic()
            if not total or not sys.stderr.isatty():
                say(what)
        if not total or not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task(what, total=total, detail=detail)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, detail=detail)

    def _end(self) -> None:
        if self._bar is None:
            return
        self._bar.stop()
        self._bar = None
        say(f"{self._what}: {time.monotonic() - self._since:.0f} s")


def show_rounds(report: Mapping[str, Any]) -> None:
    """What every round kept, and how good it is on the audited split."""
    rounds = report["rounds"]
    kinds = list(
        dict.fromkeys(kind for one in rounds for kind in one.get("filter", {}).get("kinds", ()))
    )
    rows = [(kind, *(_kept(one, kind) for one in rounds if "filter" in one)) for kind in kinds]
    names = tuple(f"round {one['round']}" for one in rounds if "filter" in one)
    print_table("labels kept (and dropped)", ("kind", *names), rows)
    judged = [
        (
            f"round {one['round']}",
            kind,
            *(number(counts[what]) for what in ("precision", "recall", "f1")),
            number(counts["num_true"]),
        )
        for one in rounds
        for kind, counts in one["audit"]["kinds"].items()
        if counts["num_true"] and kind in one["asked"]
    ]
    if judged:
        print_table(
            "on the audited split", ("", "kind", "precision", "recall", "F1", "true"), judged
        )
        say("round 0: its specialists; later rounds: their models")
    else:
        say(f"nobody has labelled the audited split: florence2-jax audit serve {report['workdir']}")
    changed = [
        (f"round {one['round']}", kind, *(number(row["counts"][c]) for c in _CHANGES))
        for one in rounds
        for kind, row in one.get("difference", {}).get("kinds", {}).items()
        if any(row["counts"][change] for change in _CHANGES)
    ]
    if changed:
        print_table("against the round before", ("", "kind", *_CHANGES), changed)
    for reason in report["stopped"]:
        say(f"the guard stops the loop: {reason}")
    last = max((one["round"] for one in rounds if "filter" in one), default=0)
    folder = Path(report["workdir"]) / f"round-{last}"
    say(f"page: {folder / 'report.html'}")
    say(f"labels to train on: {folder / 'filtered'}")


_CHANGES = ("added", "gone", "relabelled", "score up", "score down")


def _kept(one: Mapping[str, Any], kind: str) -> str:
    counts = one["filter"]["kinds"].get(kind, {"kept": 0, "dropped": 0})
    return f"{counts['kept']:,} ({counts['dropped']:,})"


def show_kinds(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """What two ways of filtering kept."""
    rows = [
        (kind, f"{counts['kept']:,}", f"{before['kinds'].get(kind, counts)['kept']:,}")
        for kind, counts in after["kinds"].items()
    ]
    print_table("labels kept", ("kind", "now", "by the run file"), rows)
    reasons = [(row["kind"], row["reason"], f"{row['number']:,}") for row in after["reasons"]]
    print_table("what was dropped, and why", ("kind", "reason", "number"), reasons)
