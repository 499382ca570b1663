# SPDX-License-Identifier: Apache-2.0
"""What a device executes of a module: instructions outside fusions, and how often each runs."""

import dataclasses
import re
from collections.abc import Mapping
from typing import TypeAlias

from florence2_jax.planning.hlo import Computation, Instruction, Module


@dataclasses.dataclass(frozen=True)
class Execution:
    """An instruction that runs `trips` times per step."""

    instruction: Instruction
    computation: Computation
    trips: int
    body: str  # The loop body (or entry) it is a part of, also where an inner call runs it.
    is_async: bool  # Whether it runs beside the other work of that body.


@dataclasses.dataclass(frozen=True)
class Schedule:
    """All that a device executes, and the loops whose number of trips could not be read.

    The bodies of those are counted once: sums over a schedule that has any are too small.
    """

    executions: tuple[Execution, ...]
    unknown_loops: tuple[str, ...]


def walk(module: Module) -> Schedule:
    """Lists every instruction outside fusions; nested loops multiply.

    Every branch of a conditional is counted. What an asynchronous start calls is listed in the
    place of the start.
    """
    executions: list[Execution] = []
    unknown: list[str] = []

    def visit(computation: Computation, trips: int, body: str, is_async: bool) -> None:
        for instruction in computation:
            called = _called(module, instruction) if instruction.opcode in _CALLERS else []
            if not called:
                beside = is_async or instruction.opcode.endswith("-start")
                executions.append(Execution(instruction, computation, trips, body, beside))
                continue
            count, starts = 1, instruction.opcode.endswith("-start")
            if instruction.opcode == "while":
                known = trip_count(module, computation, instruction)
                if known is None:
                    unknown.append(instruction.name)
                else:
                    count = known
            for inner in called:
                inside = inner.name if instruction.opcode == "while" else body
                visit(inner, trips * count, inside, is_async or starts)

    visit(module.entry, 1, module.entry.name, False)
    return Schedule(tuple(executions), tuple(unknown))


_CALLERS = {"while", "conditional", "call", "custom-call"}
_CALLERS |= {"async-start", "call-start", "custom-call-start"}


def _called(module: Module, instruction: Instruction) -> list[Computation]:
    names = [instruction.called(key) for key in ("body", "calls", "to_apply")]
    names += [instruction.called(key) for key in ("true_computation", "false_computation")]
    for key in ("branch_computations", "called_computations"):
        branches = instruction.attribute(key) or ""
        names += [name.strip().removeprefix("%") for name in branches.split(",")]
    return [module.computations[name] for name in names if name in module.computations]


# Fusions, seen as one graph


@dataclasses.dataclass(frozen=True)
class Node:
    """An instruction of a fusion; operands are nodes, through bitcasts and inner fusions."""

    instruction: Instruction
    computation: Computation
    operands: tuple["Node", ...]

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclasses.dataclass(frozen=True)
class Graph:
    """A computation with the fusions inside it dissolved."""

    parameters: tuple[Node, ...]
    nodes: tuple[Node, ...]  # All, parameters included, operands before those who use them.
    results: tuple[Node, ...]  # One per array of the result, or the one node of any other result.


def dissolve(module: Module, computation: Computation) -> Graph:
    """One graph of a computation and of the fusions inside it, bitcasts and tuples left out."""
    nodes: list[Node] = []

    def build(computation: Computation, arguments: tuple | None) -> tuple[Node, ...]:
        values: dict[str, tuple[Node, ...]] = {}  # One node, or one per element of a tuple.
        for instruction in computation:
            operands = [values[name] for name in instruction.operands if name in values]
            opcode = instruction.opcode
            if opcode == "parameter" and arguments is not None:
                value = arguments[int(instruction.literal)]
            elif opcode == "bitcast" and operands:
                value = operands[0]
            elif opcode == "tuple":
                value = tuple(node for operand in operands for node in operand)
            elif opcode == "get-tuple-element" and len(operands[0]) > 1:
                value = (operands[0][instruction.index],)
            elif opcode == "fusion":
                value = build(module.computations[instruction.called("calls")], tuple(operands))
            else:
                sources = tuple(node for operand in operands for node in operand)
                node = Node(instruction, computation, sources)
                nodes.append(node)
                value = (node,)
            values[instruction.name] = value
        return values[computation.root.name]

    results = build(computation, None)
    parameters = [node for node in nodes if node.instruction.opcode == "parameter"]
    parameters.sort(key=lambda node: int(node.instruction.literal))
    return Graph(tuple(parameters), tuple(nodes), results)


