# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax audit`: freeze a split, let people judge it, see how rounds do on it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2_jax.cli.main import leaf
from florence2_jax.cli.records.terminal import add_workers
from florence2_jax.cli.terminal import Progress, positive, print_table, say
from florence2_jax.typing import UserError

if TYPE_CHECKING:
    from florence2_jax.engine.audit import Report

_FREEZE_EXAMPLES = """examples:
  florence2-jax audit freeze runs/photos runs/engine --count 500
  florence2-jax audit freeze runs/photos runs/engine --fraction 0.02 --seed 7

Do this before the first round. What the engine may see is then in runs/engine/audit/training. A run
of `train` on any store of these ids leaves the frozen images out, and what looks like them, if its
run file has c.input.exclude = "runs/engine/audit/exclude.jsonl"."""

_CHECK_EXAMPLES = """examples:
  florence2-jax audit check runs/engine runs/other-store --out held-out.jsonl

Exits with status 2 if the store holds a frozen image, by its id, its bytes or its looks. A run
leaves those of the list out if its run file has c.input.exclude = "held-out.jsonl", and does not
start with c.input.on_excluded = "refuse" beside it."""

_SERVE_EXAMPLES = """examples:
  florence2-jax audit serve runs/engine
  florence2-jax audit serve runs/engine --port 8123
  ssh -L 8123:localhost:8123 machine          # from elsewhere; then open the printed address

Several people can judge at once, each in a window of their own. Stop it with Ctrl+C; every verdict
is on disk when the page shows the next statement."""

_REPORT_EXAMPLES = """examples:
  florence2-jax audit report runs/engine
  florence2-jax audit report runs/engine --ontology labels.yaml --json audit.json"""


