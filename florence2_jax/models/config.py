# SPDX-License-Identifier: Apache-2.0
"""What a Florence-2 model is: frozen dataclasses, named presets, and loud checks of both."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from florence2_jax.models.kernels.choice import METHODS
from florence2_jax.typing import Size, UserError

PAD_ID = 1
"""`<pad>`, as in BART: masked out of the encoder, its embedding starts at zero."""

VOCAB_MULTIPLE = 128
"""Embedding rows are padded to a multiple of this, so that the vocabulary axis always shards."""

DTYPES = ("bfloat16", "float32")
DEPTHWISE = ("conv", "shift")
REMAT = ("none", "full", "dots")

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaViTConfig:
    """Image encoder sizes, one entry per stage. Source: Florence-2 Table 15, released configs."""

    dims: tuple[int, ...]
    num_heads: tuple[int, ...]  # Also the number of channel groups.
    depths: tuple[int, ...] = (1, 1, 9, 1)  # One unit is a spatial and a channel block.
    window_size: int = 12  # Released config; not in the paper.
    patch_kernels: tuple[int, ...] = (7, 3, 3, 3)
    patch_strides: tuple[int, ...] = (4, 2, 2, 2)
    pre_norm: tuple[bool, ...] = (
        False,
        True,
        True,
        True,
    )  # LayerNorm before the patch convolution.
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.1  # Of the last block; it grows linearly from 0.
    # Equal results. "shift" adds nine shifted products: twice as fast on CPU, slower on TPU.
    depthwise: str = "conv"
    attention: str = "auto"  # How it is computed, with equal results: `kernels.choice.METHODS`.

    def __post_init__(self):
        per_stage = ("dims", "num_heads", "depths", "patch_kernels", "patch_strides", "pre_norm")
        lengths = {name: len(getattr(self, name)) for name in per_stage}
        if len(set(lengths.values())) != 1 or not self.dims:
            raise UserError(f"model.davit: give every per-stage entry one length, got {lengths}")
        for name in per_stage[:-1]:
            _check_positive(f"davit.{name}", *getattr(self, name))
        _check_positive("davit.window_size", self.window_size)
        _check_positive("davit.mlp_ratio", self.mlp_ratio)
        _check_rate("davit.drop_path_rate", self.drop_path_rate)
        _check_choice("davit.depthwise", self.depthwise, DEPTHWISE)
        _check_choice("davit.attention", self.attention, METHODS)
        for dim, num_heads in zip(self.dims, self.num_heads, strict=True):
            _check_multiple("davit.dims", dim, num_heads, "its number of heads (davit.num_heads)")
        _check_multiple("davit.dims", self.dims[-1], 2, "2: half of it codes columns, half rows")
        if any(kernel % 2 == 0 for kernel in self.patch_kernels):
            raise UserError(f"model.davit.patch_kernels: {self.patch_kernels} must be odd")

    @property
    def patch_paddings(self) -> tuple[int, ...]:
        """Zero rows added on each side, so that an output side is the input side / stride."""
        return tuple(kernel // 2 for kernel in self.patch_kernels)

    @property
    def total_stride(self) -> int:
        """Pixels per image token, along each side."""
        return math.prod(self.patch_strides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Encoder and decoder sizes (BART). Source: Florence-2 Table 15, released configs."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    num_heads: int
    mlp_dim: int
    vocab_size: int = 51_289  # 50,265 of BART and the 1,024 added tokens.
    max_positions: int = 1024  # Image tokens and prompt together; also of a target.
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention: str = "auto"  # As `davit.attention`; but dropout draws otherwise in the kernel.
    # As Microsoft's code does: then an answer depends on how far its prompt is padded.
    attend_prompt_padding: bool = False

    def __post_init__(self):
        sizes = ("d_model", "encoder_layers", "decoder_layers", "num_heads", "mlp_dim")
        for name in (*sizes, "vocab_size", "max_positions"):
            _check_positive(f"text.{name}", getattr(self, name))
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            _check_rate(f"text.{name}", getattr(self, name))
        _check_choice("text.attention", self.attention, METHODS)
        _check_multiple("text.d_model", self.d_model, self.num_heads, "text.num_heads")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding; those from `vocab_size` on are never looked up or predicted."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Florence2Config:
    """The whole model: image encoder, text encoder-decoder, and how they run."""

    davit: DaViTConfig
    text: TextConfig
    image_size: Size = (768, 768)  # (width, height) in pixels; `create` also takes one side.
    max_image_positions: int = 50  # Rows of each image position table.
    dtype: str = "bfloat16"  # Of activations; parameters, softmax and norms are float32.
    remat: str = (
        "none"  # What the backward pass recomputes: nothing, blocks, all but their matmuls.
    )
    scan: bool = False  # Equal layers as one compiled loop; parameters lead with a layer axis.

    def __post_init__(self):
        _check_positive("image_size", *self.image_size)
        _check_positive("max_image_positions", self.max_image_positions)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("remat", self.remat, REMAT)
        for side in self.image_size:
            stride = self.davit.total_stride
            _check_multiple("image_size", side, stride, "the total stride (davit.patch_strides)")
            if side // stride > self.max_image_positions:
                raise UserError(
                    f"model.image_size: {side} px is {side // stride} image tokens, more than"
                    f" max_image_positions={self.max_image_positions}; use at most"
                    f" {self.max_image_positions * stride} px"
                )
        if self.num_image_tokens >= self.text.max_positions:
            raise UserError(
                f"model.image_size: {self.num_image_tokens} image tokens leave no room for a"
                f" prompt in text.max_positions={self.text.max_positions}"
            )

    @property
    def num_image_tokens(self) -> int:
        """The average token and the grid, for an image of `image_size`."""
        width, height = self.image_size
        return 1 + (width // self.davit.total_stride) * (height // self.davit.total_stride)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and columns of the logits, a multiple of 128."""
        return self.text.padded_vocab_size

    @classmethod
    def create(cls, variant: str = "base", **overrides: Any) -> "Florence2Config":
        """A preset with some entries replaced.

        Args:
            variant: `"tiny"`, `"base"` or `"large"`.
            overrides: fields of this class; `davit` and `text` as mappings of their own fields, and
                `image_size` also as one number for a square.
                `create(**config.to_dict())` is `config` again, also after a trip through JSON.

        Raises:
            UserError: on an unknown variant or key, a value of the wrong kind, or sizes that do not
                fit together; it names the key.
        """
        _check_choice("variant", variant, tuple(VARIANTS))
        return _replace(VARIANTS[variant], overrides)

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain values, ready for JSON and for `create`."""
        return dataclasses.asdict(self)


def _replace(config: Config, values: Any, place: str = "") -> Config:
    """`config` with `values` (a mapping, nested like the config) put in, every key checked."""
    if not isinstance(values, Mapping):
        if not hasattr(values, "items"):  # A ConfigDict has it without being a Mapping.
            raise UserError(f"model.{place[:-1]}: {values!r} is not a mapping of names to values")
        values = dict(values.items())
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    changes = {}
    for name, value in values.items():
        if name not in names:
            near = difflib.get_close_matches(str(name), names, cutoff=0.5) or names
            raise UserError(f"model.{place}{name}: no such key; did you mean {', '.join(near)}?")
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            changes[name] = _replace(current, value, f"{place}{name}.")
        elif name == "image_size":
            size = (value, value) if isinstance(value, int) else value
            changes[name] = _coerce(size, current, name)
            if len(changes[name]) != 2:
                raise UserError(f"model.image_size: {value} is not one side or (width, height)")
        else:
            changes[name] = _coerce(value, current, f"{place}{name}")
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _coerce(value: Any, like: Any, name: str) -> Any:
    """`value` as the kind of `like`: JSON has lists for tuples, people write 4 for 4.0."""
    kind = type(like)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(item, like[0], name) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"model.{name}: {value!r} is not of type {kind.__name__}, like {like!r}")
    return value


def _check_positive(name: str, *values: int | float) -> None:
    if not all(value > 0 for value in values):
        raise UserError(f"model.{name}: {values} must be positive")


def _check_rate(name: str, value: int | float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"model.{name}: {value} is not a rate in [0, 1)")


def _check_multiple(name: str, value: int, divisor: int, meaning: str) -> None:
    if value % divisor:
        raise UserError(f"model.{name}: {value} must be a multiple of {divisor}, {meaning}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"model.{name}: {value!r} is not one of {', '.join(choices)}{hint}")


VARIANTS = {
    "tiny": Florence2Config(  # Ours, for tests and small machines; there is no released one.
        davit=DaViTConfig(
            dims=(32, 64, 128, 192),
            num_heads=(1, 2, 4, 6),
            depths=(1, 1, 1, 1),
            window_size=4,
            patch_strides=(4, 2, 1, 1),
        ),
        text=TextConfig(d_model=128, encoder_layers=2, decoder_layers=2, num_heads=4, mlp_dim=512),
        image_size=(96, 96),
    ),
    "base": Florence2Config(
        davit=DaViTConfig(dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32)),
        text=TextConfig(
            d_model=768, encoder_layers=6, decoder_layers=6, num_heads=12, mlp_dim=3072
        ),
    ),
    "large": Florence2Config(
        davit=DaViTConfig(dims=(256, 512, 1024, 2048), num_heads=(8, 16, 32, 64)),
        text=TextConfig(
            d_model=1024, encoder_layers=12, decoder_layers=12, num_heads=16, mlp_dim=4096
        ),
    ),
}
