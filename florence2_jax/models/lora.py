# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters beside dense layers. Source: LoRA (arXiv:2106.09685).

No layer knows of them: `with_lora` puts a `LoRALinear` in the place of every chosen `Linear`, whose
kernel and bias keep their paths.
"""

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from florence2_jax.models.layers import Linear, dropout
from florence2_jax.typing import UserError

A, B, KEY = "lora_a", "lora_b", "lora_key"
"""Leaves beside `kernel`: `[..., in, rank]`, `[..., rank, out]`, and a random key for dropout."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which dense layers get an adapter, and of which size.

    `modules` are patterns (fnmatch, where `*` also matches `/`) of paths such as
    `text/decoder/layers/0/cross_attn/q_proj`; by default every projection of every attention.
    """

    rank: int = 0  # 0: no adapters.
    alpha: float = 16.0  # An adapter's product is scaled by alpha / rank.
    dropout: float = 0.0  # Of what goes into an adapter.
    modules: tuple[str, ...] = ("image/*/attn/*", "text/*_proj")

    def __post_init__(self):
        if self.rank < 0:
            raise UserError(f"lora.rank: {self.rank} must not be negative")
        if not self.alpha > 0:
            raise UserError(f"lora.alpha: {self.alpha} must be above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout: {self.dropout} is not a rate in [0, 1)")
        if self.rank and not self.modules:
            raise UserError("lora.modules: give patterns, or leave lora.rank at 0")

    @property
    def scale(self) -> float:
        """Of the product of an adapter's two matrices; 0 where there are none."""
        return self.alpha / self.rank if self.rank else 0.0


class LoRALinear(Linear):
    """`x W + b + scale * (dropout(x) A) B`, all in the layer's dtype; A and B are float32.

    Dropout draws from `lora_key`, a leaf like the others: so a key reaches layers that take none,
    one per layer in a scanned stack.
    """

    def __init__(self, linear: Linear, config: LoraConfig):
        self.dtype = linear.dtype
        self.kernel, self.bias = linear.kernel, linear.bias
        *stack, dim, out_dim = linear.kernel.shape
        self.scale, self.dropout = config.scale, config.dropout
        self.lora_a = nnx.Param(jnp.zeros((*stack, dim, config.rank)))
        self.lora_b = nnx.Param(jnp.zeros((*stack, config.rank, out_dim)))
        if config.dropout:
            self.lora_key = nnx.Param(jnp.zeros((*stack, 2), jnp.uint32))

    def __call__(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes F"]:
        y = super().__call__(x)
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        if self.dropout:
            key = jax.random.wrap_key_data(jnp.asarray(self.lora_key[...]))
            rows = dropout(rows, self.dropout, key)
        a, b = self.lora_a[...].astype(self.dtype), self.lora_b[...].astype(self.dtype)
        return y + (self.scale * ((rows @ a) @ b)).reshape(y.shape)


def linear_paths(model: nnx.Module) -> Iterator[tuple[str, nnx.Module, str, Linear]]:
    """Every `Linear` of a model: its path, its parent, its name there, itself."""
    for path, module in nnx.iter_graph(model):
        if not isinstance(module, nnx.Module):
            continue
        for name, child in list(vars(module).items()):
            if isinstance(child, Linear):
                yield "/".join(map(str, (*path, name))), module, name, child


def with_lora(model: nnx.Module, paths: Collection[str], config: LoraConfig) -> nnx.Module:
    """The model with adapters beside the layers at `paths`; changed in place."""
    for path, parent, name, linear in list(linear_paths(model)):
        if path in paths:
            setattr(parent, name, LoRALinear(linear, config))
    return model


def init_adapters(shapes: dict[str, tuple[int, ...]], rank: int, key: jax.Array) -> dict[str, Any]:
    """Fresh adapters: A uniform within `in**-0.5`, B zero, so that they change nothing yet.

    Args:
        shapes: path of a dense layer -> shape of its kernel, `[..., in, out]`.
        rank: of the adapters.
        key: of A.

    Returns:
        Path of a leaf -> float32 array.

    Source: LoRA §4.1 for B; A as PEFT draws it (uniform where the paper is normal).
    """
    adapters = {}
    for layer_key, path in zip(jax.random.split(key, len(shapes)), sorted(shapes), strict=True):
        *stack, dim, out_dim = shapes[path]
        most = dim**-0.5
        adapters[f"{path}/{A}"] = jax.random.uniform(
            layer_key, (*stack, dim, rank), jnp.float32, -most, most
        )
        adapters[f"{path}/{B}"] = jnp.zeros((*stack, rank, out_dim))
    return adapters
