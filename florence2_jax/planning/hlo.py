# SPDX-License-Identifier: Apache-2.0
"""The text of a compiled program (HLO), read into modules, computations and instructions.

Only what a cost estimate needs is read: opcodes, shapes with their layouts, operands, called
computations, and where in the source an instruction comes from.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

VMEM = 1
"""Memory space of on-chip vector memory in a layout, `S(1)`; HBM is 0."""

_BITS = {"pred": 8, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array as it lies in memory, e.g. `bf16[32,144,64]{2,1,0:T(8,128)(2,1)S(1)}`.

    `minor_to_major` lists dimensions from the fastest varying one; `tiles` are applied one within
    the other to the fastest ones, and each rounds the sizes that it cuts up to a multiple.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tiles: tuple[tuple[int, ...], ...] = ()
    memory_space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bits(self) -> int:
        """Bits per element."""
        if self.dtype in _BITS:
            return _BITS[self.dtype]
        return int(re.findall(r"\d+", self.dtype)[0])  # f8e4m3fn: the 8.

    @property
    def bytes(self) -> int:
        """Bytes of the elements, without padding."""
        return self.size * self.bits // 8

    @property
    def padded_bytes(self) -> int:
        """Bytes with the padding of the tiles."""
        sizes = [self.dims[axis] for axis in reversed(self.minor_to_major)] or list(self.dims)
        for tile in self.tiles:
            sizes = [1] * (len(tile) - len(sizes)) + sizes
            cut = len(sizes) - len(tile)
            counts = [-(-size // side) for size, side in zip(sizes[cut:], tile, strict=True)]
            sizes = [*sizes[:cut], *counts, *tile]
        return math.prod(sizes) * self.bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


ShapeTree: TypeAlias = Shape | tuple[Any, ...]
"""An array, or a tuple of shapes."""


def leaves(shape: ShapeTree) -> list[Shape]:
    """The arrays of a shape, those of nested tuples in order."""
    return (
        [shape] if isinstance(shape, Shape) else [leaf for part in shape for leaf in leaves(part)]
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction. `attributes` is the text between its operands and its metadata."""

    name: str
    opcode: str
    shape: ShapeTree
    operands: tuple[str, ...]
    literal: str  # What stands in the parentheses of a constant or a parameter.
    attributes: str
    metadata: str
    config: str  # The text of backend_config.
    is_root: bool

    @property
    def shapes(self) -> list[Shape]:
        return leaves(self.shape)

    def attribute(self, name: str) -> str | None:
        """The value of an attribute: a word, or what stands in its braces."""
        match = re.search(rf"(?:^|, ){name}=(?:\{{([^{{}}]*)\}}|([^,\s]+))", self.attributes)
        return match and (match[1] if match[2] is None else match[2])

    def called(self, attribute: str) -> str:
        """Name of the computation in `calls`, `body`, `condition` or `to_apply`; or nothing."""
        return (self.attribute(attribute) or "").removeprefix("%")

    @property
    def index(self) -> int:
        """Which element a get-tuple-element takes."""
        return int(self.attribute("index") or 0)

    @property
    def op_name(self) -> str:
        """JAX's name stack, e.g. `jit(step)/transpose(jvp())/while/body/dot_general`."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.metadata)
        return match[1] if match else ""

    def configured(self, key: str) -> int | None:
        """The first whole number under a key of the backend's configuration."""
        match = re.search(rf'"{key}":\{{?(?:"n":)?"?(\d+)', self.config)
        return int(match[1]) if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they are scheduled."""

    name: str
    instructions: Mapping[str, Instruction]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in self if i.is_root)

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        found = (i for i in self if i.opcode == "parameter")
        return sorted(found, key=lambda i: int(i.literal))


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program: the share of one device."""

    header: str
    computations: Mapping[str, Computation]
    entry: Computation
    frames: Mapping[int, tuple[str, ...]]  # `file:function`, innermost first, of each stack frame.

    @property
    def num_partitions(self) -> int:
        """Devices that this program is cut for; of several slices, those of one slice."""
        match = re.search(r"num_partitions=(\d+)", self.header)
        return int(match[1]) if match else 1

    def source(self, instruction: Instruction) -> tuple[str, ...]:
        """Where an instruction comes from: `file.py:Class.method`, innermost first."""
        match = re.search(r"stack_frame_id=(\d+)", instruction.metadata)
        return self.frames.get(int(match[1]), ()) if match else ()


# Parsing

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_TILES = re.compile(r"T((?:\([\d,*]*\))+)")
_NESTING = re.compile(r"[(){}\[\]\"]")


