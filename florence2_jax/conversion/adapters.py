# SPDX-License-Identifier: Apache-2.0
"""Adapters of a run in the layout of PEFT, to be opened beside transformers' model.

`adapter_config.json` names every adapted layer; `adapter_model.safetensors` holds two matrices per
layer under transformers' names. The model they belong to is the one that the run started from: as a
folder of transformers, or converted into one.

Source: PEFT 0.21 (`LoraConfig`, `save_pretrained`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from florence2_jax.conversion.load import is_workdir, read_state, trained_of
from florence2_jax.conversion.names import entries
from florence2_jax.conversion.tensors import Tensor, write_file
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.lora import A, B
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.trained import Trained
from florence2_jax.training.trees import Tree, by_path, combine
from florence2_jax.typing import UserError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."


def save_adapters(workdir: Path, folder: Path, *, ema: bool = True) -> int:
    """Writes the adapters of a run.

    Args:
        workdir: of a run with `lora`.
        folder: exists.
        ema: their average, where the run keeps one.

    Returns:
        How many numbers they are.

    Raises:
        UserError: if there are none.
    """
    refusal = (
        f"{workdir} has no adapters: give the workdir of a run with lora.rank, or take --to hf"
    )
    if not is_workdir(workdir):
        raise UserError(refusal)
    config = workdir_lib.load_model_config(workdir)
    trained = trained_of(workdir, config)
    if not trained.adapted:
        raise UserError(refusal)
    state = read_state(workdir, config, ("adapters", *(("ema",) if ema else ())))
    adapters = combine(state.adapters, state.ema) if ema else state.adapters
    tensors = adapter_tensors(adapters, config, trained)
    write_file(folder / TENSORS, {name: _tensor(array) for name, array in tensors.items()})
    base = str(workdir_lib.load_config(workdir).get("init", {}).get("model", ""))
    values = adapter_config(tensors, trained, base="" if Path(base).exists() else base)
    text = json.dumps(values, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return sum(array.size for array in tensors.values())


def adapter_tensors(
    adapters: Tree, config: Florence2Config, trained: Trained
) -> dict[str, np.ndarray]:
    """PEFT's name -> `lora_A.weight` `[rank, in]` or `lora_B.weight` `[out, rank]`."""
    leaves = by_path(adapters)
    tensors = {}
    for entry in entries(config, "hf"):
        module, _, leaf = entry.path.rpartition("/")
        if leaf != "kernel" or module not in trained.adapted:
            continue
        name = _PREFIX + entry.name.removesuffix(".weight")
        for ours, theirs in ((A, "lora_A"), (B, "lora_B")):
            array = np.asarray(leaves[f"{module}/{ours}"], np.float32)
            array = array if entry.layer is None else array[entry.layer]
            tensors[f"{name}.{theirs}.weight"] = np.ascontiguousarray(array.T)
    return tensors


def adapter_config(
    tensors: dict[str, np.ndarray], trained: Trained, *, base: str
) -> dict[str, Any]:
    """What PEFT reads: layers by their whole names, so that no other one matches."""
    ending = ".lora_A.weight"
    modules = [
        name.removeprefix(_PREFIX).removesuffix(ending) for name in tensors if ending in name
    ]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base or None,
        "r": trained.lora.rank,
        "lora_alpha": trained.lora.alpha,
        "lora_dropout": trained.lora.dropout,
        "target_modules": sorted(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "task_type": None,
    }


def _tensor(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array)
