# SPDX-License-Identifier: Apache-2.0
"""Config -> device mesh: `replica` (across slices, DCN) x `fsdp` x `tensor`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh

from florence2_jax.typing import UserError

MESH_AXES = ("replica", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices per axis; one axis may be -1, which takes whatever is left."""

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1

    @classmethod
    def create(cls, **values: int) -> "MeshConfig":
        """Raises UserError on an unknown axis or a size that is neither positive nor -1."""
        for axis, size in values.items():
            if axis not in MESH_AXES:
                raise UserError(f"mesh.{axis}: no such axis; the axes are {', '.join(MESH_AXES)}")
            if not isinstance(size, int) or (size < 1 and size != -1):
                raise UserError(f"mesh.{axis}: {size!r} must be a positive number of devices or -1")
        return cls(**values)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the devices present.

    Several slices are told apart along `replica`: only gradients travel between them.

    Raises:
        UserError: if the axes do not multiply to the number of devices, or `replica` is no multiple
            of the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _resolve(dataclasses.asdict(config), len(devices))
    axis_types = (AxisType.Auto,) * len(sizes)
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        # An axis may take part of a side of the torus: eight of sixteen chips, say.
        array = create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        return Mesh(array, tuple(sizes), axis_types=axis_types)
    if sizes["replica"] % num_slices:
        raise UserError(
            f"mesh.replica: {sizes['replica']} copies of the parameters do not spread evenly over "
            f"{num_slices} slices; make it a multiple of {num_slices}, or -1, and give mesh.fsdp "
            "the number of devices that share a copy"
        )
    within = (sizes["replica"] // num_slices, sizes["fsdp"], sizes["tensor"])
    array = create_hybrid_device_mesh(
        within, (num_slices, 1, 1), devices, allow_split_physical_axes=True
    )
    return Mesh(array, tuple(sizes), axis_types=axis_types)


def _resolve(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shape = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
    if len(free) > 1:
        raise UserError(f"mesh: {shape}: at most one axis may be -1")
    if fixed > num_devices or num_devices % fixed or (not free and fixed != num_devices):
        raise UserError(
            f"mesh: {shape} needs {'a multiple of ' if free else ''}{fixed} devices, but "
            f"{num_devices} {'is' if num_devices == 1 else 'are'} present; set one axis to -1 to "
            "take what is there"
        )
    return {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}
