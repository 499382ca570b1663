# SPDX-License-Identifier: Apache-2.0
"""What most specialists share: settings as fields, a version made of them, images decoded."""

import abc
import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from florence2_jax.data.transforms import decode
from florence2_jax.engine.specialists.base import (
    KINDS,
    Annotations,
    Failure,
    Kind,
    Outcome,
    Resources,
    Specialist,
    SpecialistError,
)
from florence2_jax.geometry import clip_box
from florence2_jax.records.checks import ImageError
from florence2_jax.records.schema import Record
from florence2_jax.typing import Box, Size, UserError

_HOW_TO_RUN = {"batch_size", "timeout_s", "num_cpus", "num_gpus", "memory_bytes"}
_SAMPLE_BYTES = 2**16
_UNWRITTEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclasses.dataclass(kw_only=True, eq=False)
class Configured(Specialist):
    """A specialist whose fields are its settings: the run file gives them, the books record them.

    Attributes that begin with `_` are what `load` loads; they stay behind when it is pickled.
    """

    batch_size: int = 1
    timeout_s: float | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int = 0

    not_in_version: ClassVar[frozenset[str]] = frozenset()
    """Settings that change no annotation, beside those of how to run."""

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size: {self.batch_size} is not 1 or more")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise UserError(f"timeout_s: {self.timeout_s} is no time")
        self.check()
        self.resources = Resources(
            num_cpus=self.num_cpus, num_gpus=self.num_gpus, memory_bytes=self.memory_bytes
        )
        self.name = self.title()
        self.version = self._version()

    def check(self) -> None:  # Nothing to check is no mistake.
        """Raises UserError on a setting that cannot be."""

    @abc.abstractmethod
    def title(self) -> str:
        """The name: what it is, and what of."""

    def software(self) -> str:
        """The version of the program or library that does the work."""
        return "1"

    def content(self) -> str:
        """A digest of what the settings only point at, such as the files of a model."""
        return ""

    def settings(self) -> dict[str, Any]:
        """All of its settings, as the run file has them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _version(self) -> str:
        ignored = _HOW_TO_RUN | self.not_in_version
        values = {name: v for name, v in self.settings().items() if name not in ignored}
        said = json.dumps([values, self.content()], sort_keys=True, default=str)
        return f"{self.software()}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class ImageSpecialist(Configured):
    """One that looks at pixels: images that do not decode fail by themselves."""

    def annotate(self, records: Sequence[Record]) -> Sequence[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(records)
        seen: list[tuple[int, Image.Image]] = []
        for i, record in enumerate(records):
            opened = open_record(record)
            if isinstance(opened, Failure):
                outcomes[i] = opened
            else:
                seen.append((i, opened))
        if seen:
            found = self.look([records[i] for i, _ in seen], [image for _, image in seen])
            for (i, _), annotations in zip(seen, found, strict=True):
                outcomes[i] = annotations
        return [outcome for outcome in outcomes if outcome is not None]

    @abc.abstractmethod
    def look(
        self, records: Sequence[Record], images: Sequence[Image.Image]
    ) -> Sequence[Annotations]:
        """What it says about each of some records, given their images in RGB."""


def open_record(record: Record) -> Image.Image | Failure:
    """The image of a record in RGB as it is stored: boxes are of those pixels."""
    try:
        image = decode(record.image)
    except ImageError as error:
        return Failure("unreadable image", str(error))
    if image.size != record.size:
        stated = f"{record.width} x {record.height}"
        return Failure(
            "unreadable image", f"is {image.width} x {image.height}, its record says {stated}"
        )
    return image


def check_kinds(kinds: Iterable[str], makes: Sequence[Kind]) -> tuple[Kind, ...]:
    """The kinds in their order. Raises UserError on one that is not made."""
    wanted = set(kinds)
    if not wanted or wanted - set(makes):
        raise UserError(f"kinds: {sorted(wanted)} must be some of {', '.join(makes)}")
    return tuple(kind for kind in KINDS if kind in wanted)


def check_share(name: str, value: float) -> None:
    """Raises UserError unless a setting is in [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"{name}: {value} is not in [0, 1]")


def check_model(model: str) -> None:
    """Raises UserError where no model is named: its path would be the current folder."""
    if not model:
        raise UserError("model: it is empty; name a folder or a model of the hub")


def needs(module: str, install: str) -> Any:
    """An optional library. Raises SpecialistError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SpecialistError(f"{module} is not installed; run: pip install {install}") from error


def library_version(package: str, install: str) -> str:
    """The installed version of a package, which is not imported. Raises SpecialistError."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise SpecialistError(f"{package} is not installed; run: pip install {install}") from error


def folder_digest(folder: Path) -> str:
    """Of the files of a model: their names, sizes, and both ends of what they hold."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def clipped(box: Iterable[float], size: Size) -> Box | None:
    """The part of a box inside its image; None if there is none, or it is no box."""
    x0, y0, x1, y1 = map(float, box)
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return None
    return clip_box((x0, y0, x1, y1), (0.0, 0.0, float(size[0]), float(size[1])))


def cleaned(text: str) -> str:
    """A text of one line as a record may hold it: no control characters, no blanks around it."""
    return _UNWRITTEN.sub(" ", text).strip()