# Trips of loops

Held: TypeAlias = int | tuple[str, int] | None
"""What a value is: a constant, `("element", index)` of what a loop carries, or unknown."""


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How many times the body of a `while` runs; None if that is not written in the program.

    From the backend's configuration, else from a counter that starts at a constant, changes by a
    constant, and is compared with one.
    """
    known = loop.configured("known_trip_count")
    if known is not None:
        return known
    carried = computation[loop.operands[0]]
    if carried.opcode != "tuple":
        return None
    starts = [_constant(computation, name) for name in carried.operands]
    steps = dissolve(module, module.computations[loop.called("body")]).results
    if len(steps) != len(starts):
        return None
    fixed = {
        index: start
        for index, (start, step) in enumerate(zip(starts, steps, strict=True))
        if start is not None and _held(step, {}) == ("element", index)
    }
    condition = dissolve(module, module.computations[loop.called("condition")]).results[0]
    if condition.instruction.opcode != "compare":
        return None
    left, right = (_held(node, fixed) for node in condition.operands)
    direction = condition.instruction.attribute("direction") or ""
    if isinstance(left, int):
        left, right = right, left
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    if not isinstance(left, tuple) or not isinstance(right, int):
        return None
    start, change = starts[left[1]], _change(steps[left[1]], left, fixed)
    return None if start is None or not change else _count(start, change, direction, right)


def _count(start: int, change: int, direction: str, bound: int) -> int | None:
    """Trips while `start + trip * change` stands in that relation to `bound`."""
    if direction in ("LE", "GE"):
        bound += 1 if direction == "LE" else -1
    distance = bound - start if change > 0 else start - bound
    stops = {"NE"} | ({"LT", "LE"} if change > 0 else {"GT", "GE"})
    if direction not in stops or (direction == "NE" and (distance < 0 or distance % change)):
        return None
    return max(0, -(-distance // abs(change)))


_SAME = {"copy", "bitcast", "convert", "copy-done", "copy-start", "reshape"}


def _constant(computation: Computation, name: str) -> int | None:
    instruction = computation[name]
    while instruction.opcode in _SAME:
        instruction = computation[instruction.operands[0]]
    return _integer(instruction)


def _integer(instruction: Instruction) -> int | None:
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.literal):
        return int(instruction.literal)
    return None


def _held(node: Node, fixed: Mapping[int, int]) -> Held:
    while node.instruction.opcode in _SAME:
        node = node.operands[0]
    if node.instruction.opcode == "get-tuple-element":
        is_carried = node.operands[0].instruction.opcode == "parameter"
        index = node.instruction.index
        return fixed.get(index, ("element", index)) if is_carried else None
    return _integer(node.instruction)


def _change(step: Node, counter: Held, fixed: Mapping[int, int]) -> int | None:
    """By how much each trip changes the counter."""
    while step.instruction.opcode in _SAME:
        step = step.operands[0]
    if step.instruction.opcode not in ("add", "subtract"):
        return None
    left, right = (_held(node, fixed) for node in step.operands)
    if left == counter and isinstance(right, int):
        return right if step.instruction.opcode == "add" else -right
    if right == counter and isinstance(left, int) and step.instruction.opcode == "add":
        return left
    return None
