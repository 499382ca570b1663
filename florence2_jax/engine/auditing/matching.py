# SPDX-License-Identifier: Apache-2.0
"""What of the predicted is right, and what of the truth was found, by kind of annotation.

- boxes, masks: one prediction to one truth of the same category with IoU >= 0.5 of the boxes or
  masks; in order of score, each takes the free truth that it overlaps most (COCO's matching, by
  pycocotools). What matches a true crowd counts neither for nor against.
- text_regions: the same for writing; its words are its class, letter by letter.
- region_texts: the same for phrases and brief texts of regions, without regard to case.
- groundings: the same for each box of a phrase, wherever the phrase stands.
- texts: counted in words. A text is held against the true one of its granularity with which it
  shares the most words; words in both, as often as in both, are right.
- questions: one prediction to one truth; the question without regard to case, the answer any of
  the true ones in VQA's normal form.
"""

import collections
import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from pycocotools.cocoeval import COCOeval

from florence2_jax.engine.auditing.ontology import Ontology
from florence2_jax.evaluation.detection import matched
from florence2_jax.evaluation.segmentation import rasterize
from florence2_jax.evaluation.vqa import normalize_answer
from florence2_jax.records.schema import LabelKind, Provenance, Record

MIN_IOU = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """How many are true, were found, and are both. Ratios of nothing are None."""

    num_true: int = 0
    num_found: int = 0
    num_matched: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            num_true=self.num_true + other.num_true,
            num_found=self.num_found + other.num_found,
            num_matched=self.num_matched + other.num_matched,
        )

    @property
    def precision(self) -> float | None:
        """Share of the found that is right."""
        return self.num_matched / self.num_found if self.num_found else None

    @property
    def recall(self) -> float | None:
        """Share of the true that was found."""
        return self.num_matched / self.num_true if self.num_true else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two."""
        total = self.num_true + self.num_found
        return 2 * self.num_matched / total if total else None

    def to_json(self) -> dict[str, Any]:
        """Counts and ratios."""
        ratios = {name: getattr(self, name) for name in ("precision", "recall", "f1")}
        return dataclasses.asdict(self) | ratios

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Counts":
        """The counts that `to_json` wrote."""
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The counts of a kind, by class, and `(score, is right)` of what has a score."""

    classes: Mapping[str, Counts]
    scored: Sequence[tuple[float, bool]] = ()

    @property
    def total(self) -> Counts:
        """Of all classes."""
        return sum(self.classes.values(), Counts())

    @property
    def is_judged(self) -> bool:
        """Whether people have named anything of the kind: else nothing found is right or wrong."""
        return self.total.num_true > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Claim:
    """That something of a class is at a place; `shape` is a COCO `bbox` or `segmentation`."""

    name: str
    shape: Any
    score: float | None
    is_crowd: bool = False


Pairs: TypeAlias = Sequence[tuple[Record, Record]]
"""(true, predicted) of one image."""


def match_kinds(pairs: Pairs, ontology: Ontology) -> dict[str, Outcome]:
    """Matches every kind that either side has anything of."""
    found = {kind: match(pairs, ontology) for kind, match in _KINDS.items()}
    return {kind: outcome for kind, outcome in found.items() if outcome.classes}


def _boxes(pairs: Pairs, ontology: Ontology) -> Outcome:
    def claims(record: Record) -> Iterator[_Claim]:
        return _region_claims(record, ("category",), ontology.normalise)

    return _match_places(pairs, claims, "bbox")


def _masks(pairs: Pairs, ontology: Ontology) -> Outcome:
    def claims(record: Record) -> Iterator[_Claim]:
        for region in record.regions:
            if region.polygons:
                maker = region.mask_provenance or region.provenance
                mask = rasterize(region.polygons, record.size)
                name = ontology.normalise(region.label("category") or "")
                yield _Claim(name=name, shape=mask, score=maker.score, is_crowd=region.is_crowd)

    return _match_places(pairs, claims, "segm")


def _text_regions(pairs: Pairs, _: Ontology) -> Outcome:
    return _match_places(pairs, lambda r: _region_claims(r, ("text",), str.strip), "bbox")


def _region_texts(pairs: Pairs, _: Ontology) -> Outcome:
    return _match_places(pairs, lambda r: _region_claims(r, ("phrase", "brief"), _plain), "bbox")


def _groundings(pairs: Pairs, _: Ontology) -> Outcome:
    def claims(record: Record) -> Iterator[_Claim]:
        for grounding in record.groundings:
            for span in grounding.spans:
                scores = span.box_scores or (grounding.provenance.score,) * len(span.boxes)
                name = _plain(grounding.phrase(span))
                for box, score in zip(span.boxes, scores, strict=True):
                    yield _Claim(name=name, shape=_as_coco(box), score=score)

    return _match_places(pairs, claims, "bbox")


