# SPDX-License-Identifier: Apache-2.0
"""Phase 3: what a round's model predicts on the training images, merged with what is there.

The rule, the same for all kinds. What humans said stays as it is. What the model says too gains
score, and regions that it was asked for and does not find lose score (`evidence.py`). What it says
where nothing was said enters with the number of the round, if its score is high enough. Where the
two contradict each other the higher score stays, and the other is set aside: it is marked, remains
in the record, and is what an audit should look at first.

    texts       may be right in many words: another text is an addition, no contradiction; what a
                model wrote in an earlier round, in labels that have it, is replaced
    regions     see `refine_regions.py`; text regions and masks too
    groundings  of a text that is there already, only phrases that it does not place yet are added;
                boxes that the model finds too gain score
    questions   the same question with another answer is a contradiction

Source: Florence-2, section 4.3, says that predictions are merged with the originals, and not how.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from florence2_jax.engine.calibrated import Calibration, calibrated
from florence2_jax.engine.evidence import Evidence, RefineConfig, is_set_aside
from florence2_jax.engine.refine_regions import merge_regions
from florence2_jax.engine.specialists.base import KINDS, Kind
from florence2_jax.geometry import box_iou
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Grounding, Provenance, Question, Record, Span, Text
from florence2_jax.records.splitting import open_store
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import STORE, Plan, write_store
from florence2_jax.typing import UserError

_Said = TypeVar("_Said", Text, Question, Grounding)


def merge(
    record: Record,
    predicted: Record,
    config: RefineConfig,
    round: int,
    *,
    asked: Collection[Kind] = KINDS,
    recalls: Mapping[str, float] | None = None,
    ledger: Ledger | None = None,
) -> Record:
    """A record with what a model predicts about its image; the rule is above.

    Args:
        record: with all its annotations, those that filters dropped too: they may come back.
        predicted: the same image; what humans said there is not looked at.
        round: number of the round that the predictions are of, from 1 on.
        asked: the kinds of annotations that the model was asked for.
        recalls: of the model, by class in lower case.
        ledger: is told how often what happened.
    """
    evidence = Evidence(config=config, round=round, recalls=recalls or {})
    books = Ledger() if ledger is None else ledger
    return dataclasses.replace(
        record,
        texts=_merge_texts(record.texts, predicted.texts, evidence, books),
        regions=merge_regions(
            record.regions, predicted.regions, evidence, asked=asked, ledger=books
        ),
        groundings=_merge_groundings(record.groundings, predicted.groundings, evidence, books),
        questions=_merge_questions(record.questions, predicted.questions, evidence, books),
    )


def refine_store(
    before: Path,
    predicted: Path,
    directory: Path,
    config: RefineConfig,
    *,
    round: int,
    asked: Collection[Kind] = KINDS,
    recalls: Mapping[str, float] | None = None,
    failed: Collection[str] = (),
    calibration: Calibration | None = None,
    splits: Sequence[str] = ("train",),
    images: Path | None = None,
    num_workers: int = 1,
    ray: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes the store of a round: `before` with `predicted` merged into it.

    Args:
        before: the labels so far, with the same records in the same order. The loop gives those of
            round 0: models of two rounds miss and imagine alike, so that what one says after the
            other is no second piece of evidence.
        predicted: what the model says, as `annotate` wrote it.
        failed: ids of records about which the model said nothing because it failed; they stay as
            they are.
        calibration: of the scores of predicted boxes, see `calibrated.py`.
        images: the store that has the images, with the same records; by default `before`.

    Returns:
        `{"splits": {split: records}, "merged": {kind: {what happened: how often}}}`.

    Raises:
        UserError: if the stores do not hold the same records, or as `write_store` does.
    """
    units = {split: _paired(before, predicted, split) for split in splits}
    recalls = dict(sorted((recalls or {}).items()))
    job = {
        "format": "refine",
        "before": _identity(before),
        "predicted": _identity(predicted),
        "round": round,
        "config": dataclasses.asdict(config),
        "asked": sorted(asked),
        "recalls": recalls,
        "calibration": calibration or {},
        "failed": hashlib.sha256("\n".join(sorted(failed)).encode()).hexdigest(),
    }
    make = functools.partial(
        _make,
        before=before,
        predicted=predicted,
        failed=frozenset(failed),
        calibration=calibration or {},
        new_iou=config.new_iou,
        merge=functools.partial(
            merge, config=config, round=round, asked=tuple(asked), recalls=recalls
        ),
    )
    plan = Plan(units=units, make=make, job=job, images=images or before)
    report = write_store(directory, plan, num_workers=num_workers, ray=ray, on_progress=on_progress)
    noted = {kind: row["noted"] for kind, row in report["counts"].items()}
    merged = {kind: {k: n for k, n in row.items() if n} for kind, row in noted.items()}
    return {"splits": report["splits"], "merged": {k: row for k, row in merged.items() if row}}


