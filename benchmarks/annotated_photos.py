# SPDX-License-Identifier: Apache-2.0
"""A store of photos with annotations by chance: about as many, and as long, as in FLD-5B.

An image there has 4 texts, 10 described regions and 29 phrases tied to places (Florence-2, Table 1
and section 4); one here has 7 texts, 1 to 60 objects (15 on average) with a name, a description
and half of them an outline and a phrase, a grounding, and in every third image up to 25 words.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Grounding, Label, Record, Region, Span, Text
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import Plan, write_store
from florence2_jax.typing import Box, Size

_WORDS = """a an the and with near behind under above beside holding standing walking parked small
large old young bright dark empty crowded wooden metal glass stone grey brown man woman child dog
horse street road river field market station window door roof tree flower cloud rain""".split()
_NAMES = ("person", "car", "dog", "bottle", "dining table", "traffic light", "cell phone", "chair")


def write(folder: Path, photos: Sequence[Path], number: int) -> RecordStore:
    """A store of `number` records, the photos over and over, annotated anew each time."""
    units = [(i, photos[i % len(photos)]) for i in range(number)]
    write_store(folder, Plan(units={"train": units}, make=_record, job={"photos": len(photos)}))
    return RecordStore(folder, "train")


def _record(unit: tuple[int, Path], ledger: Ledger) -> Record:
    number, path = unit
    rng, data = np.random.default_rng(number), path.read_bytes()
    size = Image.open(io.BytesIO(data)).size
    caption = _sentence(rng, 12)
    spans = tuple(Span(start=s, end=s + 6, boxes=(_box(rng, size),)) for s in (0, 8))
    texts = [Text(text=caption), *(Text(text=_sentence(rng, 12)) for _ in range(4))]
    for granularity, sentences in (("detailed", 3), ("more_detailed", 7)):
        text = " ".join(_sentence(rng, 14) for _ in range(sentences))
        texts.append(Text(text=text, granularity=granularity))
    regions = [_object(rng, size) for _ in range(_log_uniform(rng, 1, 60))]
    if rng.random() < 1 / 3:
        regions += [_writing(rng, size) for _ in range(_log_uniform(rng, 1, 25))]
    return Record(
        id=f"{number}/{path.name}",
        image=data,
        width=size[0],
        height=size[1],
        texts=tuple(texts),
        regions=tuple(regions),
        groundings=(Grounding(text=caption, spans=spans),),
    )


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return int(math.exp(rng.uniform(math.log(low), math.log(high + 1))))


def _sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(_WORDS, words)).capitalize() + "."


def _box(rng: np.random.Generator, size: Size) -> Box:
    x0, y0 = rng.uniform(0, 0.7, 2)
    x1, y1 = x0 + rng.uniform(0.02, 0.3), y0 + rng.uniform(0.02, 0.3)
    return float(x0 * size[0]), float(y0 * size[1]), float(x1 * size[0]), float(y1 * size[1])


def _object(rng: np.random.Generator, size: Size) -> Region:
    x0, y0, x1, y1 = box = _box(rng, size)
    labels = [Label(text=str(rng.choice(_NAMES))), Label(text=_sentence(rng, 6), kind="brief")]
    if rng.random() < 0.5:
        return Region(box=box, labels=tuple(labels))
    angles = np.linspace(0, 2 * np.pi, _log_uniform(rng, 6, 80), endpoint=False)
    away = rng.uniform(0.6, 1, len(angles))
    points = (x0 + x1, y0 + y1) + away[:, None] * np.stack(
        [(x1 - x0) * np.cos(angles), (y1 - y0) * np.sin(angles)], axis=1
    )
    labels.append(Label(text=_sentence(rng, 4), kind="phrase"))
    polygon = tuple((points / 2).ravel().tolist())
    return Region(box=box, labels=tuple(labels), polygons=(polygon,))


def _writing(rng: np.random.Generator, size: Size) -> Region:
    x0, y0, x1, y1 = box = _box(rng, size)
    text = "".join(rng.choice(list("ABDEGHIKLNORSTUY"), rng.integers(2, 9)))
    quad = (x0, y0, x1, y0, x1, y1, x0, y1)
    return Region(box=box, quad=quad, labels=(Label(text=text, kind="text"),))
