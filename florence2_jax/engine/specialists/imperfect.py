# SPDX-License-Identifier: Apache-2.0
"""Annotators with known faults: they see the truth and repeat it badly, always in the same way.

With them a run of the data engine can be held against the truth, which no run on photos can. They
miss small objects, draw boxes askew, see what is not there, take one color for another, and are
blind to whole classes. What they do with an image depends on its id and their settings alone.

What is hard for one is hard for others: two of them with the same `hard_seed` miss the same small
objects, so that asking more of them does not find everything. Other faults are each one's own.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from florence2_jax.engine.specialists.base import (
    KINDS,
    Annotations,
    Failure,
    Kind,
    Outcome,
    SpecialistError,
)
from florence2_jax.engine.specialists.configured import Configured, check_kinds, check_share
from florence2_jax.geometry import box_iou
from florence2_jax.records.scene_shapes import COLORS
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Provenance,
    Question,
    Record,
    Region,
    Span,
    Text,
)
from florence2_jax.records.store import RecordStore
from florence2_jax.typing import Box

MAKES: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "masks")

_COLOR = re.compile(rf"\b({'|'.join(COLORS)})\b")
_SEEN_IOU = 0.5  # A region is what the truth has there.
_EMPTY_IOU = 0.2  # A place where there is nothing.


@dataclasses.dataclass(kw_only=True, eq=False)
class Imperfect(Configured):
    """One such annotator.

    Attributes:
        truth: store of exact labels, with the same ids.
        split: of it.
        tag: its name.
        makes: kinds of annotations.
        seed: of its own faults.
        hard_seed: of what is missed.
        small_share: an object is small if the root of its area is a smaller share of that of the
            image.
        missed_small: share of small objects that it misses.
        jitter: standard deviation of each side of a box, as a share of the box's sides.
        hallucinated: share of its boxes where there is nothing.
        wrong_colors: share of the colors in its texts that are wrong.
        blind_to: classes that it never sees, nor speaks of.
    """

    truth: str
    split: str = "train"
    tag: str = "imperfect"
    makes: tuple[str, ...] = ("boxes",)
    seed: int = 0
    hard_seed: int = 0
    small_share: float = 0.42
    missed_small: float = 0.4
    jitter: float = 0.06
    hallucinated: float = 0.1
    wrong_colors: float = 0.15
    blind_to: tuple[str, ...] = ()

    def check(self) -> None:
        self.kinds = check_kinds(self.makes, MAKES)
        for name in ("small_share", "missed_small", "jitter", "hallucinated", "wrong_colors"):
            check_share(name, getattr(self, name))

    def title(self) -> str:
        return f"imperfect:{self.tag}"

    def load(self) -> None:
        store = RecordStore(self.truth, self.split)
        self._truth = {record.id: record for record in store}
        regions = (region for record in self._truth.values() for region in record.regions)
        names = {name for region in regions if (name := region.label("category"))}
        self._names = sorted(names - set(self.blind_to))
        if not self._names:
            raise SpecialistError(f"{self.truth}: no object of a class that {self.tag} may see")

    def annotate(self, records: Sequence[Record]) -> Sequence[Outcome]:
        return [self._annotate(record) for record in records]

    def _annotate(self, record: Record) -> Outcome:
        if (true := self._truth.get(record.id)) is None:
            return Failure("error", f"{self.truth} has no record {record.id!r}")
        made: dict[str, Any] = {}
        for kind in self.kinds:
            field, make = _MAKERS[kind]
            made[field] = made.get(field, ()) + tuple(make(self, record, true))
        return Annotations(**made)

    # What each kind is made of.

    def _boxes(self, record: Record, true: Record) -> list[Region]:
        regions, dice = [], self._dice("boxes", record.id)
        objects = [region for region in true.regions if region.label("category")]
        for number, region in enumerate(objects):
            name = region.label("category") or ""
            box = self._askew(region.box, true, dice)
            score = _score(dice, 0.72)
            is_extra = dice.random() < self.hallucinated / max(1e-9, 1 - self.hallucinated)
            extra = self._imagined(objects, true, dice) if is_extra else None
            if name not in self.blind_to and not self._misses(number, region, true):
                regions.append(self._object(name, box, score))
            if extra is not None:
                regions.append(self._object(*extra, _score(dice, 0.55)))
        return regions

    def _object(self, name: str, box: Box, score: float) -> Region:
        return Region(box=box, labels=(Label(text=name),), provenance=self.maker(score))

    def _writing(self, record: Record, true: Record) -> list[Region]:
        dice = self._dice("writing", record.id)
        words = (region for region in true.regions if region.label("text") is not None)
        return [
            dataclasses.replace(word, provenance=self.maker(_score(dice, 0.8))) for word in words
        ]

    def _texts(self, record: Record, true: Record) -> list[Text]:
        return [
            Text(text=said, granularity=text.granularity, provenance=self._sayer(said))
            for text in true.texts
            if (said := self._say(text.text, record.id))
        ]

    def _region_texts(self, record: Record, true: Record) -> list[tuple[int, Label]]:
        """What it says of the regions that are there, even of those where there is nothing."""
        labels: list[tuple[int, Label]] = []
        objects = [region for region in true.regions if region.label("category")]
        for index, region in enumerate(record.regions):
            if (name := region.label("category")) is None:
                continue
            overlaps = box_iou(_array([region]), _array(objects))[0] if objects else np.zeros(0)
            if overlaps.size and overlaps.max() >= _SEEN_IOU:
                brief = objects[int(overlaps.argmax())].label("brief") or name
            else:
                dice = self._dice("imagined", record.id, str(index))
                brief = f"a {dice.choice(tuple(COLORS))} {name}"
            if said := self._say(brief, record.id):
                labels.append((index, Label(text=said, kind="brief", provenance=self._sayer(said))))
        return labels

    def _groundings(self, record: Record, true: Record) -> list[Grounding]:
        made = []
        for grounding in true.groundings:
            said = self._say(grounding.text, record.id)
            if not said:
                continue
            dice = self._dice("places", record.id, said)
            spans = tuple(
                Span(
                    start=self._moved(span.start, grounding.text, record.id),
                    end=self._moved(span.end, grounding.text, record.id),
                    boxes=tuple(self._askew(box, true, dice) for box in span.boxes),
                    box_scores=tuple(_score(dice, 0.72) for _ in span.boxes),
                )
                for span in grounding.spans
            )
            made.append(Grounding(text=said, spans=spans, provenance=self._sayer(said)))
        return made

    def _questions(self, record: Record, true: Record) -> list[Question]:
        return [
            Question(question=q.question, answers=(said,), provenance=self._sayer(said))
            for q in true.questions
            if self._say(q.question, record.id, colors=False)
            and (said := self._say(q.answers[0], record.id + q.question))
        ]

    # Its faults.

    def _dice(self, *what: str, seed: int | None = None) -> np.random.Generator:
        said = "\0".join((str(self.seed if seed is None else seed), *what))
        digest = hashlib.blake2b(said.encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest))

    def _misses(self, number: int, region: Region, true: Record) -> bool:
        width, height = region.box[2] - region.box[0], region.box[3] - region.box[1]
        share = (width * height / (true.width * true.height)) ** 0.5
        dice = self._dice("missed", true.id, str(number), seed=self.hard_seed)
        return share < self.small_share and dice.random() < self.missed_small

    def _askew(self, box: Box, true: Record, dice: np.random.Generator) -> Box:
        width, height = box[2] - box[0], box[3] - box[1]
        moved = np.array(box) + dice.normal(0, self.jitter, 4) * (width, height, width, height)
        limits = (true.width, true.height, true.width, true.height)
        x0, y0, x1, y1 = moved.clip(0, limits).tolist()
        return (x0, y0, x1, y1) if x1 - x0 >= 2 and y1 - y0 >= 2 else box

    def _imagined(
        self, objects: Sequence[Region], true: Record, dice: np.random.Generator
    ) -> tuple[str, Box] | None:
        """An object where there is none; None where there is no room for one."""
        for _ in range(20):
            width, height = dice.uniform(0.3, 0.55, 2) * true.size
            x0, y0 = dice.uniform(0, 1, 2) * (true.width - width, true.height - height)
            box = (float(x0), float(y0), float(x0 + width), float(y0 + height))
            if not objects or box_iou(np.array([box]), _array(objects)).max() <= _EMPTY_IOU:
                return str(dice.choice(self._names)), box
        return None

    def _say(self, text: str, id_: str, *, colors: bool = True) -> str:
        """A text with some colors wrong; empty if it speaks of what it is blind to."""
        if any(re.search(rf"\b{re.escape(name)}", text) for name in self.blind_to):
            return ""
        if not colors:
            return text
        pieces, end = [], 0
        for start, stop, color in self._confusions(text, id_):
            pieces += [text[end:start], color]
            end = stop
        return "".join((*pieces, text[end:]))

    def _moved(self, place: int, text: str, id_: str) -> int:
        """Where a character of a text is once its colors are wrong."""
        changes = self._confusions(text, id_)
        return place + sum(len(c) - (stop - start) for start, stop, c in changes if stop <= place)

    def _confusions(self, text: str, id_: str) -> list[tuple[int, int, str]]:
        dice = self._dice("colors", id_, text)
        found = []
        for match in _COLOR.finditer(text):
            is_wrong = dice.random() < self.wrong_colors
            other = str(dice.choice([color for color in COLORS if color != match[0]]))
            if is_wrong:
                found.append((match.start(), match.end(), other))
        return found

    def _sayer(self, said: str) -> Provenance:
        return self.maker(_score(self._dice("score", said), 0.7))


_Make = Callable[[Imperfect, Record, Record], Sequence[Any]]

_MAKERS: dict[str, tuple[str, _Make]] = {
    "texts": ("texts", Imperfect._texts),
    "boxes": ("regions", Imperfect._boxes),
    "text_regions": ("regions", Imperfect._writing),
    "region_texts": ("labels", Imperfect._region_texts),
    "groundings": ("groundings", Imperfect._groundings),
    "questions": ("questions", Imperfect._questions),
}
"""Of each kind, the field of `Annotations` it goes to and what makes it."""


def three(truth: str, *, seed: int = 0, blind_to: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Entries of a run file's `specialists`: two detectors and a describer, with all faults."""
    common = {"type": "imperfect", "truth": truth, "hard_seed": seed, "blind_to": tuple(blind_to)}
    common |= {"batch_size": 64}
    describes = ("texts", "region_texts", "groundings", "questions")
    return [
        common | {"tag": "near", "makes": ("boxes", "text_regions"), "seed": 10 * seed + 1},
        common | {"tag": "far", "makes": ("boxes",), "seed": 10 * seed + 2, "jitter": 0.09},
        common | {"tag": "describer", "makes": describes, "seed": 10 * seed + 3},
    ]


def _score(dice: np.random.Generator, mean: float) -> float:
    return min(max(float(dice.normal(mean, 0.12)), 0.05), 0.98)


def _array(regions: Sequence[Region]) -> np.ndarray:
    return np.array([region.box for region in regions], float).reshape(-1, 4)


def by_human(record: Record) -> Record:
    """The record as if a person had made all of it."""
    human = Provenance()

    def made(thing: Any) -> Any:
        return dataclasses.replace(thing, provenance=human)

    return dataclasses.replace(
        record,
        texts=tuple(map(made, record.texts)),
        regions=tuple(map(made, record.regions)),
        groundings=tuple(map(made, record.groundings)),
        questions=tuple(map(made, record.questions)),
    )
