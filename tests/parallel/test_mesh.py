# SPDX-License-Identifier: Apache-2.0
import jax
import pytest
from jax.experimental import topologies

from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.typing import UserError


def test_one_axis_takes_what_is_left():
    assert dict(make_mesh(MeshConfig()).shape) == {"replica": 1, "fsdp": 8, "tensor": 1}
    mesh = make_mesh(MeshConfig(replica=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(MeshConfig(), jax.devices()[:1]).shape)["fsdp"] == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(fsdp=16), "needs 16 devices, but 8 are present"),
        (dict(fsdp=4), "needs 4 devices, but 8 are present"),
        (dict(replica=3), "needs a multiple of 3 devices, but 8 are present"),
        (dict(replica=-1), "at most one axis may be -1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig.create(**sizes))


@pytest.mark.parametrize("size", [0, -2])
def test_a_size_that_is_no_size_is_refused(size):
    with pytest.raises(UserError, match=r"mesh\.tensor"):
        MeshConfig.create(tensor=size)


@pytest.fixture(scope="module")
def two_slices():
    topology = topologies.get_topology_desc("v5e:2x2", platform="tpu", num_slices=2)
    return topology.devices


def test_slices_lie_along_replica(two_slices):
    mesh = make_mesh(MeshConfig(replica=-1, fsdp=2), two_slices)
    assert dict(mesh.shape) == {"replica": 4, "fsdp": 2, "tensor": 1}
    slices = [[device.slice_index for device in row.flat] for row in mesh.devices]
    assert all(len(set(row)) == 1 for row in slices)
    assert [row[0] for row in slices] == [0, 0, 1, 1]


def test_a_copy_of_the_parameters_does_not_span_slices(two_slices):
    with pytest.raises(UserError, match=r"mesh\.replica: 1 copies .* over 2 slices; make it"):
        make_mesh(MeshConfig(), two_slices)
