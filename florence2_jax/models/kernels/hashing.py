# SPDX-License-Identifier: Apache-2.0
"""Which attention weights dropout keeps, as a function of where they are: nothing is stored.

A weight's draw is a hash of its sequence's seed, its head, query and key. So a kernel knows it
without being told, its backward pass knows it again, and an equation outside of it gets the same.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

_BITS = 24


def is_kept(
    seed: Int[Array, "..."],
    head: Int[Array, "..."] | int,
    row: Int[Array, "..."],
    column: Int[Array, "..."],
    rate: float,
) -> Bool[Array, "..."]:
    """True with probability `1 - rate` (to 2**-24); int32 of shapes that broadcast.

    Source: the last steps of MurmurHash3, after every coordinate but one has been mixed in.
    """
    x = _mix(seed + head * jnp.int32(_ODD[0]))
    x = _mix(_mix(x + row * jnp.int32(_ODD[1])) + column * jnp.int32(_ODD[2]))
    return (x & (2**_BITS - 1)) >= round(rate * 2**_BITS)


def _mix(x: Array) -> Array:
    """Every bit of the result depends on every bit of `x`."""
    for shift, factor in ((16, _MURMUR[0]), (13, _MURMUR[1])):
        x = (x ^ jax.lax.shift_right_logical(x, shift)) * jnp.int32(factor)
    return x ^ jax.lax.shift_right_logical(x, 16)


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


_MURMUR = tuple(map(_signed, (0x85EBCA6B, 0xC2B2AE35)))
_ODD = tuple(map(_signed, (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)))
