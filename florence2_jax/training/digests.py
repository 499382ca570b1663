# SPDX-License-Identifier: Apache-2.0
"""A digest per array: 64 bits of its bits, whatever mesh, sharding and number of hosts hold it.

Every 32-bit word is mixed with its place in the whole array by a one-to-one function, and two sums
modulo 2**32 are taken over all words. Sums do not mind in which order, or on which device, their
parts are added. A change within one word (a flipped bit) always changes the first sum; changes of
several words, swapped rows among them, go unnoticed with a chance of about 2**-64.

Devices sum the shards they hold, without a word to each other; hosts exchange the sums once.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


class Digest(NamedTuple):
    """What an array was: `bits` are 16 hexadecimal digits."""

    dtype: str
    shape: tuple[int, ...]
    bits: str
    num_not_finite: int  # Values, modulo 2**32.


def digests(tree: Any) -> dict[str, Digest]:
    """Digests of all arrays, by `named`.

    With several processes all must call it with the same tree. An array that one process holds
    whole (a NumPy array, one on a local device) counts as that process's own.
    """
    arrays = named(tree)
    started = [_start(x) for x in arrays.values()]  # Every device has its work before one is read.
    sums = np.array([_finish(x) for x in started], np.uint32).reshape(-1, 3)
    is_shared = np.array([not getattr(x, "is_fully_addressable", True) for x in arrays.values()])
    if is_shared.any():
        total = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
        sums = np.where(is_shared[:, None], total, sums)
    return {
        name: Digest(str(x.dtype), tuple(x.shape), f"{first:08x}{second:08x}", int(not_finite))
        for (name, x), (first, second, not_finite) in zip(arrays.items(), sums, strict=True)
    }


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path: `params/text/shared/embedding`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


_SMALL_BYTES = 1 << 20
"""Up to here the host is faster: a program per shape takes longer to compile than these to read."""


def _start(x: Any) -> Any:
    """Begins the copy of a small array to the host, or the sums of a large one where it is."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    is_summed_there = x.nbytes > _SMALL_BYTES and x.dtype.itemsize <= 4
    if not isinstance(x, jax.Array):
        if not is_summed_there:
            return x
        x = jax.device_put(x)
    sharding = x.sharding
    if is_summed_there and isinstance(sharding, jax.sharding.SingleDeviceSharding):
        sharding = NamedSharding(Mesh(np.array(list(sharding.device_set)), ("all",)), P())
        x = jax.device_put(x, sharding)
    if is_summed_there and isinstance(sharding, NamedSharding):
        return _sums_on_devices(x, sharding), {shard.device for shard in _own_shards(x)}
    for shard in _own_shards(x):
        shard.data.copy_to_host_async()
    return x


def _finish(started: Any) -> np.ndarray:
    """The sums over what this process holds: uint32[3]."""
    if isinstance(started, tuple):
        sums, owners = started
        parts = [np.asarray(s.data)[0] for s in sums.addressable_shards if s.device in owners]
    elif isinstance(started, jax.Array):
        parts = [
            _sums_on_host(np.asarray(shard.data), shard.index, started.shape)
            for shard in _own_shards(started)
        ]
    else:
        everything = tuple(slice(None) for _ in started.shape)
        parts = [_sums_on_host(np.asarray(started), everything, started.shape)]
    return np.array(parts, np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.uint32)


def _own_shards(x: jax.Array) -> Iterator[Any]:
    """This process's shards, of which every one of the array counts once among all processes."""
    return (shard for shard in x.addressable_shards if shard.replica_id == 0)


@functools.partial(jax.jit, static_argnums=1)
def _sums_on_devices(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """uint32[devices, 3]: each device's sums over its shard."""
    mesh = sharding.mesh
    axes = (*sharding.spec, *[None] * (x.ndim - len(sharding.spec)))

    def shard_sums(shard: jax.Array) -> jax.Array:
        starts = [
            size * jax.lax.axis_index(names) if names else 0
            for size, names in zip(shard.shape, axes, strict=True)
        ]
        bits = shard.astype(jnp.uint8) if shard.dtype == jnp.bool_ else shard
        unsigned = jnp.dtype(f"uint{8 * bits.dtype.itemsize}")
        words = jax.lax.bitcast_convert_type(bits, unsigned).astype(jnp.uint32)
        terms = _terms(words, _positions(jnp, shard.shape, starts, x.shape))
        is_float = jnp.issubdtype(shard.dtype, jnp.inexact)
        bad = ~jnp.isfinite(shard) if is_float else jnp.zeros(shard.shape, jnp.bool_)
        # One reduction of three, so that the shard is read once.
        sums = jax.lax.reduce(
            (*terms, bad.astype(jnp.uint32)),
            (np.uint32(0),) * 3,
            lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
            tuple(range(shard.ndim)),
        )
        return jnp.stack(sums)[None]

    out = P(mesh.axis_names)
    return jax.shard_map(
        shard_sums, mesh=mesh, in_specs=sharding.spec, out_specs=out, check_vma=False
    )(x)


def _sums_on_host(x: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """uint32[3] over the part of an array of this shape that is at `index`."""
    is_float = jnp.issubdtype(x.dtype, jnp.inexact)
    sums = np.array([0, 0, (~np.isfinite(x)).sum() if is_float else 0], np.uint32)
    positions = _positions(np, x.shape, [part.start or 0 for part in index], shape)
    bits = np.ascontiguousarray(x).reshape(x.shape).view(f"u{x.dtype.itemsize}")
    for half in range(max(1, x.dtype.itemsize // 4)):  # 64-bit values are two words.
        words = (bits >> (32 * half) if half else bits).astype(np.uint32)
        with np.errstate(over="ignore"):
            terms = _terms(words, positions ^ np.uint32(half))
        sums[:2] += np.array([term.sum(dtype=np.uint32) for term in terms], np.uint32)
    return sums


def _positions(xp: Any, shape: tuple[int, ...], starts: Any, whole: tuple[int, ...]) -> Any:
    """Row-major places in the whole array, modulo 2**32, of a block of it that begins at starts."""
    positions = xp.zeros(shape, xp.uint32)
    for axis, (size, start) in enumerate(zip(shape, starts, strict=True)):
        stride = xp.uint32(math.prod(whole[axis + 1 :]) % 2**32)
        along = xp.arange(size, dtype=xp.uint32) + xp.asarray(start).astype(xp.uint32)
        positions += (along * stride).reshape(-1, *[1] * (len(shape) - axis - 1))
    return positions


def _terms(words: Any, positions: Any) -> tuple[Any, Any]:
    """What each word adds to the two sums. Source of the mixing: MurmurHash3's 32-bit finaliser."""
    mixed = words ^ (positions * np.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    mixed = mixed ^ (mixed >> 16)
    return mixed, mixed * (2 * positions + np.uint32(1))


def differences(found: Mapping[str, Digest], expected: Mapping[str, Digest]) -> list[str]:
    """A line for each array of `found` that is not what was expected."""
    return [
        f"{name} has digest {digest.bits}, {expected[name].bits} was saved"
        for name, digest in found.items()
        if digest.bits != expected[name].bits
    ]
