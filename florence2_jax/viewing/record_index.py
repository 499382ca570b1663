# SPDX-License-Identifier: Apache-2.0
"""What the filters of a page of records go by: tasks, labels, makers, scores, origins.

Names are kept once and spoken of by number; the rest is a few numbers per annotation, so the index
of 1,000 records is a small part of their page.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from florence2_jax.data.examples import examples_of
from florence2_jax.records.schema import Grounding, Provenance, Record, Region
from florence2_jax.tasks.registry import TASKS


class _Names:
    """Names in order of appearance, with the number of records or annotations that have them."""

    def __init__(self):
        self._numbers: dict[str, int] = {}
        self._counts: Counter[int] = Counter()

    def add(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self._numbers))
        self._counts[number] += 1
        return number

    def rows(self) -> list[list[Any]]:
        return [[name, self._counts[number]] for name, number in self._numbers.items()]


class RecordIndex:
    """Grows by a row per record; `report` is what the script of the page reads."""

    def __init__(self):
        self._tasks = Counter({token: 0 for token in TASKS})
        self._labels, self._makers, self._origins = _Names(), _Names(), _Names()
        self._places: Counter[str] = Counter()
        self._records: list[dict[str, Any]] = []
        self._has_scores = False

    def add(self, record: Record) -> None:
        """Takes up what filters kept of a record; of its image only the size is looked at."""
        record = record.kept()
        tasks = [k for k, task in enumerate(TASKS.values()) if examples_of(record, task)]
        self._tasks.update(list(TASKS)[k] for k in tasks)
        origin = self._origins.add(origin_group(record.origin))
        self._records.append({"tasks": tasks, "origin": origin, "notes": list(self._notes(record))})
        for region in record.regions:
            self._places.update({*region_kinds(region), *(["polygon"] if region.polygons else [])})
        self._places["grounding"] += sum(len(g.spans) for g in record.groundings)

    def report(self) -> dict[str, Any]:
        """JSON: `tasks labels makers origins` as `[name, count]`; `records` with numbers into them.

        A note is `[link, maker, score or null, label, ...]`, its link the name of the annotation
        within its card: `t0` a text, `r0` a region, `g0` a grounding, `q0` a question.
        """
        return {
            "tasks": [[token, num] for token, num in self._tasks.items()],
            "labels": self._labels.rows(),
            "makers": self._makers.rows(),
            "origins": self._origins.rows(),
            "places": dict(self._places),
            "has_scores": self._has_scores,
            "records": self._records,
        }

    def _notes(self, record: Record) -> Iterator[list[Any]]:
        for letter, notes in (
            ("t", record.texts),
            ("r", record.regions),
            ("g", record.groundings),
            ("q", record.questions),
        ):
            for k, note in enumerate(notes):
                names = []
                if isinstance(note, Region):
                    names = [label.text for label in note.labels]
                elif isinstance(note, Grounding):
                    names = [note.phrase(span) for span in note.spans]
                score = note.provenance.score
                self._has_scores |= score is not None
                numbers = [self._labels.add(name) for name in dict.fromkeys(names) if name.strip()]
                maker = self._makers.add(maker_name(note.provenance))
                yield [f"{letter}{k}", maker, None if score is None else round(score, 4), *numbers]


def region_kinds(region: Region) -> tuple[str, ...]:
    """Kinds of the labels of a region, `unlabelled` where it has none."""
    return tuple(dict.fromkeys(label.kind for label in region.labels)) or ("unlabelled",)


def maker_name(provenance: Provenance) -> str:
    """`specialist detector-1.2, round 1`; round 0 is not told."""
    name = f"{provenance.kind} {provenance.name}".strip()
    return f"{name}, round {provenance.round}" if provenance.round else name


def origin_group(origin: str) -> str:
    """The folder or site an image came from: all before the last `/`, else the origin itself."""
    return origin.rpartition("/")[0] or origin