def parse(text: str) -> Module:
    """Reads the text of `compiled.as_text()`.

    Raises:
        ValueError: if the text is no HLO module.
    """
    lines = text.splitlines()
    if not lines or not lines[0].startswith("HloModule"):
        raise ValueError(f"not the text of an HLO module: {text[:60]!r}")
    computations: dict[str, Computation] = {}
    entry = None
    current: dict[str, Instruction] = {}
    for line in lines[1:]:
        if match := _INSTRUCTION.match(line):
            current[match[2]] = _parse_instruction(line, match)
        elif match := _COMPUTATION.match(line):
            current = {}
            computations[match[2]] = Computation(match[2], current)
            entry = computations[match[2]] if match[1] else entry
    if entry is None:
        raise ValueError("the HLO module has no entry computation")
    return Module(lines[0], computations, entry, _parse_frames(lines))


def _parse_instruction(line: str, match: re.Match) -> Instruction:
    # XLA writes the backend's configuration last and the metadata before it.
    rest, _, config = line[match.end() :].partition(", backend_config=")
    rest, _, metadata = rest.partition(", metadata={")
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    opcode = rest[end:opening].strip()
    inside = rest[opening + 1 : closing - 1]
    is_leaf = opcode in ("constant", "parameter")
    return Instruction(
        name=match[2],
        opcode=opcode,
        shape=_parse_shape(rest[:end]),
        operands=() if is_leaf else tuple(_operand_names(inside)),
        literal=inside if is_leaf else "",
        attributes=rest[closing:].removeprefix(", "),
        metadata=metadata,
        config=config,
        is_root=bool(match[1]),
    )


def _operand_names(text: str) -> list[str]:
    """Names of operands, which some versions write without `%` and others after their shapes."""
    if "%" in text:
        return re.findall(r"%([\w.\-]+)", text)
    return [part.split()[-1] for part in text.split(", ") if part]


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` has closed again."""
    depth, quoted = 0, False
    for match in _NESTING.finditer(text, start):
        mark = match[0]
        if mark == '"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if mark in "({[" else -1
            if not depth:
                return match.end()
    raise ValueError(f"unbalanced parentheses: {text[:100]!r}")


def _parse_shape(text: str) -> ShapeTree:
    stack: list[list[ShapeTree]] = [[]]
    # Parentheses inside of braces belong to layouts, which the pattern of a shape swallows whole.
    for match in re.finditer(rf"{_SHAPE.pattern}|[()]", text):
        if match[0] == "(":
            stack.append([])
        elif match[0] == ")":
            done = tuple(stack.pop())
            stack[-1].append(done)
        else:
            stack[-1].append(_array_shape(match[1], match[2], match[3] or ""))
    return stack[0][0]


@functools.lru_cache(maxsize=65_536)
def _array_shape(dtype: str, dims: str, layout: str) -> Shape:
    order, _, rest = layout.partition(":")
    tiles = _TILES.search(rest)
    space = re.search(r"S\((\d+)\)", rest)
    return Shape(
        dtype=dtype,
        dims=tuple(int(dim.removeprefix("<=")) for dim in dims.split(",") if dim),
        minor_to_major=tuple(int(axis) for axis in order.split(",") if axis),
        tiles=tuple(
            tuple(int(side) if side != "*" else 1 for side in tile.split(",") if side)
            for tile in re.findall(r"\(([^()]*)\)", tiles[1] if tiles else "")
        ),
        memory_space=int(space[1]) if space else 0,
    )


def _parse_frames(lines: list[str]) -> dict[int, tuple[str, ...]]:
    """The tables of files, functions, locations and stack frames that precede the computations."""
    tables: dict[str, dict[int, str]] = {}
    table: dict[int, str] = {}
    for line in lines[1:]:
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif match := re.match(r"(\d+) (.*)", line):
            table[int(match[1])] = match[2]
        elif line:
            break

    def number(text: str, key: str) -> int:
        match = re.search(rf"{key}=(\d+)", text)
        return int(match[1]) if match else 0

    rows = tables.get("StackFrames", {})
    # Some versions write every parent one too high, so that the first frame is its own parent.
    offset = 0 if any(number(text, "parent_frame_id") == 0 for text in rows.values()) else 1
    frames: dict[int, tuple[str, ...]] = {}
    for index, text in sorted(rows.items()):
        location = tables["FileLocations"].get(number(text, "file_location_id"), "")
        file = tables["FileNames"].get(number(location, "file_name_id"), "").strip('"')
        function = tables["FunctionNames"].get(number(location, "function_name_id"), "").strip('"')
        above = frames.get(number(text, "parent_frame_id") - offset, ())
        frames[index] = (f"{file.rpartition('/')[2]}:{function}", *above)
    return frames
