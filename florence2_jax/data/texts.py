# SPDX-License-Identifier: Apache-2.0
"""The language of a store: what a tokenizer should learn."""

from collections.abc import Iterator

from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import TASKS
from florence2_jax.typing import UserError

_PROMPT_REPEATS = 20  # Prompts are read in every example: their words deserve whole pieces.


def store_texts(store: RecordStore, *, max_records: int = 100_000) -> Iterator[str]:
    """Every text, label, question and answer of an even sample of records, and all prompts.

    Records that cannot be read are passed over; training sets them aside with their reason.
    """
    for task in TASKS.values():
        yield from [task.prompt.replace("{input}", "")] * _PROMPT_REPEATS
    for index in range(0, len(store), max(1, len(store) // max_records)):
        try:
            record = store[index]
        except UserError:
            continue
        yield from record_texts(record)


def record_texts(record: Record) -> Iterator[str]:
    """Every text of one record."""
    yield from (text.text for text in record.texts)
    yield from (grounding.text for grounding in record.groundings)
    for region in record.regions:
        yield from (label.text for label in region.labels)
    for question in record.questions:
        yield question.question
        yield from question.answers
