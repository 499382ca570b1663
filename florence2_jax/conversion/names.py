# SPDX-License-Identifier: Apache-2.0
"""What each parameter is called in PyTorch: one table of templates, read both ways.

A row is (Microsoft's name, transformers' name, our path, layout). Braces count: `{s}` image stages,
`{b}` blocks of a stage, `{l}` layers of a text tower. Where layers are scanned (`config.scan`) our
paths lack `{b}` and `{l}`, and the parameter leads with that axis instead. `"\\n".join(map(str,
TABLE))` is the table to look at.

Source: the key families of the released checkpoints and of transformers 5.23.
"""

import dataclasses
import enum
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from florence2_jax.models.config import Florence2Config

Dialect: TypeAlias = Literal["microsoft", "hf"]
"""Whose names and layouts: Microsoft's remote code, or transformers' own Florence2."""


class Layout(enum.Enum):
    """The order of axes of a PyTorch array beside that of ours."""

    SAME = "same"
    LINEAR = "[out, in] -> [in, out]"
    CONV = "[out, in, y, x] -> [y, x, in, out]"

    def to_ours(self, array: NDArray) -> NDArray:
        """A view of a PyTorch array in our order of axes."""
        return np.transpose(array, _TO_OURS[self]) if self in _TO_OURS else array

    def to_torch(self, array: NDArray) -> NDArray:
        """A view of one of our arrays in PyTorch's order of axes."""
        return np.transpose(array, np.argsort(_TO_OURS[self])) if self in _TO_OURS else array

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape PyTorch's array has where ours has `shape`."""
        return tuple(shape[i] for i in np.argsort(_TO_OURS[self])) if self in _TO_OURS else shape


_TO_OURS = {Layout.LINEAR: (1, 0), Layout.CONV: (2, 3, 1, 0)}
SAME, LINEAR, CONV = Layout.SAME, Layout.LINEAR, Layout.CONV


@dataclasses.dataclass(frozen=True)
class Row:
    """One family of parameters. `layouts` is (Microsoft's, transformers')."""

    microsoft: str
    hugging_face: str
    path: str
    layouts: tuple[Layout, Layout]

    def name(self, dialect: Dialect) -> str:
        """The template of the PyTorch name."""
        return self.microsoft if dialect == "microsoft" else self.hugging_face

    def layout(self, dialect: Dialect) -> Layout:
        """How the PyTorch array lies."""
        return self.layouts[dialect == "hf"]

    def __str__(self) -> str:
        layouts = sorted({layout.value for layout in self.layouts})
        return f"{self.path:58} {self.microsoft:75} {self.hugging_face:75} {' or '.join(layouts)}"


def _dense(microsoft: str, hugging_face: str, path: str, layout: Layout = LINEAR) -> list[Row]:
    """A layer with a kernel and a bias."""
    return [
        _row(f"{microsoft}.weight", f"{hugging_face}.weight", f"{path}/kernel", layout),
        _row(f"{microsoft}.bias", f"{hugging_face}.bias", f"{path}/bias"),
    ]


def _norm(microsoft: str, hugging_face: str, path: str) -> list[Row]:
    return [
        _row(f"{microsoft}.weight", f"{hugging_face}.weight", f"{path}/scale"),
        _row(f"{microsoft}.bias", f"{hugging_face}.bias", f"{path}/bias"),
    ]


def _row(microsoft: str, hugging_face: str, path: str, layout: Layout = SAME) -> Row:
    return Row(microsoft, hugging_face, path, (layout, layout))


def _image_rows() -> Iterator[Row]:
    stage = "vision_tower.convs.{s}", "model.vision_tower.convs.{s}"
    path = "image/stages/{s}/patch_embed"
    yield from _dense(f"{stage[0]}.proj", f"{stage[1]}.conv", f"{path}/conv", CONV)
    yield from _norm(f"{stage[0]}.norm", f"{stage[1]}.norm", f"{path}/norm")
    for kind, attn in (("spatial", "window_attn"), ("channel", "channel_attn")):
        ms = f"vision_tower.blocks.{{s}}.{{b}}.{kind}_block"
        hf = f"model.{ms}"
        path = f"image/stages/{{s}}/blocks/{{b}}/{kind}"
        for i in (1, 2):
            yield from _dense(f"{ms}.conv{i}.fn.dw", f"{hf}.conv{i}", f"{path}/conv{i}", CONV)
        yield from _norm(f"{ms}.{attn}.norm", f"{hf}.norm1", f"{path}/norm1")
        for name in ("qkv", "proj"):
            yield from _dense(
                f"{ms}.{attn}.fn.{name}", f"{hf}.{attn}.{name}", f"{path}/attn/{name}"
            )
        yield from _norm(f"{ms}.ffn.norm", f"{hf}.norm2", f"{path}/norm2")
        for name in ("fc1", "fc2"):
            yield from _dense(f"{ms}.ffn.fn.net.{name}", f"{hf}.ffn.{name}", f"{path}/ffn/{name}")


