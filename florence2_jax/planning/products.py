# SPDX-License-Identifier: Apache-2.0
"""FLOPs of the products and convolutions of a compiled program, and what the MXU makes of them.

The TPU compiler writes every product as a convolution: batch dimensions become spatial ones whose
windows are dilated so that each output meets one entry, and depthwise convolutions keep their
groups. So the multiplications are counted as those that meet neither padding nor a hole.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from florence2_jax.planning.hlo import Shape
from florence2_jax.planning.schedule import Node

_PASSES = {"highest": 6, "high": 3}
"""Passes over the MXU, which multiplies bfloat16, that a product of float32 takes."""


@dataclasses.dataclass(frozen=True)
class Product:
    """`groups` products of `[rows, depth] x [depth, columns]`, each of other entries."""

    rows: float
    depth: float
    columns: int
    groups: int = 1
    passes: int = 1
    is_depthwise: bool = False

    @property
    def flops(self) -> float:
        """A multiplication and an addition are two."""
        return 2.0 * self.rows * self.depth * self.columns * self.groups

    def padded_flops(self, side: int) -> float:
        """FLOPs with the sizes that lie along an MXU of `side` x `side` rounded up to it.

        The taps of a window are one depth, the best that any order of them can do.
        Rows or columns are rounded, whichever is less: either operand can stay in the MXU. A
        depthwise convolution does not run on it.
        """
        if self.is_depthwise:
            return 0.0
        depth = -(-self.depth // side) * side
        area = min(
            self.rows * (-(-self.columns // side) * side),
            (-(-self.rows // side) * side) * self.columns,
        )
        return 2.0 * area * depth * self.groups * self.passes


def product(node: Node) -> Product | None:
    """What a `convolution` or `dot` computes; None for any other instruction."""
    if node.instruction.opcode == "convolution":
        return _convolution(node)
    return _dot(node) if node.instruction.opcode == "dot" else None


def _operands(node: Node) -> tuple[Shape, Shape]:
    left, right = (node.computation[name].shapes[0] for name in node.instruction.operands[:2])
    return left, right


def _passes(node: Node) -> int:
    precision = node.instruction.attribute("operand_precision") or ""
    return max(_PASSES.get(word, 1) for word in precision.split(","))


def _dot(node: Node) -> Product:
    left, right = _operands(node)

    def dims(name: str) -> list[int]:
        return [int(d) for d in (node.instruction.attribute(name) or "").split(",") if d]

    depth = math.prod(left.dims[d] for d in dims("lhs_contracting_dims"))
    batch = math.prod(left.dims[d] for d in dims("lhs_batch_dims"))
    rows, columns = left.size // (depth * batch), right.size // (depth * batch)
    return Product(rows, depth, columns, groups=batch, passes=_passes(node))


def _convolution(node: Node) -> Product:
    left, right = _operands(node)
    out = node.instruction.shapes[0]
    labels = re.split(r"_|->", node.instruction.attribute("dim_labels") or "")
    left_of, right_of, out_of = (
        dict(zip(names, shape.dims, strict=True))
        for names, shape in zip(labels, (left, right, out), strict=True)
    )
    groups = int(node.instruction.attribute("feature_group_count") or 1)
    batch_groups = int(node.instruction.attribute("batch_group_count") or 1)
    # A batch group sees its own part of the batch, and makes its own part of the features.
    rows, depth = left_of["b"] / batch_groups, left_of["f"] / groups
    columns, num_products = out_of["f"] // (groups * batch_groups), groups * batch_groups
    is_depthwise = num_products > 1 and columns == 1
    for axis, options in enumerate(_window(node)):
        inputs, window, outputs = (dims[str(axis)] for dims in (left_of, right_of, out_of))
        taps = _num_meetings(inputs, window, outputs, **options) / outputs
        depth *= taps
        if window > 1 and taps == 1 and inputs == 1:
            columns *= outputs  # One entry meets each tap: an axis of the kernel alone.
        elif window > 1 and taps == 1:
            num_products *= outputs  # Each entry meets a tap of its own: a batch of products.
        else:
            rows *= outputs
    return Product(rows, depth, columns, num_products, _passes(node), is_depthwise)


def _window(node: Node) -> list[dict[str, int]]:
    words = (node.instruction.attribute("window") or "").split()
    fields = dict(word.split("=") for word in words)
    if "size" not in fields:
        return []
    number = len(fields["size"].split("x"))

    def values(name: str, default: int) -> list[int]:
        return [int(v) for v in fields[name].split("x")] if name in fields else [default] * number

    pads = [int(pad.split("_")[0]) for pad in fields["pad"].split("x")] if "pad" in fields else []
    columns = {
        "pad": pads or [0] * number,
        "stride": values("stride", 1),
        "left_dilation": values("lhs_dilate", 1),
        "right_dilation": values("rhs_dilate", 1),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@functools.lru_cache(maxsize=4096)
def _num_meetings(
    size: int,
    window: int,
    outputs: int,
    *,
    pad: int,
    stride: int,
    left_dilation: int,
    right_dilation: int,
) -> int:
    """Pairs of an output and a tap of the window that meet an entry of the input."""
    starts = np.arange(outputs)[:, None] * stride - pad
    places = starts + np.arange(window) * right_dilation
    inside = (places >= 0) & (places <= (size - 1) * left_dilation)
    return int((inside & (places % left_dilation == 0)).sum())
