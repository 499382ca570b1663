# SPDX-License-Identifier: Apache-2.0
"""The estimates against what is known of programs small enough to know it."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from tpu_programs import array, compile_module, tpu_mesh

from florence2_jax.planning import estimate, hlo
from florence2_jax.planning.chips import CHIPS

V5E = CHIPS["v5e"]
DEPTH, ROWS, DIM = 12, 4096, 512


@pytest.fixture(scope="module")
def mesh():
    return tpu_mesh("v5e:2x2", (1,), ("device",))


def estimated(function, *arguments, chip=V5E) -> estimate.Estimate:
    found = estimate.estimate(compile_module(function, *arguments), chip)
    assert not found.unknown_loops
    return found


def stacked(mesh):
    return array((DEPTH, DIM, DIM), mesh), array((ROWS, DIM), mesh)


@pytest.fixture(scope="module")
def scanned(mesh) -> estimate.Estimate:
    """The last activation of twelve layers."""

    def scan(kernels, x):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    return estimated(scan, *stacked(mesh))


def test_a_large_product_runs_at_the_peak(mesh):
    found = estimated(jnp.matmul, array((8192, 8192), mesh), array((8192, 8192), mesh))
    assert found.executed_flops == 2 * 8192**3
    assert found.executed_flops / found.seconds / V5E.bf16_flops == pytest.approx(1, rel=0.01)
    # The compiler's cycles: 88 % of the peak.
    assert found.executed_flops / found.cycle_seconds / V5E.bf16_flops == pytest.approx(
        0.88, abs=0.02
    )


def test_an_elementwise_operation_takes_as_long_as_its_bytes(mesh):
    found = estimated(lambda x: jnp.tanh(x * 2) + 1, array((73_728, 512), mesh))
    assert found.hbm_bytes == 2 * 73_728 * 512 * 2
    assert found.seconds == pytest.approx(184e-6, rel=0.01)
    assert found.cycle_seconds > 2 * found.seconds


def test_narrow_products_pay_for_the_whole_mxu(mesh):
    heads = array((64, 8, 144, 32), mesh)

    def scores(q, k):
        return jnp.einsum("bhqc,bhkc->bhqk", q, k).max(axis=-1)

    module = compile_module(scores, heads, heads)
    flops = 2 * 64 * 8 * 144**2 * 32
    # On an MXU of 128, 32 channels become 128 and 144 keys 256; on one of 256, 256 and 256.
    for name, depth, columns in (("v5e", 128, 256), ("v6e", 256, 256)):
        found = estimate.estimate(module, CHIPS[name])
        assert found.executed_flops == flops
        padded = flops * depth / 32 * columns / 144
        assert found.mxu_seconds * CHIPS[name].bf16_flops == pytest.approx(padded)


def test_loops_count_every_trip(mesh, scanned):
    def unrolled(kernels, x):
        for layer in range(DEPTH):
            x = jnp.tanh(x @ kernels[layer])
        return x

    expected = estimated(unrolled, *stacked(mesh))
    assert scanned.executed_flops == DEPTH * 2 * ROWS * DIM**2
    assert scanned.executed_flops == pytest.approx(expected.executed_flops, rel=0.02)
    assert scanned.seconds == pytest.approx(expected.seconds, rel=0.2)


def test_a_stack_of_results_is_written_once(mesh, scanned):
    def stack(kernels, x):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), x), x, kernels)

    found = estimated(stack, *stacked(mesh))
    layer = ROWS * DIM * 2
    more = found.hbm_bytes - scanned.hbm_bytes
    # Whole stacks would be twelve times this: at least once written, at most also read.
    assert DEPTH * layer <= more <= 2 * DEPTH * layer + layer


def test_only_the_touched_part_of_a_buffer_is_counted():
    """A layer is sliced out of a stack of float32 in bfloat16, and two rows of it are replaced."""
    text = """HloModule m
