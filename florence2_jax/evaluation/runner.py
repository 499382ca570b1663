# SPDX-License-Identifier: Apache-2.0
"""A model's answers to every question a store can ask, and what they are worth.

Beside each metric stands that of a blind baseline: the same model, the same prompts, but the image
of another record. What a model knows without looking (language, the box in the prompt) is in both.

On several hosts every process calls `evaluate`: each answers the questions of its block of records,
and the first one scores them all.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from florence2_jax.evaluation import bootstrap
from florence2_jax.evaluation.answer_log import (
    AnswerLog,
    Line,
    Reply,
    SetAside,
    claim,
    from_lines,
    to_lines,
)
from florence2_jax.evaluation.answering import (
    Answering,
    Shape,
    batches_of,
    prompts_per_image,
    replicas,
    rows_of,
)
from florence2_jax.evaluation.captions import content_vocabulary
from florence2_jax.evaluation.families import FAMILIES, score_task
from florence2_jax.evaluation.questions import Asking, Listing, list_questions, readable
from florence2_jax.evaluation.results import Answered, Evaluation, TaskResult
from florence2_jax.inference.predictor import Predictor
from florence2_jax.parallel import processes
from florence2_jax.parallel.gathering import block_of, gather
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import Task

MOST_PROMPTS = 8
"""Prompts that share one look at an image; a record with more questions is looked at again."""


def evaluate(
    predictor: Predictor,
    store: RecordStore,
    asking: Asking = Asking(),
    *,
    max_records: int | None = None,
    with_blind: bool = True,
    batch_size: int = 16,
    num_resamples: int = bootstrap.NUM_RESAMPLES,
    folder: Path | None = None,
    job: Mapping[str, Any] = {},
    devices: Sequence[Any] | None = None,
    timeout_s: float = 1800.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation | None:
    """Asks, and scores.

    Args:
        asking: tasks that no record feeds are left out where all tasks are asked for.
        max_records: the first so many records of the split; all by default.
        batch_size: images per call of a device.
        num_resamples: of the bootstrap; 0 for no intervals.
        folder: where answers are kept, so that the same call goes on after an interruption. Hosts
            need not share it; where they do, their number may change in between.
        job: what tells this evaluation from another one in the same folder.
        timeout_s: how long a host waits for the slowest one.
        on_progress: called with (batches done, batches in all) of this process.

    Returns:
        The evaluation on process 0, None on the others.

    Raises:
        UserError: if no record feeds the tasks, or the folder holds another evaluation.
    """
    index, count = jax.process_index(), jax.process_count()
    listing = list_questions(store, asking, max_records)
    if folder is not None:
        if index == 0:
            claim(folder, job)
        processes.barrier("evaluation", timeout_s)
        claim(folder, job)
    log = AnswerLog(folder, process_index=index, process_count=count)
    records = block_of(len(listing.per_record), index, count)
    num_prompts = prompts_per_image(listing.per_record, MOST_PROMPTS)
    answering = Answering(
        replicas(predictor, devices), store, asking, Shape(batch_size, num_prompts)
    )
    batches = batches_of(rows_of(listing.per_record, records, num_prompts), batch_size)
    # With one record there is nothing to be blind with.
    passes = [False, True] if with_blind and len(listing.per_record) > 1 else [False]
    total = len(batches) * len(passes)
    for number, is_blind in enumerate(passes):
        left = [
            batch
            for batch in batches
            if any((row.record, k, is_blind) not in log for row in batch for k in row.numbers)
        ]
        done = number * len(batches) + len(batches) - len(left)
        others = _others(len(listing.per_record)) if is_blind else None
        # Closed where it is left by an error or Ctrl-C: what is not begun is not waited for.
        with contextlib.closing(answering.run(left, seen=others)) as found:
            for at, lines in enumerate(found, start=1):
                log.add(lines)
                if on_progress:
                    on_progress(done + at, total)
    parts = gather(to_lines(log.lines(records)), "answers", timeout_s)
    if index != 0:
        return None
    lines = [line for part in parts for line in from_lines(part)]
    return _score(store, asking, listing, lines, passes, num_resamples)


def _others(number: int) -> Callable[[int], Iterator[int]]:
    """From half a store away on, never the record itself: neighbours may be alike."""
    far = [number // 2 + k for k in range(min(number, 16)) if (number // 2 + k) % number]
    return lambda index: ((index + shift) % number for shift in far)


def _score(
    store: RecordStore,
    asking: Asking,
    listing: Listing,
    lines: Sequence[Line],
    passes: Sequence[bool],
    num_resamples: int,
) -> Evaluation:
    replies = {line.key: line for line in lines if isinstance(line, Reply)}
    aside = {line.record: line.reason for line in lines if isinstance(line, SetAside)}
    aside |= listing.unreadable
    answered: dict[bool, list[Answered]] = {is_blind: [] for is_blind in passes}
    lost: dict[str, int] = {}
    for index, record in readable(store, len(listing.per_record), {}):
        for question in asking.questions(record)[0]:
            token = question.example.task.token
            if index in aside:
                lost[token] = lost.get(token, 0) + 1
                continue
            for is_blind in passes:
                reply = replies[index, question.number, is_blind]
                assert reply.prompt == question.prompt, (reply, question)
                found = Answered(
                    index=index,
                    record_id=record.id,
                    size=record.size,
                    example=question.example,
                    prediction=reply.prediction(question.asked, record.size),
                )
                answered[is_blind].append(found)
    # Every question is answered, or of a record that was set aside and is counted there.
    num_questions = sum(listing.per_task.values())
    for some in answered.values():
        assert len(some) == num_questions - sum(lost.values()), (len(some), num_questions, lost)
    words = content_vocabulary(listing.categories)
    results = []
    for task in asking.tasks:
        if listing.per_task.get(task.token):
            results.append(
                _result(
                    task,
                    [one for one in answered[False] if one.example.task is task],
                    [one for one in answered.get(True, ()) if one.example.task is task],
                    words=words,
                    num_resamples=num_resamples,
                    left_out=listing.left_out.get(task.token, 0),
                    lost=lost.get(task.token, 0),
                )
            )
    return Evaluation(
        results=tuple(results),
        answered=tuple(answered[False]),
        num_records=len(listing.per_record),
        set_aside=tuple(sorted(aside.items())),
    )


def _result(
    task: Task,
    own: Sequence[Answered],
    blind: Sequence[Answered],
    *,
    words: frozenset[str],
    num_resamples: int,
    left_out: int,
    lost: int,
) -> TaskResult:
    scored = [one.scored for one in own]
    metrics = score_task(task, scored, content_words=words)
    resampled = bootstrap.resample(
        FAMILIES[task.token], scored, metrics, content_words=words, num=num_resamples
    )
    return TaskResult(
        task=task,
        metrics=metrics,
        blind=score_task(task, [one.scored for one in blind], content_words=words) if blind else {},
        resampled=resampled,
        num_examples=len(own),
        num_records=len({one.index for one in own}),
        left_out=left_out,
        lost=lost,
        digest=_digest(own),
    )


def _digest(answered: Sequence[Answered]) -> str:
    """Of the questions, so that two evaluations compare only where they were asked the same."""
    digest = hashlib.sha256()
    for part in itertools.chain.from_iterable(
        (one.record_id, one.example.text_input) for one in answered
    ):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
