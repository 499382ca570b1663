# SPDX-License-Identifier: Apache-2.0
"""Importers: a dataset in an outside format -> the plan of a store.

An importer is a module with `plan(source: Path, **options) -> Plan`, which lists the source and its
annotation files, and `detect(source: Path) -> bool`, which looks at names and first bytes only and
never raises. What is listed becomes records in many processes (see `annotated.py`).
"""

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence2_jax.typing import UserError

if TYPE_CHECKING:
    from florence2_jax.records.writing import Plan

_HERE = "florence2_jax.records.importers"


@dataclasses.dataclass(frozen=True)
class Importer:
    """A format: its module here, what it looks like, and the options its `plan` takes.

    Options are written `name=value` on the command line; the type says how a value is read.
    """

    module: str
    looks_like: str
    options: Mapping[str, type] = dataclasses.field(default_factory=dict)


_IMAGES = {"images": Path}  # Where the images are, if they are not where the format has them.

IMPORTERS: dict[str, Importer] = {
    "coco": Importer(
        "coco",
        "annotations/{instances,captions,panoptic}_NAME.json beside image folders NAME/",
        _IMAGES,
    ),
    "voc": Importer(
        "voc",
        "Annotations/*.xml, JPEGImages/ and, if it has them, ImageSets/Main/*.txt",
        _IMAGES | {"one_based": bool},
    ),
    "lvis": Importer("lvis", "lvis_v1_{train,val}.json, photos of COCO beside", _IMAGES),
    "objects365": Importer("objects365", "zhiyuan_objv2_{train,val}.json, patch folders", _IMAGES),
    "openimages": Importer(
        "openimages", "*-annotations-bbox.csv, class-descriptions*.csv, image folders", _IMAGES
    ),
    "visual_genome": Importer(
        "visual_genome",
        "image_data.json with region_descriptions, objects or question_answers .json",
        _IMAGES,
    ),
    "refcoco": Importer(
        "refcoco",
        "refs(BY).p and instances.json of RefCOCO, RefCOCO+ or RefCOCOg",
        _IMAGES | {"by": str},
    ),
    "flickr30k": Importer(
        "flickr30k", "Flickr30k Entities: Sentences/*.txt, Annotations/*.xml", _IMAGES
    ),
    "vqa": Importer("vqa", "questions and annotations .json of VQAv2, GQA or TextVQA", _IMAGES),
    "textocr": Importer("textocr", "TextOCR_*.json with imgs, anns and imgToAnns", _IMAGES),
    "icdar": Importer(
        "icdar", "gt_*.txt of ICDAR 2013, 2015 or Total-Text beside their images", _IMAGES
    ),
    "mmocr": Importer("mmocr", "MMOCR lists: .json with data_list, or a JSON per line", _IMAGES),
    "labelme": Importer("labelme", "one .json with shapes per image"),
    "yolo": Importer("yolo", "data.yaml, images/ and labels/*.txt"),
    "jsonl": Importer(
        "jsonl", "annotations.jsonl with image, prefix and suffix (maestro, Roboflow)", _IMAGES
    ),
    "webdataset": Importer("webdataset", "*.tar shards of images with .txt and .json beside"),
    "hf": Importer(
        "hugging_face",
        "a Hugging Face dataset on disk, or *.parquet files with a column of images",
        {"caption": str},
    ),
    "images": Importer("folder", "a folder of images, with NAME.txt captions if it has them"),
}


def detect(source: Path) -> str:
    """The format of a folder.

    Raises:
        UserError: if it looks like none of them, or like several.
    """
    _check_exists(source)
    # A plain folder of images is what remains: images lie in datasets of every format.
    names = [name for name in IMPORTERS if name != "images" and _module(name).detect(source)]
    if not names and _module("images").detect(source):
        names = ["images"]
    if len(names) == 1:
        return names[0]
    if names:
        raise UserError(f"{source}: may be any of {', '.join(names)}; choose one with --from")
    rows = "".join(f"\n  {name}: {row.looks_like}" for name, row in IMPORTERS.items())
    raise UserError(f"{source}: looks like no known format; choose one with --from:{rows}")


def plan_import(format_name: str, source: Path, options: Mapping[str, str] = {}) -> "Plan":
    """The plan of importing a dataset; `options` are those of the format, as they are written.

    Raises:
        UserError: if the format is unknown, does not take an option, or the source is not of it.
    """
    if format_name not in IMPORTERS:
        near = difflib.get_close_matches(format_name, IMPORTERS) or sorted(IMPORTERS)
        raise UserError(f"format {format_name!r} is unknown; did you mean {', '.join(near)}?")
    taken = IMPORTERS[format_name].options
    for name in options:
        if name not in taken:
            raise UserError(
                f"option {name!r} says nothing about format {format_name!r}; "
                f"it takes {', '.join(taken) or 'none'}"
            )
    _check_exists(source)
    values = {name: _value(name, text, taken[name]) for name, text in options.items()}
    return _module(format_name).plan(source, **values)


def _check_exists(source: Path) -> None:
    if not source.exists():
        raise UserError(f"{source}: no such folder; give the folder that holds the dataset")


def _module(format_name: str) -> Any:
    return importlib.import_module(f"{_HERE}.{IMPORTERS[format_name].module}")


def _value(name: str, text: str, wanted: type) -> Any:
    if wanted is not bool:
        return wanted(text)
    if text.lower() not in ("true", "false"):
        raise UserError(f"option {name}={text}: write true or false")
    return text.lower() == "true"
