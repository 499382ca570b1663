# SPDX-License-Identifier: Apache-2.0
"""What a compiled program sends between devices, how often, and over which mesh axes.

Times count bandwidth alone: no latency, no contention, all links of a chip in use, and nothing
hidden behind computation. For a group of `n` devices each sends, of the array of `b` bytes that it
begins with (an all-gather: that it ends with),

| all-gather, reduce-scatter, all-to-all | all-reduce | collective-permute, broadcast |
|---|---|---|
| (n - 1) / n * b | 2 (n - 1) / n * b | b |

which is what a ring sends, and the least that any algorithm can.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from florence2_jax.planning.chips import Chip
from florence2_jax.planning.hlo import Instruction, Module, Shape, leaves
from florence2_jax.planning.schedule import Execution, Node, dissolve, walk

Network = Literal["ici", "dcn"]

_FACTORS = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-broadcast": lambda n: 1,
    "collective-permute": lambda n: 1,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of a program; bytes are those of one device."""

    kind: str
    name: str
    op_name: str
    shapes: tuple[str, ...]  # The larger of its two ends: of an all-gather, its results.
    array_bytes: int  # Of these shapes, in one trip.
    trips: int
    group_size: int
    axes: tuple[str, ...]  # Of the mesh, along which the devices of a group differ.
    network: Network

    @property
    def sent_bytes(self) -> float:
        """That a device sends in a step, all trips together."""
        return _FACTORS[self.kind](self.group_size) * self.array_bytes * self.trips

    def seconds(self, chip: Chip) -> float:
        """Time of all trips if nothing else used the network."""
        rate = chip.dcn_bytes_per_s if self.network == "dcn" else chip.ici_bytes_per_s
        return self.sent_bytes / rate


def find(module: Module, mesh: Mesh) -> list[Collective]:
    """Every collective of a program that was compiled for a mesh, the largest senders first.

    A collective that runs asynchronously inside of fusions is in several of them; it is listed
    once. Between slices, libtpu sends through the hosts: these are its `send`s.

    Raises:
        ValueError: if groups are written in a way that is not known here.
    """
    places = _Places(module, mesh)
    found = [places.collective(*occurrence) for occurrence in _occurrences(module)]
    # Groups of one device send nothing.
    found = [collective for collective in found if collective.group_size > 1]
    return sorted(found, key=lambda collective: -collective.sent_bytes)


def _occurrences(module: Module) -> Iterator[tuple[str, Execution, Node | None]]:
    """`(kind, what runs, the collective within it if it is a fusion)`."""
    for execution in walk(module).executions:
        instruction = execution.instruction
        kind = instruction.opcode.removesuffix("-start")
        is_megascale = kind == "send" and "_xla_megascale" in instruction.attributes
        if kind in _FACTORS or is_megascale:
            yield kind, execution, None
        elif instruction.opcode == "fusion":
            nodes = dissolve(module, module.computations[instruction.called("calls")]).nodes
            for node in nodes:
                if node.instruction.opcode in _FACTORS and not _is_continued(node, nodes):
                    yield _fused_kind(node, nodes), execution, node


def _is_continued(node: Node, nodes: Sequence[Node]) -> bool:
    """Whether another fusion starts it: it is in that one, in those beside it, and in the last."""
    if "async_collective_fusion_config" not in node.instruction.config:
        return False
    return not any("AsyncCollectiveStart" in other.instruction.attributes for other in nodes)


def _fused_kind(node: Node, nodes: Sequence[Node]) -> str:
    """An all-reduce of which a fusion keeps slices is a reduce-scatter."""

    def users(node: Node) -> Iterator[Node]:
        for other in nodes:
            if node in other.operands:
                is_element = other.instruction.opcode == "get-tuple-element"
                yield from users(other) if is_element else (other,)

    opcodes = {user.instruction.opcode for user in users(node)}
    kind = node.instruction.opcode
    return "reduce-scatter" if kind == "all-reduce" and opcodes == {"dynamic-slice"} else kind


