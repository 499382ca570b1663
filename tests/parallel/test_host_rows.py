# SPDX-License-Identifier: Apache-2.0
"""Every host loads one block, and together they fill the batch, whatever the mesh."""

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from florence2_jax.parallel.host_rows import HostRows
from florence2_jax.parallel.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize(
    ("name", "slices", "sizes"),
    [
        ("v5e:16x16", 1, dict(replica=-1, fsdp=8)),
        ("v5e:8x8", 1, dict(replica=1, fsdp=-1)),
        ("v5e:8x8", 1, dict(replica=-1, fsdp=4, tensor=8)),
        ("v5p:4x4x4", 1, dict(replica=-1, fsdp=8)),
        ("v5e:4x4", 4, dict(replica=-1, fsdp=8)),
    ],
)
def test_hosts_share_a_batch_evenly(name, slices, sizes):
    options = {"num_slices": slices} if slices > 1 else {}
    mesh = make_mesh(
        MeshConfig.create(**sizes), topologies.get_topology_desc(name, "tpu", **options).devices
    )
    batch_size = 4 * mesh.size
    hosts = {device.process_index for device in mesh.devices.flat}
    shares = {host: HostRows.of(mesh, batch_size, host) for host in sorted(hosts)}
    numbers = {share.num_blocks for share in shares.values()}
    assert len(numbers) == 1
    assert {share.block for share in shares.values()} == set(range(numbers.pop()))
    held = {}
    for share in shares.values():
        held[share.block] = set(share.offsets)
    starts = [start for own in held.values() for start in own]
    assert len(starts) == len(set(starts))  # No row is in two blocks.


@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(replica=2, fsdp=2, tensor=2)])
def test_rows_end_where_the_mesh_wants_them(sizes):
    mesh = make_mesh(MeshConfig.create(**sizes))
    rows = np.arange(16 * 3).reshape(16, 3)
    share = HostRows.of(mesh, 16)
    assert (share.block, share.num_blocks) == (0, 1)
    placed = share.place(rows, mesh)
    np.testing.assert_array_equal(jax.device_get(placed), rows)
    assert placed.sharding.shard_shape(placed.shape)[0] == 16 // (8 // mesh.shape["tensor"])


def test_a_block_goes_to_scattered_rows():
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    share = HostRows(block=0, num_blocks=1, offsets={0: 2, 2: 0})
    placed = share.place(np.arange(4), mesh)
    np.testing.assert_array_equal(jax.device_get(placed), [2, 3, 0, 1])
