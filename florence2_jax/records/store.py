# SPDX-License-Identifier: Apache-2.0
"""The store of records: a directory of ArrayRecord shards that TFDS opens without this package.

    DIR/NAME-train.array_record-00000-of-00008   records, one `tf.train.Example` each
    DIR/features.json, dataset_info.json         what TFDS needs; the latter is written last
    DIR/set_aside.jsonl                          what the source held and the store does not
    DIR/store.json                               the job that wrote the store, and its books
    DIR/unfinished/                              only while the store is being written

Reading is here, writing in `writing.py`. Stores live in a local or mounted file system, for that is
what ArrayRecord reads.
"""

import dataclasses
import json
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_data_source

from florence2_jax.records.columns import (
    FEATURES,
    REQUIRED_COLUMNS,
    as_stored,
    example_to_record,
    parse,
    parse_image,
    record_to_example,
)
from florence2_jax.records.journal import UNFINISHED
from florence2_jax.records.schema import Record, RecordError
from florence2_jax.records.writing import (
    COLUMNS_FILE,
    INFO,
    STORE,
    Plan,
    shard_name,
    split_by_hash,
    write_store,
)
from florence2_jax.typing import UserError

__all__ = [
    "FEATURES",
    "Plan",
    "RecordStore",
    "as_stored",
    "example_to_record",
    "record_to_example",
    "split_by_hash",
    "splits_of",
    "write_store",
]


class RecordStore(Sequence[Record]):
    """The records of one split, by index; images stay encoded.

    A Grain data source: it pickles as its path, and every process opens the shards it reads.

    Raises:
        UserError: if the directory or split is missing, empty, unfinished or damaged.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str):
        self.directory, self.split = Path(directory), split
        info = _read_info(self.directory)
        found = {part["name"]: part for part in info["splits"]}
        if split not in found:
            raise UserError(f"{directory}: no split {split!r}; there are {sorted(found)}")
        self.shard_lengths = tuple(int(length) for length in found[split]["shardLengths"])
        total = len(self.shard_lengths)
        self.shards = tuple(
            self.directory / shard_name(info["name"], split, i, total) for i in range(total)
        )
        self._check_shards()
        self._length = sum(self.shard_lengths)
        images = _images_of(self.directory)
        self._images = None if images is None else RecordStore(images, split)
        self._source: Any = None

    def _check_shards(self) -> None:
        if not sum(self.shard_lengths):
            raise UserError(f"{self.directory}: split {self.split!r} holds no records")
        here = {path.name for path in self.directory.iterdir()}
        missing = [shard.name for shard in self.shards if shard.name not in here]
        if missing:
            raise UserError(
                f"{self.directory}: {len(missing)} of {len(self.shards)} shards of split "
                f"{self.split!r} are missing, first {missing[0]}; copy them here again"
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        i = operator.index(index)
        if not -self._length <= i < self._length:
            raise IndexError(f"record {i} of {self._length} in {self.directory}")
        i %= self._length
        try:
            return parse(self._open()[i], self.image_elsewhere)
        except (RecordError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(
                f"{self.directory}: record {i} of split {self.split!r} cannot be read ({error}); "
                f"see: florence2-jax records check {self.directory}"
            ) from error

    def image(self, index: int) -> bytes:
        """The encoded image of a record, without its annotations."""
        found = parse_image(self._open()[index])
        return found if isinstance(found, bytes) else self.image_elsewhere(found)

    def image_elsewhere(self, index: int) -> bytes:
        """The image of a record of the store that has the images of this one."""
        if self._images is None:
            raise RecordError(f"the image is that of record {index} of a store that is not named")
        return self._images.image(index)

    def __repr__(self) -> str:  # Grain keeps it in checkpoints to notice another source.
        return f"RecordStore({str(self.directory)!r}, {self.split!r}, {self._length} records)"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}

    def _open(self) -> Any:
        if self._source is None:
            files = zip(self.shards, self.shard_lengths, strict=True)
            # Told the lengths, the reader opens a shard only when one of its records is asked for.
            parts: list[Any] = [_WholeFile(str(path), length) for path, length in files if length]
            self._source = array_record_data_source.ArrayRecordDataSource(parts)
        return self._source


@dataclasses.dataclass(frozen=True)
class _WholeFile:
    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


def splits_of(directory: str | os.PathLike[str]) -> dict[str, int]:
    """Splits of a store with their numbers of records. Raises UserError as `RecordStore` does."""
    parts = _read_info(Path(directory))["splits"]
    return {part["name"]: sum(map(int, part["shardLengths"])) for part in parts}


def _images_of(directory: Path) -> Path | None:
    """The store that has the images of this one, None where they are here.

    Raises:
        UserError: if it is gone.
    """
    path = directory / STORE
    images = json.loads(path.read_text("utf-8")).get("images") if path.is_file() else None
    if images is None:
        return None
    if not (found := directory / images).is_dir():
        raise UserError(f"{directory}: its images are in the store {found}, which is not there")
    return found


def _read_info(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; make a store with: florence2-jax records")
    if not (directory / INFO).is_file():
        if (directory / UNFINISHED).is_dir():
            raise UserError(
                f"{directory}: the store was not written to its end; run the command that wrote "
                "it again, it goes on where it was"
            )
        what = "holds no store of records" if any(directory.iterdir()) else "is empty"
        raise UserError(
            f"{directory}: {what} ({INFO} is missing); make one with: florence2-jax records"
        )
    try:
        info = json.loads((directory / INFO).read_text("utf-8"))
        columns = json.loads((directory / COLUMNS_FILE).read_text("utf-8"))
        names = columns["featuresDict"]["features"].keys()
        splits_here = [
            part | {"shardLengths": part.get("shardLengths", [])} for part in info["splits"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory}: {INFO} or {COLUMNS_FILE} cannot be read ({error!r}); copy or write the "
            "store again"
        ) from error
    if missing := sorted(REQUIRED_COLUMNS - names):
        raise UserError(
            f"{directory}: a dataset, but no store of records: it lacks the columns {missing}; "
            "import it with: florence2-jax records import"
        )
    return info | {"splits": splits_here}
