# SPDX-License-Identifier: Apache-2.0
"""Lists of MMOCR: text detection, recognition, spotting and key information.

Read, in the folder itself (or as the file given):

- MMOCR 1.x: `*.json` with `metainfo` and `data_list`, whose `instances` have a `polygon` or a
  `bbox`, `text`, `ignore` and `bbox_label`;
- a JSON object per line (`*.txt`, `*.jsonl`): key information with `annotations` of `box`, `text`
  and `label` (a row of `class_list.txt`), and recognition with a `text`. Where a folder has 1.x
  lists, these older ones say the same once more and are noted, not read.

The split is in the name of the file. Words of a recognition list have no place: each image is one
word, its whole area the region. Beside a list of spotting, that of detection has nothing to add.

`img_path` may begin with folders that are not here: images are looked for by the whole path, then
without its first folders, in the source (or in `images`) and its `imgs/` or `images/`. Ids are
those paths, with the folders left out that were not found. The class "Ignore" and `ignore` make a
crowd. How outlines become quads is told in `words.py`. Source: MMOCR documentation, data formats.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from florence2_jax.records.checks import is_safe_name
from florence2_jax.records.importers.annotated import AnnotatedImage, RawRegion, make_record
from florence2_jax.records.importers.json_files import (
    as_id,
    as_text,
    field,
    parse_json,
    read_file,
    read_json,
    rows,
    shown,
)
from florence2_jax.records.importers.places import (
    HELD_OUT_FIRST,
    entries,
    exists,
    first_bytes,
    split_named,
)
from florence2_jax.records.importers.words import word_region
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

CLASSES = "class_list.txt"
_IGNORED_CLASS = "ignore"
_FOLDERS = (".", "imgs", "images")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedImage:
    """One row of a list: an image and the rows of its words, all in the keys of 1.x."""

    id: str
    image: Path
    where: str
    stated_size: tuple[Any, Any] | None
    words: list[Any]


def detect(source: Path) -> bool:
    """Whether there is a list of either form."""
    paths = [path for path in entries(source) if path.suffix in (".json", ".txt", ".jsonl")]
    return any(_is_list(path) or _is_line_list(path) for path in paths)


def _is_list(path: Path) -> bool:
    head = first_bytes(path) if path.suffix == ".json" else b""
    head = head.replace(b"\0", b"")  # Of UTF-16 and 32.
    return b'"data_list"' in head or (b'"metainfo"' in head and b'"dataset_type"' in head)


def _is_line_list(path: Path) -> bool:
    # A dataset of Hugging Face has its captions in a metadata.jsonl of the same keys.
    if path.suffix not in (".txt", ".jsonl") or path.name == "metadata.jsonl":
        return False
    head = first_bytes(path)
    has_name = re.match(rb'\s*\{\s*"file_?name"\s*:', head)
    return bool(has_name) and (b'"annotations"' in head or b'"text"' in head)


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Lists the images of all lists. Raises UserError if there is none, or a broken one."""
    ledger, digest = Ledger(), hashlib.sha256()
    folder = source if source.is_dir() else source.parent
    lists = _lists(source, ledger)
    names = _class_names(folder, digest)
    by_split: dict[str, list[ListedImage]] = {}
    known: set[str] = set()
    for path in lists:
        units = by_split.setdefault(split_named(path.stem) or "train", [])
        for number, row in _rows(path, digest, ledger):
            unit = _unit(row, images or folder, f"{path.name} row {number}", known)
            if isinstance(unit, ListedImage):
                known.add(unit.id)
                units.append(unit)
                continue
            ledger.read("image")
            ledger.set_aside("image", unit, where=f"{path.name} row {number}", value=shown(row))
    job = {"format": "mmocr", "sha256": digest.hexdigest()}
    make = functools.partial(make_image, class_names=names)
    return Plan(units=by_split, make=make, job=job, ledger=ledger)


def _lists(source: Path, ledger: Ledger) -> list[Path]:
    """The lists that are read, those of held out splits first; the others are noted."""
    inside = [source] if source.is_file() else entries(source)
    found = [path for path in inside if _is_list(path)]
    older = [path for path in inside if _is_line_list(path)]
    if not found and not older:
        raise UserError(
            f"{source}: no list of MMOCR in it; looked for .json with data_list, and .txt or "
            ".jsonl with a JSON object per line that has a file_name"
        )
    if found and older:
        ledger.note("file", "older lists beside those of 1.x, not read", len(older))
    lists = found or older
    names = {path.name for path in lists}
    for path in list(lists):
        fuller = path.name.replace("textdet", "textspotting")
        if fuller != path.name and fuller in names:
            lists.remove(path)
            ledger.note("file", "lists of detection beside those of spotting, not read")
    return sorted(lists, key=lambda p: HELD_OUT_FIRST.index(split_named(p.stem) or "train"))


