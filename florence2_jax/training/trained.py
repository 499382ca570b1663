# SPDX-License-Identifier: Apache-2.0
"""What of a model a run trains: all of it, all but its frozen parts, or adapters beside it."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from florence2_jax.models import lora as lora_lib
from florence2_jax.models.lora import LoraConfig
from florence2_jax.training.patterns import whole
from florence2_jax.training.trees import Tree, by_path, combine, flat, nest, partition, path_of
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of what is trained; it is kept in the checkpoints."""

    decay: float = 0.0  # 0: none. Early steps use (1 + step) / (10 + step) where that is less.

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise UserError(f"ema.decay: {self.decay} is not in [0, 1)")


_NO_LORA = LoraConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """Which parameters change, by path; the rest gets no gradient and no optimizer state."""

    frozen: frozenset[str] = frozenset()
    lora: LoraConfig = _NO_LORA
    adapted: frozenset[str] = frozenset()  # Paths of dense layers with an adapter.
    ema_decay: float = 0.0
    seed: int = 0  # Of fresh adapters.

    @classmethod
    def choose(
        cls,
        shapes: Callable[[], Tree],
        *,
        freeze: Collection[str] = (),
        lora: LoraConfig = LoraConfig(),
        ema: EmaConfig = EmaConfig(),
        seed: int = 0,
    ) -> "Trained":
        """What a run file asks for.

        Args:
            shapes: makes those of the model's parameters; called where patterns ask for them.
            freeze: patterns of parameters.
            lora: adapters; with them the whole model is frozen.
            ema: whether an average is kept.
            seed: of the run.

        Raises:
            UserError: on a pattern that matches nothing, and where nothing is left to train.
        """
        if not (freeze or lora.rank):
            return cls(ema_decay=ema.decay, seed=seed)
        leaves = by_path(shapes())
        remedy = "name all of them, or set model.scan=False"
        if not lora.rank:
            frozen = whole(freeze, leaves, "freeze", remedy=remedy)
            if len(frozen) == len(leaves):
                raise UserError("freeze: the patterns match every parameter; nothing would train")
            return cls(frozen=frozen, ema_decay=ema.decay, seed=seed)
        if freeze:
            raise UserError("freeze: lora.rank freezes the whole model already; leave freeze out")
        layers = dense_layers(leaves)
        return cls(
            frozen=frozenset(leaves),
            lora=lora,
            adapted=whole(lora.modules, layers, "lora.modules", remedy=remedy),
            ema_decay=ema.decay,
            seed=seed,
        )

    def split(self, params: Tree, adapters: Tree | None) -> tuple[Tree, Tree]:
        """(what is trained, what is frozen); the same tree, and none, where all of it is."""
        everything = combine(params, adapters)
        if not self.frozen:
            return everything, {}
        return partition(everything, self.frozen.__contains__)

    def adapters(self, params: Tree) -> Tree | None:
        """Fresh adapters for these parameters; None without LoRA."""
        if not self.adapted:
            return None
        keys = {path_of(path[:-1]): path[:-1] for path in flat(params)}
        leaves = by_path(params)
        shapes = {path: tuple(leaves[f"{path}/kernel"].shape) for path in self.adapted}
        # Not the key that parameters are drawn from.
        key = jax.random.fold_in(jax.random.key(self.seed), 1)
        fresh = lora_lib.init_adapters(shapes, self.lora.rank, key)
        return nest(
            {
                (*keys[path], name): leaf
                for full, leaf in fresh.items()
                for path, _, name in [full.rpartition("/")]
            }
        )

    def count(self, params: Tree, adapters: Tree | None) -> dict[str, int]:
        """How many numbers are `trained` and `frozen`; together those of the model and adapters."""
        trained, frozen = self.split(params, adapters)
        return {"trained": number_of(trained), "frozen": number_of(frozen)}

    @staticmethod
    def num_adapters(adapters: Tree | None) -> int:
        """How many dense layers have one; each layer of a scanned stack counts."""
        leaves = flat(adapters or {})
        return sum(math.prod(x.shape[:-2]) for keys, x in leaves.items() if keys[-1] == lora_lib.A)


ALL = Trained()
"""Every parameter, as in pre-training."""


def number_of(tree: Any) -> int:
    """How many numbers the arrays of a tree have."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def dense_layers(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Paths of a model's dense layers with their kernels: matrices, stacked or not, with a bias."""
    kernels = {
        path.removesuffix("/kernel"): x for path, x in leaves.items() if path.endswith("/kernel")
    }
    return {
        path: x for path, x in kernels.items() if f"{path}/bias" in leaves and len(x.shape) <= 3
    }


def dropout_keys(adapters: Tree, key: jax.Array) -> Tree:
    """A random key beside every adapter, one per layer in a scanned stack."""
    leaves = {keys: leaf for keys, leaf in flat(adapters).items() if keys[-1] == lora_lib.A}
    drawn = jax.random.split(key, len(leaves))
    found = {}
    for one, (keys, leaf) in zip(drawn, leaves.items(), strict=True):
        bits = jax.random.bits(one, (*leaf.shape[:-2], 2), jnp.uint32)
        found[(*keys[:-1], lora_lib.KEY)] = bits
    return nest(found)


def merge_adapters(tree: Tree, scale: float) -> Tree:
    """The model's parameters with the product of each adapter added to its kernel, in float32."""
    leaves = flat(tree)
    merged = {k: leaf for k, leaf in leaves.items() if k[-1] not in (lora_lib.A, lora_lib.B)}
    for keys, a in leaves.items():
        if keys[-1] == lora_lib.A:
            b, kernel = leaves[(*keys[:-1], lora_lib.B)], (*keys[:-1], "kernel")
            merged[kernel] = merged[kernel] + scale * jnp.matmul(a, b, precision="highest")
    return nest(merged)
