# SPDX-License-Identifier: Apache-2.0
"""Small records for the tests of the data engine."""

import io

from PIL import Image

from florence2_jax.records.schema import Record


def png(width: int = 60, height: int = 40, color: str = "gray") -> bytes:
    """An encoded image of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), color).save(out, "PNG")
    return out.getvalue()


def record(**fields) -> Record:
    """A record of 60 x 40 pixels."""
    return Record(**(dict(id="r", image=png(), width=60, height=40) | fields))
