# SPDX-License-Identifier: Apache-2.0
"""How long a compiled program takes, by two estimates. Nothing here was timed on a TPU.

`seconds` is the roofline of each operation: the sum, over all that a device executes, of the longer
of the time in which HBM moves its bytes and the time in which the MXU does its products. Bytes
count the padding of tiles; buffers that the compiler placed in VMEM are free, and of a slice, or of
a buffer that is updated in place, only the part that is touched counts. Products are rounded up to
the sides of the MXU. Copies that run beside other work, such as one of weights into VMEM, fill the
time in which the products of the same loop body leave HBM idle; only what is left over counts. It
is optimistic: nothing is counted for the vector unit, for the latency of transfers, or for
collectives.

`cycle_seconds` is the sum of the compiler's own `estimated_cycles` over the clock. It is
pessimistic, 2 to 4 times where memory is the limit, and knows nothing of Pallas kernels.

Neither is XLA's `optimal_seconds`, which is negative for programs with custom calls, nor its
`flops`, which count the body of a loop once.
"""

import dataclasses
import re
from collections.abc import Mapping

from florence2_jax.planning.chips import Chip
from florence2_jax.planning.hlo import Instruction, Module
from florence2_jax.planning.products import product
from florence2_jax.planning.schedule import Execution, Graph, Node, dissolve, walk
from florence2_jax.planning.traffic import COLLECTIVES, hbm_bytes

CATEGORIES: tuple[tuple[str, str], ...] = (
    # What is found in `file.py:Class.method` of the source, outwards, or in the name stack.
    ("window attention", r"window_?attention"),
    ("channel attention", r"channel_?attention"),
    ("depthwise conv", r"depthwise"),
    ("norm", r"layer_?norm"),
    ("ffn", r":mlp\b|\bffn\b"),
    ("text attention", r"multi_?head_?attention"),
    ("patch embedding", r"patch_?embed"),
    ("logits and loss", r"sharedembedding\.logits|\bloss\.py|cross_entropy"),
    ("embedding", r"embedding"),
    ("optimizer", r"optimizer|optax|adam"),
    ("parameter casts", r":_?gather(_params)?\b"),
)

_MOVES = {"copy", "dynamic-slice", "dynamic-update-slice", "slice"}
_TRANSFER = "prefetch"
"""Category of what moves between HBM and VMEM beside other work."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one or more operations cost, all their trips together."""

    seconds: float = 0.0
    hbm_bytes: float = 0.0
    flops: float = 0.0
    mxu_seconds: float = 0.0
    cycle_seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(value * times for value in _values(self)))


def _values(cost: Cost) -> tuple[float, ...]:
    return cost.seconds, cost.hbm_bytes, cost.flops, cost.mxu_seconds, cost.cycle_seconds


