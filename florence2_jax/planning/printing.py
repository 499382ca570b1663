# SPDX-License-Identifier: Apache-2.0
"""The text of a compiled program, also where JAX cannot print it.

To print a program JAX reads it back with its own version of XLA. Where libtpu moves work to the
SparseCores of a v5p or v6e (the lookup of embeddings, for one), it writes an instruction that
jaxlib 0.10.2 refuses: `async-update instruction should have 1 operands but sees 3`. So where
printing fails, the program is taken from the serialised executable, those operands are left out,
and XLA prints the rest.
"""

from collections.abc import Iterator
from typing import Any

import jax


class NoProgramText(RuntimeError):
    """The compiler made a program that cannot be printed; its memory can still be read."""


def program_text(compiled: Any) -> str:
    """The text of what `jax.jit(...).lower(...).compile()` returned.

    Raises:
        NoProgramText: if there is no way to print it.
    """
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        try:
            return _print(compiled.runtime_executable().serialize())
        except (jax.errors.JaxRuntimeError, ValueError) as again:
            raise NoProgramText(
                f"the compiled program cannot be printed: {reason}; nor can what its serialised "
                f"form holds: {again}"
            ) from error
    if not text:
        raise NoProgramText("this backend does not print its programs")
    return text


def _print(serialized: bytes) -> str:
    program = _find_program(_without_block_headers(serialized))
    # The class that prints has no public name: any compiled program has one.
    executable: Any = jax.jit(lambda: 0).lower().compile().runtime_executable()
    module_class = type(executable.hlo_modules()[0])
    return module_class.from_serialized_hlo_module_proto(_mend(program)).to_string()


# The container: Riegeli, blocks of 64 KiB that begin with a header each.

_BLOCK, _HEADER = 1 << 16, 24
_FILE_SIGNATURE = bytes.fromhex("83af70d10d884a3f0000000000000000")


def _without_block_headers(data: bytes) -> bytes:
    start = data.find(_FILE_SIGNATURE)
    if start < 0:
        raise ValueError("the serialised executable has another form than that of libtpu 0.0.52")
    blocks = (data[i + _HEADER : i + _BLOCK] for i in range(start, len(data), _BLOCK))
    return b"".join(blocks)


# The program: a protocol buffer, HloModuleProto. Field numbers are those of xla/service/hlo.proto.

_MODULE_NAME, _MODULE_COMPUTATIONS, _MODULE_SCHEDULE = 1, 3, 7
_COMPUTATION_INSTRUCTIONS = 2
_INSTRUCTION_OPCODE, _INSTRUCTION_OPERANDS = 2, 36


def _find_program(data: bytes) -> bytes:
    """The scheduled module among the modules that an executable holds."""
    position = data.find(b"\n")
    while position >= 0:
        if data[position + 2 : position + 6] == b"jit_":
            for width in range(1, 6):  # Of the length that stands before a message.
                program = _message(data, position - width, position)
                if program and _is_scheduled(program):
                    return program
        position = data.find(b"\n", position + 1)
    raise ValueError("the serialised executable holds no scheduled module")


def _message(data: bytes, start: int, end: int) -> bytes | None:
    """The message whose length is written in `data[start:end]`."""
    if start < 0:
        return None
    length, after = _varint(data, start)
    if after != end or end + length > len(data):
        return None
    return data[end : end + length]


def _is_scheduled(data: bytes) -> bool:
    try:
        present = {number for number, _, _ in _fields(data)}
    except (ValueError, IndexError):
        return False
    return {_MODULE_NAME, _MODULE_COMPUTATIONS, _MODULE_SCHEDULE} <= present


def _mend(module: bytes) -> bytes:
    """Leaves each async-update with the operand that it goes on from."""

    def instruction(data: bytes) -> bytes:
        fields = list(_fields(data))
        if (_INSTRUCTION_OPCODE, b"async-update") not in [(n, value) for n, _, value in fields]:
            return data
        return _replace(data, _INSTRUCTION_OPERANDS, lambda ids: ids[: _varint(ids, 0)[1]])

    def computation(data: bytes) -> bytes:
        return _replace(data, _COMPUTATION_INSTRUCTIONS, instruction)

    return _replace(module, _MODULE_COMPUTATIONS, computation)


def _replace(message: bytes, number: int, change: Any) -> bytes:
    """A message with the embedded ones of a field changed."""
    parts = []
    for found, raw, value in _fields(message):
        if found == number and value is not None:
            value = change(value)
            raw = _as_varint(number << 3 | 2) + _as_varint(len(value)) + value
        parts.append(raw)
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
    """`(number, all of the field, its value if it has a length)`."""
    start = 0
    while start < len(message):
        tag, position = _varint(message, start)
        value, kind = None, tag & 7
        if kind == 0:
            _, end = _varint(message, position)
        elif kind == 2:
            length, position = _varint(message, position)
            end = position + length
            value = message[position:end]
        elif kind in (1, 5):
            end = position + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"no protocol buffer: a field of kind {kind}")
        if end > len(message):
            raise ValueError("no protocol buffer: a field goes beyond its message")
        yield tag >> 3, message[start:end], value
        start = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def _as_varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])