def _class_names(folder: Path, digest: Any) -> dict[int | str, str]:
    """Names of the classes of key information by their numbers, if the folder has them."""
    path = folder / CLASSES
    if not path.is_file():
        return {}
    data = read_file(path)
    digest.update(data)
    names = {}
    for line in data.decode("utf-8-sig", "replace").splitlines():
        number, _, name = line.strip().partition(" ")
        key = as_id(number)
        if key is not None and as_text(name):
            names[key] = as_text(name)
    return names


def _rows(path: Path, digest: Any, ledger: Ledger) -> Iterator[tuple[int, Any]]:
    """Rows of a list with their numbers, as 1.x has them."""
    if path.suffix == ".json":
        content = read_json(path, digest=digest)
        yield from enumerate(rows(content, "data_list", path, "a list of MMOCR"))
        return
    data = read_file(path)
    digest.update(path.name.encode("utf-8", "surrogateescape") + data)
    for number, line in enumerate(data.splitlines()):
        if not line.strip():
            continue
        try:
            row = parse_json(line, path.name)
        except UserError:
            ledger.read("image")
            where = f"{path.name} row {number}"
            ledger.set_aside("image", "not JSON", where=where, value=shown(line))
            continue
        yield number, _as_new(row)


def _as_new(row: Any) -> Any:
    """A row of the older form in the keys of 1.x."""
    if not isinstance(row, dict):
        return row
    words = row.get("annotations")
    if words is None and "text" in row:
        words = [{"text": row["text"]}]
    if isinstance(words, list):
        words = [_new_word(word) if isinstance(word, dict) else word for word in words]
    name = row.get("file_name", row.get("filename"))
    return {**row, "img_path": name, "instances": words}


def _new_word(word: dict[str, Any]) -> dict[str, Any]:
    outline = word.get("segmentation")
    if isinstance(outline, list):  # Of detection; its box is x, y, width, height.
        ring = outline[0] if outline and isinstance(outline[0], list) else outline
        return {"polygon": ring, "ignore": word.get("iscrowd"), "text": word.get("text")}
    renamed = {"box": "polygon", "label": "class"}
    return {renamed.get(key, key): value for key, value in word.items()}


def _unit(row: Any, images: Path, where: str, known: set[str]) -> ListedImage | str:
    """What a row lists, or why it lists nothing."""
    name, words = field(row, "img_path"), field(row, "instances")
    if not is_safe_name(name):
        return "no file name within the image folder"
    if not isinstance(words, list):
        return "no list of instances"
    id_, image = _image(images, name)
    if id_ in known:
        return "listed twice"
    has_size = "width" in row or "height" in row
    size = (row.get("width"), row.get("height")) if has_size else None
    return ListedImage(id=id_, image=image, where=where, stated_size=size, words=words)


def _image(images: Path, name: str) -> tuple[str, Path]:
    """The longest ending of a path that is a file here, or the whole path."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    for start in range(min(len(parts), 32)):
        ending = "/".join(parts[start:])
        for folder in _FOLDERS:
            if exists(path := images / folder / ending):
                return ending, path
    return "/".join(parts), images.joinpath(*parts)


def make_image(
    unit: ListedImage, ledger: Ledger, *, class_names: dict[int | str, str]
) -> Record | None:
    """The record of one image."""
    annotated = AnnotatedImage(
        id=unit.id, image=unit.image, where=unit.where, stated_size=unit.stated_size
    )
    # A list of recognition: the image is the word.
    annotated.is_relative = all(
        isinstance(field(word, "text"), str) and not (word.keys() & {"polygon", "bbox"})
        for word in unit.words
    )
    for i, word in enumerate(unit.words):
        annotated.regions.append(
            _region(f"word {i}", word, annotated.is_relative, class_names, ledger)
        )
    return make_record(annotated, ledger)


def _region(
    place: str, word: Any, is_whole: bool, class_names: dict[int | str, str], ledger: Ledger
) -> RawRegion:
    points = field(word, "polygon") or field(word, "bbox")
    key = as_id(field(word, "class"))
    category = None if key is None else class_names.get(key)
    is_ignored = field(word, "ignore") in (True, 1) or (category or "").lower() == _IGNORED_CLASS
    text = field(word, "text")
    return word_region(
        place,
        [0, 0, 1, 1] if is_whole else points,
        text,
        ledger,
        is_ignored=is_ignored,
        category=category,
    )
