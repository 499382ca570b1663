# SPDX-License-Identifier: Apache-2.0
"""From the feature map to image tokens of the encoder's width."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from florence2_jax.models.layers import LayerNorm, normal_init


class Projector(nnx.Module):
    """Adds positions, puts the average token before the grid, projects without bias, normalises.

    The first half of the channels codes the column, the second half the row. Released models also
    add row 0 of a sine table of frames, [0, 1, 0, 1, ...]: constant, but not zero.
    Source: the released models; the paper does not describe it.
    """

    def __init__(self, dim: int, out_dim: int, *, max_positions: int, dtype: str, rngs: nnx.Rngs):
        self.max_positions = max_positions
        self.dtype = dtype
        table = (max_positions, dim // 2)
        self.column_positions = nnx.Param(normal_init(rngs.params(), table, jnp.float32))
        self.row_positions = nnx.Param(normal_init(rngs.params(), table, jnp.float32))
        self.kernel = nnx.Param(normal_init(rngs.params(), (dim, out_dim), jnp.float32))
        self.norm = LayerNorm(out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B Y X D"]) -> Float[Array, "B N E"]:
        """`1 + Y * X` tokens per image.

        Raises:
            ValueError: if the map has more rows or columns than there are positions.
        """
        batch, height, width, dim = x.shape
        if max(height, width) > self.max_positions:
            raise ValueError(
                f"a feature map of {width}x{height} needs more than {self.max_positions} positions;"
                " use a smaller image or a model with a larger max_image_positions"
            )
        columns = self.column_positions[:width][None]
        rows = self.row_positions[:height][:, None]
        half = (height, width, dim // 2)
        positions = [jnp.broadcast_to(columns, half), jnp.broadcast_to(rows, half)]
        first_frame = jnp.arange(dim) % 2
        x = x + (jnp.concatenate(positions, axis=-1) + first_frame).astype(self.dtype)
        x = x.reshape(batch, height * width, dim)
        average = jnp.mean(x, axis=1, keepdims=True, dtype=jnp.float32).astype(self.dtype)
        x = jnp.concatenate([average, x], axis=1)
        projected = x.reshape(-1, dim) @ self.kernel[...].astype(self.dtype)
        return self.norm(projected.reshape(batch, 1 + height * width, -1))
