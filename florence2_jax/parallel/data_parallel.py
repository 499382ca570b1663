# SPDX-License-Identifier: Apache-2.0
"""Gradients of a batch that is spread over devices, each with its own rows and whole parameters.

Who holds what, and what travels, is written out here rather than left to the compiler's
partitioner, which is free to compute the whole batch on every device. Parameters are gathered from
their shards once a step, matrices in the compute type, so that half the bytes travel; no activation
ever does. Gradients go back by the opposite way: every device gets the sum of its own shard alone,
in float32, first within a copy of the parameters (`fsdp`), then between copies (`replica`, which
may lie in other slices). libtpu 0.0.52 makes reduce-scatters of most of these sums, and of the
others an all-reduce and a slice.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.sharding import PartitionSpec as P

from florence2_jax.parallel.partitioning import (
    BATCH_AXES,
    MeshAxes,
    num_data_shards,
    param_path,
    param_spec,
)

Loss: TypeAlias = Callable[[Any, dict[str, Any], jax.Array], tuple[jax.Array, Any]]
"""(parameters, rows of a batch, random key) -> (summed loss, further sums over the rows).

Where some are held fixed, its parameters are the pair (those with a gradient, those without)."""


def value_and_grad(
    loss: Loss,
    params: Any,
    batch: dict[str, Any],
    key: jax.Array,
    *,
    dtype: str,
    held: Any = None,
) -> tuple[tuple[jax.Array, Any], Any]:
    """`jax.value_and_grad(loss, has_aux=True)`, summed over the devices of the mesh in use.

    Every device draws from a key of its own. `tensor` is left to the partitioner. Where
    nothing cuts the batch (outside a mesh, or with `tensor` alone) its gradient is computed as one.

    Args:
        loss: a sum over rows, not a mean; it knows no mesh.
        params: float32, in their shards.
        batch: arrays whose first axis is spread over the batch axes.
        dtype: what the model computes in; `kernel`s are gathered in it, all else in float32.
        held: further parameters of the loss, float32, in their shards. They get no gradient, so
            that nothing is computed for them but what the others' gradients need.
    """
    mesh = jax.sharding.get_abstract_mesh()
    cast = jax.tree_util.tree_map_with_path(lambda path, x: _compute_type(path, x, dtype), params)
    cast_held = jax.tree_util.tree_map_with_path(
        lambda path, x: _compute_type(path, x, dtype), held
    )

    def with_held(params: Any, held: Any) -> Any:
        return params if held is None else (params, held)

    if num_data_shards(mesh) == 1:
        fixed = jax.tree.map(_cast, held, cast_held)
        return _gradient(
            lambda p: loss(with_held(jax.tree.map(_cast, p, cast), fixed), batch, key), params
        )

    def batch_spec(path: tuple, x: Any) -> P:
        return _batch_part(param_spec(param_path(path), x.shape, mesh))

    specs = jax.tree_util.tree_map_with_path(batch_spec, params)
    held_specs = jax.tree_util.tree_map_with_path(batch_spec, held)

    def of_own_rows(params: Any, held: Any, batch: dict[str, Any], key: jax.Array) -> Any:
        key = jax.random.fold_in(key, jax.lax.axis_index(BATCH_AXES))
        fixed = jax.tree.map(_whole, held, cast_held, held_specs)

        def of_shards(shards: Any) -> tuple[jax.Array, Any]:
            return loss(with_held(jax.tree.map(_whole, shards, cast, specs), fixed), batch, key)

        sums, grads = _gradient(of_shards, params)
        return jax.lax.psum(sums, BATCH_AXES), jax.tree.map(_sum_over_copies, grads, specs)

    rows = P(BATCH_AXES)
    return jax.shard_map(
        of_own_rows,
        mesh=mesh,
        in_specs=(specs, held_specs, {name: rows for name in batch}, P()),
        out_specs=(P(), specs),
        axis_names=set(BATCH_AXES),
        check_vma=False,  # The sums over devices are those above, none is left to be inferred.
    )(params, held, batch, key)


def _gradient(loss: Callable[[Any], tuple[jax.Array, Any]], params: Any) -> Any:
    return jax.value_and_grad(loss, has_aux=True)(params)


def _compute_type(path: tuple, x: jax.Array, dtype: str) -> jax.numpy.dtype:
    return jax.numpy.dtype(dtype if param_path(path).endswith("/kernel") else x.dtype)


def _cast(x: jax.Array, dtype: jax.numpy.dtype) -> jax.Array:
    return x.astype(dtype)


def _batch_part(spec: P) -> P:
    """What of a parameter's spec `data_parallel` gathers; the rest (`tensor`) stays cut."""
    return P(*(_names(axes) or None for axes in spec))


def _names(axes: MeshAxes) -> tuple[str, ...]:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(name for name in axes if name in BATCH_AXES)


def _whole(shard: jax.Array, dtype: jax.numpy.dtype, spec: P) -> jax.Array:
    """A parameter out of its shards, in the compute type; its gradient is summed in float32."""
    cut = [(axis, names) for axis, axes in enumerate(spec) if (names := _names(axes))]

    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        x = x.astype(dtype)
        for axis, names in cut:
            x = jax.lax.all_gather(x, names, axis=axis, tiled=True)
        return x

    def backward(_: None, grad: jax.Array) -> tuple[jax.Array]:
        grad = grad.astype(shard.dtype)
        for axis, names in cut:
            grad = _scatter(grad, axis, names)
        return (grad,)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return gather(shard)


def _scatter(grad: jax.Array, axis: int, names: tuple[str, ...]) -> jax.Array:
    """The sum over devices, of which each keeps its part along one axis.

    Other axes of size 1 (of stacks of one layer) are taken out for it: where a layout packs them,
    libtpu 0.0.52 does not compile the sum ("not implemented for 2nd-minor compaction").
    """
    sizes = [size for i, size in enumerate(grad.shape) if size != 1 or i == axis]
    place = sum(size != 1 for size in grad.shape[:axis])
    part = jax.lax.psum_scatter(grad.reshape(sizes), names, scatter_dimension=place, tiled=True)
    return part.reshape(*grad.shape[:axis], -1, *grad.shape[axis + 1 :])


def _sum_over_copies(grad: jax.Array, spec: P) -> jax.Array:
    """The gradient of a shard is summed over the devices that hold other shards already.

    Axes of size 1 are taken out as in `_scatter`: between slices libtpu makes of this sum a
    scatter, one over the network, and a gather. Barriers keep XLA from putting them in again.
    """
    summed = {name for axes in spec for name in _names(axes)}
    left = tuple(name for name in BATCH_AXES if name not in summed)
    if not left:
        return grad
    if 1 not in grad.shape:
        return jax.lax.psum(grad, left)
    packed = jax.lax.optimization_barrier(grad.reshape([n for n in grad.shape if n != 1]))
    total = jax.lax.optimization_barrier(jax.lax.psum(packed, left))
    return total.reshape(grad.shape)
