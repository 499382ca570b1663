# SPDX-License-Identifier: Apache-2.0
"""Prompts and answers of Florence-2, or PaliGemma, turned back into annotations.

`prefix` is a task and its input: a token (`<OD>`, `<CAPTION_TO_PHRASE_GROUNDING>a red car`) or the
English prompt of the released processor. `suffix` is read as an answer of the model:

- captions become texts, in the detail of their task; `<VQA>` and `<DocVQA>` questions with answers;
- `<OD>`, open-vocabulary detection, dense captions and proposals become regions, as do writing with
  quads, and referring expressions (a phrase) with boxes or masks;
- grounding becomes a text with spans; phrases that it does not hold are noted;
- tasks about a region add a label or a mask to the region of the prompt. What several lines say
  about the same box is about one region;
- `<OCR>` has no place to go with its text: the whole image becomes the region that says it.

Boxes were rounded to 1,000 bins of each side when such a file was written, so they come back as
centres of bins, and a box written again has the same bins. One that lies in a single bin of a side
gets half a bin's width. `<loc_1000>`, which maestro writes for the far border, is read as 999.

Answers of PaliGemma (`<loc0123>`, y before x, 1,024 bins) are read for `detect`, `caption` and
`answer` prompts; its masks (`<seg012>`) need its decoder. They and any other prefix are refused;
what an answer holds beyond its grammar is set aside by itself.
"""

import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from florence2_jax.geometry import hull_box
from florence2_jax.records.importers.annotated import AnnotatedImage, RawGrounding, RawRegion
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import GRANULARITIES, LabelKind
from florence2_jax.tasks.answers import (
    AnyRegion,
    BoxRegion,
    MaskRegion,
    QuadRegion,
    TextAnswer,
    parse_answer,
)
from florence2_jax.tasks.registry import TASKS, Task
from florence2_jax.text.locations import NUM_BINS, dequantize

Labels: TypeAlias = tuple[tuple[str, LabelKind], ...]

_UNIT = (1, 1)  # Answers are read in shares of the sides.
_WHOLE = [0.0, 0.0, 1.0, 1.0]
_PALIGEMMA_BINS = 1024

_TOKEN = re.compile(r"\s*<([A-Za-z_]+)>(.*)", re.DOTALL)
_PROMPT_REGION = re.compile(r"\s*" + r"<loc_(\d{1,3})>" * 4 + r"\s*", re.ASCII)
_QUESTIONS = ("VQA", "DOCVQA")  # The second is that of Hugging Face's tutorial.
_KIND_OF_SOURCE: dict[str, LabelKind] = {
    "region:category": "category", "region:phrase": "phrase", "region:brief": "brief",
    "region:text": "text", "mask:phrase": "phrase",
}  # fmt: skip
_MAX_AT_BOX = 16  # Regions of one box that a new one is compared with.


class UnreadError(ValueError):
    """A prompt or an answer that is set aside, and why."""


def _task_of(prefix: str) -> tuple[Task, str] | None:
    """The task of a prompt and its input; None if it is none that is known."""
    if match := _TOKEN.fullmatch(prefix):
        name, text = match[1].upper(), match[2].strip()
        task = TASKS.get("<VQA>" if name in _QUESTIONS else f"<{name}>")
        return (task, text) if task else None
    prompt = prefix.strip()
    for task in TASKS.values():
        before, _, after = task.prompt.partition("{input}")
        if not before or (task.input == "none" and prompt != before):
            continue  # A bare question would be any prompt.
        is_long_enough = len(prompt) >= len(before) + len(after)
        if is_long_enough and prompt.startswith(before) and prompt.endswith(after):
            return task, prompt[len(before) : len(prompt) - len(after)].strip()
    return None