def _region_claims(
    record: Record, kinds: Sequence[LabelKind], name_of: Callable[[str], str]
) -> Iterator[_Claim]:
    for region in record.regions:
        for label in region.labels:
            if label.kind in kinds and label.text.strip():
                maker: Provenance = label.provenance or region.provenance
                yield _Claim(
                    name=name_of(label.text),
                    shape=_as_coco(region.box),
                    score=maker.score,
                    is_crowd=region.is_crowd,
                )


def _match_places(
    pairs: Pairs, claims: Callable[[Record], Iterator[_Claim]], iou_type: str
) -> Outcome:
    # What may match is of one image and one class; as an "image" of its own, such a group costs
    # pycocotools one matching, where images times classes would be far more.
    groups: dict[tuple[int, str], int] = {}
    true, found, scores = [], [], []
    field = "bbox" if iou_type == "bbox" else "segmentation"
    for image, pair in enumerate(pairs):
        for side, record in enumerate(pair):
            for claim in claims(record):
                group = groups.setdefault((image, claim.name), len(groups) + 1)
                entry = {"image_id": group, "category_id": 1, field: claim.shape}
                if side == 0:
                    true.append(entry | {"area": 1.0, "iscrowd": int(claim.is_crowd)})
                elif not claim.is_crowd:
                    score = 1.0 if claim.score is None else claim.score
                    found.append(entry | {"score": score})
                    scores.append(claim.score)
    truth = {
        "images": [{"id": group, "width": 1, "height": 1} for group in groups.values()],
        "categories": [{"id": 1, "name": ""}],
        "annotations": true,
    }
    if not groups:
        return Outcome(classes={})
    names = {group: name for (_, name), group in groups.items()}
    evaluation = matched(truth, found, _at_half, iou_type=iou_type)
    return _outcome(evaluation, names, scores)


def _outcome(evaluation: COCOeval, names: Mapping[int, str], scores: Sequence) -> Outcome:
    classes: dict[str, Counts] = collections.defaultdict(Counts)
    scored = []
    for one in filter(None, evaluation.evalImgs):
        is_ignored, is_matched = one["dtIgnore"][0] > 0, one["dtMatches"][0] > 0
        right = (is_matched & ~is_ignored).tolist()
        classes[names[one["image_id"]]] += Counts(
            num_true=int((np.asarray(one["gtIgnore"]) == 0).sum()),
            num_found=int((~is_ignored).sum()),
            num_matched=sum(right),
        )
        # pycocotools numbers results from 1, in the order in which they were given.
        for number, is_right, ignored in zip(one["dtIds"], right, is_ignored.tolist(), strict=True):
            if (score := scores[number - 1]) is not None and not ignored:
                scored.append((score, is_right))
    return Outcome(classes=dict(sorted(classes.items())), scored=scored)


def _at_half(*args: Any) -> COCOeval:
    """A `COCOeval` at IoU 0.5 alone, of any number of boxes of any size."""
    evaluation = COCOeval(*args)
    evaluation.params.iouThrs = np.array([MIN_IOU])
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, math.inf]], ["all"]
    evaluation.params.maxDets = [10**9]
    return evaluation


def _as_coco(box: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def _texts(pairs: Pairs, _: Ontology) -> Outcome:
    classes: dict[str, Counts] = collections.defaultdict(Counts)
    scored = []
    for true, found in pairs:
        for name in {text.granularity for text in (*true.texts, *found.texts)}:
            free = [_words(text.text) for text in true.texts if text.granularity == name]
            num_true, num_found, num_matched = sum(map(Counter.total, free)), 0, 0
            for text in (text for text in found.texts if text.granularity == name):
                words = _words(text.text)
                num_found += words.total()
                if free:
                    best = max(free, key=lambda other: (words & other).total())
                    free.remove(best)
                    num_matched += (words & best).total()
            classes[name] += Counts(num_true=num_true, num_found=num_found, num_matched=num_matched)
    return Outcome(classes=dict(sorted(classes.items())), scored=scored)


def _questions(pairs: Pairs, _: Ontology) -> Outcome:
    total, scored = Counts(), []
    for true, found in pairs:
        free = [(_plain(q.question), set(map(normalize_answer, q.answers))) for q in true.questions]
        num_true, num_matched = len(free), 0
        for question in found.questions:
            asked, answer = _plain(question.question), normalize_answer(question.answers[0])
            hit = next((row for row in free if row[0] == asked and answer in row[1]), None)
            if hit is not None:
                free.remove(hit)
                num_matched += 1
            if question.provenance.score is not None:
                scored.append((question.provenance.score, hit is not None))
        num_found = len(found.questions)
        total += Counts(num_true=num_true, num_found=num_found, num_matched=num_matched)
    return Outcome(classes={"": total} if total != Counts() else {}, scored=scored)


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


_KINDS: Mapping[str, Callable[[Pairs, Ontology], Outcome]] = {
    "boxes": _boxes,
    "masks": _masks,
    "text_regions": _text_regions,
    "region_texts": _region_texts,
    "groundings": _groundings,
    "texts": _texts,
    "questions": _questions,
}