def _paired(before: Path, predicted: Path, split: str) -> list[tuple[str, int]]:
    sizes = [len(RecordStore(directory, split)) for directory in (before, predicted)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{predicted}: {sizes[1]} records in split {split!r}, but {sizes[0]} in {before}; "
            "predict on all images of the round before"
        )
    return [(split, i) for i in range(sizes[0])]


def _identity(directory: Path) -> dict[str, str]:
    text = (directory / STORE).read_text("utf-8")
    digest = hashlib.sha256(json.dumps(json.loads(text)["job"], sort_keys=True).encode())
    return {"directory": str(directory), "sha256": digest.hexdigest()}


def _make(
    unit: tuple[str, int],
    ledger: Ledger,
    *,
    before: Path,
    predicted: Path,
    failed: frozenset[str],
    calibration: Calibration,
    new_iou: float,
    merge: Callable[..., Record],
) -> Record:
    split, index = unit
    record: Record = open_store(before, split)[index]
    by_model: Record = open_store(predicted, split)[index]
    if record.id != by_model.id:
        raise UserError(
            f"{predicted}: record {index} of split {split!r} is {by_model.id!r}, but {record.id!r} "
            f"in {before}; predict on the images of the round before, in their order"
        )
    ledger.read("image")
    ledger.keep("image")
    if record.id in failed:
        ledger.note("image", "left as it was: the model failed")
        return record
    by_model = calibrated(by_model, calibration, beside=record.regions, new_iou=new_iou)
    return merge(record, by_model, ledger=ledger)


def _by_model(things: Sequence[_Said]) -> list[_Said]:
    return [thing for thing in things if thing.provenance.kind != "human"]


def _with_maker(thing: _Said, maker: Provenance) -> _Said:
    return dataclasses.replace(thing, provenance=maker)


def _found(thing: _Said, evidence: Evidence) -> _Said:
    maker = thing.provenance
    if maker.kind == "human":
        return thing
    score = evidence.found(evidence.score(maker))
    dropped = "" if is_set_aside(maker) else maker.dropped
    return _with_maker(thing, dataclasses.replace(maker, score=score, dropped=dropped))


def _marked(thing: _Said, why: str) -> _Said:
    return _with_maker(thing, dataclasses.replace(thing.provenance, dropped=why))


def _is_sure(thing: _Said, evidence: Evidence) -> bool:
    return evidence.score(thing.provenance) >= evidence.config.add_score


def _merge_texts(
    texts: Sequence[Text], predicted: Sequence[Text], evidence: Evidence, ledger: Ledger
) -> tuple[Text, ...]:
    merged = list(texts)
    for new in _by_model(predicted):
        key = _text_key(new)
        same = [i for i, old in enumerate(merged) if _text_key(old) == key]
        for i in same:
            merged[i] = _found(merged[i], evidence)
        ledger.note("text", "said again", len(same))
        if same or not _is_sure(new, evidence):
            continue
        for i, old in enumerate(merged):
            if old.granularity == new.granularity and _is_earlier(old.provenance, evidence):
                merged[i] = _marked(old, evidence.replaced)
        merged.append(_with_maker(new, evidence.entering(new.provenance)))
        ledger.note("text", "added")
    return tuple(merged)


