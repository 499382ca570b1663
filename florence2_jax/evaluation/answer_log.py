# SPDX-License-Identifier: Apache-2.0
"""Answers on disk: a JSON line each, so that an evaluation goes on where it was.

    DIR/job.json                        what is asked of which model and records
    DIR/answers-00000-of-00002.jsonl    one file per process

A line holds the text as the model wrote it and its scores, from which the typed answer is read
again to the last bit; or a record that was set aside, with the reason.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from florence2_jax.inference.predictor import Prediction
from florence2_jax.inference.scores import AnswerScores, RegionScore, with_scores
from florence2_jax.records.journal import difference
from florence2_jax.tasks.answers import parse_answer
from florence2_jax.tasks.registry import Task
from florence2_jax.typing import Size, UserError

Key: TypeAlias = tuple[int, int, bool]
"""Record, number of the question in it, whether the model was shown another image."""

JOB = "job.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model wrote to one question; `task` is the one by whose grammar it is read."""

    record: int
    number: int
    is_blind: bool
    task: str
    prompt: str
    raw: str
    mean_log_prob: float
    scores: AnswerScores

    @classmethod
    def of(
        cls, record: int, number: int, is_blind: bool, prompt: str, found: Prediction
    ) -> "Reply":
        """The reply that a prediction is."""
        return cls(
            record=record,
            number=number,
            is_blind=is_blind,
            task=found.answer.task,
            prompt=prompt,
            raw=found.raw,
            mean_log_prob=found.mean_log_prob,
            scores=found.scores,
        )

    @property
    def key(self) -> Key:
        """Which question it answers."""
        return self.record, self.number, self.is_blind

    def prediction(self, task: Task, size: Size) -> Prediction:
        """The typed answer, in pixels of an image of `size`."""
        return Prediction(
            answer=with_scores(parse_answer(task, self.raw, size), self.scores),
            raw=self.raw,
            mean_log_prob=self.mean_log_prob,
            scores=self.scores,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats keep all their digits."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Reply":
        """What `to_json` gave."""
        told = values["scores"]
        regions = tuple(
            RegionScore(score=r["score"], label=r["label"], polygons=tuple(r["polygons"]))
            for r in told["regions"]
        )
        return cls(**{**values, "scores": AnswerScores(regions=regions, text=told["text"])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetAside:
    """A record whose image cannot be shown to the model."""

    record: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"record": self.record, "set_aside": self.reason}


Line: TypeAlias = Reply | SetAside


def to_lines(found: Iterable[Line]) -> bytes:
    """Lines as they stand in a file."""
    return "".join(json.dumps(one.to_json()) + "\n" for one in found).encode()


def from_lines(data: bytes) -> list[Line]:
    """What `to_lines` gave; the beginning of a line that was cut off by a kill is left out."""
    found: list[Line] = []
    for text in data.splitlines(keepends=True):
        if not text.endswith(b"\n"):
            continue
        values = json.loads(text)
        if "set_aside" in values:
            found.append(SetAside(record=values["record"], reason=values["set_aside"]))
        else:
            found.append(Reply.from_json(values))
    return found


class AnswerLog:
    """The answers of one process, in memory and, if there is a folder, on disk.

    A batch that a kill cut off is asked again as it was, row by row, so that an evaluation that was
    interrupted ends in the same numbers.
    """

    def __init__(self, folder: Path | None, *, process_index: int, process_count: int):
        self._lines: list[Line] = []
        self._keys: set[Key] = set()
        self._aside: dict[int, str] = {}
        self._path: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("answers-*.jsonl")):
                self._take(from_lines(path.read_bytes()))
            name = f"answers-{process_index:05d}-of-{process_count:05d}.jsonl"
            self._path = folder / name
            _end_with_a_line(self._path)

    def add(self, found: Iterable[Line]) -> None:
        """Keeps the answers to a batch."""
        found = list(found)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(to_lines(found))
        self._take(found)

    def __contains__(self, key: Key) -> bool:
        return key in self._keys or key[0] in self._aside

    def lines(self, records: Iterable[int]) -> list[Line]:
        """All that is known of some records, once."""
        wanted = set(records)
        return [line for line in self._lines if line.record in wanted]

    def _take(self, found: Iterable[Line]) -> None:
        for one in found:
            if isinstance(one, SetAside):
                if one.record not in self._aside:
                    self._aside[one.record] = one.reason
                    self._lines.append(one)
            elif one.key not in self._keys:
                self._keys.add(one.key)
                self._lines.append(one)


def claim(folder: Path, job: Mapping[str, Any]) -> None:
    """Makes a folder this evaluation's, or finds that it is.

    Raises:
        UserError: if it holds another one, naming where they differ first.
    """
    path = folder / JOB
    own = json.loads(json.dumps(job))
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known != own:
            raise UserError(
                f"{folder}: holds the answers of another evaluation ({difference(known, own)}); "
                "repeat that command, or give another --out"
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty and holds no evaluation; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")


def _end_with_a_line(path: Path) -> None:
    """Takes off what a kill left of a line."""
    if path.is_file():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            path.write_bytes(whole)
