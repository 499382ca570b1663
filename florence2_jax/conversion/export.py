# SPDX-License-Identifier: Apache-2.0
"""A whole folder out of any model: transformers', Microsoft's, or a workdir.

Everything is written under a temporary name beside the target and renamed when it is whole.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from florence2_jax.conversion import card
from florence2_jax.conversion.adapters import save_adapters
from florence2_jax.conversion.configs import generation_to_torch, to_torch
from florence2_jax.conversion.files import CONFIG, GENERATION_CONFIG
from florence2_jax.conversion.load import Pretrained, find, load_pretrained, read_pretrained
from florence2_jax.conversion.names import Dialect
from florence2_jax.conversion.tensors import FLOATS, write_safetensors
from florence2_jax.conversion.translate import to_tensors
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.state import TrainState
from florence2_jax.typing import UserError

Target: TypeAlias = Literal["jax", "hf", "microsoft", "peft"]

_DISK_MARGIN = 100_000_000  # Tokenizer, metadata, and what a file system keeps for itself.


def convert(
    source: str | Path,
    target: Path,
    to: Target,
    *,
    dtype: str | None = None,
    rounds: bool = False,
    ema: bool = True,
    licence: str = "",
) -> dict[str, Any]:
    """Writes a model as another kind of folder.

    A workdir made so opens like that of a run (`predict`, `evaluate`, a run's `init.workdir`); its
    `config.json` says what it was converted from in place of a run file.

    Args:
        source: a workdir, a folder, or a hub name; see `load_pretrained`.
        target: a folder that does not exist yet, or is empty.
        to: "jax" for a workdir, "hf" for transformers, "microsoft" for Microsoft's layout, "peft"
            for the adapters alone of a workdir that trains them (see `adapters.py`).
        dtype: of the tensors, "float32" by default; a workdir has float32 always.
        rounds: whether numbers may change to fit `dtype`.
        ema: False for the parameters of the last step, where a workdir keeps an average too.
        licence: of the weights, as hubs write it ("apache-2.0"); "" for what the source says.

    Returns:
        A report, JSON-able.

    Raises:
        UserError: naming what is wrong with the source, or why the target cannot be written. The
            target is then as it was.
    """
    _check_target(target)
    if dtype and to in ("jax", "peft"):
        what = {"jax": "a workdir", "peft": "a file of adapters"}[to]
        raise UserError(f"--dtype: {what} always holds float32; leave it out with --to {to}")
    if dtype and dtype not in FLOATS:
        raise UserError(f"--dtype {dtype}: not one of {', '.join(FLOATS)}")
    folder = find(source)
    if to == "peft":
        with _whole(target) as temporary:
            num_parameters = save_adapters(folder, temporary, ema=ema)
        return _report(source, target, to, "float32", num_parameters)
    # Orbax copies what is not a JAX array before it writes.
    model = (load_pretrained if to == "jax" else read_pretrained)(folder, ema=ema)
    known = card.facts(folder)
    known |= {"name": _name(source), "title": target.name}
    known["licence"] = licence or known["licence"]
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    width = 4 if to == "jax" else FLOATS[dtype or "float32"].itemsize
    copies = 4 * model.config.text.vocab_size * model.config.text.d_model * (to == "microsoft")
    _check_disk(target, (num_parameters + copies) * width)
    with _whole(target) as temporary:
        if to == "jax":
            save_workdir(model, temporary, known)
        else:
            save_folder(model, temporary, to, known, dtype=dtype or "float32", rounds=rounds)
    return _report(source, target, to, dtype or "float32", num_parameters)


def _report(
    source: str | Path, target: Path, to: Target, dtype: str, num_parameters: int
) -> dict[str, Any]:
    return {
        "source": str(source),
        "target": str(target),
        "to": to,
        "dtype": dtype,
        "parameters": num_parameters,
        "bytes": sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
    }


def save_folder(
    model: Pretrained,
    folder: Path,
    dialect: Dialect,
    known: Mapping[str, Any],
    *,
    dtype: str = "float32",
    rounds: bool = False,
) -> None:
    """Writes a folder of transformers' or Microsoft's layout, complete.

    transformers' embedding has a row for `<image>`; Microsoft's ends before it. Rows that are new
    are the mean of the others (see `translate`).

    Args:
        model: its tokenizer included.
        folder: exists.
        dialect: whose layout.
        known: for the model card, see `card.facts`.
        dtype: of the tensors.
        rounds: whether numbers may change to fit `dtype`.

    Raises:
        UserError: if the layout cannot hold the model, or `dtype` its numbers.
    """
    from florence2_jax.text.hugging_face import save_hugging_face

    config, tokenizer = model.config, model.tokenizer
    image_id = len(tokenizer) - 1
    rows = config.text.vocab_size
    rows = max(rows, image_id + 1) if dialect == "hf" else min(rows, image_id)
    values = to_torch(
        config,
        dialect,
        num_rows=rows,
        image_id=image_id,
        dtype=dtype,
        generation=model.generation,
    )
    tensors = to_tensors(model.params, config, dialect, dtype=dtype, num_rows=rows, rounds=rounds)
    write_safetensors(folder, tensors)
    _write_json(folder / CONFIG, values)
    _write_json(folder / GENERATION_CONFIG, generation_to_torch(model.generation))
    save_hugging_face(
        tokenizer,
        folder,
        image_size=config.image_size,
        num_image_tokens=config.num_image_tokens,
        max_length=config.text.max_positions,
    )
    text = card.model_card(config, known, layout=dialect)
    (folder / card.README).write_text(text, encoding="utf-8")


def save_workdir(model: Pretrained, folder: Path, known: Mapping[str, Any]) -> None:
    """Writes a workdir with one checkpoint, of step 0, and no optimizer.

    Args:
        model: its tokenizer included.
        folder: exists.
        known: where it comes from, see `card.facts`; kept in `config.json`.
    """
    origin = {"source": known["name"], "licence": known.get("licence", "")}
    workdir_lib.claim(folder, {"converted": origin})
    workdir_lib.save_model(folder, model.config, model.tokenizer)
    _write_json(folder / GENERATION_CONFIG, model.generation)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=model.params, opt_state={})
    with Checkpoints(folder / workdir_lib.CHECKPOINTS) as checkpoints:
        checkpoints.save(0, state, force=True)


def _name(source: str | Path) -> str:
    """A name to tell others: no path of this machine."""
    return Path(source).resolve().name if Path(source).is_dir() else str(source)


def _check_target(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: give a new folder")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: give a new folder")


def _check_disk(target: Path, num_bytes: int) -> None:
    existing = next(path for path in (target, *target.absolute().parents) if path.exists())
    needed, free = num_bytes + _DISK_MARGIN, shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{target} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; make room or "
            "give another folder"
        )


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when all went well, and else nothing."""
    target = target.absolute()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(target)  # Over an empty folder too.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
