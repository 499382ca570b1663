# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax records`: make, import, check, count and look at FLD records."""

import argparse

from florence2_jax.cli.records import combining, importing, looking


def parser() -> argparse.ArgumentParser:
    """The parser of `records` and of the commands below it."""
    top = argparse.ArgumentParser(
        prog="florence2-jax records",
        description="Makes, imports, checks, counts and shows FLD records.",
        epilog="example:\n  florence2-jax records scenes 2000 /tmp/scenes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    importing.add_import(commands)
    importing.add_scenes(commands)
    combining.add_combining(commands)
    looking.add_looking(commands)
    return top