def parser() -> argparse.ArgumentParser:
    """The parser of `audit` and of the commands below it."""
    top = argparse.ArgumentParser(
        prog="florence2-jax audit",
        description="The guard against a data engine that believes itself: images that it never "
        "learns from, what people say about them, and how each round does on them.",
        epilog="example:\n  florence2-jax audit freeze runs/photos runs/engine --count 500",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_freeze(commands)
    _add_check(commands)
    _add_serve(commands)
    _add_report(commands)
    return top


def _add_freeze(commands: Any) -> None:
    command = commands.add_parser(
        "freeze",
        help="choose the images that the engine never learns from",
        description="Freezes a split of a store, with what people said about it, before round 0.",
        epilog=_FREEZE_EXAMPLES,
    )
    command.add_argument("source", metavar="SRC", type=Path, help="a store of records")
    _add_workdir(command)
    how = command.add_mutually_exclusive_group(required=True)
    how.add_argument("--fraction", metavar="F", type=float, help="share of the images")
    how.add_argument("--count", metavar="N", type=positive, help="number of images")
    command.add_argument("--seed", metavar="S", type=int, default=0, help="of the choice (0)")
    command.add_argument("--split", metavar="S", default="train", help="of the store (train)")
    command.add_argument(
        "--no-near-copies",
        action="store_true",
        help="keep only images of the same bytes out of training, not those that look alike",
    )
    add_workers(command)
    leaf(command, _freeze)


def _add_check(commands: Any) -> None:
    command = commands.add_parser(
        "check",
        help="find frozen images in a training store",
        description="Says whether a store (split train) holds images that are frozen.",
        epilog=_CHECK_EXAMPLES,
    )
    _add_workdir(command)
    command.add_argument("store", metavar="STORE", type=Path, help="a store of records")
    command.add_argument("--out", metavar="FILE.jsonl", type=Path, help="write the list here")
    add_workers(command)
    leaf(command, _check)


def _add_serve(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="a page where people accept, reject and correct",
        description="Serves the page of the audit to browsers on this machine.",
        epilog=_SERVE_EXAMPLES,
    )
    _add_workdir(command)
    command.add_argument("--port", metavar="P", type=int, default=0, help="(any that is free)")
    command.add_argument(
        "--host",
        metavar="H",
        default="127.0.0.1",
        help="address to listen on (127.0.0.1); others can be reached by others, without TLS",
    )
    command.add_argument("--seed", metavar="S", type=int, default=0, help="of the order (0)")
    leaf(command, _serve)


def _add_report(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="how each round does on the frozen split, and what the guard says",
        description="Judges every round by the truth as people see it now.",
        epilog=_REPORT_EXAMPLES,
    )
    _add_workdir(command)
    command.add_argument(
        "--ontology", metavar="FILE", type=Path, help="names and synonyms of labels, kept from now"
    )
    leaf(command, _report)


def _add_workdir(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", metavar="DIR", type=Path, help="workdir of the data engine")


def _freeze(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.engine.audit import freeze

    with Progress("images") as progress:
        books = freeze(
            args.source,
            args.directory,
            fraction=args.fraction,
            count=args.count,
            seed=args.seed,
            split=args.split,
            near_copies=not args.no_near_copies,
            num_workers=args.workers,
            on_progress=progress,
        )
    say(f"{books['num_frozen']:,} of {books['num_records']:,} images are frozen: {books['frozen']}")
    say(f"{books['num_copies']:,} more look like one of them, and are kept out of training")
    say(f"What the engine may see: {books['training']}")
    say(f"The list, for input.exclude of a run file: {books['exclude']}")
    return books


def _check(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.engine.audit import overlap_with_frozen
    from florence2_jax.records.overlap import write_list

    with Progress("images") as progress:
        matches = overlap_with_frozen(
            args.directory, args.store, num_workers=args.workers, on_progress=progress
        )
    if args.out:
        write_list(matches, args.out)
    ids = sorted({match.id for match in matches})
    if ids:
        raise UserError(
            f"{args.store}: {len(ids)} images are frozen in {args.directory}, first {ids[0]!r} "
            f"({matches[0].how}); leave them out with input.exclude = "
            f"{str(args.out) if args.out else 'a list, see --out'!r} in the run file"
        )
    say(f"{args.store}: no image is frozen in {args.directory}")
    return {"store": str(args.store), "frozen": ids}


def _serve(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.engine.auditing.desk import only_server
    from florence2_jax.engine.auditing.frozen import frozen_store
    from florence2_jax.engine.auditing.queue import SamplingConfig
    from florence2_jax.engine.auditing.server import LOOPBACK, AuditServer
    from florence2_jax.engine.auditing.verdicts import summary

    frozen_store(args.directory)  # Before a lock is made where there is no audit.
    config = SamplingConfig(seed=args.seed)
    with (
        only_server(args.directory),
        AuditServer(args.directory, host=args.host, port=args.port, config=config) as server,
    ):
        say(f"{len(server.desk.queue):,} statements; open this address in a browser:")
        say(server.url)
        if args.host not in LOOPBACK:
            say("Other machines can reach it, unencrypted; who has the address can judge.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped")
    return summary(args.directory)


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from florence2_jax.engine import audit

    ontology = None
    if args.ontology:
        ontology = audit.read_ontology(args.ontology)
        audit.frozen_store(args.directory)
        audit.adopt(args.directory, ontology)
    report = audit.report(args.directory, ontology=ontology)
    _show(report)
    return report.to_json()


def _show(report: "Report") -> None:
    rows = [
        (str(one.round), kind, *_cells(counts.to_json()))
        for one in report.audits
        for kind, counts in one.kinds.items()
    ]
    columns = ("round", "kind", "true", "found", "precision", "recall", "F1")
    print_table("on the frozen split (texts in words)", columns, rows)
    rows = [
        (
            str(one.round),
            f"{one.label_entropy_bits:.2f} of {one.true_label_entropy_bits:.2f}",
            f"{one.label_divergence_bits:.3f}",
            _ratio(one.tail.recall),
            ", ".join(f"{kind} {r.ece:.3f}" for kind, r in one.calibration.items()) or "-",
        )
        for one in report.audits
    ]
    columns = ("round", "label entropy, bits", "divergence", "tail recall", "calibration error")
    print_table("labels and scores", columns, rows)
    _show_classes(report)
    for one in report.unstable[:10]:
        kind = "synonyms" if one.are_synonyms else "names"
        say(f"unstable {kind}: {' / '.join(one.names)}, {one.num_changes} changes")
    for row in report.audits[-1].unknown_labels[:10]:
        nearest = ", ".join(row["nearest"]) or "nothing"
        say(f"not in the ontology: {row['label']} ({row['number']:,}), nearest {nearest}")
    told = report.verdicts
    say(f"{told['num_verdicts']:,} verdicts on {told['num_items']:,} statements")
    if told["num_damaged_lines"]:
        say(f"{told['num_damaged_lines']} damaged lines of verdicts.jsonl were left out")
    if told["disputed"]:
        say(f"{len(told['disputed'])} statements are disputed; the last word counts")
    for decision in report.decisions:
        for reason in decision.reasons:
            say(f"STOP in round {decision.round}: {reason}")
    if all(decision.ok for decision in report.decisions):
        say("The guard sees no reason to stop.")


def _show_classes(report: "Report") -> None:
    """Recall of the rarest classes over the rounds."""
    newest = report.audits[-1].classes
    rarest = sorted(
        (name for name in newest if newest[name].num_true), key=lambda n: newest[n].num_true
    )
    rows = []
    for name in rarest[:12]:
        found = (one.classes.get(name) for one in report.audits)
        cells = ("-" if counts is None else _ratio(counts.recall) for counts in found)
        rows.append((name, f"{newest[name].num_true:,}", *cells))
    if rows:
        columns = ("class", "true", *(f"round {one.round}" for one in report.audits))
        print_table("recall of the rarest classes", columns, rows)


def _cells(counts: dict[str, Any]) -> tuple[str, ...]:
    numbers = (f"{counts[name]:,}" for name in ("num_true", "num_found"))
    return *numbers, *(_ratio(counts[name]) for name in ("precision", "recall", "f1"))


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
