# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face dataset, read without their package: what `save_to_disk` wrote, or Parquet files.

Read by the names of columns, as they are usual on the hub:

- the image: the column of type Image (`bytes` and `path`), or one of bytes named image, img, jpg or
  png. Where only a path stands, the file is looked for in the folder;
- captions: the column that option `caption` names, or the first of `CAPTIONS`; a text or a list;
- regions: `objects` with `bbox` (`x, y, width, height` in pixels, as in COCO) and `category`, a
  name or the number of a class label;
- questions: `question` with `answer` or `answers`;
- `width` and `height`, and as the origin `url`, `image_url` or the image's path.

Other columns are noted, not read. Ids are "FILE/row number"; the split is that of state.json, of
dataset_dict.json or of the file's or folder's name ("train-00000-of-00002.parquet"), else "train".
Source: the documentation of `datasets`, "Load" and "Create an image dataset".
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.records.checks import is_safe_name
from florence2_jax.records.importers.annotated import (
    AnnotatedImage,
    RawRegion,
    corners,
    make_record,
)
from florence2_jax.records.importers.archives import Bytes
from florence2_jax.records.importers.arrow_rows import (
    Row,
    RowError,
    RowFile,
    Rows,
    import_arrow,
    measure,
    read_row,
)
from florence2_jax.records.importers.folder import SPLITS, readable
from florence2_jax.records.importers.json_files import as_text, field, parse_json, read_json
from florence2_jax.records.importers.places import size_of
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

CAPTIONS = ("caption", "captions", "text", "sentences", "sentence", "description")
_IMAGES = ("image", "img", "jpg", "png")
_CLASSES = ("category", "label", "categories", "category_id")
_ANSWERS = ("answers", "answer", "multiple_choice_answer")
_ORIGINS = ("url", "image_url", "coco_url", "flickr_url")
_USED = {"objects", "question", "width", "height", *_ORIGINS}


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """Which columns mean what, and the names of the classes that `objects` counts."""

    image: str
    caption: str | None
    answers: str | None
    classes: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """All that are read, there or not."""
        return [self.image, *filter(None, (self.caption, self.answers)), *sorted(_USED)]


