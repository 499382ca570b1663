# SPDX-License-Identifier: Apache-2.0
"""The annotators of the data engine: one file per family, made by the name of their type.

create("tesseract", language="eng")
create("detection", model="facebook/detr-resnet-50", threshold=0.5)
"""

import dataclasses
import difflib
import importlib
from types import NoneType
from typing import Any, get_args, get_origin

from florence2_jax.engine.specialists.base import Specialist
from florence2_jax.training.sections import refuse_unknown, texts
from florence2_jax.typing import UserError

TYPES: dict[str, str] = {
    "checkpoint": "checkpoint.Checkpoint",
    "detection": "detection.Detection",
    "grounding": "grounding.ZeroShotGrounding",
    "captioning": "captioning.Captioning",
    "masks": "mask_generation.MaskGeneration",
    "region_captions": "choosing.RegionCaptions",
    "tesseract": "tesseract.Tesseract",
    "opencv_people": "opencv.People",
    "opencv_faces": "opencv.Faces",
    "chat": "chat.Chat",
    "http": "http_annotator.HttpAnnotator",
    "human": "human.HumanLabels",
    "imperfect": "imperfect.Imperfect",
}
"""Of each type, where its class is: only the modules of types that are used are imported."""


def create(type: str, **settings: Any) -> Specialist:
    """Makes a specialist; nothing is loaded yet.

    Args:
        type: a key of `TYPES`.
        settings: fields of its class.

    Raises:
        UserError: on an unknown type or setting, naming the nearest; on one that is missing or has
            an impossible value; if a program that it needs is not installed.
    """
    if type not in TYPES:
        near = difflib.get_close_matches(str(type), TYPES, cutoff=0.5) or sorted(TYPES)
        raise UserError(f"specialist {type!r} is unknown; did you mean {', '.join(near)}?")
    module, _, name = TYPES[type].rpartition(".")
    cls = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    refuse_unknown(f"{type}.", settings, fields)
    missing = [
        name
        for name, field in fields.items()
        if name not in settings and field.default is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{type}.{missing[0]}: the run file must say it")
    values = {name: _value(f"{type}.{name}", v, fields[name].type) for name, v in settings.items()}
    return cls(**values)


def _value(place: str, value: Any, wanted: Any) -> Any:
    """A setting as its field has it: `training.sections` knows no `float | None`."""
    if get_origin(wanted) is tuple:
        return texts(place, value)
    types = get_args(wanted) or (wanted,)
    if float in types and type(value) is int:
        value = float(value)
    if type(value) not in types:
        names = " or ".join("None" if t is NoneType else t.__name__ for t in types)
        raise UserError(f"{place}: {value!r} is not of type {names}")
    return value
