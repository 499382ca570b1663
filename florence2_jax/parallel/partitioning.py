# SPDX-License-Identifier: Apache-2.0
"""Every sharding decision: parameter path -> logical axes -> mesh axes.

No layer knows a mesh. A parameter finds its logical axes by its path in `PARAM_AXES`;
`LOGICAL_TO_MESH` says where each logical axis lives. Activations need no rows of their own: the
batch is cut by hand (`data_parallel`).
"""

import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MeshAxes: TypeAlias = str | tuple[str, ...] | None

BATCH_AXES = ("replica", "fsdp")

LOGICAL_TO_MESH: Mapping[str, MeshAxes] = {
    "batch": BATCH_AXES,
    "embed": "fsdp",
    "hidden": "tensor",
    "vocab": ("fsdp", "tensor"),
}

PARAM_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Dense layers that widen, and those that narrow again.
    (r".*/(qkv|q_proj|k_proj|v_proj|fc1)/kernel", ("embed", "hidden")),
    (r".*/(proj|out_proj|fc2)/kernel", ("hidden", "embed")),
    (r".*/patch_embed/conv/kernel", (None, None, None, "embed")),
    (r"projector/kernel", (None, "embed")),
    (r"text/shared/embedding", ("vocab", None)),
    (r"text/(encoder|decoder)/positions/embedding", (None, "embed")),
    # Small: under 1 MB in every released size, replicated by name.
    (r".*/(spatial|channel)/conv[12]/kernel", (None, None, None, None)),
    (r"projector/(row|column)_positions", (None, None)),
    (r".*/lora_[ab]", (None, None)),
    (r".*/(bias|scale)", (None,)),
)


def param_axes(path: str) -> tuple[str | None, ...]:
    """Logical axes of a parameter by its `/`-separated path.

    Raises:
        KeyError: if not exactly one row of `PARAM_AXES` matches.
    """
    rows = [axes for pattern, axes in PARAM_AXES if re.fullmatch(pattern, path)]
    if len(rows) != 1:
        raise KeyError(f"{path}: {len(rows)} rows of PARAM_AXES match, expected exactly one")
    return rows[0]


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """Where a parameter lives; leading (scanned-layer) axes are not sharded.

    A size that its mesh axes do not divide is an error rather than a silent replica, unless the
    whole parameter is small (under 1 MB in float32): tiny models run on any mesh.

    Raises:
        KeyError: if the path has no row in `PARAM_AXES`.
        ValueError: if a large parameter does not divide.
    """
    axes = param_axes(path)
    axes = (None,) * (len(shape) - len(axes)) + axes
    spec: list[MeshAxes] = []
    for size, axis in zip(shape, axes, strict=True):
        names = LOGICAL_TO_MESH[axis] if axis else None
        shards = _num_shards(names, mesh.shape)
        if size % shards:
            if math.prod(shape) * 4 >= 1_000_000:
                raise ValueError(
                    f"{path}: axis {axis!r} of size {size} does not divide by {shards} devices "
                    f"({names}); choose another mesh"
                )
            names = None
        spec.append(names)
    return P(*spec)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings of a train state: parameters and their optimizer moments alike, by path.

    A leaf whose path does not hold a parameter (step counters) must be a scalar; it is replicated.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, param_spec(param_path(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def param_path(path: tuple) -> str:
    """`image/stages/0/...` out of a key path of a state, an optimizer's moments included."""
    names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    roots = [i for i, name in enumerate(names) if name in ("image", "projector", "text")]
    if not roots:
        raise KeyError(f"{'/'.join(names)}: an array that belongs to no parameter")
    end = len(names) - 1 if names[-1] == "value" else len(names)
    return "/".join(names[roots[0] : end])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch, spread over every data axis."""
    return NamedSharding(mesh, P(LOGICAL_TO_MESH["batch"]))


def num_data_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is cut."""
    return _num_shards(LOGICAL_TO_MESH["batch"], mesh.shape)


def _num_shards(names: MeshAxes, sizes: Mapping[str, int]) -> int:
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(sizes.get(name, 1) for name in names)
