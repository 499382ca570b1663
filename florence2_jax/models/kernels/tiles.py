# SPDX-License-Identifier: Apache-2.0
"""What the kernels share: heads side by side in a tile of 128 lanes, and products in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def is_head(shape: tuple[int, ...], head: int, head_dim: int) -> Array:
    """True in the lanes (the second axis) of one head of a tile."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) // head_dim == head


def dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    """Sums over one axis of each, in float32; float32 operands are not rounded."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    axes = (((x_axis,), (y_axis,)), ((), ()))
    return jax.lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)
