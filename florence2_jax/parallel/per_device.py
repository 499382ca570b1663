# SPDX-License-Identifier: Apache-2.0
"""Code that the partitioner cannot cut itself (kernels), run by each device on its own part."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from florence2_jax.parallel.partitioning import LOGICAL_TO_MESH

Axes: TypeAlias = Sequence[str | None]
"""One logical axis per dimension of an array, None where it is not cut."""


def target_platform() -> str:
    """`"cpu"`, `"gpu"` or `"tpu"`: what is traced for.

    That of the mesh in use, which may be a described one: a compiler ahead of time runs on a CPU.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def per_device(
    function: Callable[..., Any], *in_axes: Axes, out_axes: Sequence[Axes]
) -> Callable[..., Any]:
    """`function` of arrays to a tuple of arrays, with each device computing its own part.

    Parts must not depend on one another. Along mesh axes that cut no logical axis (`tensor`, say)
    arrays are whole, and every device computes the same. Outside a mesh, or where a caller has
    already cut by hand, it is `function` itself. It is not differentiated: give it each pass of a
    `jax.custom_vjp`.

    Args:
        function: takes as many arrays as there are `in_axes`.
        in_axes: logical axes of each argument, as in `LOGICAL_TO_MESH`. Where a size does not
            divide, its axis is not cut.
        out_axes: those of each result.
    """

    def call(*args: jax.Array) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        types = zip(mesh.axis_names, mesh.axis_types, strict=True)
        free = {name: mesh.shape[name] for name, kind in types if kind != AxisType.Manual}
        if not free:
            return function(*args)
        cut = {}
        for x, axes in zip(args, in_axes, strict=True):
            for size, axis in zip(x.shape, axes, strict=True):
                names = _names(axis, free)
                divides = size % math.prod(free[name] for name in names) == 0
                cut[axis] = names if divides and cut.get(axis, True) else ()
        in_specs, out_specs = (
            tuple(P(*(cut[axis] or None for axis in axes)) for axes in arrays)
            for arrays in (in_axes, out_axes)
        )
        return jax.shard_map(
            function,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(free),
            check_vma=False,  # Kernels do not declare over which axes their results vary.
        )(*args)

    return call


def _names(axis: str | None, free: Mapping[str, int]) -> tuple[str, ...]:
    names = LOGICAL_TO_MESH[axis] if axis else ()
    names = (names,) if isinstance(names, str) else names or ()
    return tuple(name for name in names if name in free)
