# SPDX-License-Identifier: Apache-2.0
"""Which rows of a global batch a host loads, and where they go on its devices."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from florence2_jax.parallel.partitioning import batch_sharding
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True)
class HostRows:
    """The share of one host (process): block `block` of `num_blocks` equal ones.

    Blocks are of the data, devices hold rows: a host of a pod is a square of chips, whose rows need
    not be neighbours in the mesh, so it puts its block wherever its own rows are. Hosts that hold
    the same rows (a `tensor` axis across hosts) load the same block.
    """

    block: int
    num_blocks: int
    offsets: Mapping[int, int]
    """First row of each of its shards in the global batch -> that row in its block."""

    @classmethod
    def of(cls, mesh: Mesh, batch_size: int, process_index: int | None = None) -> "HostRows":
        """The share of a process, by default of this one.

        Raises:
            UserError: if hosts hold rows in shares that are neither equal nor apart.
        """
        process_index = jax.process_index() if process_index is None else process_index
        held: dict[int, set[tuple[int, int]]] = {}
        sharding = batch_sharding(mesh)
        for device, index in sharding.devices_indices_map((batch_size,)).items():
            held.setdefault(device.process_index, set()).add(index[0].indices(batch_size)[:2])
        shares = sorted({tuple(sorted(spans)) for spans in held.values()})
        sizes = {sum(stop - start for start, stop in share) for share in shares}
        if len(sizes) > 1 or sum(sizes) * len(shares) != batch_size:
            raise UserError(
                f"mesh: {dict(mesh.shape)} gives the hosts unequal or overlapping rows of a batch "
                f"of {batch_size}; choose a mesh in which the devices of a host lie together"
            )
        own = tuple(sorted(held[process_index]))
        offsets, row = {}, 0
        for start, stop in own:
            offsets[start] = row
            row += stop - start
        return cls(shares.index(own), len(shares), offsets)

    def place(self, array: Any, mesh: Mesh) -> jax.Array:
        """The rows of a block as part of a global array, spread over the mesh."""
        shape = (len(array) * self.num_blocks, *array.shape[1:])

        def shard(index: Any) -> Any:
            start, stop, _ = index[0].indices(shape[0])
            return array[self.offsets[start] : self.offsets[start] + stop - start]

        return jax.make_array_from_callback(shape, batch_sharding(mesh), shard)
