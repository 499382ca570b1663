# SPDX-License-Identifier: Apache-2.0
"""Asking a specialist: one outcome per image, whatever happens.

Answers are taken apart before they are believed: what a service or a model returns is data, and a
part of it that no record could hold makes the answer garbage, counted as such. A batch that fails
is cut in two until the images that make it fail are alone; only one that takes too long is not, for
its halves would take as long.
"""

import threading
from collections.abc import Sequence
from typing import Any, get_args

from florence2_jax.engine.specialists.base import (
    Annotations,
    Failure,
    Outcome,
    Specialist,
    SpecialistError,
)
from florence2_jax.engine.specialists.checking import Garbage, Limits, check_annotations, shown
from florence2_jax.records.schema import Record, RecordError

_REASONS = get_args(Failure.__annotations__["reason"])
_MAX_DETAIL_CHARS = 500
_MAX_HANGING = 4


def ask(
    specialist: Specialist, records: Sequence[Record], *, limits: Limits = Limits()
) -> list[Outcome]:
    """What a specialist, already loaded, says about each of at most `batch_size` records.

    Returns:
        As many outcomes as records, in their order; annotations are fit for their record.

    Raises:
        SpecialistError: if it cannot work at all.
    """
    if not records:
        return []
    failure, outcomes = None, None
    try:
        outcomes = _in_time(specialist, records)
    except SpecialistError:
        raise
    except Exception as error:  # Whatever a library or a service makes of an image.
        failure = _failure_of(error)
    # Behind the handler, for an exception holds on to the batch that did not fit.
    if failure is not None:
        if failure.reason == "time-out" or len(records) == 1:
            return [failure] * len(records)
        return _in_halves(specialist, records, limits)
    if not isinstance(outcomes, Sequence) or len(outcomes) != len(records):
        if len(records) > 1:
            return _in_halves(specialist, records, limits)
        got = len(outcomes) if isinstance(outcomes, Sequence) else type(outcomes).__name__
        return [Failure("garbage answer", f"{got} outcomes for 1 image")]
    return [_checked(o, r, specialist, limits) for o, r in zip(outcomes, records, strict=True)]


def _in_halves(specialist: Specialist, records: Sequence[Record], limits: Limits) -> list[Outcome]:
    middle = len(records) // 2
    parts = records[:middle], records[middle:]
    return [outcome for part in parts for outcome in ask(specialist, part, limits=limits)]


def _failure_of(error: Exception) -> Failure:
    if isinstance(error, TimeoutError):
        return Failure("time-out", _detail(error))
    if is_out_of_memory(error):
        return Failure("out of memory", _detail(error))
    return Failure("error", f"{type(error).__name__}: {_detail(error)}"[:_MAX_DETAIL_CHARS])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a batch did not fit, as Python, PyTorch (GPU and CPU) and JAX say it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)[:10_000].lower()
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("out of memory", "can't allocate memory", "resource_exhausted")
    )


def _detail(error: Any) -> str:
    """The first line of what went wrong, short and printable."""
    try:
        said = str(error)
    except Exception:
        said = type(error).__name__
    line = said[: 4 * _MAX_DETAIL_CHARS].strip().partition("\n")[0]
    return "".join(c if c.isprintable() else "?" for c in line)[:_MAX_DETAIL_CHARS]


_hanging: list[threading.Thread] = []
"""Calls that went on after their time, in this process."""


def _in_time(specialist: Specialist, records: Sequence[Record]) -> Any:
    """What `annotate` returns or raises within `timeout_s`.

    A call that takes longer goes on in its thread, which nothing can end from outside; when several
    do so at a time, there is no sense in starting more.
    """
    if specialist.timeout_s is None:
        return specialist.annotate(records)
    _hanging[:] = [thread for thread in _hanging if thread.is_alive()]
    title = f"ask {specialist.name}"
    if (count := sum(thread.name == title for thread in _hanging)) >= _MAX_HANGING:
        raise SpecialistError(
            f"{specialist.name}: {count} batches hang; is its model or service well? Start "
            f"again, perhaps with a longer timeout_s (now {specialist.timeout_s:g})"
        )
    result: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            result.append(specialist.annotate(records))
        except BaseException as error:  # Raised where the answer is waited for.
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name=title)
    thread.start()
    thread.join(specialist.timeout_s)
    if thread.is_alive():
        _hanging.append(thread)
        raise TimeoutError(f"no answer after {specialist.timeout_s:g} s")
    if errors:
        raise errors.pop()  # Else the list and the exception would hold each other.
    return result[0]


def _checked(outcome: Any, record: Record, specialist: Specialist, limits: Limits) -> Outcome:
    """The outcome, or why it cannot be believed."""
    try:
        if isinstance(outcome, Failure):
            if outcome.reason not in _REASONS:
                raise Garbage(f"the reason {shown(outcome.reason)} of a failure is none we know")
            return Failure(outcome.reason, _detail(outcome.detail))
        if not isinstance(outcome, Annotations):
            raise Garbage(f"a {type(outcome).__name__} is no annotations")
        check_annotations(outcome, record, specialist, limits)
        return outcome
    except Exception as error:  # Objects that are not what they claim raise anything.
        known = isinstance(error, Garbage | RecordError)
        said = _detail(error) if known else f"{type(error).__name__}: {_detail(error)}"
        return Failure("garbage answer", said[:_MAX_DETAIL_CHARS])
