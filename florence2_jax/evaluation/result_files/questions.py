# SPDX-License-Identifier: Apache-2.0
"""Questions and answers: VQA v2, TextVQA, DocVQA and what is written alike.

Truth, by its form:

- VQA v2 (OK-VQA, VizWiz in VQA's form): `{"annotations": [{"question_id", "answers":
  [{"answer"}, ...], "answer_type"}]}`; the file of questions is not needed;
- TextVQA, TextCaps: `{"data": [{"question_id", "answers": ["...", ...]}]}`;
- DocVQA, InfographicVQA: `{"data": [{"questionId", "answers": ["...", ...]}]}`.

Predictions: `[{"question_id" or "questionId", "answer"}]`; TextVQA's own evaluator calls the answer
"pred_answer", which is read as well. Both may be JSON lines. Every question needs an answer, which
may be empty; the official codes refuse a result that lacks some, too.
Source: visualqa.org/evaluation, textvqa.org, rrc.cvc.uab.es (challenge 17).
"""

import dataclasses
from pathlib import Path

from florence2_jax.evaluation.result_files.entries import (
    Entry,
    by_id,
    entries_of,
    joined,
    read_entries,
)
from florence2_jax.records.importers.json_files import field, parse_json, read_file
from florence2_jax.typing import UserError

_IDS = ("question_id", "questionId")


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question's answer, those of people, and what kind of answer VQA says it is."""

    answer: str
    references: list[str]
    kind: str = ""


def read_answers(truth: Path, predictions: Path) -> list[Answered]:
    """Every question of the truth with its answer.

    Raises:
        UserError: if a file is no such file, or questions are missing, unknown or answered twice.
    """
    true = by_id(_truth_rows(truth), *_IDS)
    found = {id_: _answer(e) for id_, e in by_id(read_entries(predictions), *_IDS).items()}
    return [
        Answered(answer, _references(entry), str(entry.get("answer_type") or ""))
        for entry, answer in joined(true, found, "questions", predictions)
    ]


def _truth_rows(path: Path) -> list[Entry]:
    if path.suffix == ".jsonl":
        return read_entries(path)
    content = parse_json(read_file(path), str(path))
    for key in ("annotations", "data"):
        if isinstance(field(content, key), list):
            return entries_of(content, key, path)
    if field(content, "questions") is not None:
        raise UserError(f"{path}: holds questions; give the file of annotations, with the answers")
    if not isinstance(content, list):
        raise UserError(f"{path}: no list 'annotations' (VQA) or 'data' (TextVQA, DocVQA) in it")
    return [Entry(f"{path}: entry {i}", row) for i, row in enumerate(content)]


def _answer(entry: Entry) -> str:
    return entry.text("answer" if entry.get("pred_answer") is None else "pred_answer")


def _references(entry: Entry) -> list[str]:
    """Answers as texts, or as objects with one."""
    answers = entry.get("answers")
    if isinstance(answers, list) and answers and isinstance(answers[0], dict):
        return [Entry(f"{entry.where} answer {i}", a).text("answer") for i, a in enumerate(answers)]
    return entry.texts("answers")