def _projector_rows() -> Iterator[Row]:
    hf = "model.multi_modal_projector"
    # Microsoft multiplies by the matrix itself, transformers has a linear layer.
    yield Row(
        "image_projection",
        f"{hf}.image_projection.weight",
        "projector/kernel",
        (SAME, LINEAR),
    )
    yield from _norm("image_proj_norm", f"{hf}.image_proj_norm", "projector/norm")
    for axis in ("row", "column"):
        name = f"{axis}_embeddings.weight"
        path = f"projector/{axis}_positions"
        yield _row(f"image_pos_embed.{name}", f"{hf}.image_position_embed.{name}", path)


def _text_rows() -> Iterator[Row]:
    def pair(name: str) -> tuple[str, str]:
        return f"language_model.model.{name}", f"model.language_model.{name}"

    yield _row(*pair("shared.weight"), "text/shared/embedding")
    for tower, attentions in (
        ("encoder", (("self_attn", "self_attn"),)),
        ("decoder", (("self_attn", "self_attn"), ("encoder_attn", "cross_attn"))),
    ):
        path = f"text/{tower}/positions"
        yield _row(*pair(f"{tower}.embed_positions.weight"), f"{path}/embedding")
        yield from _norm(*pair(f"{tower}.layernorm_embedding"), f"{path}/norm")
        layer, path = f"{tower}.layers.{{l}}", f"text/{tower}/layers/{{l}}"
        for theirs, ours in attentions:
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from _dense(*pair(f"{layer}.{theirs}.{name}"), f"{path}/{ours}/{name}")
            yield from _norm(*pair(f"{layer}.{theirs}_layer_norm"), f"{path}/{ours}_norm")
        for name in ("fc1", "fc2"):
            yield from _dense(*pair(f"{layer}.{name}"), f"{path}/ffn/{name}")
        yield from _norm(*pair(f"{layer}.final_layer_norm"), f"{path}/ffn_norm")


TABLE: tuple[Row, ...] = (*_image_rows(), *_projector_rows(), *_text_rows())
"""Every parameter of Florence-2, once."""

EMBEDDING = "text/shared/embedding"

ALIASES: dict[Dialect, tuple[str, ...]] = {
    "microsoft": (
        "language_model.model.encoder.embed_tokens.weight",
        "language_model.model.decoder.embed_tokens.weight",
        "language_model.lm_head.weight",
    ),
    "hf": (
        "model.language_model.encoder.embed_tokens.weight",
        "model.language_model.decoder.embed_tokens.weight",
        "lm_head.weight",
    ),
}
"""Further names of the shared embedding, of which a checkpoint may hold any."""

FRAME_TABLE: dict[Dialect, str] = {
    "microsoft": "visual_temporal_embed.pos_idx_to_embed",
    "hf": "model.multi_modal_projector.visual_temporal_embed.pos_idx_to_embed",
}
"""Sines and cosines of a frame's number: a constant, kept among the weights."""

LOGITS_BIAS = "language_model.final_logits_bias"
"""Zeros in every released model of Microsoft's; transformers has no such tensor."""


class Entry(NamedTuple):
    """One PyTorch tensor and its place in our parameters, counts filled in."""

    name: str
    path: str
    layer: int | None  # Index into the leading axis of a scanned stack.
    layout: Layout


def entries(config: Florence2Config, dialect: Dialect) -> Iterator[Entry]:
    """The table for one model: every tensor it has, aliases and constants left out."""
    for row in TABLE:
        for counts in _counts(row.path, config):
            name = row.name(dialect).format(**counts)
            layer = counts.get("b", counts.get("l"))
            if config.scan and layer is not None:
                template = row.path.replace("/{b}", "").replace("/{l}", "")
                yield Entry(name, template.format(**counts), layer, row.layout(dialect))
            else:
                yield Entry(name, row.path.format(**counts), None, row.layout(dialect))


def _counts(path: str, config: Florence2Config) -> Iterator[dict[str, int]]:
    """Every filling of a template's braces."""
    if "{s}" in path:
        for stage, depth in enumerate(config.davit.depths):
            for block in range(depth) if "{b}" in path else (None,):
                yield {"s": stage} if block is None else {"s": stage, "b": block}
    elif "{l}" in path:
        text = config.text
        depth = text.encoder_layers if path.startswith("text/encoder") else text.decoder_layers
        yield from ({"l": layer} for layer in range(depth))
    else:
        yield {}
