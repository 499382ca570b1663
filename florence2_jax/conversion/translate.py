# SPDX-License-Identifier: Apache-2.0
"""A PyTorch state dict <-> our parameters, strict both ways and exact to the last bit.

A tensor without a row of the table, a row without a tensor, a wrong shape, a number that is not
finite: everything that is wrong is said in one error. What is not a parameter is checked and left
out on the way in, made anew on the way out:

- further names of the shared embedding must equal it, and may be missing;
- `final_logits_bias` must be zero;
- the table of frames must be the known sines and cosines. Only its first row, [0, 1, 0, 1, ...], is
  ever used; the others may differ from PyTorch's in the last bit of float32.

The vocabulary. Our embedding has as many rows as the tensor (`text.vocab_size`), so nothing is lost
or invented on the way in: 51,289 rows (Microsoft), 51,290 (`<image>`) and 51,328 (padding) all
stay. On the way out `num_rows` may ask for another number: rows from the end are left out, new
rows are the mean of all, whose logit, the mean logit, never wins.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from florence2_jax.conversion.names import (
    ALIASES,
    EMBEDDING,
    FRAME_TABLE,
    LOGITS_BIAS,
    Dialect,
    Entry,
    entries,
)
from florence2_jax.conversion.tensors import FLOATS, ArrayLike, Tensor
from florence2_jax.models.config import Florence2Config
from florence2_jax.training.state import init_params
from florence2_jax.typing import UserError

NUM_FRAMES = 100
"""Rows of the table of frames in every released model."""

Params = dict[Any, Any]
"""Nested dicts of float32 arrays, as a checkpoint holds them."""


def to_params(
    tensors: Mapping[str, ArrayLike], config: Florence2Config, dialect: Dialect, *, place: str = ""
) -> Params:
    """Our parameters, numpy float32, out of a state dict.

    Args:
        tensors: read one by one; float32, float16 or bfloat16, mixed as they like.
        config: of the model; `config.scan` stacks the layers.
        dialect: whose names.
        place: where the tensors come from, for errors.

    Raises:
        UserError: listing everything that is wrong.
    """
    tensors, wrong = _settle_constants(tensors, config, dialect)
    shapes = param_shapes(config)
    flat: dict[str, NDArray] = {}
    table = list(entries(config, dialect))
    wrong += [f"{name}: unknown" for name in tensors.keys() - {entry.name for entry in table}]
    for entry in table:
        shape = shapes[entry.path] if entry.layer is None else shapes[entry.path][1:]
        if entry.path == EMBEDDING:
            shape = (config.text.vocab_size, shape[1])
        if entry.name not in tensors:
            wrong.append(f"{entry.name}: missing")
            continue
        tensor = tensors[entry.name]
        problem = _problem(tensor, entry.layout.torch_shape(shape))
        array = np.empty(0) if problem else np.asarray(tensor)
        if not np.isfinite(array).all():
            problem = "holds numbers that are not finite"
        if problem:
            wrong.append(f"{entry.name}: {problem}")
            continue
        target = flat.setdefault(entry.path, np.zeros(shapes[entry.path], np.float32))
        part = target if entry.layer is None else target[entry.layer]
        part[: shape[0]] = entry.layout.to_ours(array)  # Less only in the embedding: padding.
    if wrong:
        raise UserError(
            f"{place or 'the tensors'}: {len(wrong)} wrong: {'; '.join(sorted(wrong))}. "
            "Is this a whole checkpoint of the model its config.json describes?"
        )
    return _nest(flat, config)


def to_tensors(
    params: Params,
    config: Florence2Config,
    dialect: Dialect,
    *,
    dtype: str = "float32",
    num_rows: int | None = None,
    rounds: bool = False,
) -> dict[str, Tensor]:
    """A state dict out of our parameters, its tensors made one by one as they are read.

    transformers' one holds what its `save_pretrained` writes (the embedding once); Microsoft's
    holds every name, because loaders exist that do not tie them.

    Args:
        params: nested arrays, numpy or JAX.
        config: of the model.
        dialect: whose names.
        dtype: of every tensor: "float32", "float16" or "bfloat16".
        num_rows: of the embedding, by default `text.vocab_size`.
        rounds: whether numbers may change to fit `dtype`. Otherwise reading a tensor that does
            not fit raises `UserError`; one beyond the range of `dtype` always does.

    Raises:
        UserError: on an unknown dtype, or on parameters of another model.
    """
    if dtype not in FLOATS:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(FLOATS)}")
    flat, kind = flatten(params), FLOATS[dtype]
    _check_shapes(flat, config)
    vocab_size, rows = config.text.vocab_size, num_rows or config.text.vocab_size

    def parameter(entry: Entry) -> Tensor:
        leaf = flat[entry.path]
        shape = tuple(leaf.shape) if entry.layer is None else tuple(leaf.shape[1:])
        if entry.path == EMBEDDING:
            shape = (rows, shape[1])

        def read() -> NDArray:
            array = np.asarray(leaf if entry.layer is None else leaf[entry.layer])
            if entry.path == EMBEDDING:
                array = _resize(array[:vocab_size], rows, kind)
            array = entry.layout.to_torch(array)
            return _cast(array, kind, entry.name, rounds=rounds)

        return Tensor(entry.layout.torch_shape(shape), kind, read)

    tensors = {entry.name: parameter(entry) for entry in entries(config, dialect)}
    frames = NUM_FRAMES, config.davit.dims[-1]
    # Rounded without asking: it is rounded in every checkpoint that is not float32.
    tensors[FRAME_TABLE[dialect]] = Tensor(
        frames, kind, lambda: frame_table(frames[1]).astype(kind)
    )
    if dialect == "microsoft":
        shared = tensors["language_model.model.shared.weight"]
        tensors |= dict.fromkeys(ALIASES[dialect], shared)
        tensors[LOGITS_BIAS] = Tensor((1, rows), kind, lambda: np.zeros((1, rows), kind))
    return tensors


def frame_table(width: int, *, num_frames: int = NUM_FRAMES) -> NDArray[np.float32]:
    """Float32 [frames, D]: sines in even columns, cosines in odd ones, of falling frequencies."""
    half = width // 2
    # float32 where PyTorch's code rounds: 99 turns of a rounded frequency are not those of another.
    step = np.float32(np.log(10000) / half)
    frequencies = np.exp((np.arange(half, dtype=np.float32) * -step).astype(np.float64))
    angles = np.arange(num_frames, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
    table = np.empty((num_frames, 2 * half), np.float32)
    table[:, 0::2] = np.sin(angles.astype(np.float64))
    table[:, 1::2] = np.cos(angles.astype(np.float64))
    return table


def param_shapes(config: Florence2Config) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its `/`-separated path; nothing is allocated."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(_abstract(config)).items()}


def flatten(params: Params) -> dict[str, Any]:
    """Leaves by their `/`-separated paths."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _nest(flat: Mapping[str, NDArray], config: Florence2Config) -> Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: flat[jax.tree_util.keystr(path, simple=True, separator="/")],
        _abstract(config),
    )