class _Places:
    """Where the partitions of a program are in a mesh of one or more slices."""

    def __init__(self, module: Module, mesh: Mesh):
        self.axes = np.array(mesh.axis_names)
        places = np.unravel_index(np.arange(mesh.size), mesh.devices.shape)
        coordinates = np.stack(places, axis=-1)
        slice_of = np.array([getattr(d, "slice_index", None) or 0 for d in mesh.devices.flat])
        names, firsts = np.unique(slice_of, return_index=True)
        # libtpu compiles for one slice, and lets the hosts talk to the others.
        is_per_slice = len(names) > 1 and module.num_partitions < mesh.size
        own = slice_of == names[0] if is_per_slice else np.full(mesh.size, True)
        self.coordinates, self.slice_of = coordinates[own], slice_of[own]
        self.slice_starts = coordinates[firsts]

    def collective(self, kind: str, execution: Execution, inside: Node | None) -> Collective:
        place = inside or execution
        instruction, computation = place.instruction, place.computation
        operands = [s for name in instruction.operands for s in computation[name].shapes]
        results = _results(instruction)
        if kind == "send":
            kind = _transfer(instruction)
            group, axes = len(self.slice_starts), self._axes(self.slice_starts[None])
            network: Network = "dcn"
            arrays = operands[:1]  # The other one is a token.
            bytes_ = sum(shape.bytes for shape in arrays)
            if kind == "all-gather":
                bytes_ *= group
        else:
            groups = self._groups(kind, instruction)
            group = 2 if kind == "collective-permute" else groups.shape[1]
            axes = self._axes(self.coordinates[groups])
            network = "dcn" if np.ptp(self.slice_of[groups], axis=1).any() else "ici"
            arrays = results if kind == "all-gather" else operands
            bytes_ = sum(shape.bytes for shape in arrays)
        return Collective(
            kind=kind,
            name=instruction.name,
            op_name=instruction.op_name or execution.instruction.op_name,
            shapes=tuple(map(str, arrays)),
            array_bytes=bytes_,
            trips=execution.trips,
            group_size=group,
            axes=axes,
            network=network,
        )

    def _axes(self, places: Int[np.ndarray, "groups members axes"]) -> tuple[str, ...]:
        """Axes along which the members of a group differ."""
        differ = (places != places[:, :1]).any(axis=(0, 1))
        return tuple(map(str, self.axes[differ]))

    def _groups(self, kind: str, instruction: Instruction) -> Int[np.ndarray, "groups members"]:
        if kind == "collective-permute":
            pairs = np.array(_lists(instruction, "source_target_pairs"), int).reshape(-1, 2)
            moving = pairs[pairs[:, 0] != pairs[:, 1]]
            return moving if len(moving) else np.zeros((1, 1), int)
        return replica_groups(instruction, len(self.coordinates))


def _results(instruction: Instruction) -> list[Shape]:
    """What it leaves; a start has `(operands, results, ...)`."""
    if instruction.opcode.endswith("-start") and isinstance(instruction.shape, tuple):
        return leaves(instruction.shape[1])
    return instruction.shapes


def _transfer(send: Instruction) -> str:
    """Which collective libtpu's hosts carry out for a `send`."""
    match = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
    kind = match[1].lower().replace("_", "-") if match else ""
    return kind if kind in _FACTORS else "collective-permute"


def _lists(instruction: Instruction, attribute: str) -> list[list[int]]:
    match = re.search(rf"\b{attribute}=\{{((?:\{{[\d,]*\}},?)*)\}}", instruction.attributes)
    rows = re.findall(r"\{([\d,]*)\}", match[1]) if match else []
    return [[int(number) for number in row.split(",")] for row in rows if row]


def replica_groups(instruction: Instruction, num_devices: int) -> Int[np.ndarray, "groups members"]:
    """Positions in the device assignment of the members of each group.

    Reads the three ways in which XLA writes them: lists `{{0,1},{2,3}}`, reshaped and transposed
    ranges `[2,2]<=[2,2]T(1,0)`, and axes of a mesh `mesh['a'=2,'b'=2] {'a'}`.

    Raises:
        ValueError: if they are written in another way.
    """
    match = re.search(r"\breplica_groups=(.*?)(?=, [a-z_]+=|$)", instruction.attributes)
    text = match[1] if match else "{}"
    if text == "{}":
        return np.arange(num_devices)[None]
    if text.startswith("{"):
        return np.array(_lists(instruction, "replica_groups"))
    if match := re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, order = (_integers(part) for part in match.groups())
        devices = np.arange(math.prod(dims)).reshape(dims)
        return devices.transpose(order or range(len(dims))).reshape(shape)
    if match := re.fullmatch(r"mesh\[(.*?)\] \{(.*)\}", text):
        return _mesh_groups(match[1], match[2])
    raise ValueError(f"{instruction.name}: cannot read replica_groups={text}")


def _mesh_groups(mesh: str, axes: str) -> Int[np.ndarray, "groups members"]:
    """Groups along axes, or along parts of axes: `'a':(2)4` is the part of 4 after one of 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    parts = {name: [size] for name, size in sizes.items()}
    wanted = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    for name, before, size in wanted:
        if size:
            before, size = int(before), int(size)
            parts[name] = [before, size, sizes[name] // (before * size)]
    keys = [(name, i) for name, part in parts.items() for i in range(len(part))]
    chosen = [(name, 1 if size else 0) for name, _, size in wanted]
    order = [keys.index(key) for key in (*(k for k in keys if k not in chosen), *chosen)]
    dims = [parts[name][i] for name, i in keys]
    members = math.prod(parts[name][i] for name, i in chosen)
    return np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(-1, members)


def _integers(text: str | None) -> list[int]:
    return [int(number) for number in (text or "").split(",") if number]