def _text_key(text: Text) -> tuple[str, str]:
    return text.granularity, " ".join(text.text.casefold().split())


def _is_earlier(maker: Provenance, evidence: Evidence) -> bool:
    return maker.kind == "checkpoint" and maker.round < evidence.round


def _merge_questions(
    questions: Sequence[Question],
    predicted: Sequence[Question],
    evidence: Evidence,
    ledger: Ledger,
) -> tuple[Question, ...]:
    merged = list(questions)
    for new in _by_model(predicted):
        asked, answer = _question_key(new)
        there = [i for i, old in enumerate(merged) if _question_key(old)[0] == asked]
        same = [i for i in there if _question_key(merged[i])[1] == answer]
        for i in same:
            merged[i] = _found(merged[i], evidence)
        ledger.note("question", "answered alike", len(same))
        if not same and not _is_sure(new, evidence):
            continue
        if not same:
            there.append(len(merged))
            merged.append(_with_maker(new, evidence.entering(new.provenance)))
            ledger.note("question", "added")
        # Of different answers the strongest stays, the earlier one of two that are equal.
        best = max(there, key=lambda i: (_strength(merged[i], evidence), -i))
        for i in there:
            is_weaker = _question_key(merged[i])[1] != _question_key(merged[best])[1]
            if is_weaker and merged[i].provenance.kind != "human":
                merged[i] = _marked(merged[i], evidence.contradicted)
                ledger.note("question", "contradicted, set aside")
            elif is_set_aside(merged[i].provenance):
                merged[i] = _marked(merged[i], "")
    return tuple(merged)


def _question_key(question: Question) -> tuple[str, str]:
    said = (question.question, question.answers[0])
    asked, answer = (" ".join(text.casefold().split()) for text in said)
    return asked, answer


def _strength(thing: Question, evidence: Evidence) -> float:
    return 2.0 if thing.provenance.kind == "human" else evidence.score(thing.provenance)


def _merge_groundings(
    groundings: Sequence[Grounding],
    predicted: Sequence[Grounding],
    evidence: Evidence,
    ledger: Ledger,
) -> tuple[Grounding, ...]:
    merged = list(groundings)
    for new in _by_model(predicted):
        placed: set[tuple[int, int]] = set()
        for i, old in enumerate(merged):
            if old.text != new.text:
                continue
            placed |= {(span.start, span.end) for span in old.spans}
            if old.provenance.kind != "human":
                spans = tuple(_found_span(span, new.spans, evidence) for span in old.spans)
                merged[i] = dataclasses.replace(old, spans=spans)
        spans = tuple(
            span
            for span in new.spans
            if (span.start, span.end) not in placed
            and _span_score(span, new, evidence) >= evidence.config.add_score
        )
        if spans:
            ledger.note("phrase", "added", len(spans))
            maker = evidence.entering(new.provenance)
            merged.append(dataclasses.replace(new, spans=spans, provenance=maker))
    return tuple(merged)


def _span_score(span: Span, grounding: Grounding, evidence: Evidence) -> float:
    """The surest box's, for a phrase without a box is none."""
    return max(span.box_scores, default=evidence.score(grounding.provenance))


def _found_span(span: Span, predicted: Sequence[Span], evidence: Evidence) -> Span:
    """A phrase whose boxes gain score where the model places the same characters too."""
    boxes = [
        box for p in predicted if (p.start, p.end) == (span.start, span.end) for box in p.boxes
    ]
    if not boxes:
        return span
    overlaps = box_iou(np.array(span.boxes), np.array(boxes)).max(axis=1)
    scores = span.box_scores or (evidence.config.unscored,) * len(span.boxes)
    is_found = overlaps >= evidence.config.iou
    if not is_found.any():
        return span
    found = (
        evidence.found(score) if ok else score for score, ok in zip(scores, is_found, strict=True)
    )
    return dataclasses.replace(span, box_scores=tuple(found))