@functools.lru_cache(maxsize=4)  # Seconds for large.
def _abstract(config: Florence2Config) -> Params:
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def _settle_constants(
    tensors: Mapping[str, ArrayLike], config: Florence2Config, dialect: Dialect
) -> tuple[dict[str, ArrayLike], list[str]]:
    """The parameters alone, and what is wrong with the tensors that are none."""
    left, wrong = dict(tensors), []
    shared = next(e.name for e in entries(config, dialect) if e.path == EMBEDDING)
    copies = [name for name in (shared, *ALIASES[dialect]) if name in left]
    if copies:  # Loaders that drop equal tensors may keep any of the names.
        kept = copies[0]
        for name in copies[1:]:
            if not _equal(left[name], left[kept]):
                wrong.append(
                    f"{name}: differs from {kept}; Florence-2 ties them, an untied head cannot "
                    "be converted"
                )
            del left[name]
        left[shared] = left.pop(kept)
    bias = left.pop(LOGITS_BIAS, None) if dialect == "microsoft" else None
    if bias is not None and np.any(np.asarray(bias) != 0):  # NaN too.
        wrong.append(f"{LOGITS_BIAS}: is not zero; the model has no such bias")
    frames = left.pop(FRAME_TABLE[dialect], None)
    if frames is not None:
        wrong += [
            f"{FRAME_TABLE[dialect]}: {problem}" for problem in _frames_problem(frames, config)
        ]
    return left, wrong


def _frames_problem(frames: ArrayLike, config: Florence2Config) -> Iterator[str]:
    width = config.davit.dims[-1]
    if len(frames.shape) != 2 or frames.shape[1] != width:
        yield f"is {tuple(frames.shape)}, expected (frames, {width})"
        return
    known = frame_table(width, num_frames=frames.shape[0])
    given = np.asarray(frames).astype(np.float32)
    # A last bit of float32 in an angle of 99 is 8e-6; bfloat16 keeps 8 bits of a value below 1.
    tolerance = {2: 4e-3}.get(np.dtype(frames.dtype).itemsize, 1e-4)
    if not np.allclose(given, known, rtol=0, atol=tolerance) or np.any(given[0] != known[0]):
        yield "is not the table of sines and cosines that the model adds"


def _problem(tensor: ArrayLike, shape: tuple[int, ...]) -> str:
    if tuple(tensor.shape) != shape:
        return f"is {tuple(tensor.shape)}, expected {shape}"
    if tensor.dtype not in FLOATS.values():
        return f"is {tensor.dtype}, expected one of {', '.join(FLOATS)}"
    return ""


def _equal(a: ArrayLike, b: ArrayLike) -> bool:
    if a is b:
        return True
    return tuple(a.shape) == tuple(b.shape) and bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _resize(table: NDArray, rows: int, dtype: np.dtype) -> NDArray:
    """The first rows, or all and new ones, which fit into `dtype`."""
    if rows <= len(table):
        return table[:rows]
    mean = table.mean(axis=0, dtype=np.float64).astype(dtype).astype(table.dtype)
    return np.concatenate([table, np.tile(mean, (rows - len(table), 1))])


def _check_shapes(flat: Mapping[str, Any], config: Florence2Config) -> None:
    """Refuses parameters of another model, naming every difference."""
    wanted = param_shapes(config)
    wrong = [
        f"{path}: {flat[path].shape if path in flat else 'missing'}, expected "
        f"{wanted.get(path, 'nothing')}"
        for path in sorted(wanted.keys() | flat.keys())
        if path not in flat or tuple(flat[path].shape) != wanted.get(path)
    ]
    if wrong:
        raise UserError(f"the parameters are of another model: {'; '.join(wrong)}")


def _cast(array: NDArray, dtype: np.dtype, name: str, *, rounds: bool) -> NDArray:
    if not np.isfinite(array).all():
        raise UserError(f"{name} holds numbers that are not finite: use an earlier checkpoint")
    with np.errstate(over="ignore"):
        result = array.astype(dtype, copy=False)
    if result is array:
        return array
    if not np.isfinite(result).all():
        raise UserError(f"{name} holds numbers beyond the range of {dtype}: choose another dtype")
    if not rounds and not np.array_equal(result.astype(np.float32), array):
        raise UserError(
            f"{name} would be rounded to fit {dtype}: allow it (--round), or write float32"
        )
    return result
