# SPDX-License-Identifier: Apache-2.0
"""Workdirs of a data engine with a frozen split, for the tests of the audit."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from florence2_jax.engine import audit
from florence2_jax.records.schema import Label, Provenance, Record, Region, Text
from tests.records.test_combining import store

NUM_FROZEN = 4


def photo(number: int, quality: int = 90, size: int = 64) -> bytes:
    """An image like no other: coarse noise."""
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    out = io.BytesIO()
    image.resize((size, size), Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def region(label: str, box=(8, 8, 40, 40), score: float | None = None, **options) -> Region:
    maker = Provenance(kind="specialist", name="detector@1", score=score)
    return Region(box=box, labels=(Label(text=label),), provenance=maker, **options)


def record(number: int, **annotations) -> Record:
    annotations = {"regions": (region("cat"),), "texts": (Text(text="a cat"),)} | annotations
    return Record(id=f"photo {number}", image=photo(number), width=64, height=64, **annotations)


def frozen_workdir(
    folder: Path, count: int = 12, change: Callable[[Record], Record] = lambda record: record
) -> Path:
    """A workdir with `NUM_FROZEN` frozen records of `count`."""
    source = store(folder / "source", train=[change(record(k)) for k in range(count)])
    audit.freeze(source, folder / "engine", count=NUM_FROZEN, near_copies=False)
    return folder / "engine"


def said(workdir: Path, *regions: Region) -> list[Record]:
    """The frozen records, each with these regions."""
    return [dataclasses.replace(one, regions=regions) for one in audit.truth(workdir)]
