# SPDX-License-Identifier: Apache-2.0
"""Bytes that the operations of a compiled program read from and write to HBM.

Tiles are counted with their padding. Buffers in VMEM are free. Of a buffer that an operation slices
only the slice is read, and of one that it updates in place only the update is written: a scan
touches one layer of a stack in each trip, not all of it. What collectives touch is not counted.
"""

from florence2_jax.planning.hlo import Instruction, Shape, leaves
from florence2_jax.planning.schedule import Execution, Graph, Node

COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "recv",
    "reduce-scatter",
    "send",
}
_SLICES = {"dynamic-slice", "gather", "slice"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # And which operand is the update.
_ENTRYWISE = {"convert", "copy", "reshape", "transpose"}  # Slices of these slice their operand.


def hbm_bytes(execution: Execution, graph: Graph) -> float:
    """Bytes that one run of an operation moves, `graph` being what it does."""
    instruction, computation = execution.instruction, execution.computation
    if instruction.opcode.endswith("-start"):
        return _transfer_bytes(instruction)
    flow = _Flow(graph)
    reads: dict[str, float] = {}
    for parameter, name in zip(graph.parameters, instruction.operands, strict=True):
        buffer = sum(map(_in_hbm, computation[name].shapes))
        reads[name] = max(reads.get(name, 0), buffer * flow.share_read(parameter))
    shapes = instruction.shapes
    if len(graph.results) != len(shapes):
        return sum(reads.values()) + sum(map(_in_hbm, shapes))
    writes = (flow.written(*pair) for pair in zip(graph.results, shapes, strict=True))
    return sum(reads.values()) + sum(writes)


def _in_hbm(shape: Shape) -> int:
    return 0 if shape.memory_space else shape.padded_bytes


class _Flow:
    """Who uses what within one operation."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.users: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            for operand in set(node.operands):
                self.users.setdefault(operand, []).append(node)

    def share_read(self, node: Node) -> float:
        """How much of a parameter, or of what was made of it entry by entry, is read: 0 to 1."""
        size = sum(shape.size for shape in node.instruction.shapes)
        total = 0.0
        for user in self.users.get(node, ()):
            opcode, is_first = user.instruction.opcode, user.operands[0] is node
            if opcode in COLLECTIVES:
                continue
            if is_first and opcode in _SLICES:
                total += user.instruction.shapes[0].size / max(1, size)
            elif is_first and opcode in _UPDATES and self._is_result(user):
                total += _update(user).size / max(1, size) if opcode == "scatter" else 0
            elif opcode in _ENTRYWISE and user not in self.graph.results:
                total += self.share_read(user)
            else:
                return 1.0
        return min(1.0, total)

    def _is_result(self, node: Node) -> bool:
        """Whether a node is a result, at once or after further updates in place."""
        if node in self.graph.results:
            return True
        users = self.users.get(node, ())
        return bool(users) and all(
            user.instruction.opcode in _UPDATES
            and user.operands[0] is node
            and self._is_result(user)
            for user in users
        )

    def written(self, node: Node, shape: Shape) -> float:
        """Bytes of a result that are written; `shape` says where it lies."""
        if shape.memory_space or node.instruction.opcode in COLLECTIVES:
            return 0
        updates = 0
        while node.instruction.opcode in _UPDATES:
            updates += _update(node).padded_bytes
            node = node.operands[0]
        # A parameter that is handed on is not written.
        return updates if node in self.graph.parameters else shape.padded_bytes


def _update(node: Node) -> Shape:
    name = node.instruction.operands[_UPDATES[node.instruction.opcode]]
    return node.computation[name].shapes[0]


def _transfer_bytes(instruction: Instruction) -> float:
    """Of an asynchronous copy or slice: `(to, from, ...)`, or `((from, ...), to, ...)`."""
    shape = instruction.shape
    if not isinstance(shape, tuple) or not (leaves(shape[0]) and leaves(shape[1])):
        return 0
    if isinstance(shape[0], Shape):
        target, source = shape[0], leaves(shape[1])[0]
        moved = target
    elif instruction.opcode == "dynamic-update-slice-start":
        source, target = leaves(shape[0])[1], leaves(shape[1])[0]
        moved = source
    else:
        source, target = leaves(shape[0])[0], leaves(shape[1])[0]
        moved = target
    num_ends = (not source.memory_space) + (not target.memory_space)
    return num_ends * moved.padded_bytes