def detect(source: Path) -> bool:
    """Whether `save_to_disk` wrote the folder, or Parquet files are in it and no tar shards."""
    if not source.is_dir():
        return False
    if (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
        return True
    patterns = ("*.parquet", "*/*.parquet")  # img2dataset lays Parquet beside its shards.
    return any(any(source.glob(p)) for p in patterns) and not any(source.glob("*.tar"))


def plan(source: Path, *, caption: str | None = None) -> Plan:
    """Lists the files of a dataset.

    Args:
        caption: the column of captions, if it is none of `CAPTIONS`.

    Raises:
        UserError: if pyarrow is not installed, no file holds an image, or the column is not there.
    """
    import_arrow()
    ledger, digest = Ledger(), hashlib.sha256()
    root = source if source.is_dir() else source.parent
    files: dict[str, list[RowFile]] = {}
    columns: dict[Path, Columns] = {}
    unread: dict[str, None] = {}
    for split, path in _files(source):
        name = readable(path.relative_to(root).as_posix())
        digest.update(f"{name} {size_of(path)}\n".encode())
        measured = _measure(path, name, ledger)
        if measured is None:
            continue
        schema, sizes = measured
        found = _columns(schema, path.parent, caption)
        if found is None:
            ledger.read("file")
            value = readable(", ".join(schema.names)[:200])
            ledger.set_aside("file", "no column of images", where=name, value=value)
            continue
        columns[path] = found
        unread |= dict.fromkeys(n for n in schema.names if n not in found.names())
        files.setdefault(split, []).append(RowFile(path, name.rpartition(".")[0], sizes))
    if not columns:
        why = f": {ledger.entries[0]['why']}" if ledger.entries else ""
        raise UserError(f"{source}: no *.parquet or *.arrow file with a column of images{why}")
    if caption is not None and all(found.caption != caption for found in columns.values()):
        raise UserError(f"{source}: no column {caption!r}; option caption names one that is there")
    for column in unread:
        ledger.note("column", f"{readable(column)[:60]} not read")
    job = {"format": "hf", "caption": caption, "sha256": digest.hexdigest()}
    make = functools.partial(make_row, columns=columns, root=root)
    units = {split: Rows(parts) for split, parts in files.items()}
    return Plan(units=units, make=make, job=job, ledger=ledger)


def make_row(
    row: Row, ledger: Ledger, *, columns: Mapping[Path, Columns], root: Path
) -> Record | None:
    """The record of one row; `columns` are those of each file."""
    id_, known = f"{row.name}/{row.number}", columns[row.path]
    try:
        values = read_row(row, known.names())
    except RowError as error:
        ledger.read("image")
        ledger.set_aside("image", "its row cannot be read", where=id_, value=str(error)[:200])
        return None
    image, image_name = _image(values.get(known.image), root)
    origin = next((text for key in _ORIGINS if (text := as_text(values.get(key)))), image_name)
    unit = AnnotatedImage(id=id_, image=image, origin=origin)
    size = values.get("width"), values.get("height")
    if None not in size:
        unit.stated_size = size
    if known.caption is not None:
        unit.texts.extend((text, "brief") for text in _texts(values.get(known.caption)))
    for i, (box, class_) in enumerate(_objects(values.get("objects"))):
        label = _class_name(class_, known.classes)
        unit.regions.append(
            RawRegion(place=f"object {i}", box=corners(box), labels=((label, "category"),))
        )
    question = values.get("question")
    if question is not None and known.answers is not None:
        unit.questions.append((question, _texts(values.get(known.answers))))
    return make_record(unit, ledger)


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    """Split and path of each file, in order."""
    if source.is_file():
        yield _split_of(source), source
        return
    if (source / "dataset_dict.json").is_file():
        listed = field(read_json(source / "dataset_dict.json", 2**20), "splits")
        names = [name for name in listed if is_safe_name(name)] if isinstance(listed, list) else []
        for name in names:
            yield from ((_split(name), path) for path in _arrow_files(source / name))
    elif (source / "state.json").is_file():
        split = field(read_json(source / "state.json", 2**26), "_split")
        name = _split(split) if isinstance(split, str) else "train"
        yield from ((name, path) for path in _arrow_files(source))
    else:
        for path in sorted(source.rglob("*.parquet")):
            yield _split_of(path.relative_to(source)), path


def _arrow_files(folder: Path) -> list[Path]:
    """The files that state.json lists, there or not; all, where it lists none."""
    listed: Any = None
    if (folder / "state.json").is_file():
        listed = field(read_json(folder / "state.json", 2**26), "_data_files")
    names = [field(entry, "filename") for entry in listed] if isinstance(listed, list) else []
    safe = dict.fromkeys(folder / name for name in names if is_safe_name(name))
    return list(safe) or sorted(folder.glob("*.arrow"))


def _split_of(path: Path) -> str:
    """ "data/validation-00000-of-00001.parquet", "train/0000.parquet" -> "val", "train"."""
    if match := re.match(r"(.+?)-\d+-of-\d+", path.stem):
        return _split(match[1])
    for part in (path.stem, *reversed(path.parts[:-1])):
        word = re.split(r"[^a-z]", part.lower())[0]
        if word in SPLITS:
            return SPLITS[word]
    return "train"


def _split(name: str) -> str:
    clean = re.sub(r"\W", "_", name, flags=re.ASCII)[:60]  # It becomes part of file names.
    return SPLITS.get(clean) or (clean if clean[:1].isalpha() else f"part_{clean}")


def _measure(path: Path, name: str, ledger: Ledger) -> tuple[Any, tuple[int, ...]] | None:
    # A pipe would be waited for. Unlike Path.is_file, says no to a name that is too long.
    if not os.path.isfile(path):  # noqa: PTH113
        ledger.read("file")
        ledger.set_aside("file", "is missing, or no regular file", where=name)
        return None
    try:
        schema, sizes, is_cut = measure(path)
    except RowError as error:
        ledger.read("file")
        ledger.set_aside("file", "cannot be read", where=name, value=str(error)[:200])
        return None
    if is_cut:
        ledger.read("file")
        why = "cut off: the rows before are kept"
        ledger.set_aside("file", why, where=name, value=f"{sum(sizes)} rows")
    return schema, sizes


def _columns(schema: Any, folder: Path, caption: str | None) -> Columns | None:
    """What the columns of a file mean; None where none is of images."""
    features = _features(schema, folder)
    here: Sequence[str] = schema.names
    image = next((n for n in here if field(field(features, n), "_type") == "Image"), None)
    image = image or next((n for n in here if _is_image_type(schema, n)), None)
    if image is None:
        return None
    wanted = CAPTIONS if caption is None else (caption,)
    return Columns(
        image=image,
        caption=next((name for name in wanted if name in here), None),
        answers=next((name for name in _ANSWERS if name in here), None),
        classes=_class_names(field(features, "objects")),
    )


def _is_image_type(schema: Any, name: str) -> bool:
    types = import_arrow("pyarrow.types")
    type_ = schema.field(name).type
    if types.is_struct(type_):
        return {"bytes", "path"} <= {type_.field(i).name for i in range(type_.num_fields)}
    return name in _IMAGES and (types.is_binary(type_) or types.is_large_binary(type_))


def _features(schema: Any, folder: Path) -> Any:
    """What `datasets` says of the columns, in the file itself or beside it."""
    texts = [(schema.metadata or {}).get(b"huggingface")]
    info = folder / "dataset_info.json"
    if texts[0] is None and info.is_file() and info.stat().st_size < 2**26:
        texts = [info.read_bytes()]
    try:
        content = parse_json(texts[0] or b"{}", "features")
    except UserError:
        return None
    return field(field(content, "info"), "features") or field(content, "features")


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of the class label within a feature, however it is nested."""
    if isinstance(feature, list):
        feature = dict(enumerate(feature))
    if not isinstance(feature, dict):
        return ()
    names = feature.get("names")
    if feature.get("_type") == "ClassLabel" and isinstance(names, list):
        return tuple(name if isinstance(name, str) else "" for name in names)
    return next(filter(None, map(_class_names, feature.values())), ())


def _image(value: Any, root: Path) -> tuple[Any, str]:
    """Where an image is, and its name: bytes of the row, or a file in the folder."""
    data = field(value, "bytes") if isinstance(value, dict) else value
    name = as_text(field(value, "path"))
    if isinstance(data, bytes):
        return Bytes(data, name or "image"), name
    if is_safe_name(name):
        return root / name, name
    return Bytes(None, name or "image"), name


def _texts(value: Any) -> list[Any]:
    """A text, or those of a list, which may stand in objects there."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    keys = ("raw", "text", "caption", "answer")
    return [
        next((v[key] for key in keys if key in v), json.dumps(v, default=str))
        if isinstance(v, dict)
        else v
        for v in values
    ]


def _objects(value: Any) -> list[tuple[Any, Any]]:
    """Box and class of each object: columns beside each other, or a list of objects."""
    if isinstance(value, dict):
        names = next((key for key in _CLASSES if isinstance(value.get(key), list)), "")
        boxes, classes = value.get("bbox"), value.get(names, [])
        return list(itertools.zip_longest(boxes if isinstance(boxes, list) else [], classes))
    if not isinstance(value, list):
        return []
    rows = [row if isinstance(row, dict) else {} for row in value]
    return [(row.get("bbox"), next((row[c] for c in _CLASSES if c in row), None)) for row in rows]


def _class_name(value: Any, names: tuple[str, ...]) -> Any:
    """The name of a class; a number without a name stays one, which mending will refuse."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return names[value]
    return value
