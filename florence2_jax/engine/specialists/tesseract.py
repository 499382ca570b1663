# SPDX-License-Identifier: Apache-2.0
"""Writing by Tesseract, a program of its own: words or lines, with their confidence.

Tesseract gives upright rectangles, so its quads are rectangles too, however the writing is turned.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from PIL import Image

from florence2_jax.engine.specialists.base import Annotations, SpecialistError
from florence2_jax.engine.specialists.configured import (
    ImageSpecialist,
    check_share,
    cleaned,
    clipped,
    needs,
)
from florence2_jax.geometry import hull_box
from florence2_jax.records.schema import Label, Record, Region
from florence2_jax.typing import Box, UserError

INSTALL = '"florence2-jax[engine]"'


@dataclasses.dataclass(kw_only=True, eq=False)
class Tesseract(ImageSpecialist):
    """Regions with a quad and a label of kind text.

    Settings:
        language: as Tesseract names it, several joined by "+".
        level: "words" or "lines".
        page_mode: how it looks for writing (`--psm`): 11, wherever there is some; 3 for pages.
        threshold: words of a lower confidence are left out.
        program: where it is, if not in the PATH.
        image_timeout_s: for one image.
    """

    language: str = "eng"
    level: str = "words"
    page_mode: int = 11
    threshold: float = 0.3
    program: str = "tesseract"
    image_timeout_s: float = 60.0

    kinds = ("text_regions",)
    not_in_version = frozenset({"program", "image_timeout_s"})

    def check(self) -> None:
        check_share("threshold", self.threshold)
        if self.level not in ("words", "lines"):
            raise UserError(f"level: {self.level!r} is not one of words, lines")
        if not 0 <= self.page_mode <= 13:
            raise UserError(f"page_mode: {self.page_mode} is not in [0, 13]")
        if not self.image_timeout_s > 0:
            raise UserError(f"image_timeout_s: {self.image_timeout_s} is no time")

    def title(self) -> str:
        return f"tesseract:{self.language}"

    def software(self) -> str:
        return str(self._library().get_tesseract_version())

    def _library(self) -> Any:
        """pytesseract, once its program answers."""
        library: Any = needs("pytesseract", INSTALL)
        library.pytesseract.tesseract_cmd = self.program
        try:
            library.get_tesseract_version()
        except (OSError, SystemExit) as error:  # It exits where the program is too old to ask.
            raise SpecialistError(
                f"tesseract: the program {self.program!r} does not run; install it (apt install "
                "tesseract-ocr, brew install tesseract), or say where it is with `program`"
            ) from error
        return library

    def load(self) -> None:
        # Its threads gain little on one image, and take the cores of other workers.
        os.environ.setdefault("OMP_THREAD_LIMIT", str(max(1, int(self.num_cpus))))
        self._pytesseract = self._library()
        here = str(self._pytesseract.get_tesseract_version())
        if not self.version.startswith(f"{here}-"):
            raise SpecialistError(
                f"tesseract: this machine has {here}, the run began with {self.version}; install "
                "the same version on every machine"
            )
        known = self._pytesseract.get_languages()
        if missing := [name for name in self.language.split("+") if name not in known]:
            raise SpecialistError(
                f"tesseract: has no language {', '.join(missing)} (there are {', '.join(known)}); "
                f"run: apt install tesseract-ocr-{missing[0]}"
            )

    def look(
        self, records: Sequence[Record], images: Sequence[Image.Image]
    ) -> Sequence[Annotations]:
        return [self._read(r, image) for r, image in zip(records, images, strict=True)]

    def _read(self, record: Record, image: Image.Image) -> Annotations:
        try:
            table = self._pytesseract.image_to_data(
                image,
                lang=self.language,
                config=f"--psm {self.page_mode}",
                timeout=self.image_timeout_s,
                output_type=self._pytesseract.Output.DICT,
            )
        except RuntimeError as error:
            if "timeout" in str(error).lower():
                raise TimeoutError(f"no answer after {self.image_timeout_s:g} s") from error
            raise
        regions = []
        for words in _lines(table) if self.level == "lines" else ([w] for w in _words(table)):
            region = self._region([word for word in words if word.score >= self.threshold], record)
            regions += [] if region is None else [region]
        return Annotations(regions=tuple(regions))

    def _region(self, words: "Sequence[_Word]", record: Record) -> Region | None:
        """Of words side by side: the box around them, their mean confidence."""
        if not words:
            return None
        box = clipped(hull_box([v for word in words for v in word.box]), record.size)
        if box is None:
            return None
        x0, y0, x1, y1 = box
        return Region(
            box=box,
            quad=(x0, y0, x1, y0, x1, y1, x0, y1),
            labels=(Label(text=" ".join(word.text for word in words), kind="text"),),
            provenance=self.maker(sum(word.score for word in words) / len(words)),
        )


@dataclasses.dataclass(frozen=True)
class _Word:
    text: str
    box: Box
    score: float
    line: tuple[int, int, int]


def _words(table: dict[str, list[Any]]) -> list[_Word]:
    """The rows that are words; those of pages, blocks and lines have a confidence of -1."""
    words = []
    for i, given in enumerate(table["text"]):
        text, confidence = cleaned(str(given)), float(table["conf"][i])
        if text and confidence >= 0:
            x, y, w, h = (float(table[name][i]) for name in ("left", "top", "width", "height"))
            line = tuple(int(table[name][i]) for name in ("block_num", "par_num", "line_num"))
            assert len(line) == 3
            words.append(_Word(text, (x, y, x + w, y + h), min(1.0, confidence / 100), line))
    return words


def _lines(table: dict[str, list[Any]]) -> list[list[_Word]]:
    lines: dict[tuple[int, int, int], list[_Word]] = {}
    for word in _words(table):
        lines.setdefault(word.line, []).append(word)
    return list(lines.values())
