# SPDX-License-Identifier: Apache-2.0
"""A synthetic store with captions of three lengths, many boxes, words in quads, and polygons."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Label, Record, Region, Text
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import Plan, write_store

SIDE_PX = 640
TASKS = (
    *("caption", "detailed_caption", "more_detailed_caption", "od", "ocr_with_region"),
    *("referring_expression_segmentation", "region_to_segmentation"),
)
_WORDS = """a the red blue small large old man woman dog street table car tree house window light
standing walking near behind under with holding green field water sky cloud people market bright
wooden chair bottle cup train bridge river snow mountain child horse grass left right corner front
shadow yellow road sign open door stone wall white black umbrella rain city night""".split()
_NAMES = ("person", "car", "dog", "bottle", "dining table", "traffic light", "cell phone", "chair")


def write(folder: Path, *, number: int, seed: int = 0) -> RecordStore:
    """The store of `number` records, the same for the same seed."""
    rng = np.random.default_rng(seed)
    records = [_record(i, rng) for i in range(number)]
    write_store(folder, Plan(units={"train": records}, make=_as_it_is, job={"seed": seed}))
    return RecordStore(folder, "train")


def _as_it_is(record: Record, ledger: Ledger) -> Record:
    return record


def _record(number: int, rng: np.random.Generator) -> Record:
    image = io.BytesIO()
    Image.new("RGB", (16, 16), tuple(rng.integers(0, 256, 3).tolist())).save(image, "PNG")
    objects = [_object(rng) for _ in range(_log_uniform(rng, 1, 60))]
    words = [_word(rng) for _ in range(_log_uniform(rng, 1, 25))]
    texts = [Text(text=_sentence(rng, 8, 14)) for _ in range(rng.integers(1, 6))]
    detailed = " ".join(_sentence(rng, 8, 14) for _ in range(rng.integers(2, 5)))
    paragraph = " ".join(_sentence(rng, 8, 20) for _ in range(rng.integers(4, 10)))
    return Record(
        id=str(number),
        image=image.getvalue(),
        width=SIDE_PX,
        height=SIDE_PX,
        texts=(
            *texts,
            Text(text=detailed, granularity="detailed"),
            Text(text=paragraph, granularity="more_detailed"),
        ),
        regions=(*objects, *words),
    )


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))


def _sentence(rng: np.random.Generator, low: int, high: int) -> str:
    return " ".join(rng.choice(_WORDS, rng.integers(low, high))).capitalize() + "."


def _object(rng: np.random.Generator) -> Region:
    """A box; every second one with an outline of 6 to 80 points and an expression for it."""
    center, radius = rng.uniform(100, SIDE_PX - 100, 2), rng.uniform(10, 100)
    category = Label(text=str(rng.choice(_NAMES)))
    if rng.random() < 0.5:
        box = (*(center - radius), *(center + radius))
        return Region(box=tuple(map(float, box)), labels=(category,))
    angles = np.linspace(0, 2 * np.pi, _log_uniform(rng, 6, 80), endpoint=False)
    away = radius * rng.uniform(0.6, 1, len(angles))
    points = center + away[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    phrase = Label(text=_sentence(rng, 3, 8), kind="phrase")
    box = (*points.min(axis=0), *points.max(axis=0))
    return Region(
        box=tuple(map(float, box)),
        labels=(category, phrase),
        polygons=(tuple(map(float, points.ravel())),),
    )


def _word(rng: np.random.Generator) -> Region:
    x, y = rng.uniform(0, SIDE_PX - 100, 2).tolist()
    text = "".join(rng.choice(list("ABDEGHIKLNORSTUY"), rng.integers(2, 9)))
    quad = (x, y + 3, x + 80, y, x + 81, y + 20, x + 1, y + 24)
    box = (x, y, x + 81, y + 24)
    return Region(box=box, quad=quad, labels=(Label(text=text, kind="text"),))
