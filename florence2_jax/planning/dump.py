# SPDX-License-Identifier: Apache-2.0
"""The text of a compiled program, as the compiler writes it to files while it works.

What JAX prints of a finished program is read back by its own version of XLA first, which does not
know every instruction of libtpu's (jaxlib 0.10.2 refuses those of the SparseCores of a v5p or v6e).
The files are complete, and some are there long before the end: once the compiler has scheduled the
program and given every buffer its place, time and memory can be read, and what is left, most of the
work, is to generate the code.
"""

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

Options: TypeAlias = dict[str, str | bool]
"""For `jax.stages.Lowered.compile(compiler_options=...)`."""

_FINISHED = "*.after_codegen.txt"
_SCHEDULED = "*.after_optimizations_after_buffer_assignment.txt"
_BUFFERS = "*.after_optimizations-buffer-assignment.txt"


class NoProgramText(RuntimeError):
    """The compiler wrote no program; the memory of what it compiled can still be read."""


def options(folder: Path) -> Options:
    """Makes the compiler write its files into a folder."""
    return {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}


def compile_with_text(compile_with: Callable[[Options], Any]) -> tuple[Any, str]:
    """What a function compiles with the options that it is given, and the text of that program.

    Raises:
        NoProgramText: if the compiler wrote none.
    """
    with tempfile.TemporaryDirectory(prefix="hlo") as folder:
        compiled = compile_with(options(Path(folder)))
        return compiled, finished_text(Path(folder))


def finished_text(folder: Path) -> str:
    """The program as it was compiled to its end. Raises NoProgramText if it is not there."""
    paths = sorted(folder.glob(_FINISHED))
    if not paths:
        raise NoProgramText("the compiler did not write the text of its program")
    return paths[-1].read_text(encoding="utf-8")


def await_schedule(folder: Path, *, poll_s: float = 0.5) -> tuple[str, dict[str, int]]:
    """Waits until a program is scheduled. Its text, without cycles, and bytes as `memory` gives."""
    size = -1
    while True:
        paths = sorted(folder.glob(_SCHEDULED))
        now = paths[-1].stat().st_size if paths else -1
        if now == size > 0:
            text = paths[-1].read_text(encoding="utf-8")
            if text.rstrip().endswith("}"):  # Written to its end.
                return text, buffer_bytes(sorted(folder.glob(_BUFFERS))[-1].read_text("utf-8"))
        size = now
        time.sleep(poll_s)


_ALLOCATION = re.compile(r"^allocation \d+: size (\d+),(.*)$", re.MULTILINE)


def buffer_bytes(assignment: str) -> dict[str, int]:
    """Bytes in HBM by kind, out of the compiler's list of allocations.

    The kinds are those of `memory_analysis()`, but for the generated code.
    """
    sums: dict[str, int] = dict.fromkeys(("argument", "output", "alias", "temp"), 0)
    for size, words in _ALLOCATION.findall(assignment):
        if " color " in words or "constant" in words or "thread-local" in words:
            continue  # Not HBM, or part of the code.
        is_argument, is_output = " parameter " in words, "maybe-live-out" in words
        kinds = [("argument", is_argument), ("output", is_output)]
        kinds += [("alias", is_argument and is_output), ("temp", not (is_argument or is_output))]
        for kind, belongs in kinds:
            sums[kind] += int(size) * belongs
    return sums
