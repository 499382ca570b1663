# SPDX-License-Identifier: Apache-2.0
"""Asking never crashes, loses no image and believes nothing that a record could not hold.

python tests/engine/specialists/test_asking.py 5000    # As many damaged answers.
"""

import collections
import dataclasses
import gc
import io
import math
import random
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from PIL import Image

from florence2_jax.engine.specialists import asking
from florence2_jax.engine.specialists.asking import ask
from florence2_jax.engine.specialists.base import (
    Annotations,
    Failure,
    Specialist,
    SpecialistError,
)
from florence2_jax.engine.specialists.configured import ImageSpecialist
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

MADE = Provenance(kind="specialist", name="says@1", score=0.5)
LONG = "x" * 10_000_000


class Says(Specialist):
    """Answers what it is told to, or raises it."""

    name, version, kinds = "says", "1", ("boxes",)

    def __init__(self, answer):
        self.answer, self.sizes = answer, []

    def load(self) -> None: ...

    def annotate(self, records):
        self.sizes.append(len(records))
        return self.answer(records)


def sound_annotations() -> Annotations:
    """One of everything, fit for a record of 60 x 40 px with two regions."""
    polygon = (1.0, 1.0, 9.0, 1.0, 9.0, 9.0)
    region = Region(
        box=(1.0, 2.0, 30.0, 20.0),
        labels=(Label(text="car"), Label(text="a red car", kind="brief", provenance=MADE)),
        quad=(1.0, 2.0, 30.0, 2.0, 30.0, 20.0, 1.0, 20.0),
        polygons=(polygon,),
        provenance=MADE,
        mask_provenance=MADE,
    )
    span = Span(
        start=0, end=5, boxes=((0.0, 0.0, 60.0, 40.0),), phrase_score=0.5, box_scores=(0.4,)
    )
    return Annotations(
        texts=(Text(text="A red car.", provenance=MADE),),
        regions=(region,),
        groundings=(Grounding(text="A red car.", spans=(span,), provenance=MADE),),
        questions=(Question(question="What?", answers=("a car",), provenance=MADE),),
        labels=((1, Label(text="dog", provenance=MADE)),),
        masks=((0, (polygon,), MADE),),
    )


def forged(kind: type, **values):
    """A dataclass with values that its constructor would refuse."""
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        default = None if field.default is dataclasses.MISSING else field.default
        object.__setattr__(made, field.name, values.get(field.name, default))
    return made


JUNK = (
    None, True, -1, 7, 2**70, 1e400, float("nan"), -0.5, "", "x", LONG, "\x00", "\ud800",
    b"<html>", [], {}, (), (1,), ((),), [1, 2], {"box": 1}, object(), Exception(), math.inf,
    "__import__('os').system('touch EXECUTED')", np.float32("nan"), np.arange(4), (5.0, 5.0, 1e9),
    (50.0, 30.0, 70.0, 39.0), (0.0, 0.0, math.nan, 9.0), (9.0, 9.0, 1.0, 1.0), "specialist",
)  # fmt: skip


def damaged(value, rng: random.Random, depth: int = 0):
    """The value with something in it put in the place of something else."""
    if rng.random() < 0.15 + 0.1 * depth:
        return rng.choice(JUNK)
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        name = rng.choice(sorted(fields))
        return forged(type(value), **fields | {name: damaged(fields[name], rng, depth + 1)})
    if isinstance(value, tuple) and value:
        at = rng.randrange(len(value))
        changed = damaged(value[at], rng, depth + 1)
        kinds = (
            (*value[:at], changed, *value[at + 1 :]),
            value[:at] + value[at + 1 :],
            (*value, changed),
            (*value, *value),
            list(value),
        )
        return rng.choice(kinds)
    return rng.choice(JUNK)


def damaged_batch(records, rng: random.Random):
    """Answers to a batch: as many or not, of damaged annotations, failures and junk."""
    answers = [damaged(sound_annotations(), rng) for _ in records]
    what = rng.randrange(12)
    if what == 0:
        return answers[:-1]
    if what == 1:
        return [*answers, Annotations()]
    if what == 2:
        return rng.choice(JUNK)
    if what == 3:
        raise rng.choice((ValueError(LONG), MemoryError(), TimeoutError(), KeyError("\x00")))
    if what == 4:
        answers[0] = forged(Failure, reason=rng.choice(JUNK), detail=rng.choice(JUNK))
    return answers


