# SPDX-License-Identifier: Apache-2.0
"""Opens weights of other architectures, and holds them against what is wanted of them."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from florence2_jax.conversion.files import read_file, read_tensors
from florence2_jax.conversion.load import find
from florence2_jax.conversion.tensors import FLOATS, ArrayLike
from florence2_jax.typing import UserError


def open_source(path: str | Path) -> tuple[Path, Mapping[str, ArrayLike]]:
    """Where weights lie, and their tensors, unread.

    Args:
        path: a folder, one file of weights, or a hub name.

    Raises:
        UserError: if there is none of them, or what there is is damaged.
    """
    place = Path(path)
    if place.is_file():
        return place, read_file(place)
    if not place.is_dir():
        place = find(path)  # A hub name, or an error that says what can be given.
    return place, read_tensors(place)


def read_matched(
    source: Mapping[str, ArrayLike], shapes: Mapping[str, tuple[int | None, ...]], place: Path
) -> dict[str, NDArray[np.float32]]:
    """Reads exactly the tensors that are wanted.

    Args:
        source: by name.
        shapes: of every tensor that is wanted, and there is to be no other; None where a size is
            free.
        place: for errors.

    Raises:
        UserError: naming every tensor that is missing, unknown, of another size, no float of at
            most 32 bits, or not finite.
    """
    wrong = [f"{name}: unknown" for name in source.keys() - shapes.keys()]
    arrays = {}
    for name, shape in shapes.items():
        if name not in source:
            wrong.append(f"{name}: missing")
        elif problems := list(_problems(source[name], shape)):
            wrong += [f"{name}: {problem}" for problem in problems]
        else:
            arrays[name] = np.asarray(source[name]).astype(np.float32, copy=False)
            if not np.isfinite(arrays[name]).all():
                wrong.append(f"{name}: holds numbers that are not finite")
    if wrong:
        raise UserError(
            f"{place}: {len(wrong)} tensors do not fit the model: {'; '.join(sorted(wrong))}. Give "
            "weights of the sizes in the run's `model`, or change those"
        )
    return arrays


def without(source: Mapping[str, ArrayLike], prefixes: Iterable[str]) -> dict[str, ArrayLike]:
    """The tensors whose names begin with none of `prefixes`."""
    return {name: value for name, value in source.items() if not name.startswith(tuple(prefixes))}


def _problems(tensor: ArrayLike, shape: tuple[int | None, ...]) -> Iterator[str]:
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(
        wanted not in (None, size) for size, wanted in zip(found, shape, strict=True)
    ):
        yield f"is {found}, expected {str(shape).replace('None', 'any')}"
    if tensor.dtype not in FLOATS.values():
        yield f"is {tensor.dtype}, expected one of {', '.join(FLOATS)}"
