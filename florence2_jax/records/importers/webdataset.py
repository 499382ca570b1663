# SPDX-License-Identifier: Apache-2.0
"""WebDataset: tar shards in which members of one name but for their suffixes are one sample.

Read: KEY.jpg (or another image), KEY.txt (a caption) and KEY.json as img2dataset writes it:
`caption` where there is no text, `url` as the origin, `width` and `height` of the stored image. The
`sha256` there is of the image before img2dataset resized it, and is not checked. Shards are indexed
by their headers and stay as they are; images, texts and JSON are read in place, while records are
written. Ids are "SHARD/KEY"; the split is that of the folder's or the shard's name (train, val or
test, at its beginning), else "train".

Compressed shards cannot be read in place: unpack them with gunzip. Sources: the WebDataset format
(github.com/webdataset/webdataset), the output of img2dataset (github.com/rom1504/img2dataset).
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2_jax.records.checks import is_safe_name
from florence2_jax.records.importers.annotated import AnnotatedImage, make_record
from florence2_jax.records.importers.archives import Slice
from florence2_jax.records.importers.folder import SUFFIXES, readable
from florence2_jax.records.importers.json_files import as_text, field, parse_json
from florence2_jax.records.importers.tar import Member, members
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

MAX_TEXT_BYTES = 2**22
_IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
_KEY = re.compile(r"((?:.*/)?[^/.][^/.]*)\.([^/]+)", re.DOTALL)
_SPLIT = re.compile(r"(train|val|test)(?:id|idation|ing)?(?![a-z])")


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """Where the members of one sample are."""

    id: str
    image: Slice
    text: Slice | None
    metadata: Slice | None


def detect(source: Path) -> bool:
    """Whether there is a tar archive in a folder, or one level deeper."""
    return source.is_dir() and any(
        path.is_file() for pattern in ("*.tar", "*/*.tar") for path in source.glob(pattern)
    )


def plan(source: Path) -> Plan:
    """Indexes the shards. Raises UserError if there are none, or one cannot be read."""
    shards, ledger, digest = _shards(source), Ledger(), hashlib.sha256()
    if not shards:
        raise UserError(
            f"{source}: no *.tar shards in it (compressed ones must be unpacked first: gunzip)"
        )
    units: dict[str, list[Sample]] = {}
    root = source if source.is_dir() else source.parent
    for path in shards:
        name = path.relative_to(root).as_posix()
        digest.update(f"{name} {path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        if path.suffix != ".tar":
            ledger.read("shard")
            ledger.set_aside("shard", "compressed: unpack it with gunzip", where=name)
            continue
        samples = _samples(path, name, ledger, digest)
        units.setdefault(_split(path.relative_to(root)), []).extend(samples)
    if not any(units.values()):
        first = f": {ledger.entries[0]['why']}" if ledger.entries else ""
        raise UserError(f"{source}: no sample with an image in its shards{first}")
    job = {"format": "webdataset", "sha256": digest.hexdigest()}
    return Plan(units=units, make=make_sample, job=job, ledger=ledger)


def make_sample(sample: Sample, ledger: Ledger) -> Record | None:
    """The record of one sample."""
    unit = AnnotatedImage(id=sample.id, image=sample.image)
    metadata = _metadata(sample, ledger)
    caption = field(metadata, "caption")
    if sample.text is not None:
        text = _read(sample.text)
        unit.texts.append((None if text is None else _decoded(text, ledger), "brief"))
    elif caption is not None:
        unit.texts.append((caption, "brief"))
    unit.origin = as_text(field(metadata, "url"))
    size = field(metadata, "width"), field(metadata, "height")
    if None not in size:
        unit.stated_size = size
    return make_record(unit, ledger)


def _shards(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    found = (path for pattern in ("*.tar", "*.tar.gz", "*.tgz") for path in source.rglob(pattern))
    shards = sorted(path for path in found if path.is_file())
    return shards if any(path.suffix == ".tar" for path in shards) else []


def _split(path: Path) -> str:
    for part in path.parts:
        if match := _SPLIT.match(part):
            return match[1]
    return "train"


def _samples(path: Path, name: str, ledger: Ledger, digest: Any) -> list[Sample]:
    found: dict[str, dict[str, Slice]] = {}
    try:
        for member in members(path):
            label = f"{member.name} {member.size}\n"
            digest.update(label.encode("utf-8", "surrogateescape"))
            _add_member(member, path, name, found, ledger)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
    samples = (_sample(f"{name[:-4]}/{key}", parts, ledger) for key, parts in found.items())
    return [sample for sample in samples if sample is not None]


def _add_member(
    member: Member, path: Path, shard: str, found: dict[str, dict[str, Slice]], ledger: Ledger
) -> None:
    match = _KEY.fullmatch(member.name)
    suffix = match[2].lower() if match else ""
    why = member.problem
    if not why and not is_safe_name(member.name):
        why = "a name that leaves its folder, or cannot be written"
    if not why and match is None:
        ledger.note("file", "members without a key and a suffix, not read")
        return
    if not why and match is not None:
        parts = found.setdefault(match[1], {})
        part = Slice(path, member.offset, member.size, f"{shard}: {member.name}")
        if parts.setdefault(suffix, part) is part:
            return
        why = "a member of the same name came before"
    kind = _kind(suffix)
    ledger.read(kind)
    ledger.set_aside(kind, why, where=shard, value=f"{member.name!r} at byte {member.offset}")


def _kind(suffix: str) -> str:
    if suffix in _IMAGES:
        return "image"
    return {"txt": "caption", "json": "metadata"}.get(suffix, "file")


def _sample(id_: str, parts: Mapping[str, Slice], ledger: Ledger) -> Sample | None:
    images = [suffix for suffix in _IMAGES if suffix in parts]
    for suffix in parts.keys() - {"txt", "json", *images[:1]}:
        ledger.note("file", f"members .{readable(suffix)[:40]} not read")
    text, metadata = parts.get("txt"), parts.get("json")
    if images:
        return Sample(readable(id_), parts[images[0]], text, metadata)
    for part, kind in ((text, "caption"), (metadata, "metadata")):
        if part is not None:
            ledger.read(kind)
            ledger.set_aside(kind, "no image with it", where=readable(id_))
    return None


def _read(part: Slice) -> bytes | None:
    """The bytes of a text; None where they cannot be had, or are too many."""
    try:
        return part.read_bytes() if part.size <= MAX_TEXT_BYTES else None
    except OSError:
        return None


def _decoded(data: bytes, ledger: Ledger) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        ledger.repair("caption", "bytes that are no UTF-8 replaced")
        return data.decode("utf-8", "replace")


def _metadata(sample: Sample, ledger: Ledger) -> Any:
    if sample.metadata is None:
        return None
    ledger.read("metadata")
    why, content, data = "cannot be read, or more than 4 MiB", None, _read(sample.metadata)
    if data is not None:
        try:
            content = parse_json(data, sample.metadata.name)
            why = "no JSON object"
        except UserError:
            why = "no JSON"
    if isinstance(content, dict):
        ledger.keep("metadata")
        return content
    ledger.set_aside("metadata", why, where=sample.id)
    return None