%fused (s: f32[12,64,128], i: s32[], a: f32[1,64,128], b: f32[1,64,128]) -> (f32[64,128]) {
  %s = f32[12,64,128]{2,1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %a = f32[1,64,128]{2,1,0} parameter(2)
  %b = f32[1,64,128]{2,1,0:S(1)} parameter(3)
  %zero = s32[] constant(0)
  %half = bf16[12,64,128]{2,1,0} convert(%s)
  %layer = bf16[1,64,128]{2,1,0} dynamic-slice(%half, %i, %zero, %zero)
  %flat = bf16[64,128]{1,0} bitcast(%layer)
  %wide = f32[64,128]{1,0} convert(%flat)
  %one = f32[12,64,128]{2,1,0} dynamic-update-slice(%s, %a, %i, %zero, %zero)
  %two = f32[12,64,128]{2,1,0} dynamic-update-slice(%one, %b, %zero, %zero, %zero)
  ROOT %t = (f32[64,128]{1,0}, f32[12,64,128]{2,1,0}) tuple(%wide, %two)
}
ENTRY %e (s: f32[12,64,128], i: s32[], a: f32[1,64,128], b: f32[1,64,128]) -> (f32[64,128]) {
  %S = f32[12,64,128]{2,1,0} parameter(0)
  %I = s32[]{:S(6)} parameter(1)
  %A = f32[1,64,128]{2,1,0} parameter(2)
  %B = f32[1,64,128]{2,1,0:S(1)} parameter(3)
  ROOT %f = (f32[64,128]{1,0:S(1)}, f32[12,64,128]{2,1,0}) fusion(%S, %I, %A, %B), calls=%fused
}"""
    layer = 64 * 128 * 4
    read, written = 2 * layer, 2 * layer  # The slice and `a`; both updates. The rest is in VMEM.
    assert estimate.estimate(hlo.parse(text), V5E).hbm_bytes == read + written


@pytest.mark.parametrize(("rows", "hidden"), [(8192, 1.0), (128, 0.0)])
def test_copies_beside_other_work_fill_the_time_that_its_products_leave_to_hbm(rows, hidden):
    """64 MiB go to VMEM while a product runs: of many rows the MXU is the limit, of few HBM."""
    text = f"""HloModule m
ENTRY %e (a: bf16[{rows},8192], b: bf16[8192,8192], c: bf16[4096,8192]) -> bf16[{rows},8192] {{
  %a = bf16[{rows},8192]{{1,0}} parameter(0)
  %b = bf16[8192,8192]{{1,0}} parameter(1)
  %c = bf16[4096,8192]{{1,0}} parameter(2)
  %s = (bf16[4096,8192]{{1,0:S(1)}}, bf16[4096,8192]{{1,0}}, u32[]{{:S(2)}}) copy-start(%c)
  ROOT %d = bf16[{rows},8192]{{1,0}} dot(%a, %b), lhs_contracting_dims={{1}}, \
rhs_contracting_dims={{0}}
  %z = bf16[4096,8192]{{1,0:S(1)}} copy-done(%s)
}}"""
    found = estimate.estimate(hlo.parse(text), V5E)
    product_s = max(
        2 * rows * 8192**2 / V5E.bf16_flops,
        2 * 8192 * (2 * rows + 8192) / V5E.hbm_bytes_per_s,
    )
    copy_s = 4096 * 8192 * 2 / V5E.hbm_bytes_per_s
    assert found.seconds == pytest.approx(product_s + (1 - hidden) * copy_s, rel=0.02)
    assert found.hbm_bytes == 2 * 8192 * (2 * rows + 8192) + 4096 * 8192 * 2


def test_depthwise_convolutions_count_their_taps_and_use_no_mxu(mesh):
    channels, side, batch = 128, 24, 8

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )

    def grads(x, kernel):
        return jax.grad(lambda x, kernel: (conv(x, kernel) ** 2).sum(), (0, 1))(x, kernel)

    x = array((batch, side, side, channels), mesh)
    found = estimated(grads, x, array((3, 3, 1, channels), mesh))
    taps = (3 * side - 2) ** 2  # Of those that meet the map, not its padding.
    assert found.executed_flops == pytest.approx(3 * 2 * batch * taps * channels)
    assert found.mxu_seconds == 0


@pytest.mark.parametrize("declared", [None, 10**12])
def test_kernels_count_their_bytes_and_the_flops_they_declare(mesh, declared):
    shape = (ROWS, DIM)

    def kernel(x, out):
        out[...] = x[...] * 2

    cost = declared and pl.CostEstimate(flops=declared, transcendentals=0, bytes_accessed=0)
    block = pl.BlockSpec((256, DIM), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        grid=(ROWS // 256,),
        in_specs=[block],
        out_specs=block,
        cost_estimate=cost,
    )
    with jax.set_mesh(mesh):  # Pallas asks it for the kind of device.
        found = estimated(call, array(shape, mesh))
    assert found.kernels.hbm_bytes == found.hbm_bytes <= 2 * ROWS * DIM * 2
    assert found.executed_flops == (declared or 0)
    assert len(found.unknown_kernels) == (declared is None)
    assert found.kernels.cycle_seconds == 0


def test_time_is_told_apart_by_the_source(mesh):
    class ChannelAttention:
        def __call__(self, x, kernel):
            return jnp.tanh(x @ kernel)

    def run(x, kernel):
        return ChannelAttention()(x, kernel)

    found = estimated(run, array((ROWS, DIM), mesh), array((DIM, DIM), mesh))
    assert next(iter(found.categories)) == "channel attention"
    assert found.costliest[0].category == "channel attention"
    total = sum(cost.seconds for cost in found.categories.values())
    assert total == pytest.approx(found.seconds)
