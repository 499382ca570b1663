# SPDX-License-Identifier: Apache-2.0
"""The image encoder of Florence-2 out of a DaViT trained on ImageNet, or of timm's `davit_*_fl`.

Three layouts are known by their names: timm's `davit_tiny` to `davit_giant`; the authors', from
whose weights those were made; and timm's `davit_base_fl` and `davit_huge_fl`, which are
Florence-2's own encoder and change nothing but their names. The ImageNet models differ from it in

- **channel attention**: they apply softmax((k c^-0.5)^T v) to q, where Florence-2 applies
  softmax((q N^-0.5)^T k) to v, over c channels per group and N tokens. So k, v, q become the new
  q, k, v, and the new q is multiplied by sqrt(N / c), weights and biases. N is that of the config's
  image size, for which the result is the same function; at any other size its softmax is sharper or
  flatter than the source's;
- **downsampling**: 2x2 patches without padding, where Florence-2 has 3x3 with one row of padding.
  The 2x2 kernel is placed at rows and columns 1 and 2, the rest is zero;
- **windows**: of 7 tokens at 224 px, where Florence-2 has 12. No parameter depends on it, so the
  weights carry over; the function is the source's only if `davit.window_size` is;
- **head**: the classifier and its norm are left out.

Tensors do not say in how many heads and groups their model divided them. All published ones have 32
channels per head, as Florence-2 has; a source of another division is not noticed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from florence2_jax.conversion.initial_sources import open_source, read_matched, without
from florence2_jax.conversion.names import entries
from florence2_jax.conversion.tensors import ArrayLike
from florence2_jax.models.config import Florence2Config
from florence2_jax.typing import UserError


class _Layout(NamedTuple):
    """How a source names its tensors, and which arithmetic they were trained for."""

    names: tuple[tuple[str, str], ...]  # Substitutions in transformers' names, in order.
    head: tuple[str, ...]  # What the names of the classifier begin with.
    is_imagenet: bool


_OURS = "model.vision_tower."
_TIMM = (
    (r"^convs\.0\.", "stem."),
    (r"^convs\.(\d+)\.", r"stages.\1.downsample."),
    (r"^blocks\.(\d+)\.", r"stages.\1.blocks."),
    (r"\.conv([12])\.", r".cpe\1.proj."),
    (r"\.(window|channel)_attn\.", ".attn."),
    (r"\.ffn\.", ".mlp."),
)
_AUTHORS = (
    (r"^convs\.(\d+)\.conv\.", r"patch_embeds.\1.proj."),
    (r"^convs\.", "patch_embeds."),
    (r"^blocks\.", "main_blocks."),
    (r"\.conv1\.", ".cpe.0.proj."),
    (r"\.conv2\.", ".cpe.1.proj."),
    (r"\.(window|channel)_attn\.", ".attn."),
    (r"\.ffn\.", ".mlp."),
)
_NUMBERED = ((r"\.spatial_block\.", ".0."), (r"\.channel_block\.", ".1."))
_LAYOUTS = {
    "timm": _Layout(_TIMM + _NUMBERED, ("head.", "norm_pre."), is_imagenet=True),
    "timm_fl": _Layout(_TIMM, ("head.", "norm_pre."), is_imagenet=False),
    "authors": _Layout(_AUTHORS + _NUMBERED, ("head.", "norms."), is_imagenet=True),
}


def davit_tensors(
    source: str | Path, fresh: Mapping[str, ArrayLike], config: Florence2Config
) -> dict[str, NDArray[np.float32]]:
    """DaViT's tensors by transformers' names for Florence-2, the image encoder whole.

    Args:
        source: a folder, a file of weights, or a hub name.
        fresh: tensors by the same names, for their shapes.
        config: of the model; `image_size` is the resolution at which the function is the source's.

    Raises:
        UserError: naming what does not fit, or if no layout is known.
    """
    place, tensors = open_source(source)
    layout = _LAYOUTS[_find_layout(tensors, place)]
    targets = [entry.name for entry in entries(config, "hf") if entry.name.startswith(_OURS)]
    names = {_source_name(target, layout): target for target in targets}
    shapes = {name: _source_shape(target, fresh) for name, target in names.items()}
    arrays = read_matched(without(tensors, layout.head), shapes, place)
    result = {target: arrays.pop(name) for name, target in names.items()}
    for target, array in result.items():
        if _is_patch_kernel(target):
            size = fresh[target].shape[-1]
            result[target] = _place_kernel(array, size, f"{place}: {target}")
        elif layout.is_imagenet and ".channel_attn.qkv." in target:
            result[target] = _turn_channel_attention(array, *_tokens_and_channels(target, config))
    return result


def _find_layout(tensors: Mapping[str, ArrayLike], place: Path) -> str:
    if "patch_embeds.0.proj.weight" in tensors:
        return "authors"
    if "stem.conv.weight" in tensors:
        return "timm_fl" if any(".spatial_block." in name for name in tensors) else "timm"
    raise UserError(
        f"{place} holds no DaViT: neither stem.conv.weight (timm) nor patch_embeds.0.proj.weight "
        "(the authors') is among its tensors"
    )


def _source_name(target: str, layout: _Layout) -> str:
    name = target.removeprefix(_OURS)
    for pattern, replacement in layout.names:
        name = re.sub(pattern, replacement, name)
    return name


def _is_patch_kernel(target: str) -> bool:
    return re.search(r"\.convs\.\d+\.conv\.weight$", target) is not None


def _source_shape(target: str, fresh: Mapping[str, ArrayLike]) -> tuple[int | None, ...]:
    """That of our tensor; kernels of patches may be smaller."""
    shape = tuple(fresh[target].shape)
    return (*shape[:2], None, None) if _is_patch_kernel(target) else shape


def _place_kernel(kernel: NDArray, size: int, place: str) -> NDArray[np.float32]:
    """`[out, in, y, x]` within zeros of `size`, where it reads the same pixels as before.

    An odd kernel is centred on the first pixel of its patch, as ours is; an even one begins there.
    """
    rows, columns = kernel.shape[2:]
    begin = size // 2 - (rows // 2 if rows % 2 else 0)
    if rows != columns or begin < 0 or begin + rows > size:
        raise UserError(
            f"{place}: a kernel of {rows}x{columns} does not fit into {size}x{size} "
            "(model.davit.patch_kernels)"
        )
    placed = np.zeros((*kernel.shape[:2], size, size), np.float32)
    placed[:, :, begin : begin + rows, begin : begin + rows] = kernel
    return placed


def _tokens_and_channels(target: str, config: Florence2Config) -> tuple[int, int]:
    """How many tokens the stage of a tensor has, and how many channels a group."""
    davit, stage = config.davit, int(target.split(".")[3])
    stride = int(np.prod(davit.patch_strides[: stage + 1]))
    width, height = config.image_size
    return (width // stride) * (height // stride), davit.dims[stage] // davit.num_heads[stage]


def _turn_channel_attention(qkv: NDArray, num_tokens: int, channels: int) -> NDArray[np.float32]:
    """The fused projection (or its bias), from ImageNet's equation to ours."""
    q, k, v = np.split(qkv.astype(np.float64), 3)
    return np.concatenate([k * (num_tokens / channels) ** 0.5, v, q]).astype(np.float32)
