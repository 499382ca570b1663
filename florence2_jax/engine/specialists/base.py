# SPDX-License-Identifier: Apache-2.0
"""What a specialist is: images with what is known of them in, annotations with scores out.

A specialist is made from a few settings, is pickled to the process that will run it, and loads its
model there once. What it finds out about one image never depends on the others of its batch, so a
batch may be cut in two when memory runs out, and any image may be asked about again.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from florence2_jax.records.schema import (
    Grounding,
    Label,
    MakerKind,
    Provenance,
    Question,
    Record,
    Region,
    Text,
)
from florence2_jax.typing import Polygon, UserError

Kind: TypeAlias = Literal[
    "texts", "boxes", "text_regions", "region_texts", "groundings", "masks", "questions"
]
"""What a specialist makes, in the order in which it is made: later kinds build on earlier ones."""

KINDS: tuple[Kind, ...] = get_args(Kind)


class SpecialistError(UserError):
    """A specialist that cannot work: its model or program is missing, its service refuses."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a specialist needs."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotations:
    """What a specialist says about one image, beside what its record holds already.

    `labels` and `masks` belong to regions that the record has, named by their index in
    `record.regions`; everything else is new.
    """

    texts: tuple[Text, ...] = ()
    regions: tuple[Region, ...] = ()
    groundings: tuple[Grounding, ...] = ()
    questions: tuple[Question, ...] = ()
    labels: tuple[tuple[int, Label], ...] = ()
    masks: tuple[tuple[int, tuple[Polygon, ...], Provenance], ...] = ()


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there are no annotations of an image: a reason to count by, and what exactly happened."""

    reason: Literal["time-out", "out of memory", "garbage answer", "unreadable image", "error"]
    detail: str = ""


Outcome: TypeAlias = Annotations | Failure


class Specialist(abc.ABC):
    """One annotator. Settings come with `__init__`, which is cheap; models come with `load`.

    Attributes:
        name: what it is, and what of: `detr:facebook/detr-resnet-50`.
        version: changes when its annotations would.
        kinds: what it makes.
        resources: of one worker.
        batch_size: records at a time.
        timeout_s: for one batch, None for none.
    """

    name: str
    version: str
    kinds: tuple[Kind, ...]
    maker_kind: MakerKind = "specialist"
    resources: Resources = Resources()
    batch_size: int = 1
    timeout_s: float | None = None

    @abc.abstractmethod
    def load(self) -> None:
        """Makes it ready to annotate, once per process. Raises SpecialistError if it cannot."""

    @abc.abstractmethod
    def annotate(self, records: Sequence[Record]) -> Sequence[Outcome]:
        """What it says about each of at most `batch_size` records.

        Raises:
            MemoryError: if the batch does not fit; it is then cut in two.
            TimeoutError: if a service does not answer.
            SpecialistError: if no later batch could succeed either.
        """

    def maker(self, score: float | None = None) -> Provenance:
        """The provenance of its annotations; the round is set by who runs it."""
        return Provenance(kind=self.maker_kind, name=f"{self.name}@{self.version}", score=score)