def ask_damaged(record: Record, number: int, seed: int = 0) -> collections.Counter:
    """Asks about `number` images; returns how often each kind of outcome came."""
    rng = random.Random(seed)
    records = [record] * 3
    specialist = Says(lambda records: damaged_batch(records, rng))
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(math.ceil(number / len(records))):
        outcomes = ask(specialist, records)
        assert len(outcomes) == len(records)
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                assert len(outcome.detail) <= 500 and outcome.detail.isprintable()
                counts[outcome.reason] += 1
            else:  # Believed: its record must be able to hold it.
                counts["kept"] += 1
                held = dataclasses.replace(
                    record, texts=outcome.texts, regions=outcome.regions,
                    groundings=outcome.groundings, questions=outcome.questions,
                )  # fmt: skip
                for index, label in outcome.labels:
                    assert isinstance(record.regions[index], Region) and isinstance(label, Label)
                assert held.size == record.size
    assert counts.total() == len(records) * math.ceil(number / len(records))
    return counts


def test_damaged_answers_lose_no_image_and_each_is_counted(make_record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = ask_damaged(make_record(), 600)
    assert counts["garbage answer"] > 300
    assert min(counts["time-out"], counts["out of memory"], counts["error"], counts["kept"]) > 0
    assert not list(tmp_path.iterdir())  # Nothing was executed.


def test_sound_annotations_come_through_unchanged(make_record):
    sound = sound_annotations()
    assert ask(Says(lambda records: [sound] * len(records)), [make_record()] * 2) == [sound] * 2
    assert ask(Says(lambda records: []), []) == []


def part(name: str, **changes) -> Annotations:
    """Annotations whose first of one sort is forged with the changes."""
    (first, *_) = getattr(sound_annotations(), name)
    values = {f.name: getattr(first, f.name) for f in dataclasses.fields(first)} | changes
    return Annotations(**{name: (forged(type(first), **values),)})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (part("regions", box=(0.0, 0.0, 61.0, 40.0)), "leaves the 60 x 40"),
        (part("regions", box=(0.0, math.nan, 6.0, 40.0)), "leaves"),
        (part("regions", box=(9.0, 9.0, 1.0, 1.0)), "inside out"),
        (part("regions", box=("0", 0.0, 6.0, 4.0)), "holds '0'"),
        (part("regions", quad=(0.0,) * 7 + (90.0,)), "leaves the 60 x 40"),
        (part("regions", polygons=((0.0, 0.0, 1.0, 1.0),)), "3 points"),
        (part("regions", labels=(Label(text="y" * 1001),)), "1001 characters"),
        (part("texts", text=LONG), "10000000 characters"),
        (part("texts", text="a\x1bb"), "control character"),
        (part("texts", provenance=Provenance(kind="human")), "made by a 'human'"),
        (part("texts", provenance=dataclasses.replace(MADE, dropped="no")), "comes dropped"),
        (part("groundings", text="A"), "beyond"),
        (part("questions", answers=()), "no answer"),
        (Annotations(labels=((2, Label(text="dog")),)), "none of the record's 2"),
        (Annotations(labels=((-1, Label(text="dog")),)), "none of the record's 2"),
        (Annotations(labels=((True, Label(text="dog")),)), "none of the record's 2"),
        (Annotations(masks=((0, (), MADE),)), "without polygons"),
        (Annotations(masks=((0, ((0.0, math.inf, 9.0, 9.0, 1.0, 1.0),), MADE),)), "leaves"),
        (Annotations(texts=sound_annotations().texts * 5001), "5001 annotations"),
        (forged(Annotations, texts=[Text(text="a")]), "list where a tuple"),
        ("a text", "no annotations"),
        (None, "no annotations"),
    ],
)  # fmt: skip
def test_what_a_record_could_not_hold_is_garbage_by_its_first_fault(make_record, answer, why):
    (outcome,) = ask(Says(lambda records: [answer]), [make_record()])
    assert isinstance(outcome, Failure) and outcome.reason == "garbage answer"
    assert why in outcome.detail


