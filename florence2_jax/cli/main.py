# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax COMMAND`: picks the command, prints its errors, writes its report.

A command is a module of this package with `parser() -> ArgumentParser` (and `parse`, if it reads
its command line by itself); the parser of what was asked sets `run`, a function from the parsed
arguments to a JSON-able report. Nothing heavy is imported before the command is known, so that
`--help` answers at once.
"""

import argparse
import errno
import importlib
import json
import os
import sys
from pathlib import Path

from florence2_jax.parallel.host_memory import has_accelerator, keep_freed_memory
from florence2_jax.typing import UserError
from florence2_jax.version import __version__

COMMANDS = {
    "train": "pretrain or fine-tune; run again, it goes on where it was",
    "predict": "answer prompts about images: terminal, JSON, drawn pictures",
    "evaluate": "metrics of a model on a store's split, beside an image-blind baseline",
    "score": "the literature's metrics over result files of any model, without a model",
    "convert": "checkpoints, tokenizer and processor to and from PyTorch, both ways",
    "records": "make, import, check, count and look at FLD records",
    "annotate": "make labels: specialists annotate, filters clean, trained models refine",
    "audit": "freeze images that the data engine never learns from, judge them, guard its rounds",
    "plan": "will a run fit its TPUs, how fast is it: by the TPU compiler, without a TPU",
    "checkpoint": "list what a run has saved, verify it against its digests",
    "goodput": "where the time of a run went, over all its starts",
    "replay": "run a step that went wrong once more, on this machine's processor",
    "tokenizer": "train a SentencePiece tokenizer on a store's texts",
}

_RUN_MODELS = ("train", "predict", "evaluate", "annotate", "replay")

_EXAMPLES = """examples:
  florence2-jax records scenes 2000 /tmp/scenes
  florence2-jax train --config configs/scenes.py --workdir runs/scenes
  florence2-jax predict --model runs/scenes --task '<OD>' photo.jpg
  florence2-jax records import --help
"""

EXIT_USER_ERROR = 2
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
)


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, or 2 for what the user can mend."""
    is_program = argv is None  # Else the process is somebody else's, and so is its memory.
    argv = sys.argv[1:] if argv is None else argv
    arguments = _top_parser().parse_args(argv[:1])
    _keep_compiled_programs()
    if is_program and arguments.command in _RUN_MODELS and not has_accelerator():
        keep_freed_memory()
    command = importlib.import_module(f"florence2_jax.cli.{arguments.command}")
    # A command may parse by itself; `train` hands what it does not know to the run file.
    parse = getattr(command, "parse", None) or command.parser().parse_args
    args = parse(argv[1:])
    try:
        if args.json is not None and args.json.is_dir():
            raise UserError(f"--json {args.json}: this is a folder, give a file")
        _write_report(args.json, args.run(args))
    except UserError as error:
        return _complain(str(error))
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"{error.strerror}{where}: make room, or give another directory")
    except KeyboardInterrupt:
        return 130
    return 0


def leaf(parser: argparse.ArgumentParser, run) -> None:
    """Ends the definition of a command: adds what every command takes, and what it runs."""
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="also write the report as JSON, for programs"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=run)


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="florence2-jax",
        usage="florence2-jax COMMAND [options]",
        description=f"Florence-2 in JAX.\n\ncommands:\n{rows}\n\n"
        "Each command has --help with an example.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _keep_compiled_programs() -> None:
    """What XLA compiled once is read back by the next start, where the user chose no other place.

    An environment variable, because JAX is not imported yet.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "florence2_jax" / "xla"))


def _write_report(path: Path | None, report: dict) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _complain(message: str) -> int:
    sys.stderr.write(f"florence2-jax: {message}\n")
    return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
