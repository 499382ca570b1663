# SPDX-License-Identifier: Apache-2.0
"""Rows of Parquet and Arrow files, read where they stand, a few at a time.

A file is groups of rows: row groups of Parquet, record batches of an Arrow stream. `Rows` knows how
many rows each group has and nothing else, so that 10^8 rows cost no memory until they are read.
"""

import bisect
import dataclasses
import functools
import importlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.typing import UserError

_ROWS_AT_ONCE = 32


class RowError(Exception):
    """A row that cannot be read. The message is what Arrow says."""


def import_arrow(name: str = "pyarrow") -> Any:
    """A module of pyarrow. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            "pyarrow, which reads these files, is not installed; run: pip install "
            '"florence2-jax[engine]"'
        ) from error


@dataclasses.dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows. `name` is what the ids of its rows begin with."""

    path: Path
    name: str
    num_rows: tuple[int, ...]  # Of each group.


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Row `index` of a group of a file; `number` counts from the file's beginning."""

    path: Path
    name: str
    group: int
    index: int
    number: int


class Rows(Sequence[Row]):
    """The rows of many files, one after another."""

    def __init__(self, files: Sequence[RowFile]):
        self._groups = [
            (file, group, number)
            for file in files
            for group, number in enumerate(itertools.accumulate(file.num_rows, initial=0))
            if group < len(file.num_rows)
        ]
        sizes = (num for file in files for num in file.num_rows)
        self._ends = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = bisect.bisect_right(self._ends, index)
        file, group, first = self._groups[at]
        own = index - (self._ends[at - 1] if at else 0)
        return Row(file.path, file.name, group, own, first + own)


def measure(path: Path) -> tuple[Any, tuple[int, ...], bool]:
    """The Arrow schema of a file, the rows of its groups, and whether it was cut off.

    Raises:
        RowError: if it is no such file, or cut off before the first group.
    """
    arrow = import_arrow()
    try:
        if path.suffix == ".parquet":
            with import_arrow("pyarrow.parquet").ParquetFile(path) as file:
                groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
                return file.schema_arrow, tuple(max(0, group.num_rows) for group in groups), False
        with arrow.memory_map(str(path)) as memory:
            stream = arrow.ipc.open_stream(memory)
            sizes = []
            try:
                sizes.extend(batch.num_rows for batch in stream)
            except (arrow.ArrowException, OSError):
                return stream.schema, tuple(sizes), True
            return stream.schema, tuple(sizes), False
    except UnicodeError as error:
        raise RowError("its name is no UTF-8, which Arrow asks for") from error
    except (arrow.ArrowException, OSError) as error:
        raise RowError(str(error).partition("\n")[0]) from error


def read_row(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    """The values of a row in those of the columns that its file has. Raises RowError."""
    arrow = import_arrow()
    try:
        return _cursor(row.path, tuple(columns)).read(row.group, row.index)
    except (arrow.ArrowException, OSError, ValueError, StopIteration) as error:
        _cursor.cache_clear()  # One that stopped half way would give wrong rows.
        raise RowError(str(error).partition("\n")[0] or "fewer rows than it says") from error


@functools.lru_cache(maxsize=2)
def _cursor(path: Path, columns: tuple[str, ...]) -> "_Cursor":
    return _Cursor(path, columns)


class _Cursor:
    """A place in a file. Going on is quick; going back begins at the start of the group."""

    def __init__(self, path: Path, columns: tuple[str, ...]):
        self._is_parquet = path.suffix == ".parquet"
        if self._is_parquet:
            self._file = import_arrow("pyarrow.parquet").ParquetFile(path)
            here = self._file.schema_arrow.names
        else:
            arrow = import_arrow()
            # Mapped, not read: a batch costs memory only while its rows are looked at.
            self._file = arrow.ipc.open_stream(arrow.memory_map(str(path)))
            here = self._file.schema.names
            self._batches: list[Any] = []
        self._columns = [name for name in columns if name in here]
        self._group, self._start, self._batch = -1, 0, None
        self._rest: Iterator[Any] = iter(())

    def read(self, group: int, index: int) -> dict[str, Any]:
        if group != self._group or index < self._start:
            self._rest, self._batch, self._start = self._open(group), None, 0
            self._group = group
        while self._batch is None or index >= self._start + self._batch.num_rows:
            self._start += self._batch.num_rows if self._batch is not None else 0
            self._batch = next(self._rest)
            self._batch.validate(full=True)  # Offsets of a damaged file would be followed else.
        place = index - self._start
        values = zip(self._batch.schema.names, self._batch.columns, strict=True)
        return {name: column[place].as_py() for name, column in values if name in self._columns}

    def _open(self, group: int) -> Iterator[Any]:
        if self._is_parquet:
            return self._file.iter_batches(_ROWS_AT_ONCE, [group], self._columns)
        while len(self._batches) <= group:
            self._batches.append(self._file.read_next_batch())
        return iter([self._batches[group]])
