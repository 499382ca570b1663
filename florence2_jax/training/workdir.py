# SPDX-License-Identifier: Apache-2.0
"""A run's directory describes itself: what it was asked, with what it was made, what it knows.

DIR/config.json        the run file's values, and where it came from
DIR/model.json         the model's sizes
DIR/tokenizer/         its tokenizer
DIR/records/NAME/      a store, where the run file names a dataset in another format
DIR/environment.json   versions, git revision, devices and XLA flags of every start
DIR/checkpoints/       see `checkpoint.py`; damaged ones are moved aside as `corrupt-STEP`
DIR/metrics.jsonl, tensorboard/, wandb/, set_aside.jsonl
DIR/goodput.jsonl      where the time of every start went, see `ledger.py`
DIR/black_box/         steps that went wrong, see `black_box.py`
DIR/stalls/, profile/  see `watch.py`
"""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from florence2_jax.models.config import Florence2Config
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.typing import UserError

CONFIG, MODEL, ENVIRONMENT = "config.json", "model.json", "environment.json"
TOKENIZER, CHECKPOINTS, RECORDS = "tokenizer", "checkpoints", "records"

_FREE_KEYS = (
    *("log", "checkpoint", "mesh", "hosts", "black_box", "evaluation", "early_stopping"),
    *("input.num_workers", "input.num_threads", "input.buffer"),
)
"""What may change between starts: it does not touch what is learnt."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def check_place(workdir: Path) -> None:
    """Raises UserError if the directory is a URL: `Path` would make a folder `gs:` of it."""
    if match := re.match(r"([a-z][a-z0-9+.-]+):/", workdir.as_posix()):
        raise UserError(
            f"--workdir {workdir}: a {match[1]} URL is no directory; mount the bucket (Cloud "
            "Storage FUSE, see docs/pods.md) and give its path"
        )


def claim(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes the directory this run's, or finds that it already is.

    Raises:
        UserError: if it belongs to a run with other values, naming them.
    """
    path = workdir / CONFIG
    own: dict[str, Any] = json.loads(
        json.dumps(dict(config))
    )  # As it will be read: lists for tuples.
    if path.is_file():
        known = _read(path)
        other = [
            f"{key} is {known_value!r} there and {value!r} here"
            for key, known_value, value in _differences(known, own)
            if not key.startswith(_FREE_KEYS)
        ]
        if other:
            raise UserError(
                f"{workdir} belongs to another run: {'; '.join(other)}. Give another --workdir, or "
                "the run file it was started with"
            )
    elif workdir.is_dir() and any(
        path.suffix != ".tmp" and path.name != RECORDS for path in workdir.iterdir()
    ):
        raise UserError(f"{workdir} is not empty and holds no run: give another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    _write(path, own)


def note_environment(workdir: Path, *, mesh: Mapping[str, int]) -> None:
    """Adds one line about the software and devices of this start."""
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "florence2_jax": metadata.version("florence2-jax"),
        "git": _git_revision(),
        "devices": [jax.devices()[0].device_kind, jax.device_count()],
        "mesh": dict(mesh),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", ""),
    }
    with (workdir / ENVIRONMENT).open("a", encoding="utf-8") as file:
        file.write(json.dumps(start) + "\n")


def save_model(workdir: Path, config: Florence2Config, tokenizer: Tokenizer) -> None:
    """Writes what is needed to open the run's checkpoints."""
    _write(workdir / MODEL, config.to_dict())
    if not (workdir / TOKENIZER).is_dir():
        tokenizer.save(workdir / "tokenizer.tmp")
        (workdir / "tokenizer.tmp").rename(workdir / TOKENIZER)  # Whole, or not there.


def load_model(workdir: Path) -> tuple[Florence2Config, Tokenizer]:
    """Reads what `save_model` wrote. Raises UserError if the directory holds no run."""
    return load_model_config(workdir), Tokenizer.load(workdir / TOKENIZER)


def load_model_config(workdir: Path) -> Florence2Config:
    """The sizes alone. Raises UserError if the directory holds no run."""
    path = Path(workdir) / MODEL
    if not path.is_file():
        raise UserError(
            f"{workdir} holds no run ({MODEL} is missing): give the --workdir of a `train`"
        )
    return Florence2Config.create(**_read(path))


def load_config(workdir: Path) -> dict[str, Any]:
    """The run file's values. Raises UserError if the directory holds no run."""
    path = Path(workdir) / CONFIG
    if not path.is_file():
        raise UserError(
            f"{workdir} holds no run ({CONFIG} is missing): give the --workdir of a `train`"
        )
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it from a copy") from error


def _write(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.rename(path)


def _differences(
    known: Mapping[str, Any], given: Mapping[str, Any], place: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(known.keys() | given.keys()):
        a, b = known.get(key), given.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{place}{key}.")
        elif a != b:
            yield f"{place}{key}", a, b


def _git_revision() -> str:
    """The revision of the package's checkout; empty when it was installed as a wheel."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()
