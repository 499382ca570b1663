# SPDX-License-Identifier: Apache-2.0
"""Arrays on disk that are read when asked for, and safetensors files, both ways.

A state dict here is a mapping of names to anything with `shape`, `dtype` and `numpy.asarray`: numpy
arrays, or `Tensor`s, of which only one need be in memory at a time.

A safetensors file is eight bytes that give the length of a header, the header (JSON: dtype, shape,
place of each tensor) and the tensors. Nothing is mapped into memory, so that a checkpoint larger
than the memory streams through.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from florence2_jax.typing import UserError

FLOATS: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The kinds of number that fit into float32, our parameters, without loss."""

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": FLOATS["float32"],
    "F16": FLOATS["float16"],
    "BF16": FLOATS["bfloat16"],
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(bool),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # As in the reference implementation.
_LFS = b"version https://git-lfs"


@runtime_checkable
class ArrayLike(Protocol):
    """What a state dict holds: known without being read, read by `numpy.asarray`."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array that `read` makes; `numpy.asarray(tensor)` calls it, each time anew."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], NDArray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=bool(copy))

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, unread.

    Raises:
        UserError: if the file is cut short or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS))
        if start == _LFS:
            raise UserError(f"{path} is a pointer of git-lfs, not the file: run `git lfs pull`")
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > _LONGEST_HEADER or start[8:9] != b"{":
            raise UserError(f"{path} is no safetensors file: download or convert it again")
        if 8 + length > size:
            raise _cut_short(path, size, 8 + length)
        file.seek(8)
        header = file.read(length)
    try:
        rows = {name: row for name, row in json.loads(header).items() if name != "__metadata__"}
        tensors = {name: _tensor(path, row, 8 + length) for name, row in rows.items()}
        end = max((row["data_offsets"][1] for row in rows.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: the header of this safetensors file is damaged: {error}"
        ) from error
    if 8 + length + end > size:
        raise _cut_short(path, size, 8 + length + end)
    return tensors


def _tensor(path: Path, row: Mapping[str, Any], data_start: int) -> Tensor:
    begin, end = row["data_offsets"]
    shape = tuple(row["shape"])
    if row["dtype"] not in _DTYPES:
        raise ValueError(f"unknown dtype {row['dtype']!r}")
    dtype = _DTYPES[row["dtype"]]
    count = math.prod(shape)
    if min(shape, default=0) < 0 or begin < 0 or end - begin != count * dtype.itemsize:
        raise ValueError(f"{shape} of {row['dtype']} is not {end - begin} bytes")

    def read() -> NDArray:
        return np.fromfile(path, dtype, count, offset=data_start + begin).reshape(shape)

    return Tensor(shape, dtype, read)


def _cut_short(path: Path, size: int, wanted: int) -> UserError:
    return UserError(
        f"{path} is cut short: {size} bytes, its header says {wanted}; download it again"
    )


def write_safetensors(
    folder: Path, tensors: Mapping[str, Tensor], *, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Writes `model.safetensors`, or shards and their index, one tensor in memory at a time.

    Args:
        folder: exists; what it holds of these names is replaced.
        tensors: in the order they are to be written.
        max_shard_bytes: a file's limit, as in transformers; one tensor may exceed it alone.
    """
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shards[0])
        return
    places = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    text = json.dumps(index, indent=1, sort_keys=True)
    (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes one file of safetensors, one tensor in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it.
    for name, (tensor, begin) in _offsets(tensors):
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.nbytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # Data begins at a multiple of eight.
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            array = np.asarray(tensor, order="C")
            assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype), name
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _offsets(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor, int]]]:
    begin = 0
    for name, tensor in tensors.items():
        yield name, (tensor, begin)
        begin += tensor.nbytes
