# SPDX-License-Identifier: Apache-2.0
"""One loader: a run's workdir, a folder of transformers or of Microsoft, or a hub name."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from florence2_jax.conversion.configs import GENERATION, from_torch, generation_from_torch
from florence2_jax.conversion.files import (
    CONFIG,
    GENERATION_CONFIG,
    read_image_size,
    read_json,
    read_tensors,
)
from florence2_jax.conversion.names import Dialect
from florence2_jax.conversion.tensors import ArrayLike
from florence2_jax.conversion.translate import Params, to_params
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.lora import LoraConfig
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.checkpoint import Checkpoints, items_of
from florence2_jax.training.sections import section
from florence2_jax.training.state import TrainState, fresh_state, init_params
from florence2_jax.training.trained import EmaConfig, Trained
from florence2_jax.typing import UserError

SHIPPED = Path(__file__).resolve().parents[1] / "shipped"
"""Models that come with the package, a folder each in the layout of transformers."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ("*.json", "*.txt", "*.model", "README.md")


class Pretrained(NamedTuple):
    """A model with everything that is needed to ask it.

    `generation` are the options it generates with by default: fields of
    `inference.generation_config.GenerationConfig`.
    """

    config: Florence2Config
    params: Params
    tokenizer: Tokenizer
    generation: dict[str, Any]


def load_pretrained(
    path_or_hub_name: str | Path, *, dtype: str | None = None, ema: bool = True
) -> Pretrained:
    """Opens a model wherever it comes from.

    Args:
        path_or_hub_name: a workdir (its newest checkpoint), a folder of transformers' or
            Microsoft's layout, or a name such as "florence-community/Florence-2-base".
        dtype: to compute in. By default what the workdir says, and float32 for folders: exact;
            "bfloat16" is for accelerators.
        ema: of a run that keeps an average of its parameters, take that; False for those of its
            last step.

    Returns:
        Parameters as float32 arrays on the first device, whatever the files hold; the adapters of a
        run that trains them are merged.

    Raises:
        UserError: naming what is missing or wrong, and how to mend it.
    """
    model = read_pretrained(find(path_or_hub_name), dtype=dtype, ema=ema)
    leaves, structure = jax.tree.flatten(model.params)
    device = jax.local_devices()[0]
    model = model._replace(params=None)
    for i in range(len(leaves)):  # One by one: the host's copy goes as the device's comes.
        leaves[i] = jax.block_until_ready(jax.device_put(leaves[i], device))
    return model._replace(params=jax.tree.unflatten(structure, leaves))


def read_pretrained(folder: Path, *, dtype: str | None = None, ema: bool = True) -> Pretrained:
    """As `load_pretrained`, of a folder, its parameters wherever they are read to."""
    if is_workdir(folder):
        return _read_workdir(folder, dtype, ema)
    values, tensors, config, dialect = _read_folder(folder, dtype)
    tokenizer = Tokenizer.load(folder)
    _check_vocabulary(folder, config, tokenizer, values.get("image_token_id"))
    generation = folder / GENERATION_CONFIG
    given = read_json(generation) if generation.is_file() else None
    return Pretrained(
        config,
        to_params(tensors, config, dialect, place=str(folder)),
        tokenizer,
        generation_from_torch(given, values, dialect),
    )