class AnswerReader:
    """Turns the answers about one image back into its annotations."""

    def __init__(self, unit: AnnotatedImage, ledger: Ledger):
        self.unit, self.ledger = unit, ledger
        self.place = ""
        self.at_box: dict[tuple[float, ...], list[RawRegion]] = {}

    def read(self, place: str, prefix: str, suffix: str) -> None:
        """Adds what the answer to a prompt says; `place` names it in the books.

        Raises:
            UnreadError: with nothing added, if it cannot be read.
        """
        self.place = place
        if _PALIGEMMA_MARK.search(suffix) or _PALIGEMMA_PROMPT.match(prefix):
            self._paligemma(prefix, suffix)
            return
        found = _task_of(prefix)
        if found is None:
            raise UnreadError("its prefix is no task that is known")
        task, text = found
        if task.input == "none" and text:
            raise UnreadError("its task takes no input")
        if task.input != "none" and not text:
            raise UnreadError("its task needs an input")
        if "<loc_1000>" in suffix:
            self.ledger.repair("line", "<loc_1000> read as the last bin")
            suffix = suffix.replace("<loc_1000>", f"<loc_{NUM_BINS - 1}>")
        self._answer(task, text, suffix)

    def _answer(self, task: Task, text: str, suffix: str) -> None:
        answer = parse_answer(task, suffix, _UNIT)
        prompted = _prompt_box(text) if task.input == "region" else None
        if isinstance(answer, TextAnswer):
            self._text(task, text, answer.text, prompted)
        elif task.learns_from == "grounding":
            self._grounding(text, answer.regions)
        elif prompted is not None:
            masks = (region for region in answer.regions if isinstance(region, MaskRegion))
            rings = [list(ring) for mask in masks for ring in mask.polygons]
            if not rings:
                raise UnreadError("its answer has no mask")
            self._add(prompted, outline=rings)
        elif not suffix.strip() and task.input == "none":
            self.ledger.note("line", "answers that find nothing")
        else:
            phrase = text if task.learns_from in ("region:phrase", "mask:phrase") else None
            self._regions(answer.regions, _KIND_OF_SOURCE.get(task.learns_from), phrase)
        self._set_rest_aside(answer.unparsed)

    def _text(self, task: Task, text: str, answer: str, prompted: list[float] | None) -> None:
        detail = task.learns_from.partition(":")[2]
        if not answer:
            raise UnreadError("its answer is empty")
        if task.learns_from == "question":
            self.unit.questions.append((text, [answer]))
        elif task.learns_from == "reading":
            self._add(_WHOLE, ((answer, "text"),))
        elif prompted is not None:
            self._add(prompted, ((answer, _KIND_OF_SOURCE[task.learns_from]),))
        else:
            self.unit.texts.append((answer, next(g for g in GRANULARITIES if g == detail)))

    def _regions(
        self, regions: Sequence[AnyRegion], kind: LabelKind | None, phrase: str | None
    ) -> None:
        if not regions:
            raise UnreadError("its answer has no region")
        for region in regions:
            label = phrase or region.label
            labels: Labels = ((label, kind),) if kind is not None else ()
            if isinstance(region, BoxRegion):
                self._add(region.box, labels)
            elif isinstance(region, QuadRegion):
                self._add(hull_box(region.quad), labels, quad=list(region.quad))
            else:
                rings = [list(ring) for ring in region.polygons]
                self._add(hull_box([v for ring in rings for v in ring]), labels, outline=rings)

    def _add(
        self,
        box: Sequence[float],
        labels: Labels = (),
        quad: list[float] | None = None,
        outline: list[list[float]] | None = None,
    ) -> None:
        """Adds a region, or what is new about one that another line has found at the same box."""
        box = self._with_area(list(box))
        here = self.at_box.setdefault(tuple(box), [])
        for region in here[:_MAX_AT_BOX]:
            is_same = None in (quad, region.quad) or quad == region.quad
            is_same &= None in (outline, region.outline) or outline == region.outline
            if is_same and region.place != self.place:
                self.ledger.note("region", "found by several lines, taken once")
                region.labels = tuple(dict.fromkeys((*region.labels, *labels)))
                region.quad = region.quad or quad
                region.outline = region.outline or outline
                return
        region = RawRegion(place=self.place, box=box, labels=labels, quad=quad, outline=outline)
        here.append(region)
        self.unit.regions.append(region)

    def _with_area(self, box: list[float]) -> list[float]:
        """A box with the same bins, and with an area."""
        for low, high in ((0, 2), (1, 3)):
            if box[low] == box[high]:
                box[low] -= 0.25 / NUM_BINS
                box[high] += 0.25 / NUM_BINS
                self.ledger.note("region", "within one bin of a side, given half its width")
        return box

    def _grounding(self, caption: str, regions: Sequence[AnyRegion]) -> None:
        """Ties phrases to the places where a caption has them, one after the other."""
        spans: list[tuple[int, int, list[list[float]]]] = []
        last, end = None, 0
        for region in regions:
            if not isinstance(region, BoxRegion):
                continue
            box = self._with_area(list(region.box))
            if region.label and region.label == last:
                spans[-1][2].append(box)  # A phrase owns the boxes that follow it.
                continue
            start = caption.find(region.label, end) if region.label else -1
            if region.label and start < 0:
                start = caption.find(region.label)
            last = region.label if start >= 0 else None
            if start < 0:
                self.ledger.note("grounding", "phrases left out: not in the text")
                continue
            end = start + len(region.label)
            spans.append((start, end, [box]))
        if not spans:
            raise UnreadError("its answer has no phrase of the text")
        self.unit.groundings.append(RawGrounding(place=self.place, text=caption, spans=spans))

    def _set_rest_aside(self, unparsed: Sequence[str]) -> None:
        for rest in unparsed:
            self.ledger.read("rest of an answer")
            why, where = "no grammar reads it", f"{self.unit.where} {self.place}"
            self.ledger.set_aside("rest of an answer", why, where=where, value=rest[:200])

    def _paligemma(self, prefix: str, suffix: str) -> None:
        match = _PALIGEMMA_PROMPT.match(prefix)
        if "<seg" in suffix or (match and match[1] == "segment"):
            raise UnreadError("masks of PaliGemma are not read")
        if match is None:
            raise UnreadError("its prefix is no task of PaliGemma that is known")
        if match[1] != "detect" and not suffix.strip():
            raise UnreadError("its answer is empty")
        if match[1] == "answer":
            self.unit.questions.append((prefix[match.end() :].strip(), [suffix]))
        elif match[1] != "detect":
            self.unit.texts.append((suffix, "brief"))
        else:
            for item in _PALIGEMMA_ITEM.finditer(suffix):
                labels: Labels = ((item[5].strip(), "category"),)
                self._add(_paligemma_box(item), labels)
            rest = _PALIGEMMA_ITEM.sub("", suffix).replace("<eos>", "").strip(" ;\n")
            self._set_rest_aside([rest] if rest else [])


