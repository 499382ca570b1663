# SPDX-License-Identifier: Apache-2.0
"""What a store is asked: which of its splits, which questions, and how many there are to score."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.data.examples import Example, examples_of
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore, splits_of
from florence2_jax.tasks.registry import TASKS, Task, get_task, prompt_text
from florence2_jax.training.folders import own_store
from florence2_jax.typing import UserError

ALL_TASKS = tuple(TASKS.values())
_PREFERRED = ("validation", "val")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One example of a record: the `number`-th of the record's, asked by the prompt of `asked`.

    `asked` is the example's own task but where a recipe says otherwise: released models have no
    prompt for referring expressions and are asked to ground them.
    """

    number: int
    example: Example
    asked: Task

    @property
    def prompt(self) -> str:
        """The sentence the model is asked with."""
        return prompt_text(self.asked, self.example.text_input)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """Which questions a record is asked.

    Attributes:
        tasks: in this order.
        per_record: at most so many of each task (the first ones); 0 for all.
        asked_as: task -> the task by whose prompt it is asked and whose grammar is read, both
            tokens.
    """

    tasks: tuple[Task, ...] = ALL_TASKS
    per_record: int = 4
    asked_as: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def questions(self, record: Record) -> tuple[list[Question], Counter[str]]:
        """A record's questions, and how many more there are of each task by its token.

        Each is asked once: five captions of a photo are five references of one question.
        """
        kept: list[Question] = []
        left: Counter[str] = Counter()
        for task in self.tasks:
            asked = get_task(self.asked_as.get(task.token, task.token))
            first: dict[Example, Example] = {}
            for example in examples_of(record, task):
                first.setdefault(dataclasses.replace(example, text=""), example)
            examples = list(first.values())
            most = self.per_record or len(examples)
            left[task.token] += len(examples[most:])
            for example in examples[:most]:
                kept.append(Question(number=len(kept), example=example, asked=asked))
        return kept, left


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """What there is to ask, found by reading every record once.

    Attributes:
        per_record: number of questions of each record, 0 where it cannot be read.
        per_task: number of questions by token of the task.
        left_out: how many more there are, beyond `Asking.per_record`.
        unreadable: records that cannot be read, by index, with the reason.
        categories: names of all categories.
    """

    per_record: tuple[int, ...]
    per_task: Mapping[str, int]
    left_out: Mapping[str, int]
    unreadable: Mapping[int, str]
    categories: frozenset[str]


def list_questions(store: RecordStore, asking: Asking, max_records: int | None) -> Listing:
    """Counts the questions of the first `max_records` records (all by default).

    Raises:
        UserError: if `asking.tasks` names tasks that these records cannot feed, and not all tasks.
    """
    counts, unreadable = [], {}
    per_task: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    categories: set[str] = set()
    for index, record in readable(store, max_records, unreadable):
        counts += [0] * (index - len(counts))
        questions, left = asking.questions(record)
        per_task.update(question.example.task.token for question in questions)
        left_out += left
        counts.append(len(questions))
        categories |= {
            label.text
            for region in record.regions
            for label in region.labels
            if label.kind == "category"
        }
    counts += [0] * (num_records(store, max_records) - len(counts))
    _check_fed(store, asking.tasks, per_task, unreadable)
    return Listing(
        per_record=tuple(counts),
        per_task=per_task,
        left_out=left_out,
        unreadable=unreadable,
        categories=frozenset(categories),
    )


def num_records(store: RecordStore, max_records: int | None) -> int:
    """How many records are asked about."""
    return min(len(store), max_records or len(store))


def readable(
    store: RecordStore, max_records: int | None, unreadable: dict[int, str]
) -> Iterator[tuple[int, Record]]:
    """Records that can be read, by index; of the others the reason goes into `unreadable`."""
    for index in range(num_records(store, max_records)):
        try:
            record = store[index]
        except UserError as error:
            unreadable[index] = str(error)
            continue
        yield index, record


def _check_fed(
    store: RecordStore,
    tasks: Sequence[Task],
    per_task: Mapping[str, int],
    unreadable: Mapping[int, str],
) -> None:
    place = f"{store.directory} ({store.split})"
    if not per_task:
        if unreadable:
            raise UserError(f"{place}: no record can be read: {next(iter(unreadable.values()))}")
        raise UserError(f"{place}: no record feeds {', '.join(task.name for task in tasks)}")
    hungry = [task.name for task in tasks if not per_task.get(task.token)]
    if hungry and len(tasks) < len(TASKS):
        fed = [task.name for task in ALL_TASKS if per_task.get(task.token)]
        raise UserError(
            f"{place}: no record feeds {', '.join(hungry)}; of the tasks asked for it feeds "
            f"{', '.join(fed)}. See what it holds: florence2-jax records stats {store.directory}"
        )


def open_held_out(
    directory: str | Path, split: str | None, *, allow_training: bool = False
) -> RecordStore:
    """The split to evaluate on: the one that is named, or the store's only held-out one.

    A split is of training data if its name begins with "train".

    Args:
        allow_training: take a training split if it is named.

    Raises:
        UserError: if the split is missing, of training data, or there are several to choose from.
    """
    found = splits_of(directory)
    held_out = [name for name, number in found.items() if number and not is_training(name)]
    told = ", ".join(f"{name} ({number})" for name, number in sorted(found.items()))
    if split is None:
        split = next((name for name in _PREFERRED if name in held_out), None)
        if split is None and len(held_out) == 1:
            split = held_out[0]
    if split is None and held_out:
        raise UserError(f"{directory}: choose one of its splits with --split: {told}")
    if split is None:
        raise UserError(
            f"{directory}: no split is held out, there is {told}; part it with florence2-jax "
            "records split, or score training data knowingly with --split train --allow-training"
        )
    if split not in found:
        raise UserError(f"{directory}: no split {split!r}; there are {told}")
    if is_training(split) and not allow_training:
        raise UserError(
            f"{directory}: split {split!r} is training data, a score on it is no evaluation; there "
            f"is {told}; say --allow-training to do it knowingly"
        )
    return RecordStore(directory, split)


def is_training(split: str) -> bool:
    """Whether a split is training data, by its name."""
    return split.lower().startswith("train")


def check_not_trained_on(store: RecordStore, run: Mapping[str, Any], model: str) -> None:
    """Refuses a split that the model's own run file says it was trained on.

    Args:
        run: the run file's values, see `training.workdir.load_config`.

    Raises:
        UserError: naming both.
    """
    inputs = run.get("input", {})
    parts = [inputs, *inputs.get("mixture", {}).values()]
    for part in parts:
        records, split = part.get("records", ""), part.get("split", "train")
        places = (Path(records), own_store(records, Path(model)))  # Imported by the run itself.
        is_same = bool(records) and store.directory.resolve() in [p.resolve() for p in places]
        if is_same and split == store.split:
            raise UserError(
                f"{store.directory}: {model} was trained on split {split!r}, a score on it is no "
                "evaluation; say --allow-training to do it knowingly"
            )
