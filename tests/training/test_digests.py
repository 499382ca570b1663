# SPDX-License-Identifier: Apache-2.0
"""A digest notices every bit, and neither mesh nor sharding nor where it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from florence2_jax.training import digests as digests_lib
from florence2_jax.training.digests import digests

LARGE = (1040, 520)  # Above a megabyte of any dtype of two bytes: summed on devices.
RNG = np.random.default_rng(0)
TREE = {
    "large": RNG.normal(size=LARGE).astype(np.float32),
    "half": RNG.normal(size=(1040, 1040)).astype(jnp.bfloat16),
    "small": RNG.normal(size=(16, 24)).astype(np.float32),
    "mask": RNG.integers(0, 2, (8, 16)).astype(bool),
    "bytes": RNG.integers(-128, 128, (8, 8)).astype(np.int8),
    "step": np.int32(7),
    "none": np.zeros((0, 4), np.float32),
}


@pytest.fixture(scope="module")
def expected():
    return digests(TREE)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((2, 4, 1), P("fsdp")),
        ((2, 4, 1), P(("replica", "fsdp"))),
        ((2, 2, 2), P("tensor", ("fsdp", "replica"))),
        ((1, 8, 1), P()),
    ],
)
def test_the_mesh_does_not_matter(expected, shape, spec):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("replica", "fsdp", "tensor"))
    specs = {name: spec if x.ndim and x.size else P() for name, x in TREE.items()}
    on_mesh = {
        name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in TREE.items()
    }
    assert digests(on_mesh) == expected


def test_one_device_gives_the_same_and_so_does_an_array_without_a_mesh(expected):
    assert digests(jax.device_put(TREE, jax.devices()[5])) == expected


def test_the_host_finds_what_devices_find(expected, monkeypatch):
    monkeypatch.setattr(digests_lib, "_SMALL_BYTES", 1 << 40)
    assert digests(TREE) == expected


@pytest.mark.parametrize("name", TREE)
def test_each_flipped_bit_changes_it(expected, name):
    data = bytearray(np.asarray(TREE[name]).tobytes())
    places = np.random.default_rng(1).choice(len(data), min(20, len(data)), replace=False)
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 if name == "mask" else 1 << (int(place) % 8)
        x = np.frombuffer(flipped, TREE[name].dtype).reshape(TREE[name].shape)
        assert digests({name: x})[name].bits != expected[name].bits


@pytest.mark.parametrize("shape", [(64, 48), LARGE])
def test_changes_that_plain_sums_would_miss_change_it(shape):
    x = RNG.normal(size=shape).astype(np.float32)
    signs = x.copy()
    signs[3:5] *= -1  # An even number of top bits.
    swapped = x.copy()
    swapped[[3, 5]] = x[[5, 3]]
    zeros, longer = np.zeros(shape, np.float32), np.zeros((shape[0] + 1, shape[1]), np.float32)
    versions = (x, signs, swapped, x.T.copy(), zeros, longer, -zeros)
    found = {digests([version])["0"].bits for version in versions}
    assert len(found) == len(versions)


@pytest.mark.parametrize("shape", [(3, 5), LARGE])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_that_are_not_finite_are_counted(shape, dtype):
    x = np.zeros(shape, dtype)
    x[0, 0], x[1, 2], x[2, 4] = np.nan, np.inf, -np.inf
    assert digests([x])["0"].num_not_finite == 3
    assert digests([jnp.zeros(shape, dtype)])["0"].num_not_finite == 0


def test_64_bit_values_count_in_both_halves():
    x = np.arange(6, dtype=np.float64)
    high, low = x.view(np.uint64).copy(), x.view(np.uint64).copy()
    high[2] ^= np.uint64(1 << 63)
    low[2] ^= np.uint64(1)
    found = {digests([y])["0"].bits for y in (x, high.view(np.float64), low.view(np.float64))}
    assert len(found) == 3


def test_keys_have_digests():
    one, other = digests([jax.random.key(1), jax.random.key(2)]).values()
    assert one.bits != other.bits


def test_names_are_paths_through_a_training_state():
    params = {"text": {"shared": jnp.ones(3)}}
    found = digests({"params": params, "opt_state": optax.adam(1.0).init(params)})
    assert list(found) == [
        "opt_state/0/count",
        "opt_state/0/mu/text/shared",
        "opt_state/0/nu/text/shared",
        "params/text/shared",
    ]


def test_digests_do_not_change_with_the_version():
    # Written down once: checkpoints of today must verify tomorrow.
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    bits = [found.bits for found in digests([x, x.astype(jnp.bfloat16)]).values()]
    assert bits == ["1d7995ab2fff9423", "91fae2781f600924"]