# `cap en` is a prompt of the model as it was pretrained, `caption en` of its fine-tuned forms.
_PALIGEMMA_PROMPT = re.compile(
    r"\s*(detect(?=\s)|segment(?=\s)|cap(?= [a-z]{2}\s*$)|caption(?= [a-z]{2}\s*$)|"
    r"answer(?= [a-z]{2}\s))(?: [a-z]{2}(?=\s|$))?"
)
_PALIGEMMA_MARK = re.compile(r"<loc\d{4}>", re.ASCII)
_PALIGEMMA_ITEM = re.compile(r"<loc(\d{4})>" * 4 + r"([^;<]*)", re.ASCII)


def _paligemma_box(item: re.Match[str]) -> list[float]:
    """The box of `<loc y0><loc x0><loc y1><loc x1>`, in shares of the sides."""
    y0, x0, y1, x1 = ((int(bin_) + 0.5) / _PALIGEMMA_BINS for bin_ in item.group(1, 2, 3, 4))
    return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]


def _prompt_box(text: str) -> list[float]:
    """The box of four locations, in shares of the sides."""
    match = _PROMPT_REGION.fullmatch(text)
    if match is None:
        raise UnreadError("its prompt has no region")
    bins = np.array(match.groups(), np.int32).reshape(2, 2)
    (x0, y0), (x1, y1) = dequantize(bins, _UNIT).tolist()  # As the boxes of answers are read.
    return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
