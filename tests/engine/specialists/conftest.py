# SPDX-License-Identifier: Apache-2.0
"""Records that specialists are asked about, and the random checkpoints of transformers."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from florence2_jax.records.schema import Label, Provenance, Record, Region, Text


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def drawn(width: int, height: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).rectangle((5, 6, width // 2, height // 2), fill=(200, 30, 30))
    return image


def random_record(
    id_: str = "a", size: tuple[int, int] = (60, 40), seed: int = 0, **changes
) -> Record:
    """A record of random pixels with a red box, two regions and a caption."""
    made = Provenance(kind="specialist", name="other@1")
    regions = (
        Region(box=(5.0, 6.0, 30.0, 20.0), labels=(Label(text="car"),), provenance=made),
        Region(box=(30.0, 10.0, 50.0, 40.0), labels=(Label(text="dog"),), provenance=made),
    )
    texts = (Text(text="A red car with a dog on the street.", provenance=made),)
    image = png(drawn(*size, seed))
    values = dict(image=image, texts=texts, regions=regions) | changes
    return Record(id=id_, width=size[0], height=size[1], **values)


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    return random_record


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory) -> Callable[[str], str]:
    """The folder of a random checkpoint by its family, made when it is first asked for."""
    import random_models

    made: dict[str, Path] = {}

    def folder(family: str) -> str:
        if family not in made:
            save = getattr(random_models, f"save_{family}")
            made[family] = save(tmp_path_factory.mktemp(family))
        return str(made[family])

    return folder
