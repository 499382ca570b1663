# SPDX-License-Identifier: Apache-2.0
"""What people said, out of another store of records about the same images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from florence2_jax.engine.specialists.base import (
    Annotations,
    Failure,
    Kind,
    Outcome,
    SpecialistError,
)
from florence2_jax.engine.specialists.configured import Configured, check_kinds
from florence2_jax.records.merging import Key, key_of
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Provenance,
    Question,
    Record,
    Region,
    Text,
)
from florence2_jax.records.store import RecordStore, splits_of
from florence2_jax.typing import UserError

MAKES: tuple[Kind, ...] = ("texts", "boxes", "text_regions", "groundings", "questions")

_Annotation = TypeVar("_Annotation", Text, Label, Region, Grounding, Question)


@dataclasses.dataclass(kw_only=True, eq=False)
class HumanLabels(Configured):
    """Annotations of a store that people made; images that it has not get none.

    Settings:
        store: its directory.
        splits: to look in; none for all.
        key: by what images are joined: "id", "name" of the file at the end of it, or "hash" of the
            encoded bytes.
        kinds: to take.
    """

    store: str
    splits: tuple[str, ...] = ()
    key: str = "id"
    kinds: tuple[Kind, ...] = MAKES

    maker_kind = "human"

    def check(self) -> None:
        if self.key not in get_args(Key):
            raise UserError(f"key: {self.key!r} is not one of {', '.join(get_args(Key))}")
        self.kinds = check_kinds(self.kinds, MAKES)

    def title(self) -> str:
        return f"human:{Path(self.store).name}"

    def content(self) -> str:
        info = Path(self.store) / "dataset_info.json"
        return info.read_text("utf-8") if info.is_file() else ""

    def load(self) -> None:
        try:
            self._read()
        except SpecialistError:
            raise
        except UserError as error:
            raise SpecialistError(f"human: {error}") from error

    def _read(self) -> None:
        directory, key = Path(self.store), self._key()
        known = splits_of(directory)
        if missing := [name for name in self.splits if name not in known]:
            raise SpecialistError(
                f"{directory}: has no split {missing[0]!r}; there are {', '.join(known)}"
            )
        self._stores = {s: RecordStore(directory, s) for s in self.splits or known}
        self._places: dict[str, tuple[str, int]] = {}
        for split, store in self._stores.items():
            for i in range(len(store)):
                at = key_of(store[i], key)
                if at in self._places:
                    raise SpecialistError(
                        f"{directory}: two records have the {self.key} {at!r}; use another key"
                    )
                self._places[at] = split, i

    def _key(self) -> Key:
        key: Any = self.key
        return key

    def annotate(self, records: Sequence[Record]) -> Sequence[Outcome]:
        return [self._about(record) for record in records]

    def _about(self, record: Record) -> Outcome:
        place = self._places.get(key_of(record, self._key()))
        if place is None:
            return Annotations()
        other = self._stores[place[0]][place[1]].kept()
        if other.size != record.size:
            sizes = f"{other.width} x {other.height}, not {record.width} x {record.height}"
            return Failure("garbage answer", f"people labelled the image at {sizes}")
        regions = tuple(map(_human_region, _of_people(other.regions)))
        return Annotations(
            texts=_of_people(other.texts) if "texts" in self.kinds else (),
            regions=tuple(r for r in regions if _kind_of(r) in self.kinds),
            groundings=_of_people(other.groundings) if "groundings" in self.kinds else (),
            questions=_of_people(other.questions) if "questions" in self.kinds else (),
        )


def _kind_of(region: Region) -> str:
    is_writing = region.quad is not None or region.label("text") is not None
    return "text_regions" if is_writing else "boxes"


def _is_of_people(provenance: Provenance | None) -> bool:
    return provenance is None or provenance.kind == "human"


def _of_people(annotations: tuple[_Annotation, ...]) -> tuple[_Annotation, ...]:
    return tuple(a for a in annotations if _is_of_people(a.provenance))


def _human_region(region: Region) -> Region:
    """A region of people without what others added to it."""
    labels = _of_people(region.labels)
    if not _is_of_people(region.mask_provenance):
        region = dataclasses.replace(region, polygons=(), mask_provenance=None)
    return dataclasses.replace(region, labels=labels)
