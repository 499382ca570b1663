# SPDX-License-Identifier: Apache-2.0
"""What a compiled train step sends between chips: parameters and their gradients, nothing else.

With parameters sharded and the rest left to the partitioner, a step with scanned layers compiled,
fitted, and computed the whole batch on every chip. These tests keep that from coming back.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from florence2_jax.models.config import Florence2Config
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.parallel.partitioning import state_shardings
from florence2_jax.planning import collectives, dump, hlo
from florence2_jax.training.optimizer import OptimizerConfig, make_optimizer
from florence2_jax.training.state import TrainState, init_params, model_graph
from florence2_jax.training.step import compile_step, train_step

ROWS, PROMPTS, CHIPS = 7, 3, 4  # 28 images and 84 prompts: nothing else here has these sizes.
CONFIG = Florence2Config.create(
    "tiny",
    image_size=64,
    scan=True,
    remat="full",
    davit=dict(dims=(32, 64), num_heads=(1, 2), depths=(2, 2), window_size=4)
    | dict(patch_kernels=(7, 3), patch_strides=(4, 4), pre_norm=(False, True)),
    text=dict(d_model=128, mlp_dim=512, vocab_size=4000, max_positions=64),
)


@pytest.fixture(scope="module")
def step():
    topology = topologies.get_topology_desc("v5e:2x2", platform="tpu")
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2), topology.devices)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=1), 10)

    def init():
        params = init_params(CONFIG, jax.random.key(0))
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
        )

    state = jax.eval_shape(init)
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    images = ROWS * CHIPS
    batch = {
        "image": jax.ShapeDtypeStruct((images, 64, 64, 3), jnp.uint8),
        "prompt_ids": shape((images, PROMPTS, 7)),
        "target_ids": shape((images, PROMPTS, 10)),
        "task_ids": shape((images, PROMPTS)),
    }
    function = functools.partial(
        train_step, graphdef=model_graph(CONFIG), optimizer=optimizer, seed=0
    )
    arguments = function, state, state_shardings(state, mesh), batch, mesh
    _, text = dump.compile_with_text(
        lambda options: compile_step(*arguments, compiler_options=options)
    )
    return text, mesh, state.params


def test_no_chip_sees_the_whole_batch(step):
    text, _, _ = step
    dims = {tuple(map(int, found.split(","))) for found in re.findall(r"\w\[(\d[\d,]*)\]", text)}
    everyone = {ROWS * CHIPS, ROWS * CHIPS * PROMPTS}
    assert not {axes for axes in dims if axes[0] in everyone}
    assert {axes[0] for axes in dims} >= {ROWS, ROWS * PROMPTS}


def test_only_parameters_and_their_gradients_travel(step):
    text, mesh, params = step
    sizes = {math.prod(leaf.shape) for leaf in jax.tree.leaves(params)}
    sizes |= {size // 2 for size in sizes} | {1, 17}  # Shards; sums of losses, by task.
    sent = collectives.find(hlo.parse(text), mesh)
    assert {one.kind for one in sent} <= {"all-gather", "all-reduce", "reduce-scatter"}
    for one in sent:
        for shape in one.shapes:
            dims = re.search(r"\[([\d,]*)\]", shape)
            assert dims, shape
            number = math.prod(int(dim) for dim in dims[1].split(",") if dim)
            assert number in sizes, f"{one.kind} of {shape}: {one.op_name}"


def test_collectives_stay_near_the_bytes_of_the_parameters(step):
    text, mesh, params = step
    sent = collectives.find(hlo.parse(text), mesh)
    arrays = sum(one.array_bytes * one.trips for one in sent)
    total = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert 0.5 * total < arrays <= 3.5 * total
    assert {axis for one in sent for axis in one.axes} == {"replica", "fsdp"}
