# SPDX-License-Identifier: Apache-2.0
"""What the tests of importers share: small images, whole imports, reasons of the quarantine."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence2_jax.records.importers import plan_import
from florence2_jax.records.inspection import check_store
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore, splits_of, write_store
from florence2_jax.typing import UserError


def jpeg(width: int = 40, height: int = 30, **options) -> bytes:
    """A JPEG of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **options)
    return out.getvalue()


def write_jpegs(folder: Path, *names: str, **options) -> None:
    """Writes small JPEGs, with the folders they lie in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(**options))


def message(function, *args, **options) -> str:
    """What a call says that the user can mend; it fits a line."""
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def imported(format_name: str, source: Path, store: Path, **options) -> tuple[dict, dict]:
    """The report of an import and its records by id; options as on the command line."""
    texts = {name: str(value) for name, value in options.items()}
    report = write_store(store, plan_import(format_name, source, texts), name=format_name)
    assert check_store(store)["num_problems"] == 0
    records: dict[str, Record] = {
        record.id: record for split in splits_of(store) for record in RecordStore(store, split)
    }
    return report, records


def counts(report: dict, kind: str) -> tuple[int, int, dict]:
    """Read, kept and set aside of a kind, whose books balance."""
    tally = report["counts"][kind]
    assert tally["read"] == tally["kept"] + sum(tally["set_aside"].values())
    return tally["read"], tally["kept"], tally["set_aside"]


def why(store: Path) -> Counter:
    """Reasons of the quarantine file."""
    counts: Counter = Counter()
    for entry in map(json.loads, (store / "set_aside.jsonl").read_text().splitlines()):
        counts[entry["kind"], entry["why"]] += entry.get("count", 1)
    return counts
