# SPDX-License-Identifier: Apache-2.0
"""Word files of the robust reading competitions: `gt_NAME.txt` for the image `NAME.*`.

One row per word, in any of these forms:

- ICDAR 2013: `x0, y0, x1, y1, "text"`, or the same with blanks instead of commas;
- ICDAR 2015: `x1,y1,x2,y2,x3,y3,x4,y4,text`, the text as it is, commas and quotes among it;
- Total-Text: `x: [[..]], y: [[..]], ornt: [u'c'], transcriptions: [u'text']`, over several lines
  where its outline is long, in `poly_gt_NAME.txt`;
- outlines `x1,y1,...,xn,yn,text`.

A text may be made of digits, so that a row alone does not tell how many of its numbers are
coordinates. A file does: it holds outlines if its name begins with `poly_gt_`, or if in any row six
or an even number above eight of numbers come before other text; else four or eight coordinates are
read. Quotes around the text are taken off where every row of the file has them. The texts `###`
and, in Total-Text, `#`, as well as its orientation `#`, mark what is not to be cared for: a crowd.

Files and images may lie in any folders within the source (or in those of `images`). The split is
the word train, val or test of a folder's name, and train where there is none; a file belongs to the
image of its name in its own folder, else to the only one in its split. Ids are names of images
within the source. Files that are no UTF-8 are read as Windows-1252, and noted.
Source: rrc.cvc.uab.es (challenges 2 and 4), github.com/cs-chan/Total-Text-Dataset.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from florence2_jax.records.importers.annotated import AnnotatedImage, make_record
from florence2_jax.records.importers.places import (
    AnnotationError,
    entries,
    files_within,
    is_image,
    listing_digest,
    name_within,
    read_annotation,
    split_named,
)
from florence2_jax.records.importers.words import word_region
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

_NAME = re.compile(r"(?:poly_)?gt_(.+)\.txt", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d{1,9}(?:\.\d*)?", re.ASCII)
_COMMA = re.compile(r"\s*[-+]?[\d.]+\s*,", re.ASCII)
_TOTAL_TEXT = re.compile(r"\s*x[ \t]*:[ \t]*\[")
_TOTAL_TEXT_START = re.compile(r"^(?=[ \t]*x[ \t]*:[ \t]*\[)", re.MULTILINE)
_TOTAL_TEXT_ROW = re.compile(
    r"x ?: ?\[+([^\]]*)\]+ ?,? ?y ?: ?\[+([^\]]*)\]+ ?,? ?"
    r"ornt ?: ?\[([^\]]*)\] ?,? ?transcriptions ?: ?\[(.*)\]"
)
_QUOTED = re.compile(r"""[uU]?(['"])(.*)\1""")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))")


@dataclasses.dataclass(frozen=True)
class WordRow:
    """One word as its file has it: what it says where, or `error`, why that cannot be told."""

    points: tuple[str, ...] = ()
    text: str | None = None
    is_ignored: bool = False
    error: str = ""
    row: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordFile:
    """A file of words and the image they are in."""

    path: Path
    image: Path
    id: str


def detect(source: Path) -> bool:
    """Whether there is a `gt_*.txt` in a folder, or in one of those in it."""
    inside = entries(source)
    folders = [path for path in inside if path.is_dir()]
    inside += [path for folder in folders for path in entries(folder)]
    return any(_NAME.fullmatch(path.name) for path in inside)


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Pairs files with images. Raises UserError if there is no file to pair."""
    ledger = Ledger()
    files = files_within(source, ledger)
    texts = [path for path in files if _NAME.fullmatch(path.name)]
    if not texts:
        raise UserError(f"{source}: no gt_NAME.txt in it, nor in folders within it")
    root = images or source
    found = [path for path in (files_within(images, ledger) if images else files) if is_image(path)]
    by_stem: dict[str, list[Path]] = {}
    for path in found:
        by_stem.setdefault(path.stem, []).append(path)
    units: dict[str, list[WordFile]] = {}
    taken: set[Path] = set()
    for path in texts:
        split = _split(path, source) or "train"
        image, why = _image(path, split, by_stem, source, root)
        if image in taken:
            why = "its image has another file of words"
        if image is None or why:
            ledger.read("image")
            ledger.set_aside("image", why, where=name_within(path, source))
            continue
        taken.add(image)
        unit = WordFile(path=path, image=image, id=name_within(image, root))
        units.setdefault(split, []).append(unit)
    if bare := len(found) - len(taken):
        ledger.note("image", "images without a file of words, not read", bare)
    job = {"format": "icdar", "sha256": listing_digest(texts, source)}
    return Plan(units=units, make=make_image, job=job, ledger=ledger)


def _split(path: Path, root: Path) -> str | None:
    return split_named(*path.relative_to(root).parts[:-1])


def _image(
    path: Path, split: str, by_stem: dict[str, list[Path]], source: Path, root: Path
) -> tuple[Path | None, str]:
    """The image of a file of words, or why there is none."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    named = by_stem.get(match[1], [])
    beside = [image for image in named if image.parent == path.parent]
    # A folder whose name tells no split holds images of any.
    alike = [image for image in named if _split(image, root) in (split, None)]
    for candidates in (beside, alike):
        if len(candidates) == 1:
            return candidates[0], ""
        if candidates:
            return None, "several images of its name"
    return None, "no image of its name"


def make_image(unit: WordFile, ledger: Ledger) -> Record | None:
    """The record of one image."""
    where = unit.path.name
    try:
        data = read_annotation(unit.path)
    except AnnotationError as error:
        ledger.read("image")
        ledger.set_aside("image", f"annotation file {error}", where=where)
        return None
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        content = data.decode("cp1252", "replace")
        ledger.note("file", "no UTF-8, read as Windows-1252")
    annotated = AnnotatedImage(id=unit.id, image=unit.image, where=where)
    for i, row in enumerate(read_rows(content, has_outlines=where.lower().startswith("poly_"))):
        if row.error:
            ledger.read("region")
            ledger.set_aside("region", row.error, where=f"{where} word {i}", value=row.row[:200])
            continue
        points: list[Any] = list(row.points)
        region = word_region(f"word {i}", points, row.text, ledger, is_ignored=row.is_ignored)
        annotated.regions.append(region)
    return make_record(annotated, ledger)


def read_rows(content: str, *, has_outlines: bool = False) -> list[WordRow]:
    """The words of a file, in any of the forms.

    Args:
        has_outlines: rows `x1,y1,...,text` may have any number of points.
    """
    if _TOTAL_TEXT.match(content):
        rows = (" ".join(row.split()) for row in _TOTAL_TEXT_START.split(content))
        return [_total_text_row(row) for row in rows if row]
    rows = [_Fields.of(line) for line in content.splitlines() if line.strip()]
    has_outlines = has_outlines or any(row.is_outline for row in rows)
    read = [row.as_word(has_outlines) for row in rows]
    texts = [row.text for row in read if row.text is not None]
    if texts and all(len(text) > 1 and text[0] == text[-1] == '"' for text in texts):
        read = [r if r.text is None else dataclasses.replace(r, text=r.text[1:-1]) for r in read]
    return [dataclasses.replace(row, is_ignored=row.text in ("###", "")) for row in read]


def _total_text_row(row: str) -> WordRow:
    """A row whose blanks and ends of lines are single blanks."""
    match = _TOTAL_TEXT_ROW.fullmatch(row)
    if match is None:
        return WordRow(error="not in the form of Total-Text", row=row)
    xs, ys = (re.split(r"[\s,]+", part.strip()) for part in match.group(1, 2))
    if len(xs) != len(ys):
        return WordRow(error="numbers of x and y differ", row=row)
    text = _unquoted(match[4])
    is_ignored = text in ("#", "###", "") or _unquoted(match[3]) == "#"
    points = tuple(v for point in zip(xs, ys, strict=True) for v in point)
    return WordRow(points=points, text=text, is_ignored=is_ignored, row=row)


def _unquoted(written: str) -> str:
    """A text as Python wrote it, or without quotes."""
    match = _QUOTED.fullmatch(written.strip())
    if match is None:
        return written.strip()

    def character(escape: re.Match[str]) -> str:
        code = escape[1] or escape[2]
        return chr(int(code, 16)) if code else escape[3]

    return _ESCAPE.sub(character, match[2])


@dataclasses.dataclass(frozen=True)
class _Fields:
    """A row, its fields, and how many of them are numbers before the first that is none."""

    line: str
    separator: str | None
    fields: list[str]
    num_numbers: int

    @classmethod
    def of(cls, line: str) -> "_Fields":
        separator = "," if _COMMA.match(line) else None
        fields = line.strip().split(separator)
        are_numbers = (_NUMBER.fullmatch(field.strip()) is not None for field in fields)
        num = next((i for i, is_number in enumerate(are_numbers) if not is_number), len(fields))
        return cls(line, separator, fields, num)

    @property
    def is_outline(self) -> bool:
        num = self.num_numbers
        return num < len(self.fields) and num % 2 == 0 and (num == 6 or num > 8)

    def as_word(self, has_outlines: bool) -> WordRow:
        """The first numbers are coordinates; those that are not belong to the text."""
        num = 8 if self.num_numbers >= 8 else 4
        if has_outlines:  # Of an odd number of them with nothing behind, the last is the text.
            num = self.num_numbers // 2 * 2
        if self.num_numbers < num or num < 4:
            return WordRow(error="does not begin with coordinates", row=self.line)
        points = tuple(field.strip() for field in self.fields[:num])
        if len(self.fields) == num:
            return WordRow(points=points, row=self.line)
        text = self.line.strip().split(self.separator, num)[num]  # As it is written there.
        return WordRow(points=points, text=text.strip(), row=self.line)
