# SPDX-License-Identifier: Apache-2.0
"""What a workdir of the engine keeps of its run file, and how its stages tell how far they are."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from florence2_jax.engine import audit
from florence2_jax.engine.round_config import round_folder
from florence2_jax.records.journal import difference as first_difference
from florence2_jax.records.journal import write_file
from florence2_jax.typing import UserError

CONFIG = "engine.json"
_GROWS = ("rounds", "final_model")  # What a workdir may be continued with; and, as long as
_REFINES = ("train", "predict", "refine", "human_shares", "start", "sparse")  # none has a model.

Tell = Callable[..., None]
"""Called as `tell(what, done, total, detail="")`: what is done now, how much of it, and of how much
(0 where that is not known), and what else there is to say of it."""


def take_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes the directory this run's, or finds that it is."""
    path = workdir / CONFIG
    own = json.loads(json.dumps(dict(config)))
    versions = {"florence2-jax": metadata.version("florence2-jax")}
    if path.is_file() and audit.is_frozen(workdir):  # Before, no stage has used the run file.
        books = json.loads(path.read_text("utf-8"))
        known, versions = books["config"], books["versions"]
        free = _GROWS if (round_folder(workdir, 1) / "model.json").is_file() else _GROWS + _REFINES
        fixed = [{k: v for k, v in one.items() if k not in free} for one in (known, own)]
        if fixed[0] != fixed[1]:
            raise UserError(
                f"{workdir}: belongs to another run of the engine "
                f"({first_difference(fixed[0], fixed[1])}); give another --workdir, or for other "
                "thresholds of the filter: florence2-jax annotate filter"
            )
        if int(own.get("rounds", 0)) < int(known.get("rounds", 0)):
            own["rounds"] = known["rounds"]  # What was begun stays known.
    elif not path.is_file() and _holds_other_files(workdir):
        raise UserError(f"{workdir}: is not empty and no engine's; give another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"config": own, "versions": versions}, indent=1))


def _holds_other_files(workdir: Path) -> bool:
    return workdir.is_dir() and any(path.name != "audit" for path in workdir.iterdir())


def read_config(workdir: Path) -> dict[str, Any]:
    """The run file of a workdir. Raises UserError if it is none of the engine's."""
    path = workdir / CONFIG
    if not path.is_file():
        raise UserError(
            f"{workdir}: no workdir of the engine ({CONFIG} is missing); begin one with: "
            "florence2-jax annotate --config FILE --workdir DIR"
        )
    return json.loads(path.read_text("utf-8"))["config"]


def filter_values(workdir: Path, section: Mapping[str, Any], round: int) -> dict[str, Any]:
    """The filter's section, with the precision of makers that the audits so far have measured."""
    agreement = dict(section.get("agreement", {}))
    measured: dict[str, float] = {}
    for number in range(round + 1):
        path = round_folder(workdir, number) / "precision.json"
        measured |= json.loads(path.read_text("utf-8"))
    agreement["precision"] = measured | dict(agreement.get("precision", {}))
    return dict(section) | {"agreement": agreement}


def by_specialist(tell: Tell, what: str) -> Callable[[Sequence[Any]], None]:
    """Tells what `annotate` reports of its specialists: those at work with their speed."""

    def progress(rows: Sequence[Any]) -> None:
        done, total = (sum(getattr(row, field) for row in rows) for field in ("images", "total"))
        at_work = [row for row in rows if row.workers]
        detail = ", ".join(f"{_short(row.specialist)} {row.images_per_s:,.1f}/s" for row in at_work)
        tell(what, done, total, detail)

    return progress


def _short(name: str) -> str:
    """`checkpoint:/runs/engine/round-1/model` -> `checkpoint:model`."""
    kind, _, place = name.partition(":")
    return f"{kind}:{place.rpartition('/')[2]}" if place else kind
