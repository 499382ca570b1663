# SPDX-License-Identifier: Apache-2.0
"""Every sharding decision: parameter path -> logical axes -> mesh axes.

No layer knows a mesh. A parameter finds its logical axes by its path in `PARAM_AXES`; an
activation names its own through `constrain`; `LOGICAL_TO_MESH` says where each logical axis lives.
"""

import re
from collections.abc import Mapping
from typing import TypeAlias

import jax
from jax.sharding import PartitionSpec as P

MeshAxes: TypeAlias = str | tuple[str, ...] | None

LOGICAL_TO_MESH: Mapping[str, MeshAxes] = {
    "batch": ("replica", "fsdp"),
    "embed": "fsdp",
    "hidden": "tensor",
    "vocab": ("fsdp", "tensor"),
}


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Pins an activation to the mesh axes of its logical axes, one name or None per dimension.

    Outside a mesh (`jax.set_mesh`) it returns `x` as it is, so model code runs anywhere. A size
    that the mesh does not divide is left free: activations at the edges (a batch of one) may be
    replicated, parameters never are without being named.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    if len(logical_axes) != x.ndim:
        raise ValueError(f"{len(logical_axes)} logical axes for an array of shape {x.shape}")
    spec = []
    for size, axis in zip(x.shape, logical_axes, strict=True):
        names = LOGICAL_TO_MESH[axis] if axis else None
        names = (names,) if isinstance(names, str) else names
        shards = 1
        for name in names or ():
            shards *= mesh.shape.get(name, 1)
        spec.append(names if names and size % shards == 0 else None)
    return jax.lax.with_sharding_constraint(x, P(*spec))
