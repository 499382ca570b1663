# SPDX-License-Identifier: Apache-2.0
"""In which precision a compiled program keeps what has the size of activations."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from florence2_jax.models.layers import LayerNorm, Mlp
from florence2_jax.planning.schedule import walk
from tests.planning.tpu_programs import array, compile_module, tpu_mesh

SHAPE = (8, 24, 24, 512)


def test_the_gradient_of_a_norm_s_output_stays_in_bfloat16():
    """In float32 it cost a step of `base` on v5e a twentieth of its traffic (issue 5)."""
    dim = SHAPE[-1]

    def make():
        options = {"dtype": "bfloat16", "rngs": nnx.Rngs(0)}
        return nnx.Dict(norm=LayerNorm(dim, **options), mlp=Mlp(dim, 4 * dim, **options))

    graphdef, state = nnx.split(nnx.eval_shape(make))
    mesh = tpu_mesh("v5e:2x2", (1,), ("x",))
    params = jax.tree.map(
        lambda p: array(p.shape, mesh, dtype=jnp.float32), nnx.to_pure_dict(state)
    )

    def gradients(params, x, d_out):
        def call(params, x):
            layers = nnx.merge(graphdef, params)
            return x + layers["mlp"](layers["norm"](x))

        out, pull = jax.vjp(jax.checkpoint(call), params, x)
        return out, pull(d_out)

    x = array(SHAPE, mesh)
    module = compile_module(gradients, params, x, x)
    shapes = [
        shape for execution in walk(module).executions for shape in execution.instruction.shapes
    ]
    assert any(shape.dims == SHAPE for shape in shapes)
    wide = [s for s in shapes if s.dtype == "f32" and s.size >= math.prod(SHAPE)]
    assert not wide
