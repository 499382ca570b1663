# SPDX-License-Identifier: Apache-2.0
"""The released parser, defects included, for comparison with other software.

It repeats transformers' native processor (5.17 to 5.23): labels end at any `<`, accents are
removed, items with a newline vanish, coordinates are truncated to whole pixels, a truncated item is
dropped without a word. `parse_answer(..., compatible=True)` gives typed answers from it and
`released_dict` the dictionary that `post_process_generation` returns for a task.

Source: behaviour of `Florence2PostProcessor`; the tests hold this file against it.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from florence2_jax.tasks.answers import (
    Answer,
    AnyRegion,
    BoxRegion,
    MaskRegion,
    QuadRegion,
    RegionsAnswer,
    TextAnswer,
)
from florence2_jax.tasks.registry import Task
from florence2_jax.text.locations import NUM_BINS
from florence2_jax.text.phrases import BANNED_PHRASES
from florence2_jax.typing import Size

_LOC = r"<loc_(\d+)>"
_LABEL_END = r"<od>|</od>|<box>|</box>|<bbox>|</bbox>|<loc_"
_MARK = r"(?:<loc_\d+>|<sep>|<poly>|</poly>)"


def parse_as_released(task: Task, text: str, size: Size) -> Answer:
    """Reads a text as the native processor does."""
    if task.grammar in ("text", "region_text"):
        plain = text.replace("<s>", "").replace("</s>", "").strip()
        return TextAnswer(task=task.token, text=plain)
    for control in ("<s>", "</s>", "<pad>"):
        text = text.replace(control, "")
    return RegionsAnswer(task=task.token, regions=tuple(_regions(task, text, size)))


def released_dict(task: Task, answer: Answer) -> str | dict[str, list[Any]]:
    """An answer in the form `post_process_generation` returns under the task's token."""
    if isinstance(answer, TextAnswer):
        return answer.text
    boxes = [r for r in answer.regions if isinstance(r, BoxRegion)]
    quads = [r for r in answer.regions if isinstance(r, QuadRegion)]
    masks = [r for r in answer.regions if isinstance(r, MaskRegion)]
    if task.grammar == "quads":
        return {"quad_boxes": [list(r.quad) for r in quads], "labels": [r.label for r in quads]}
    polygons = [[list(p) for p in r.polygons] for r in masks]
    if task.grammar == "masks":
        return {"polygons": polygons, "labels": [r.label for r in masks]}
    box_lists, labels = [list(r.box) for r in boxes], [r.label for r in boxes]
    if task.grammar == "named_boxes":
        mask_labels = [r.label for r in masks]
        return {
            "bboxes": box_lists, "bboxes_labels": labels,
            "polygons": polygons, "polygons_labels": mask_labels,
        }  # fmt: skip
    return {"bboxes": box_lists, "labels": labels}


def _regions(task: Task, text: str, size: Size) -> Iterator[AnyRegion]:
    match task.grammar:
        case "quads":
            for label, *bins in re.findall("(.+?)" + _LOC * 8, text):
                yield QuadRegion(label=label.strip(), quad=_pixels(bins, size))
        case "masks":
            yield from _masks(text, size, label_pattern="")
        case "named_boxes" if "<poly>" in text:
            yield from _masks(text, size, label_pattern="[^<]+")
        case "proposals":
            yield from _boxes(text, size, label_pattern="")
        case "phrases":
            found = _boxes(text, size, label_pattern="[^<]+", banned=BANNED_PHRASES)
            yield from found
        case _:
            yield from _boxes(text, size, label_pattern="[^<]+")


def _boxes(
    text: str, size: Size, *, label_pattern: str, banned: frozenset[str] = frozenset()
) -> Iterator[BoxRegion]:
    for item in re.findall(rf"({label_pattern}(?:<loc_\d+>){{4,}})", text):
        label = re.search(rf"^\s*(.*?)(?={_LABEL_END})", item)
        if label is None or label.group().strip() in banned:
            continue
        name = label.group().strip().encode("ascii", "ignore").decode("ascii")
        for bins in re.findall(_LOC * 4, item):
            yield BoxRegion(label=name, box=_pixels(bins, size))


def _masks(text: str, size: Size, *, label_pattern: str) -> Iterator[MaskRegion]:
    for item in re.findall(rf"({label_pattern}{_MARK}{{4,}})", text):
        rest = re.sub(r"^<loc_\d+>", "", item, count=1)
        label = re.search(rf"^\s*(.*?)(?={_LABEL_END}|<poly>)", rest)
        if label is None:
            continue
        has_instances = "<poly>" in item and "</poly>" in item
        for instance in re.findall(r"<poly>(.*?)</poly>", item) if has_instances else [item]:
            runs = re.findall(r"((?:<loc_\d+>)+)(?:<sep>|$)", instance)
            polygons = [re.findall(_LOC, run) for run in runs]
            if polygons:
                yield MaskRegion(
                    label=label.group().strip(),
                    polygons=tuple(_pixels(p[: len(p) // 2 * 2], size) for p in polygons),
                )


def _pixels(bins, size: Size) -> Any:
    """Bin centres in float32, truncated to whole pixels."""
    pairs = np.array(bins, np.float32).reshape(-1, 2) + np.float32(0.5)
    px_per_bin = np.array([side / NUM_BINS for side in size], np.float32)
    return tuple((pairs * px_per_bin).astype(np.int32).ravel().tolist())
