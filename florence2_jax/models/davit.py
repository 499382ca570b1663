# SPDX-License-Identifier: Apache-2.0
"""DaViT, the image encoder: four stages, each a strided convolution and pairs of blocks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from florence2_jax.models.attention import ChannelAttention, WindowAttention
from florence2_jax.models.config import DaViTConfig
from florence2_jax.models.layers import (
    DepthwiseConv,
    Key,
    LayerNorm,
    Mlp,
    drop_path,
    make_stack,
    normal_init,
    run_stack,
    split_key,
)


class PatchEmbed(nnx.Module):
    """Strided convolution; LayerNorm of its input (`pre_norm`) or of its output."""

    def __init__(
        self, dim: int, out_dim: int, *, kernel: int, stride: int, pre_norm: bool, dtype, rngs
    ):
        self.pre_norm = pre_norm
        self.norm = LayerNorm(dim if pre_norm else out_dim, dtype=dtype, rngs=rngs)
        self.conv = nnx.Conv(
            dim,
            out_dim,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            dtype=dtype,
            kernel_init=normal_init,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B Y X D"]) -> Float[Array, "B y x E"]:
        return self.conv(self.norm(x)) if self.pre_norm else self.norm(self.conv(x))


class Block(nnx.Module):
    """An attention (over windows or over channels) and an MLP, a depthwise convolution before each.

    The convolutions are residual, without norm, activation or drop path.
    """

    def __init__(self, dim: int, attn: nnx.Module, config: DaViTConfig, *, dtype: str, rngs):
        conv = {"method": config.depthwise, "dtype": dtype, "rngs": rngs}
        self.conv1 = DepthwiseConv(dim, **conv)
        self.norm1 = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.attn = attn
        self.conv2 = DepthwiseConv(dim, **conv)
        self.norm2 = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.ffn = Mlp(dim, int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B Y X D"], *, drop_rate: float | Array, key: Key
    ) -> Float[Array, "B Y X D"]:
        attn_key, ffn_key = split_key(key, 2)
        x = x + self.conv1(x)
        x = x + drop_path(self.attn(self.norm1(x)), drop_rate, attn_key)
        x = x + self.conv2(x)
        return x + drop_path(self.ffn(self.norm2(x)), drop_rate, ffn_key)


class DualBlock(nnx.Module):
    """A block of window attention, then one of channel attention."""

    def __init__(self, dim: int, num_heads: int, config: DaViTConfig, *, dtype: str, rngs):
        how = {"method": config.attention, "dtype": dtype, "rngs": rngs}
        size = config.window_size
        attn = WindowAttention(dim, num_heads=num_heads, window_size=size, **how)
        self.spatial = Block(dim, attn, config, dtype=dtype, rngs=rngs)
        attn = ChannelAttention(dim, num_groups=num_heads, **how)
        self.channel = Block(dim, attn, config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B Y X D"], *, drop_rates: Sequence[float] | Array, key: Key
    ) -> Float[Array, "B Y X D"]:
        spatial_key, channel_key = split_key(key, 2)
        x = self.spatial(x, drop_rate=drop_rates[0], key=spatial_key)
        return self.channel(x, drop_rate=drop_rates[1], key=channel_key)


class Stage(nnx.Module):
    """A patch convolution and `depth` pairs of blocks at one resolution."""

    def __init__(
        self, config: DaViTConfig, index: int, *, dtype: str, remat: str, scan: bool, rngs
    ):
        dim, num_heads = config.dims[index], config.num_heads[index]
        self.remat = remat
        self.drop_rates = drop_path_rates(config)[index]
        self.patch_embed = PatchEmbed(
            config.dims[index - 1] if index else 3,
            dim,
            kernel=config.patch_kernels[index],
            stride=config.patch_strides[index],
            pre_norm=config.pre_norm[index],
            dtype=dtype,
            rngs=rngs,
        )
        self.blocks = make_stack(
            lambda: DualBlock(dim, num_heads, config, dtype=dtype, rngs=rngs),
            config.depths[index],
            scan=scan,
        )

    def __call__(self, x: Float[Array, "B Y X D"], *, key: Key) -> Float[Array, "B y x E"]:
        x = self.patch_embed(x)
        return run_stack(self.blocks, x, remat=self.remat, key=key, drop_rates=self.drop_rates)


class DaViT(nnx.Module):
    """Image to feature map, `total_stride` times smaller. No norm follows the last block.

    Source: DaViT (arXiv:2204.03645) as used by Florence-2: 3x3 overlapping downsampling, windows of
    12, channel attention scaled by the number of tokens.
    """

    def __init__(self, config: DaViTConfig, *, dtype: str, remat: str, scan: bool, rngs: nnx.Rngs):
        self.total_stride = config.total_stride
        options = {"dtype": dtype, "remat": remat, "scan": scan, "rngs": rngs}
        self.stages = nnx.List([Stage(config, i, **options) for i in range(len(config.dims))])

    def __call__(
        self, image: Float[Array, "B Y X 3"], *, key: Key = None
    ) -> Float[Array, "B y x D"]:
        """Features of normalised images.

        Raises:
            ValueError: if a side is no multiple of the total stride; positions would be ambiguous.
        """
        if image.shape[1] % self.total_stride or image.shape[2] % self.total_stride:
            raise ValueError(
                f"image of {image.shape[2]}x{image.shape[1]} px: resize it so that both sides are"
                f" multiples of {self.total_stride}"
            )
        x = image
        for stage, stage_key in zip(self.stages, split_key(key, len(self.stages)), strict=True):
            x = stage(x, key=stage_key)
        return x


def drop_path_rates(config: DaViTConfig) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Rates `[stage][block] = (spatial, channel)`, growing linearly from 0 over all blocks."""
    rates = np.linspace(0, config.drop_path_rate, 2 * sum(config.depths)).reshape(-1, 2).tolist()
    pairs = iter([(spatial, channel) for spatial, channel in rates])
    return tuple(tuple(next(pairs) for _ in range(depth)) for depth in config.depths)


IMAGE_MEAN = np.array((0.485, 0.456, 0.406), np.float32)  # ImageNet, as the released processor.
IMAGE_STD = np.array((0.229, 0.224, 0.225), np.float32)


def normalize_image(image: Array) -> Float[Array, "B Y X 3"]:
    """uint8 pixels to float32 of about zero mean and unit variance; floats pass as they are."""
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image
    return (jax.lax.convert_element_type(image, jnp.float32) / 255 - IMAGE_MEAN) / IMAGE_STD
