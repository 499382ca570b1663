# SPDX-License-Identifier: Apache-2.0
import math

import jax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from florence2_jax.models.config import Florence2Config
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.parallel.partitioning import (
    param_axes,
    param_path,
    param_spec,
    state_shardings,
)
from florence2_jax.training.optimizer import OptimizerConfig, make_optimizer
from florence2_jax.training.state import init_params


def abstract_params(variant: str, **options):
    config = Florence2Config.create(variant, **options)
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def leaves(params) -> dict:
    return {param_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("variant", ["tiny", "base", "large"])
def test_every_parameter_has_one_row(variant, scan):
    for path, leaf in leaves(abstract_params(variant, scan=scan)).items():
        assert len(param_axes(path)) <= leaf.ndim


@pytest.mark.parametrize("variant", ["base", "large"])
@pytest.mark.parametrize(
    "sizes", [dict(fsdp=8), dict(replica=2, fsdp=4), dict(fsdp=4, tensor=2), dict(fsdp=1, tensor=8)]
)
def test_nothing_large_is_replicated(variant, sizes):
    mesh = make_mesh(MeshConfig.create(**sizes))
    for path, leaf in leaves(abstract_params(variant, scan=True)).items():
        spec = param_spec(path, leaf.shape, mesh)
        names = [n for part in spec if part for n in ([part] if isinstance(part, str) else part)]
        shards = math.prod(mesh.shape[name] for name in names)
        # Positions and the projector lie on `embed` alone, so only `fsdp` cuts them.
        wanted = mesh.shape["fsdp"] if "positions" in path or "projector" in path else 2
        if 4 * math.prod(leaf.shape) >= 1_000_000 and "patch_embed" not in path:
            assert shards >= wanted, f"{path} {leaf.shape} has {spec}"


def test_an_unknown_parameter_stops_the_start_up():
    with pytest.raises(KeyError, match="0 rows of PARAM_AXES match"):
        param_axes("text/decoder/layers/0/new_thing/kernel2")


def test_a_large_axis_that_does_not_divide_is_refused():
    mesh = jax.sharding.AbstractMesh(
        (1, 7, 1), ("replica", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )
    with pytest.raises(ValueError, match="does not divide by 7 devices"):
        param_spec("text/encoder/layers/0/ffn/fc1/kernel", (768, 3072), mesh)


def test_moments_live_where_their_parameters_do():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    params = abstract_params("tiny")
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=1), 10)
    shardings = state_shardings(
        {"params": params, "opt": jax.eval_shape(optimizer.init, params)}, mesh
    )
    specs: dict[str, set] = {}
    for path, sharding in jax.tree_util.tree_leaves_with_path(shardings):
        if sharding.spec != P():
            specs.setdefault(param_path(path), set()).add(sharding.spec)
    assert all(len(found) == 1 for found in specs.values())
