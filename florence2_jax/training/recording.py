# SPDX-License-Identifier: Apache-2.0
"""Reads what the black boxes of all hosts wrote about one step (`black_box.py`)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from florence2_jax.data.loading import Batch
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True)
class Recording:
    """A step as the black boxes of all hosts wrote it.

    `batch` is the whole batch in the order of the devices; `hosts` int[B] says who loaded a row.
    """

    path: Path
    report: dict[str, Any]
    batch: Batch
    hosts: np.ndarray

    @property
    def step(self) -> int:
        """Its number, from 1."""
        return self.report["step"]

    @property
    def row(self) -> dict[str, Any]:
        """Its scalars: `loss` and `grad_norm`, if they were known, as float32."""
        return self.report["steps"][-1]


def read_recording(path: Path) -> Recording:
    """Reads a file of the black box, with what the other hosts wrote about the same step.

    Raises:
        UserError: if it is none, or the rows of the batch are not all there.
    """
    path = Path(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        stem = f"step_{report['step']}"
        files = [path.with_name(f"{stem}.json"), *sorted(path.parent.glob(f"{stem}_host*.json"))]
        found = [
            (one, json.loads(one.read_text(encoding="utf-8"))) for one in files if one.is_file()
        ]
        blocks = {
            one["rows"]["block"]: (file, one)
            for file, one in found
            # Not what another start of the run wrote, which had other hosts.
            if one["has_batch"] and one["num_hosts"] == report["num_hosts"]
        }
        missing = set(range(report["rows"]["num_blocks"])) - blocks.keys()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; a run writes them to black_box/") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is no file of a run's black box ({error})") from error
    if missing:
        raise UserError(
            f"{path}: the rows of {len(missing)} of {report['rows']['num_blocks']} blocks of the "
            "batch were not written: a host crashed by itself, or they are larger than "
            "black_box.batch_mb of its run file"
        )
    shards = {}
    for file, one in blocks.values():
        offsets = one["rows"]["offsets"]
        with np.load(file.with_suffix(".npz")) as arrays:
            rows = {name: arrays[name] for name in arrays.files}
        rows["host"] = np.full(len(rows["image"]), one["host"])
        size = len(rows["image"]) // len(offsets)
        for start, first in offsets:
            shards[start] = {name: x[first : first + size] for name, x in rows.items()}
    ordered = [shards[start] for start in sorted(shards)]
    batch = {name: np.concatenate([one[name] for one in ordered]) for name in ordered[0]}
    return Recording(path, report, batch, batch.pop("host"))
