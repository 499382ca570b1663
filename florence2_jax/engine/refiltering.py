# SPDX-License-Identifier: Apache-2.0
"""Another try at the thresholds of the filter, without annotating again."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2_jax.engine.filter import FilterConfig, filter_store
from florence2_jax.engine.round_config import round_folder
from florence2_jax.engine.round_files import CONFIG, Tell, filter_values, read_config
from florence2_jax.records.journal import write_file
from florence2_jax.records.writing import INFO
from florence2_jax.typing import UserError


def refilter(
    workdir: Path,
    round: int,
    changes: Mapping[str, Any],
    *,
    out: Path | None = None,
    num_workers: int = 1,
    ray: str | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Filters the annotated labels of a round by other thresholds.

    Args:
        changes: values of the `filter` section that replace the run file's, section by section.
        out: a new store; without it the round's own is replaced, and the run file that the workdir
            keeps is changed with it.

    Returns:
        `store`, and the reports `before` (by the run file) and `after`.

    Raises:
        UserError: if there is no such round, a later one has learnt from it, or a value is unfit.
    """
    workdir = Path(workdir).absolute()
    config = read_config(workdir)
    folder = round_folder(workdir, round)
    if not (folder / "filter.json").is_file():
        raise UserError(f"{folder}: no filtered labels; run: florence2-jax annotate")
    section = _merged(config.get("filter", {}), changes)
    values = filter_values(workdir, section, round)
    FilterConfig.create(values)
    if out is None:
        _check_last(workdir, round)
    before = json.loads((folder / "filter.json").read_text("utf-8"))
    target = Path(out).absolute() if out else folder / "filtered.new"
    if out is None and target.exists():  # Of a trial that was killed.
        shutil.rmtree(target)
    report = filter_store(
        folder / "annotated",
        target,
        FilterConfig.create(values),
        num_workers=num_workers,
        ray=ray,
        on_progress=None if tell is None else lambda done, total: tell("filtering", done, total),
    )
    if out is None:
        _replace(folder, target)
        report["store"] = str(folder / "filtered")
        write_file(folder / "filter.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        books = json.loads((workdir / CONFIG).read_text("utf-8"))
        books["config"]["filter"] = section
        write_file(workdir / CONFIG, json.dumps(books, indent=1))
    return {"store": report["store"], "before": before, "after": report}


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(old)
    for key, value in changes.items():
        is_section = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = _merged(both[key], value) if is_section else value
    return both


def _check_last(workdir: Path, round: int) -> None:
    later = round_folder(workdir, round + 1)
    if (later / "model").exists():
        raise UserError(
            f"{later}: has learnt from the labels of round {round}; filter into another store with "
            "--out DIR, or begin another workdir"
        )


def _replace(folder: Path, new: Path) -> None:
    old = folder / "filtered.old"
    if old.exists():
        shutil.rmtree(old)
    (folder / "filtered").rename(old)
    new.rename(folder / "filtered")
    shutil.rmtree(old)
    for name in ("report.json", "difference.json"):
        (folder / name).unlink(missing_ok=True)  # They spoke of the old ones.
    assert (folder / "filtered" / INFO).is_file()