def read_config(folder: Path) -> Florence2Config:
    """The sizes of a model, without its weights. Raises UserError as `load_pretrained` does."""
    if is_workdir(folder):
        return workdir_lib.load_model_config(folder)
    return _read_folder(folder, None)[2]


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model. Raises UserError if it is not there."""
    return Tokenizer.load(folder / workdir_lib.TOKENIZER if is_workdir(folder) else folder)


def _read_folder(
    folder: Path, dtype: str | None
) -> tuple[dict[str, Any], Mapping[str, ArrayLike], Florence2Config, Dialect]:
    """`config.json`, the tensors (unread), and what they make of the model."""
    values = read_json(folder / CONFIG)
    # Another architecture is refused as such, whatever its weights are.
    tensors = read_tensors(folder) if values.get("model_type") == "florence2" else {}
    config, dialect = from_torch(
        values,
        tensors,
        image_size=read_image_size(folder),
        dtype=dtype or "float32",
        place=str(folder / CONFIG),
    )
    return values, tensors, config, dialect


def is_workdir(folder: Path) -> bool:
    """Whether a folder is of a `train` or a `convert --to jax`."""
    return (folder / workdir_lib.MODEL).is_file()


def shipped() -> dict[str, Path]:
    """The models that come with the package, by name."""
    return {path.name: path for path in sorted(SHIPPED.glob("*")) if (path / CONFIG).is_file()}


def find(path_or_hub_name: str | Path) -> Path:
    """The folder of a model: one here, one that comes with the package, or one of the hub.

    Raises:
        UserError: if there is neither, or no network, or no huggingface_hub.
    """
    folder = Path(path_or_hub_name)
    if folder.is_dir():
        if is_workdir(folder) or (folder / CONFIG).is_file():
            return folder
        raise UserError(
            f"{folder} holds no model: give a workdir of `train` ({workdir_lib.MODEL}), or a "
            f"folder with {CONFIG}, weights and tokenizer"
        )
    name = str(path_or_hub_name)
    if folder.exists():
        raise UserError(f"{folder} is a file: give the folder it is in")
    if name in shipped():
        return shipped()[name]
    if not _HUB_NAME.fullmatch(name):
        raise UserError(
            f"{name}: no such folder, and no hub name (owner/name)"
            + "".join(f"; the package comes with {known}" for known in shipped())
        )
    return _download(name)


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise UserError(
            f"{name} is no folder here, and to download it huggingface_hub is needed: pip install "
            "huggingface_hub, or give a folder"
        ) from error
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, "*.safetensors*"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(name, allow_patterns=["pytorch_model*"])
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{name} is no folder here and could not be downloaded ({reason}); without a network, "
            "copy the repository's files into a folder and give its path"
        ) from error
    return folder


def _read_workdir(folder: Path, dtype: str | None, ema: bool) -> Pretrained:
    config, tokenizer = workdir_lib.load_model(folder)
    if dtype:
        config = dataclasses.replace(config, dtype=dtype)
    if not (folder / workdir_lib.CHECKPOINTS).is_dir():
        raise UserError(f"{folder} holds no checkpoints: train first")
    state = read_state(folder, config, ("params", "adapters", *(("ema",) if ema else ())))
    params = state.model_params(ema=ema)
    if (folder / GENERATION_CONFIG).is_file():
        generation = read_json(folder / GENERATION_CONFIG)
    else:
        values = workdir_lib.load_config(folder)
        inputs, loss = values.get("input", {}), values.get("loss", {})
        generation = dict(GENERATION)
        if loss.get("location_smoothing_bins"):
            generation["pool_locations"] = True
        if "target_length" in inputs:  # What it learnt to write; the start token counts too.
            generation["max_length"] = inputs["target_length"] + 1
    return Pretrained(config, params, tokenizer, generation)


def read_state(folder: Path, config: Florence2Config, items: Collection[str]) -> TrainState:
    """The newest state of a workdir, on the first device, as far as it is asked for.

    Args:
        folder: a workdir with checkpoints.
        config: of its model.
        items: of `params`, `adapters` and `ema`; those that the run does not keep are None, the
            others shapes.

    Raises:
        UserError: if no checkpoint verifies.
    """
    trained = trained_of(folder, config)

    def make() -> TrainState:
        params = init_params(config, jax.random.key(0))
        return fresh_state(params, optax.identity(), trained)

    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(make)
    )
    wanted = {name: tree for name, tree in items_of(state).items() if name in items}
    with Checkpoints(folder / workdir_lib.CHECKPOINTS) as checkpoints:
        return state.replace(**checkpoints.restore_items(wanted))


def trained_of(folder: Path, config: Florence2Config) -> Trained:
    """What the run of a workdir trains, by its own run file."""
    values = workdir_lib.load_config(folder)
    return Trained.choose(
        lambda: jax.eval_shape(lambda: init_params(config, jax.random.key(0))),
        freeze=values.get("freeze", ()),
        lora=section(LoraConfig, "lora", values.get("lora", {})),
        ema=section(EmaConfig, "ema", values.get("ema", {})),
    )


def _check_vocabulary(
    folder: Path, config: Florence2Config, tokenizer: Tokenizer, image_id: Any
) -> None:
    """Refuses a tokenizer that is not the model's. `<image>` alone may be without a row."""
    known = len(tokenizer) - 1
    if config.text.vocab_size < known:
        raise UserError(
            f"{folder}: the tokenizer has {known} ids besides <image>, the embedding "
            f"{config.text.vocab_size} rows; they are not of one model"
        )
    if image_id is not None and image_id != known:
        raise UserError(
            f"{folder}: {CONFIG} has <image> at {image_id}, the tokenizer at {known}; they are "
            "not of one model"
        )
