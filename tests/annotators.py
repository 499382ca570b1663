# SPDX-License-Identifier: Apache-2.0
"""A store of small images, and specialists that really look at them, for tests of phase 1.

They live in a module of their own, so that spawned processes and actors of Ray can import them.
"""

import dataclasses
import io
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from florence2_jax.engine.specialists.base import (
    Annotations,
    Kind,
    Outcome,
    Specialist,
    SpecialistError,
)
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Label, MakerKind, Provenance, Record, Region, Text
from florence2_jax.records.store import Plan, write_store

SIZE = (48, 32)
PERSON = Provenance(kind="human", name="anna")


def write_images(directory: Path, num: int, *, damaged: Sequence[int] = ()) -> Path:
    """Dark noise with one bright square in it; in each fourth image a person has boxed it."""
    plan = Plan(units={"train": [(i, i in damaged) for i in range(num)]}, make=_image, job={})
    write_store(directory, plan, examples_per_shard=16)
    return directory


def _image(unit: tuple[int, bool], ledger: Ledger) -> Record:
    index, is_damaged = unit
    record = image_record(index, ledger)
    data = record.image[: len(record.image) // 2] if is_damaged else record.image
    return dataclasses.replace(record, image=data)


def image_record(index: int, ledger: Ledger) -> Record:
    """One of those images."""
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 90, (SIZE[1], SIZE[0], 3), np.uint8)
    x, y = int(rng.integers(0, 30)), int(rng.integers(0, 16))
    pixels[y : y + 12, x : x + 14] = (255, 255, 250)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    box = (float(x), float(y), float(x + 14), float(y + 12))
    boxed = (Region(box=box, labels=(Label(text="Light"),), provenance=PERSON),)
    regions = boxed if index % 4 == 0 else ()
    ledger.read("image")
    ledger.keep("image")
    ledger.read("region", len(regions))
    ledger.keep("region", len(regions))
    return Record(
        id=f"image {index}",
        image=file.getvalue(),
        width=SIZE[0],
        height=SIZE[1],
        regions=regions,
    )


@dataclasses.dataclass(eq=False)
class Lights(Specialist):
    """Boxes what is bright. Writes down, in `log`, every load and every image it is asked about.

    `kills` is an image that kills it the first `num_kills` times, `sleeps` one that takes
    `sleep_s` the first time; `pause_s` is for every image.
    """

    log: str = ""
    name: str = "lights"
    version: str = "1"
    kinds: tuple[Kind, ...] = ("boxes",)
    batch_size: int = 4
    maker_kind: MakerKind = "specialist"
    kills: str = ""
    num_kills: int = 1
    sleeps: str = ""
    sleep_s: float = 0.0
    pause_s: float = 0.0

    def load(self) -> None:
        self._note("load")

    def annotate(self, records: Sequence[Record]) -> Sequence[Outcome]:
        return [self._one(record) for record in records]

    def _note(self, what: str) -> None:
        if self.log:
            with Path(self.log).open("a") as file:  # One short write: whole lines.
                file.write(f"{self.name}\t{os.getpid()}\t{what}\n")

    def _times(self, what: str) -> int:
        text = Path(self.log).read_text() if Path(self.log).exists() else ""
        return sum(line.endswith(f"\t{what}") for line in text.splitlines())

    def _one(self, record: Record) -> Outcome:
        time.sleep(self.pause_s)
        if record.id == self.kills and self._times("kill") < self.num_kills:
            self._note("kill")
            os.kill(os.getpid(), signal.SIGKILL)
        if record.id == self.sleeps and not self._times("sleep"):
            self._note("sleep")
            time.sleep(self.sleep_s)
        self._note(record.id)
        return self.look(record)

    def look(self, record: Record) -> Outcome:
        pixels = np.asarray(Image.open(io.BytesIO(record.image)).convert("L"))
        y, x = np.nonzero(pixels > 200)
        box = (float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1))
        label = Label(text="light")
        return Annotations(regions=(Region(box=box, labels=(label,), provenance=self.maker(0.9)),))


@dataclasses.dataclass(eq=False)
class Tints(Lights):
    """Says how bright each region is that the record has: it must run after the boxes."""

    name: str = "tints"
    kinds: tuple[Kind, ...] = ("region_texts",)

    def look(self, record: Record) -> Outcome:
        image = Image.open(io.BytesIO(record.image)).convert("L")
        labels = []
        for index, region in enumerate(record.regions):
            mean = np.asarray(image.crop(region.box)).mean()
            text = f"brightness {mean:.0f}, one of {len(record.regions)}"
            labels.append((index, Label(text=text, kind="brief", provenance=self.maker(0.5))))
        return Annotations(labels=tuple(labels))


@dataclasses.dataclass(eq=False)
class Captions(Lights):
    """A text about the whole image."""

    name: str = "captions"
    kinds: tuple[Kind, ...] = ("texts",)

    def look(self, record: Record) -> Outcome:
        mean = np.asarray(Image.open(io.BytesIO(record.image)).convert("L")).mean()
        text = Text(text=f"An image of brightness {mean:.1f}.", provenance=self.maker())
        return Annotations(texts=(text,))


@dataclasses.dataclass(eq=False)
class Absent(Lights):
    """Its model is not there."""

    name: str = "absent"

    def load(self) -> None:
        raise SpecialistError("absent: no model at models/absent; download it")
