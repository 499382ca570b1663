# SPDX-License-Identifier: Apache-2.0
"""Models of transformers: from a folder or a hub name to a module on its device."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from florence2_jax.engine.specialists.base import SpecialistError
from florence2_jax.engine.specialists.configured import (
    ImageSpecialist,
    check_model,
    folder_digest,
    library_version,
    needs,
)
from florence2_jax.typing import UserError

INSTALL = '"florence2-jax[convert]"'
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(kw_only=True, eq=False)
class TransformersSpecialist(ImageSpecialist):
    """One whose work a model of transformers does.

    Settings:
        model: a folder that `save_pretrained` wrote, or a hub name.
        revision: of a hub name: a branch, a tag, or best a commit, which stays what it is.
        device: "auto" for the first GPU where there is one, or as PyTorch names it.
        dtype: to compute in.
    """

    model: str
    revision: str = "main"
    device: str = "auto"
    dtype: str = "float32"

    family: ClassVar[str]
    auto: ClassVar[str]  # Names of the classes that open the model and what feeds it.
    processor: ClassVar[str] = "AutoProcessor"
    not_in_version = frozenset({"device"})

    def check(self) -> None:
        check_model(self.model)
        if self.dtype not in DTYPES:
            raise UserError(f"dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")

    def title(self) -> str:
        return f"{self.family}:{self.model}"

    def software(self) -> str:
        return library_version("transformers", INSTALL)

    def content(self) -> str:
        return model_digest(self.model)

    def load(self) -> None:
        self._module, self._processor = load_model(
            self.auto,
            self.model,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            processor=self.processor,
        )


def model_digest(model: str) -> str:
    """Of a folder's files; a hub name is told apart by its revision only."""
    return folder_digest(Path(model)) if Path(model).is_dir() else ""


def load_model(
    auto: str, model: str, *, revision: str, device: str, dtype: str, processor: str
) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor, by the names of their `Auto` classes.

    Code that comes with a model is not run, and weights are tensors only.

    Raises:
        SpecialistError: if a library or the model is missing, or it is of another kind.
    """
    torch, transformers = needs("torch", INSTALL), needs("transformers", INSTALL)
    place = Path(model)
    if not place.is_dir() and (place.is_absolute() or model.count("/") != 1):
        raise SpecialistError(f"{model}: no such folder, and no hub name (owner/name)")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"revision": revision, "trust_remote_code": False}
    try:
        processed = getattr(transformers, processor).from_pretrained(model, **options)
        module = getattr(transformers, auto).from_pretrained(
            model, dtype=getattr(torch, dtype), **options
        )
        return module.to(device).eval(), processed
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SpecialistError(
            f"{model}: {auto} cannot open it ({reason}); give a folder or hub name of such a model"
        ) from error


def image_inputs(processor: Any, images: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
    """Each image's tensors by itself: padded together, the answer would depend on the others."""
    return [dict(processor(images=image, return_tensors="pt", **options)) for image in images]


def alike(inputs: Sequence[dict[str, Any]]) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Groups inputs of equal shapes into batches, with the places where they stood."""
    torch = needs("torch", INSTALL)
    groups: dict[Any, list[int]] = {}
    for i, tensors in enumerate(inputs):
        shape = tuple((name, tuple(t.shape)) for name, t in sorted(tensors.items()))
        groups.setdefault(shape, []).append(i)
    for indices in groups.values():
        names = inputs[indices[0]]
        yield indices, {name: torch.cat([inputs[i][name] for i in indices]) for name in names}


def on_device(module: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors where the model is, images in its dtype."""
    return {
        name: t.to(module.device, module.dtype) if t.is_floating_point() else t.to(module.device)
        for name, t in tensors.items()
    }


def as_numpy(tensor: Any) -> np.ndarray:
    """A tensor of any float type as float32, on the host."""
    return tensor.detach().float().cpu().numpy()