def test_a_batch_that_does_not_fit_is_cut_until_it_does(make_record):
    records = [make_record(str(i)) for i in range(7)]

    def answer(asked):
        if len(asked) > 2:
            raise MemoryError("too many")
        if any(record.id == "5" for record in asked):
            raise RuntimeError("CUDA error: out of memory")
        return [Annotations()] * len(asked)

    specialist = Says(answer)
    outcomes = ask(specialist, records)
    assert [isinstance(o, Failure) for o in outcomes] == [i == 5 for i in range(7)]
    assert outcomes[5].reason == "out of memory"
    assert max(specialist.sizes[1:]) < 7


@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_a_batch_that_did_not_fit_is_let_go_before_its_halves_are_asked(make_record, timeout_s):
    held = []

    def answer(asked):
        assert not [batch for batch in held if batch() is not None], "the memory is still taken"
        batch = np.zeros(10)
        held.append(weakref.ref(batch))
        if len(asked) > 1:
            raise MemoryError
        return [Annotations()]

    specialist = Says(answer)
    specialist.timeout_s = timeout_s
    gc.disable()
    try:
        assert ask(specialist, [make_record()] * 4) == [Annotations()] * 4
    finally:
        gc.enable()
    assert specialist.sizes == [4, 2, 1, 1, 2, 1, 1]


def test_one_image_that_raises_costs_no_other(make_record):
    records = [make_record(str(i)) for i in range(5)]

    def answer(asked):
        if any(record.id == "3" for record in asked):
            raise ValueError("no such colour")
        return [Annotations()] * len(asked)

    outcomes = ask(Says(answer), records)
    assert outcomes[3] == Failure("error", "ValueError: no such colour")
    assert outcomes.count(Annotations()) == 4


def test_a_specialist_that_cannot_work_stops_the_run(make_record):
    def answer(_):
        raise SpecialistError("no model")

    with pytest.raises(SpecialistError, match="no model"):
        ask(Says(answer), [make_record()])


def test_what_hangs_is_given_up_and_not_asked_for_ever(make_record, monkeypatch):
    monkeypatch.setattr(asking, "_hanging", [])
    go_on = threading.Event()

    def answer(asked):
        go_on.wait(30)
        return [Annotations()] * len(asked)

    specialist = Says(answer)
    specialist.timeout_s = 0.05
    start = time.perf_counter()
    for _ in range(4):
        outcomes = ask(specialist, [make_record()] * 2)
        assert [o.reason for o in outcomes] == ["time-out"] * 2
    with pytest.raises(SpecialistError, match="4 batches hang"):
        ask(specialist, [make_record()])
    assert time.perf_counter() - start < 10
    go_on.set()
    while any(thread.is_alive() for thread in asking._hanging):
        time.sleep(0.01)
    assert ask(specialist, [make_record()]) == [Annotations()]


class Looks(ImageSpecialist):
    """Sees whether an image is there."""

    kinds = ("boxes",)

    def title(self) -> str:
        return "looks"

    def load(self) -> None: ...

    def look(self, records, images):
        return [Annotations() for image in images if image.getpixel((0, 0))]


def ask_with_damaged_images(record: Record, number: int) -> collections.Counter:
    """Outcomes of images some bytes of which were changed, cut off or put in."""
    rng = random.Random(0)
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(record.image)).save(jpeg, "JPEG")
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(number):
        data = bytearray(rng.choice((record.image, jpeg.getvalue())))
        for _ in range(rng.randrange(1, 9)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        data = data[: rng.randrange(1, len(data))] if rng.random() < 0.2 else data
        (outcome,) = ask(Looks(), [dataclasses.replace(record, image=bytes(data) or b"?")])
        counts[outcome.reason if isinstance(outcome, Failure) else "kept"] += 1
    return counts


def test_damaged_images_fail_as_such_or_are_looked_at(make_record):
    counts = ask_with_damaged_images(make_record(), 300)
    assert set(counts) == {"unreadable image", "kept"} and min(counts.values()) > 20, counts


if __name__ == "__main__":
    from conftest import random_record

    wanted = int((sys.argv[1:] or ["5000"])[0])
    for found in (
        ask_damaged(random_record(), wanted),
        ask_with_damaged_images(random_record(), wanted),
    ):
        for reason, times in found.most_common():
            sys.stdout.write(f"{times:7} {reason}\n")
