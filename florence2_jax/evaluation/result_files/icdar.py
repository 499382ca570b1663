# SPDX-License-Identifier: Apache-2.0
"""Zip files of words, as the robust reading competitions exchange them; or folders of such files.

Truth: `gt_NAME.txt` for each image; predictions: `res_NAME.txt`. The prefixes may be missing, and a
folder within the zip does not matter. Rows are `x1,y1,...,x4,y4,text`, corners `x0,y0,x1,y1,text`,
outlines or Total-Text's, as `records.importers.icdar` reads them; a truth `###` (or of no text) is
not to be cared for. An image without a file of predictions is empty, as in the official code.

Zips are read in memory and nothing of them is written; their texts may be 256 MB.
Source: rrc.cvc.uab.es (challenge 4, tasks 1 and 4).
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from florence2_jax.evaluation.result_files.entries import Entry, check_known, empty_note
from florence2_jax.evaluation.spotting import Word
from florence2_jax.records.importers.icdar import WordRow, read_rows
from florence2_jax.records.importers.json_files import read_file
from florence2_jax.typing import Polygon, UserError

MAX_BYTES = 2**28
_PREFIX = re.compile(r"^(?:gt|res)_", re.IGNORECASE)


def read_words(
    truth: Path, predictions: Path
) -> tuple[list[tuple[list[Word], list[Word]]], tuple[str, ...]]:
    """The words found and the true ones of each image of the truth, and notes.

    Raises:
        UserError: if a file is no such zip, a row is damaged, or images are unknown or there twice.
    """
    true = _images(truth, is_truth=True)
    found = _images(predictions, is_truth=False)
    check_known(found, true, "images", predictions)
    pairs = [(found.get(name, []), words) for name, words in true.items()]
    return pairs, empty_note(found, true, "images")


def _images(path: Path, *, is_truth: bool) -> dict[str, list[Word]]:
    images: dict[str, list[Word]] = {}
    for name, data in _files(path):
        stem = PurePosixPath(name).stem
        key = _PREFIX.sub("", stem.removeprefix("poly_"))
        if key in images:
            raise UserError(f"{path}: {name}: image {key!r} again; keep one file of each image")
        try:
            content = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: {name}: not UTF-8 ({error.reason}); save it so") from error
        rows = read_rows(content, has_outlines=stem.startswith("poly_"))
        where = f"{path}: {name}"
        images[key] = [
            _word(Entry(f"{where} word {i}", None), row, is_truth) for i, row in enumerate(rows, 1)
        ]
    if not images:
        raise UserError(f"{path}: no .txt file in it; give a zip of gt_NAME.txt or res_NAME.txt")
    return images


def _word(entry: Entry, row: WordRow, is_truth: bool) -> Word:
    if row.error:
        entry.refuse(f"{row.error} ({row.row[:60]!r}); mend the row")
    values = entry.numbers("outline", [float(value) for value in row.points])
    is_ignored = is_truth and (row.is_ignored or row.text is None)
    return Word(_outline(values), None if is_ignored else row.text or "")


def _outline(values: list[float]) -> Polygon:
    if len(values) == 4:
        x0, y0, x1, y1 = values
        return x0, y0, x1, y0, x1, y1, x0, y1
    return tuple(values)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the .txt files of a zip or a folder."""
    if path.is_dir():
        for file in sorted(path.rglob("*.txt")):
            yield file.relative_to(path).as_posix(), read_file(file, MAX_BYTES)
        return
    if not path.exists():
        raise UserError(f"{path}: no such file; give a zip or a folder of .txt files")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if _is_text(one)]
            if sum(one.file_size for one in members) > MAX_BYTES:
                raise UserError(f"{path}: more than {MAX_BYTES} bytes of text; split the file")
            for one in sorted(members, key=lambda one: one.filename):
                yield one.filename, archive.read(one)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
        raise UserError(f"{path}: no zip that can be read ({error}); write it again") from error


def _is_text(member: zipfile.ZipInfo) -> bool:
    is_litter = member.filename.startswith("__MACOSX/")
    return member.filename.lower().endswith(".txt") and not member.is_dir() and not is_litter
