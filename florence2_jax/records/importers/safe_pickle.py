# SPDX-License-Identifier: Apache-2.0
"""Pickles of plain data: lists and dicts of texts and numbers, and nothing that could run.

A pickle is a program for a small machine, and some of its instructions import and call. So the
program is read first, instruction by instruction, and refused unless each of them only builds plain
data. The machine that then runs it finds no classes either.

Plain data can do harm too. A place in the memo makes a table of its size: places are bounded by the
length of the file, as are texts and frames. What refers to itself, or to one large thing over and
over, is small in memory and endless to walk: written out as a tree it must not be much longer than
the file. Tuples are refused, since the hash of a deep one overflows the stack.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from florence2_jax.records.importers.json_files import read_file
from florence2_jax.typing import UserError

MAX_PICKLE_BYTES = 2**27
MAX_DEPTH = 24
"""Levels of lists and dicts."""

_MAX_GROWTH = 32
"""Length of the data as a tree over that of the file: a key of 60 letters takes 2 bytes again."""

_BUILDERS = frozenset(
    """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE EMPTY_LIST LIST APPEND
    APPENDS EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    """.split()
)
_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
_PLAIN = {
    opcode.code.encode("latin-1"): opcode
    for opcode in pickletools.opcodes
    if opcode.name in _BUILDERS
}
_MEMO = frozenset("PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET".split())


class _Refused(ValueError):
    """A pickle that is not read, and why."""


class _PlainUnpickler(pickle.Unpickler):
    """Finds nothing: the second lock on a door that `_check_instructions` keeps."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise _Refused(f"it asks for {module_name}.{global_name}")

    def persistent_load(self, pid: Any, /) -> Any:
        raise _Refused("it asks for a persistent object")


def read_pickle(path: Path) -> Any:
    """The plain data of a pickle of any protocol; nothing in it is run.

    Texts of Python 2 are read as UTF-8; bytes that are not become lone surrogates.

    Raises:
        UserError: if the file is too large, damaged, or holds anything but lists, dicts, texts,
            numbers, truth values and None.
    """
    data = read_file(path, MAX_PICKLE_BYTES)
    try:
        return loads_plain(data)
    except _Refused as error:
        raise UserError(
            f"{path}: refused: {error}; only pickles of plain data are read, fetch it again from "
            "where it is published"
        ) from error


def loads_plain(data: bytes) -> Any:
    """The plain data of a pickle, as `read_pickle` gives it. Raises ValueError if not that."""
    _check_instructions(data)
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
    try:
        value = _PlainUnpickler(io.BytesIO(data), **options).load()
    except _Refused:
        raise
    except Exception as error:  # The machine raises whatever a senseless program leads to.
        raise _Refused("it is damaged") from error
    _check_tree(value, _MAX_GROWTH * len(data))
    return value


def _check_instructions(data: bytes) -> None:
    stream = io.BytesIO(data)
    try:
        while _check_instruction(stream):
            pass
    except _Refused:
        raise
    except Exception as error:  # As above: readers of arguments raise what they meet.
        raise _Refused("it is damaged or cut off") from error


def _check_instruction(stream: io.BytesIO) -> bool:
    """Reads an instruction and its argument; False after the one that ends the program."""
    place = stream.tell()
    code = stream.read(1)
    if not code:
        raise _Refused("it is cut off")
    opcode = _PLAIN.get(code)
    if opcode is None:
        name = _NAMES.get(code, repr(code))
        raise _Refused(f"it has the instruction {name} at byte {place}")
    if opcode.name == "STRING":  # Python's own reader knows ASCII only.
        stream.readline()
    elif opcode.arg is not None:
        argument = opcode.arg.reader(stream)
        # Every place in the memo was filled by an instruction before, of a byte at least.
        if opcode.name in _MEMO and not 0 <= argument <= place:
            raise _Refused(f"it names place {argument} of its memo at byte {place}")
        if isinstance(argument, int) and abs(argument) >= 2**64:
            raise _Refused(f"it has a number of more than 64 bits at byte {place}")
    return opcode.name != "STOP"


def _check_tree(value: Any, max_length: int) -> None:
    length, waiting = 0, [(value, 0)]
    while waiting:
        node, depth = waiting.pop()
        length += len(node) + 1 if isinstance(node, str) else 1
        if length > max_length or depth > MAX_DEPTH:
            raise _Refused("it is nested too deeply, or refers to one thing too often")
        if isinstance(node, list):
            waiting += ((item, depth + 1) for item in node)
        elif isinstance(node, dict):
            waiting += ((item, depth + 1) for pair in node.items() for item in pair)
