# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax tokenizer`: a SentencePiece vocabulary from a store's own language."""

import argparse
from pathlib import Path
from typing import Any

from florence2_jax.cli.main import leaf
from florence2_jax.typing import UserError

_EXAMPLES = """examples:
  florence2-jax tokenizer train --records /data/fld --size 32000 /data/tokenizer
"""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(
        prog="florence2-jax tokenizer",
        description="Trains tokenizers; `train` runs use one by tokenizer.path.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = command.add_subparsers(metavar="ACTION", required=True)
    train = actions.add_parser(
        "train",
        help="train a SentencePiece model on a store's texts",
        description="Trains a SentencePiece BPE model with byte fallback; the 1,024 tokens of "
        "Florence-2 follow its pieces.",
        epilog=_EXAMPLES,
    )
    train.add_argument("--records", required=True, metavar="DIR", help="a store of records")
    train.add_argument("--split", default="train", help="(train)")
    train.add_argument("--size", required=True, type=int, metavar="N", help="pieces, at most")
    train.add_argument("folder", type=Path, metavar="OUT", help="a new folder")
    leaf(train, _train)
    return command


def _train(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from florence2_jax.data.texts import store_texts
    from florence2_jax.records.store import RecordStore
    from florence2_jax.text.tokenizer import Tokenizer

    if args.folder.exists() and any(args.folder.iterdir()):
        raise UserError(f"{args.folder} is not empty: give a new folder")
    store = RecordStore(args.records, args.split)
    tokenizer = Tokenizer.train(store_texts(store), vocab_size=args.size)
    tokenizer.save(args.folder)
    report = {"folder": str(args.folder), "vocab_size": len(tokenizer)}
    report["first_location_id"] = tokenizer.first_location_id
    Console().print(
        f"{args.folder}: {len(tokenizer)} ids, <loc_0> is {tokenizer.first_location_id}",
        highlight=False,
        soft_wrap=True,
    )
    return report