@dataclasses.dataclass(frozen=True)
class Operation:
    """One of the costliest operations."""

    name: str
    category: str
    op_name: str
    shape: str
    trips: int
    cost: Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one step on one device; see the head of this file for the two times."""

    seconds: float
    cycle_seconds: float
    hbm_bytes: float
    executed_flops: float
    mxu_seconds: float
    categories: Mapping[str, Cost]  # The costliest first.
    costliest: tuple[Operation, ...]
    unknown_loops: tuple[str, ...]
    """Loops whose trips could not be read: their bodies are counted once, so all is too small."""
    kernels: Cost
    """Pallas kernels alone: by the FLOPs that they declare and by their bytes, nothing else. What
    their vector code takes is not known here, and often more."""
    unknown_kernels: tuple[str, ...]
    """Kernels that declare no FLOPs: only their bytes are counted."""


def estimate(module: Module, chip: Chip, *, num_costliest: int = 20) -> Estimate:
    """Estimates a compiled program on a chip."""
    schedule = walk(module)
    total, kernels, categories = Cost(), Cost(), {}
    operations, unknown_kernels = [], []
    idle_s: dict[str, float] = {}  # Of HBM, by loop body.
    transfers_s: dict[str, float] = {}
    for execution in schedule.executions:
        instruction = execution.instruction
        graph = _graph(module, execution)
        if graph is None:
            continue
        cost = _cost(execution, graph, chip) * execution.trips
        if _is_kernel(instruction):
            kernels += cost
            if instruction.configured("flops") is None:
                unknown_kernels.append(instruction.name)
        category = _category(module, execution, graph)
        body = execution.body
        if category == _TRANSFER:
            transfers_s[body] = transfers_s.get(body, 0.0) + cost.seconds
        else:
            idle = cost.seconds - cost.hbm_bytes / chip.hbm_bytes_per_s
            idle_s[body] = idle_s.get(body, 0.0) + idle
        total += cost
        categories[category] = categories.get(category, Cost()) + cost
        operations.append(
            Operation(
                name=instruction.name,
                category=category,
                op_name=instruction.op_name,
                shape=", ".join(map(str, instruction.shapes)),
                trips=execution.trips,
                cost=cost,
            )
        )
    hidden = [min(seconds, idle_s.get(body, 0.0)) for body, seconds in transfers_s.items()]
    if hidden:
        total += Cost(seconds=-sum(hidden))
        categories[_TRANSFER] += Cost(seconds=-sum(hidden))
    operations.sort(key=lambda operation: -operation.cost.seconds)
    by_cost = sorted(categories.items(), key=lambda item: -item[1].seconds)
    return Estimate(
        seconds=total.seconds,
        cycle_seconds=total.cycle_seconds,
        hbm_bytes=total.hbm_bytes,
        executed_flops=total.flops,
        mxu_seconds=total.mxu_seconds,
        categories=dict(by_cost),
        costliest=tuple(operations[:num_costliest]),
        unknown_loops=schedule.unknown_loops,
        kernels=kernels,
        unknown_kernels=tuple(unknown_kernels),
    )


def _cost(execution: Execution, graph: Graph, chip: Chip) -> Cost:
    instruction = execution.instruction
    products = [found for node in graph.nodes if (found := product(node))]
    flops = sum(p.flops for p in products)
    padded = sum(p.padded_flops(chip.mxu_side) for p in products)
    if _is_kernel(instruction):
        flops = padded = float(instruction.configured("flops") or 0)
    moved = hbm_bytes(execution, graph)
    mxu_seconds = padded / chip.bf16_flops
    return Cost(
        seconds=max(moved / chip.hbm_bytes_per_s, mxu_seconds),
        hbm_bytes=moved,
        flops=flops,
        mxu_seconds=mxu_seconds,
        cycle_seconds=_cycles(instruction) / chip.clock_hz,
    )


def _cycles(instruction: Instruction) -> int:
    cycles = instruction.configured("estimated_cycles") or 0
    return cycles if cycles < _NO_CYCLES else 0


_NO_CYCLES = 2**63 - 1  # Written where the compiler has no estimate.

# What an operation is

_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone"}


def _graph(module: Module, execution: Execution) -> Graph | None:
    """An operation as a graph of one or more nodes; None if it costs nothing here."""
    instruction, computation = execution.instruction, execution.computation
    opcode = instruction.opcode
    kind = opcode.removesuffix("-start")
    if opcode in _FREE or kind in COLLECTIVES or opcode.endswith(("-done", "-update")):
        return None
    if instruction.attribute("custom_call_target") in {f'"{call}"' for call in _FREE_CALLS}:
        return None
    if opcode == "fusion":
        graph = dissolve(module, module.computations[instruction.called("calls")])
        sends = any(node.instruction.opcode in COLLECTIVES for node in graph.nodes)
        # One that only sends is a collective; one that computes beside it is kOutput or kLoop.
        return None if sends and instruction.attribute("kind") == "kCustom" else graph
    inputs = tuple(Node(computation[name], computation, ()) for name in instruction.operands)
    node = Node(instruction, computation, inputs)
    return Graph(inputs, (*inputs, node), (node,))


def _is_kernel(instruction: Instruction) -> bool:
    return instruction.attribute("custom_call_target") == '"tpu_custom_call"'


def _category(module: Module, execution: Execution, graph: Graph) -> str:
    instruction = execution.instruction
    opcodes = {node.instruction.opcode for node in graph.nodes}
    if execution.is_async and instruction.opcode.removesuffix("-start") in _MOVES:
        return _TRANSFER
    if not opcodes & {"convolution", "dot"}:
        if instruction.opcode in ("copy", "transpose", "reshape"):
            return "copies"
        last = instruction.op_name.rpartition("/")[2]
        if "/while/body/" in instruction.op_name and last.startswith("dynamic_"):
            return "stacks of loops"
    # Innermost first: a norm of the patch embedding is a norm.
    for place in (*module.source(instruction), instruction.op_name):
        for name, pattern in CATEGORIES:
            if re.search(pattern, place, re.IGNORECASE):
                return name
    return "other"
