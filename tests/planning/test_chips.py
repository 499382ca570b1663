# SPDX-License-Identifier: Apache-2.0
"""Slices that exist, by our table and by the TPU compiler's."""

import pytest

from florence2_jax.planning.chips import CHIPS, Topology, nearest_names
from florence2_jax.planning.worker import describe_devices
from florence2_jax.typing import UserError


@pytest.mark.parametrize("generation", CHIPS)
def test_the_compiler_knows_the_slices_of_the_table(generation):
    chip = CHIPS[generation]
    shapes = [shape for shape in chip.shapes if Topology(chip, shape).num_chips <= 4096]
    for shape in (*shapes[:9], shapes[-1]):
        topology = Topology(chip, shape)
        assert Topology.parse(topology.name) == topology
        assert len(describe_devices(topology)) == topology.num_devices, topology.name


@pytest.mark.parametrize("generation", CHIPS)
def test_the_largest_slices_are_as_large_as_the_pods(generation):
    chips = CHIPS[generation]
    largest = Topology(chips, chips.shapes[-1])
    assert largest.num_chips == chips.max_chips
    assert largest.num_hosts == chips.max_chips // 4


def test_several_slices_are_told_apart():
    topology = Topology.parse("v5e:4x4", 3)
    devices = describe_devices(topology)
    assert len(devices) == 48 == topology.num_chips and topology.num_hosts == 12
    assert {device.slice_index for device in devices} == {0, 1, 2}
    assert str(topology) == "3 x v5e:4x4"


def test_a_chip_of_tpu7x_is_two_devices():
    assert Topology.parse("tpu7x:2x2x1").num_devices == 8
    assert Topology.parse("v4:2x2x1").num_devices == 4  # Both cores as one.


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("v5e:8x4", "v5e:4x8"),
        ("v5e:3x5", "v5e:4x4"),
        ("v5e:32x32", "v5e:16x16"),
        ("v5e-16", "v5e:4x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("V6E:2X4 ", "v6e:2x4"),
        ("v7x:4x4x4", "tpu7x:4x4x4"),
        ("v5p:8x8", "v5p:4x4x4"),
        ("v5:8x8x8", "v5p:8x8x8"),
        ("v5p:32x32x32", "v5p:16x16x24"),
        ("v5e:16x16x", "v5e:16x16"),
        ("v5e", "v5e:4x4"),
        ("", "v5e:4x4"),
    ],
)
def test_a_slice_that_does_not_exist_gets_the_nearest_names(name, nearest):
    assert nearest_names(name)[0] == nearest
    with pytest.raises(UserError, match=f"there is no such slice; did you mean {nearest} or"):
        Topology.parse(name)


def test_no_slices_are_refused():
    with pytest.raises(UserError, match="--slices: 0 must be at least 1"):
        Topology.parse("v5e:4x4", 0)
