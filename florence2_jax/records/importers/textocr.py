# SPDX-License-Identifier: Apache-2.0
"""TextOCR 0.1: words of OpenImages photos, with their outlines.

Read: `TextOCR_*.json`, each with `imgs`, `anns` and, not needed, `imgToAnns`; the split is in the
name of the file. Photos are looked for where `file_name` says ("train/ID.jpg"), and by their bare
name in the folders of the published archives, `train_images/` and `test_images/`, within `images`
if it is given. Ids are those `file_name`s.

Points run clockwise from the top left of the word, mostly four of them; how longer outlines become
quads is told in `words.py`. The transcript "." stands for a word that is illegible or not English:
such words become crowds. The test file has photos without words.
Source: textvqa.org/textocr/dataset.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from florence2_jax.records.checks import is_safe_name
from florence2_jax.records.importers.annotated import AnnotatedImage, corners, make_record
from florence2_jax.records.importers.json_files import as_id, as_text, field, read_json, shown
from florence2_jax.records.importers.layout import note_unmentioned
from florence2_jax.records.importers.places import HELD_OUT_FIRST, entries, exists, split_named
from florence2_jax.records.importers.words import word_region
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

ILLEGIBLE = "."
_FOLDERS = ("train_images", "train_val_images/train_images", "test_images")


@dataclasses.dataclass(kw_only=True)
class Photo:
    """One row of `imgs` with its rows of `anns`, by their ids."""

    name: str
    image: Path
    row: dict[str, Any]
    words: list[tuple[str, dict[str, Any]]] = dataclasses.field(default_factory=list)


def detect(source: Path) -> bool:
    """Whether there is a `TextOCR_*.json`."""
    return any(_is_textocr(path) for path in entries(source))


def _is_textocr(path: Path) -> bool:
    return path.name.startswith("TextOCR_") and path.suffix == ".json"


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Lists the photos of all files. Raises UserError if there are no files, or a broken one."""
    paths = [path for path in entries(source) if _is_textocr(path)]
    if not paths:
        raise UserError(f"{source}: no TextOCR_*.json in it; give the folder that holds them")
    # What is held out comes first: a photo of two files belongs to the first that lists it.
    paths.sort(key=lambda path: HELD_OUT_FIRST.index(split_named(path.stem) or "train"))
    ledger, digest = Ledger(), hashlib.sha256()
    units: dict[str, list[Photo]] = {}
    known: set[str] = set()
    for path in paths:
        content = read_json(path, digest=digest)
        photos = _photos(content, path, images or source, known, ledger)
        _add_words(content, photos, path.name, ledger)
        units.setdefault(split_named(path.stem) or "train", []).extend(photos.values())
    note_unmentioned((photo.image for some in units.values() for photo in some), ledger)
    return Plan(
        units=units,
        make=make_photo,
        job={"format": "textocr", "sha256": digest.hexdigest()},
        ledger=ledger,
    )


def make_photo(photo: Photo, ledger: Ledger) -> Record | None:
    """The record of one photo."""
    unit = AnnotatedImage(
        id=photo.name,
        image=photo.image,
        origin=as_text(photo.row.get("flickr_url")),
        stated_size=(photo.row.get("width"), photo.row.get("height")),
    )
    for key, row in photo.words:
        points = row.get("points") or corners(row.get("bbox"))
        text = row.get("utf8_string")
        text = 0 if text is None else text  # What is no text, mending refuses.
        unit.regions.append(
            word_region(f"word {key}", points, text, ledger, is_ignored=text == ILLEGIBLE)
        )
    return make_record(unit, ledger)


def _table(content: Any, key: str, path: Path) -> dict[str, Any]:
    table = field(content, key)
    if not isinstance(table, dict):
        raise UserError(f"{path}: no object {key!r} in it; is it a TextOCR annotation file?")
    return table


def _photos(
    content: Any, path: Path, images: Path, known: set[str], ledger: Ledger
) -> dict[str, Photo]:
    """The photos of a file by their ids, without those that are `known` already."""
    photos: dict[str, Photo] = {}
    for key, row in _table(content, "imgs", path).items():
        name = field(row, "file_name")
        if not is_safe_name(name):
            why = "no file name within the image folder"
        elif name in known:
            why = "file listed twice"
        else:
            known.add(name)
            photos[key] = Photo(name=name, image=_image(images, name), row=row)
            continue
        ledger.read("image")
        ledger.set_aside("image", why, where=path.name, value=shown(row))
    return photos


def _image(images: Path, name: str) -> Path:
    last = Path(name).name
    places = [images / name, images / last, *(images / folder / last for folder in _FOLDERS)]
    return next((place for place in places if exists(place)), places[0])


def _add_words(content: Any, photos: dict[str, Photo], file: str, ledger: Ledger) -> None:
    table = field(content, "anns")
    if table is None:
        return  # As in the test file.
    for key, row in table.items() if isinstance(table, dict) else [("?", table)]:
        photo = photos.get(str(as_id(field(row, "image_id"))))
        if photo is not None:
            photo.words.append((key, row))
            continue
        ledger.read("region")
        ledger.set_aside("region", "its image is not listed", where=file, value=shown(row))
