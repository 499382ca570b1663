# SPDX-License-Identifier: Apache-2.0
"""The model that a run starts from (`init.model`): its sizes, its tokenizer, its parameters.

It may be a workdir, a folder of transformers' or of Microsoft's layout, or a hub name. The run
file's `model` then says only what is to differ: how it runs (`dtype`, `remat`, `scan`,
`image_size`, dropout), and `text.max_positions`, which may be larger.

Longer tables of positions. The rows that there are stay as they are, so nothing changes for what is
as short as before. A new row is a copy of an old one: position p starts as p modulo the old number.
Copies were found to be the better start where encoders were made longer (Longformer,
arXiv:2004.05150, §5); fresh rows would be noise of another size than what the next layer knows.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from florence2_jax.conversion.load import find, read_config, read_pretrained, read_tokenizer
from florence2_jax.conversion.translate import to_params, to_tensors
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.encoder_decoder import POSITION_OFFSET
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.trees import Tree
from florence2_jax.typing import UserError

_OF_THE_MODEL = {
    "": ("max_image_positions",),
    "davit": (
        *("dims", "num_heads", "depths", "window_size", "patch_kernels", "patch_strides"),
        *("pre_norm", "mlp_ratio"),
    ),
    "text": ("d_model", "encoder_layers", "decoder_layers", "num_heads", "mlp_dim", "vocab_size"),
}
"""What cannot differ from the model that a run starts from."""


def starting_model(
    place: str, overrides: Mapping[str, Any], workdir: Path | None = None
) -> Florence2Config:
    """The sizes of a run that starts from a model.

    Args:
        place: `init.model`.
        overrides: the run file's `model`.
        workdir: of the run; once it has begun, its own `model.json` is asked.

    Raises:
        UserError: if there is no such model, or the overrides ask for another one.
    """
    if "variant" in overrides:
        raise UserError("model.variant: init.model brings its sizes; leave it out")
    begun = workdir is not None and (workdir / workdir_lib.MODEL).is_file()
    base = read_config(workdir if begun and workdir else find(place))
    values = base.to_dict()
    for key, value in overrides.items():
        is_part = isinstance(values.get(key), dict) and hasattr(value, "items")
        values[key] = values[key] | dict(value.items()) if is_part else value
    model = Florence2Config.create(**values)
    for part, names in _OF_THE_MODEL.items():
        ours, theirs = (getattr(one, part) if part else one for one in (model, base))
        for name in names:
            if getattr(ours, name) != getattr(theirs, name):
                raise UserError(
                    f"model.{part}{'.' if part else ''}{name}: {getattr(ours, name)}, but "
                    f"init.model={place} has {getattr(theirs, name)}; leave it out"
                )
    if model.text.max_positions < base.text.max_positions:
        raise UserError(
            f"model.text.max_positions: {model.text.max_positions} is less than the "
            f"{base.text.max_positions} of init.model={place}; it can only grow"
        )
    return model


def starting_tokenizer(place: str) -> Tokenizer:
    """The tokenizer of `init.model`. Raises UserError if there is none."""
    return read_tokenizer(find(place))


def starting_params(place: str, model: Florence2Config) -> Tree:
    """The parameters of `init.model` as numpy float32 arrays, laid out for the run's model.

    A workdir gives its newest checkpoint, averaged where it keeps an average and with its adapters
    merged.

    Raises:
        UserError: if the model or its checkpoint cannot be read.
    """
    source = read_pretrained(find(place))
    params, base = jax.device_get(source.params), source.config
    if base.scan != model.scan:  # Through the table of names: stacks of layers come apart there.
        tensors = to_tensors(params, base, "hf")
        params = to_params(tensors, dataclasses.replace(base, scan=model.scan), "hf", place=place)
    return extend_positions(params, model.text.max_positions)


def extend_positions(params: Tree, max_positions: int) -> Tree:
    """Parameters whose text towers have so many positions; old rows are kept to the bit."""
    text = dict(params["text"])
    for tower in ("encoder", "decoder"):
        positions = dict(text[tower]["positions"])
        table = np.asarray(positions["embedding"])
        old = len(table) - POSITION_OFFSET
        if max_positions > old:
            rows = POSITION_OFFSET + np.arange(old, max_positions) % old
            positions["embedding"] = np.concatenate([table, table[rows]])
            text[tower] = text[tower] | {"positions": positions}
    return params | {"text": text}
