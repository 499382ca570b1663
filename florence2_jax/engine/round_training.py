# SPDX-License-Identifier: Apache-2.0
"""Phase 3 learns: the run file of each model that the loop trains, and the training itself."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2_jax.engine.audit import exclude_list
from florence2_jax.engine.round_config import EngineConfig, SparseConfig, round_folder
from florence2_jax.engine.subsets import with_humans, write_changed
from florence2_jax.records.journal import write_file
from florence2_jax.records.writing import INFO
from florence2_jax.training import loop
from florence2_jax.typing import UserError


def train_round(engine: EngineConfig, workdir: Path, round: int) -> dict[str, Any]:
    """Trains the model of a round on the filtered labels of the round before, or goes on.

    Returns the report of `training.loop.run`. Raises UserError as that does.
    """
    folder = round_folder(workdir, round)
    records = round_folder(workdir, round - 1) / "filtered"
    previous = (
        "" if round == 1 or engine.start == "fresh" else folder.with_name(f"round-{round - 1}")
    )
    config = _started_from(engine.train, Path(previous) / "model" if previous else None)
    inputs: dict[str, Any] = dict(config["input"]) | _unseen(workdir)
    inputs |= _stores(engine, folder, records, engine.human_share(round))
    rare = [sparse for sparse in engine.sparse.values() if sparse.leave_out and round == 1]
    left_out = {task: 0.0 for sparse in rare for task in sparse.tasks}
    inputs["tasks"] = dict(inputs.get("tasks", {"all": 1.0})) | left_out
    config |= {"input": inputs, "seed": int(config.get("seed", 0)) + round}
    return _train(config, folder / "model")


def train_specialist(
    engine: EngineConfig, workdir: Path, round: int, name: str, sparse: SparseConfig
) -> dict[str, Any]:
    """Tunes the model of a round on the few records of a rare kind, or goes on.

    Raises:
        UserError: if humans have annotated none, or as `training.loop.run` does.
    """
    folder = round_folder(workdir, round)
    records = folder / f"{name}-records"
    if not (records / INFO).is_file():
        names = tuple(category.casefold() for category in sparse.categories)
        _write_human(engine, folder.with_name(f"round-{round - 1}") / "filtered", records, names)
    config = _started_from(engine.train, folder / "model")
    inputs: dict[str, Any] = dict(config["input"]) | _unseen(workdir)
    inputs |= {"records": str(records), "split": engine.source.split}
    inputs["tasks"] = {"all": 0.0} | dict(sparse.tasks)
    optimizer = dict(config["optimizer"])
    if sparse.peak_lr:
        optimizer["peak_lr"] = sparse.peak_lr
    warmup = int(optimizer.get("warmup_steps", 0))
    optimizer["warmup_steps"] = min(warmup, sparse.total_steps // 10)
    config.pop("total_samples", None)
    config |= {"input": inputs, "optimizer": optimizer, "total_steps": sparse.total_steps}
    config["seed"] = int(config.get("seed", 0)) + 1000 + round
    return _train(config, folder / f"{name}-model")


def _train(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    done = workdir.with_name(f"{workdir.name}.json")
    if done.is_file():
        return json.loads(done.read_text("utf-8"))
    report = loop.run(config, workdir)
    if not report["stopped"]:
        write_file(done, json.dumps(report, indent=1))
    return report


def _started_from(train: Mapping[str, Any], model: Path | None) -> dict[str, Any]:
    """The run file, starting from another model of the loop, if there is one."""
    config: dict[str, Any] = json.loads(json.dumps(dict(train)))
    if model is None:
        return config
    init = dict(config.get("init", {}))
    if init.get("model"):
        return config | {"init": init | {"model": str(model)}}
    init = {k: v for k, v in init.items() if k not in ("bart", "davit")}
    config["tokenizer"] = {"path": str(model / "tokenizer")}
    return config | {"init": init | {"workdir": str(model)}}


def _stores(engine: EngineConfig, folder: Path, records: Path, share: float) -> dict[str, Any]:
    """The stores to learn from: the labels, and the records of humans more often."""
    split = engine.source.split
    if not share:
        return {"records": str(records), "split": split}
    human = folder / "human"
    if not (human / INFO).is_file():
        _write_human(engine, records, human, ())
    return {
        "records": "",
        "split": "train",
        "mixture": {
            "labels": {"records": str(records), "split": split, "weight": 1 - share},
            "human": {"records": str(human), "split": split, "weight": share},
        },
    }


def _write_human(
    engine: EngineConfig, source: Path, directory: Path, names: tuple[str, ...]
) -> None:
    change = functools.partial(with_humans, names=names)
    job = {"format": "annotated by humans", "names": list(names)}
    try:
        write_changed(source, directory, change, job, splits=(engine.source.split,))
    except UserError as error:
        if "no record is left" not in str(error):
            raise
        what = f"found {', '.join(names)}" if names else "annotated any image"
        raise UserError(
            f"{source}: no human has {what}: leave out human_shares, or the entry of sparse"
        ) from error


def _unseen(workdir: Path) -> dict[str, str]:
    """Keeps the frozen images out of training, whatever store they might be in."""
    return {"exclude": str(exclude_list(workdir)), "on_excluded": "drop"}
