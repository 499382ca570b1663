# SPDX-License-Identifier: Apache-2.0
"""Programs compiled for TPUs that are not here, by libtpu."""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from florence2_jax.planning import dump, hlo

# Before libtpu is loaded: it asks no metadata server, and processes do not wait for each other.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def tpu_mesh(name: str, shape: tuple[int, ...], axes: tuple[str, ...], num_slices: int = 1) -> Mesh:
    """A mesh over the devices of slices, in the order in which libtpu lists them."""
    options = {"num_slices": num_slices} if num_slices > 1 else {}
    devices = topologies.get_topology_desc(name, "tpu", **options).devices
    count = int(np.prod(shape))
    return Mesh(np.array(devices[:count]).reshape(shape), axes, (AxisType.Auto,) * len(axes))


def array(shape: tuple[int, ...], mesh: Mesh, spec: P = P(), dtype=jnp.bfloat16):
    """An argument of a program."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def compile_module(function: Callable, *arguments, out: P | None = None) -> hlo.Module:
    """Compiles for the mesh of the arguments."""
    sharding = None if out is None else NamedSharding(arguments[0].sharding.mesh, out)
    lowered = jax.jit(function, out_shardings=sharding).lower(*arguments)
    return hlo.parse(dump.compile_with_text(lowered.compile)[1])
