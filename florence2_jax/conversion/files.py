# SPDX-License-Identifier: Apache-2.0
"""Folders of PyTorch weights: safetensors or `pytorch_model.bin`, whole or in shards.

Pickles are opened through `torch.load(weights_only=True)` alone, which runs no code in them.
"""

import contextlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence2_jax.conversion.tensors import FLOATS, Tensor, read_safetensors
from florence2_jax.typing import Size, UserError

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # The first that is there is read.


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder by name, unread.

    Raises:
        UserError: if there are none, shards are missing (all are named), or a file is damaged.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json")
    raise UserError(f"{folder} holds no weights: none of {', '.join(_WEIGHTS)} nor an index of one")


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, unread. Raises UserError if it is damaged."""
    return read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError if the file is missing, or holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: give a whole folder") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it from a copy") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object: restore it from a copy")
    return values


def read_image_size(folder: Path) -> Size | None:
    """`(width, height)` to which the folder's processor resizes images; None if it says none."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            values = read_json(folder / name)
            size = values.get("image_processor", values).get("size")
            if isinstance(size, Mapping) and {"width", "height"} <= size.keys():
                return int(size["width"]), int(size["height"])
    return None


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Every tensor that the index names, out of the file it names."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} names no tensors: restore it from a copy")
    names = sorted(set(map(str, places.values())))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UserError(f"{index} names files outside its folder: {', '.join(outside)}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent}: {len(missing)} of {len(names)} shards are missing: "
            f"{', '.join(missing)}; download them"
        )
    shards = {name: read_file(index.parent / name) for name in names}
    lost = [f"{name} in {place}" for name, place in places.items() if name not in shards[place]]
    extra = [
        f"{name} in {place}"
        for place, shard in shards.items()
        for name in shard
        if places.get(name) != place
    ]
    if lost or extra:
        raise UserError(f"{index} and its shards disagree about {', '.join(lost + extra)}")
    return {name: shards[place][name] for name, place in places.items()}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} can only be read by PyTorch: pip install 'florence2-jax[convert]', or give a "
            "folder with safetensors"
        ) from error
    path.open("rb").close()  # Whatever fails from here on is not a right that is missing.
    try:
        # Files of PyTorch before 1.6 are no archives, and cannot stay on disk while read.
        is_archive = zipfile.is_zipfile(path)
        with warnings.catch_warnings():  # What it warns of is an error of ours below.
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise UserError(
                f"{path} holds code ({found[1]}), not only tensors; it was not opened further. "
                "Get the weights as safetensors"
            ) from error
        raise _damaged(path) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        raise _damaged(path) from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    for wrapping in ("state_dict", "model"):  # As training scripts save, timm's among them.
        if isinstance(loaded.get(wrapping), Mapping):
            loaded = loaded[wrapping]
            break
    others = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(f"{path} holds more than tensors by name: {', '.join(others)}")
    return {name: _from_torch(tensor) for name, tensor in loaded.items()}


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged, cut short, or no file of PyTorch's: download it again")


def _from_torch(tensor: Any) -> Tensor:
    import torch

    def read() -> NDArray:
        whole = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:  # numpy knows none: the same bits as integers.
            return whole.view(torch.int16).numpy().view(FLOATS["bfloat16"])
        return whole.numpy()

    name = str(tensor.dtype).removeprefix("torch.")
    dtype = FLOATS.get(name)
    if dtype is None:
        dtype = np.dtype(object)  # Quantised and the like, refused by name where it is used.
        with contextlib.suppress(TypeError):
            dtype = np.dtype(name)
    return Tensor(tuple(tensor.shape), dtype, read)
