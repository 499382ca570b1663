# SPDX-License-Identifier: Apache-2.0
"""Importers: a folder in an outside format -> the plan of a store.

An importer is a module with `plan(source: Path, **options) -> Plan`. Listing the source and merging
its annotation files happen in `plan`, reading images and mending annotations in the units, which
many processes make into records.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2_jax.typing import UserError

if TYPE_CHECKING:
    from florence2_jax.records.writing import Plan


@dataclasses.dataclass(frozen=True)
class Importer:
    """A format: its module, what it looks like, and the options its `plan` takes."""

    module: str
    looks_like: str
    options: tuple[str, ...] = ()


IMPORTERS: dict[str, Importer] = {
    "coco": Importer(
        "florence2_jax.records.importers.coco",
        "annotations/instances_NAME.json and captions_NAME.json beside image folders NAME/",
    ),
    "voc": Importer(
        "florence2_jax.records.importers.voc",
        "Annotations/*.xml, JPEGImages/ and, if it has them, ImageSets/Main/*.txt",
        ("one_based",),
    ),
}


def plan_import(format_name: str, source: Path, **options: Any) -> "Plan":
    """The plan of importing a folder; `options` are those of the format's importer.

    Raises:
        UserError: if the format is unknown, does not take an option, or the folder is not of it.
    """
    if format_name not in IMPORTERS:
        raise UserError(f"format {format_name!r} is unknown; there are {sorted(IMPORTERS)}")
    importer = IMPORTERS[format_name]
    if foreign := sorted(options.keys() - set(importer.options)):
        flag = "--" + foreign[0].replace("_", "-")
        raise UserError(f"{flag} says nothing about format {format_name!r}; leave it out")
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the folder that holds the dataset")
    return importlib.import_module(importer.module).plan(source, **options)
