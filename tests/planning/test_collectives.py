# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_programs import array, compile_module, tpu_mesh

from florence2_jax.planning import collectives, hlo
from florence2_jax.planning.chips import CHIPS

KERNEL_BYTES = 1024 * 4096 * 2
ROWS = 65_536


def product(mesh: Mesh, x: P, kernel: P, out: P) -> list[collectives.Collective]:
    """`[4096, 1024] x [1024, 4096]` on a mesh."""
    arguments = array((4096, 1024), mesh, x), array((1024, 4096), mesh, kernel)
    return collectives.find(compile_module(jnp.matmul, *arguments, out=out), mesh)


@pytest.fixture(scope="module", params=["as listed", "transposed", "shuffled"])
def mesh(request) -> Mesh:
    """4 x 4 chips; which axis a collective runs over must not depend on their order."""
    mesh = tpu_mesh("v5e:4x4", (4, 4), ("fsdp", "tensor"))
    devices = {
        "as listed": mesh.devices,
        "transposed": mesh.devices.T,
        "shuffled": np.random.default_rng(0).permutation(mesh.devices.ravel()).reshape(4, 4),
    }[request.param]
    return Mesh(devices, mesh.axis_names, mesh.axis_types)


def test_fsdp_gathers_the_shards_of_a_kernel_once(mesh):
    (found,) = product(mesh, P("fsdp"), P("fsdp", "tensor"), P("fsdp", "tensor"))
    assert (found.kind, found.axes, found.network) == ("all-gather", ("fsdp",), "ici")
    assert (found.group_size, found.trips) == (4, 1)
    assert found.array_bytes == KERNEL_BYTES / 4  # `tensor` keeps it cut.
    assert found.sent_bytes == 3 / 4 * KERNEL_BYTES / 4
    v5e = CHIPS["v5e"]
    assert found.seconds(v5e) == found.sent_bytes / v5e.ici_bytes_per_s


def test_a_cut_contraction_sums_over_its_axis(mesh):
    found = product(mesh, P("fsdp", "tensor"), P("tensor"), P("fsdp"))
    assert [(c.kind, c.axes) for c in found] == [("all-reduce", ("tensor",))]
    assert found[0].array_bytes == 4096 // 4 * 4096 * 2
    assert found[0].sent_bytes == 2 * 3 / 4 * found[0].array_bytes


def layers(kernels, x, mesh: Mesh):
    def body(x, kernel):
        whole = jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, P()))
        return jnp.tanh(x @ whole), None

    return jax.lax.scan(body, x, kernels)[0].astype(jnp.float32).sum()


@pytest.fixture(scope="module")
def two_slices() -> list[collectives.Collective]:
    """The gradient of three layers, cut over a slice and copied on both."""
    mesh = tpu_mesh("v5e:2x2", (2, 4), ("replica", "fsdp"), num_slices=2)
    rows = P(("replica", "fsdp"))
    arguments = array((3, 1024, 1024), mesh, P(None, "fsdp")), array((ROWS, 1024), mesh, rows)
    module = compile_module(
        lambda kernels, x: jax.grad(layers)(kernels, x, mesh), *arguments, out=P(None, "fsdp")
    )
    return collectives.find(module, mesh)


def test_gathers_inside_loops_count_every_layer(two_slices):
    gathers = [c for c in two_slices if c.kind == "all-gather"]
    # Each layer's kernel forward and, unless it was kept, backward; asynchronous ones once each.
    gathered = sum(c.trips * c.array_bytes for c in gathers)
    assert gathered in (3 * 1024**2 * 2, 2 * 3 * 1024**2 * 2)
    assert {c.axes for c in gathers} == {("fsdp",)}
    assert {c.network for c in gathers} == {"ici"}


def test_gradients_cross_slices_in_shards(two_slices):
    crossing = [c for c in two_slices if c.network == "dcn"]
    assert {(c.kind, c.axes, c.group_size) for c in crossing} == {("all-reduce", ("replica",), 2)}
    shards = 3 * 1024**2 * 2 // 4
    assert sum(c.sent_bytes for c in crossing) == shards


def test_no_collective_is_as_large_as_an_activation(two_slices):
    activation = ROWS // 8 * 1024 * 2  # Of one chip.
    assert max(c.array_bytes for c in two_slices) == 1024**2 * 2 < activation


def test_an_activation_that_travels_is_named_with_its_shape_and_source():
    mesh = tpu_mesh("v5e:4x4", (4, 4), ("fsdp", "tensor"))
    arguments = array((ROWS, 1024), mesh, P("fsdp")), array((1024, 512), mesh)
    (found,) = collectives.find(compile_module(jnp.matmul, *arguments, out=P()), mesh)
    assert found.kind == "all-gather"
    assert found.shapes in ((f"bf16[{ROWS},512]",), (f"bf16[{ROWS},1024]",))


FUSED = """HloModule fused, num_partitions=4

%start (p: bf16[8,128]) -> (bf16[8,128], bf16[32,128]) {
  %p = bf16[8,128] parameter(0)
  %g0 = bf16[32,128] all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, ASYNC
  ROOT %s0 = (bf16[8,128], bf16[32,128]) custom-call(%g0), custom_call_target="AsyncCollectiveStart"
}

%beside (a: bf16[8,128], b: bf16[32,128]) -> (bf16[8,128], bf16[32,128]) {
  %a = bf16[8,128] parameter(0)
  %b = bf16[32,128] parameter(1)
  %g1 = bf16[32,128] all-gather(%a), channel_id=1, replica_groups={{0,1,2,3}}, ASYNC
  ROOT %s1 = (bf16[8,128], bf16[32,128]) tuple(%a, %g1)
}

%done (c: bf16[8,128], d: bf16[32,128]) -> bf16[32,128] {
  %c = bf16[8,128] parameter(0)
  %d = bf16[32,128] parameter(1)
  %g2 = bf16[32,128] all-gather(%c), channel_id=1, replica_groups={{0,1,2,3}}, ASYNC
  ROOT %s2 = bf16[32,128] custom-call(%c, %d, %g2), custom_call_target="AsyncCollectiveDone"
}

%scatter (e: bf16[32,128], i: u32[]) -> (bf16[8,128], bf16[8,128]) {
  %e = bf16[32,128] parameter(0)
  %i = u32[] parameter(1)
  %r = (bf16[32,128], bf16[32,128]) all-reduce(%e, %e), channel_id=1, replica_groups={{0,1,2,3}}
  %r0 = bf16[32,128] get-tuple-element(%r), index=0
  %r1 = bf16[32,128] get-tuple-element(%r), index=1
  %d0 = bf16[8,128] dynamic-slice(%r0, %i, %i), dynamic_slice_sizes={8,128}
  %d1 = bf16[8,128] dynamic-slice(%r1, %i, %i), dynamic_slice_sizes={8,128}
  ROOT %t = (bf16[8,128], bf16[8,128]) tuple(%d0, %d1)
}

ENTRY %main (x: bf16[8,128], n: u32[]) -> (bf16[8,128], bf16[8,128]) {
  %x = bf16[8,128] parameter(0)
  %n = u32[] parameter(1)
  %f0 = (bf16[8,128], bf16[32,128]) fusion(%x), calls=%start
  %x0 = bf16[8,128] get-tuple-element(%f0), index=0
  %y0 = bf16[32,128] get-tuple-element(%f0), index=1
  %f1 = (bf16[8,128], bf16[32,128]) fusion(%x0, %y0), calls=%beside
  %x1 = bf16[8,128] get-tuple-element(%f1), index=0
  %y1 = bf16[32,128] get-tuple-element(%f1), index=1
  %f2 = bf16[32,128] fusion(%x1, %y1), calls=%done
  %f3 = (bf16[8,128], bf16[8,128]) fusion(%f2, %n), calls=%scatter
  ROOT %f4 = (bf16[8,128], bf16[8,128]) fusion(%f2, %n), calls=%scatter
}
""".replace("ASYNC", 'backend_config={"async_collective_fusion_config":{"flag_start":"2"}}')


def test_asynchronous_collectives_count_once_and_sums_that_are_sliced_are_scattered():
    mesh = tpu_mesh("v5e:2x2", (4,), ("fsdp",))
    found = collectives.find(hlo.parse(FUSED), mesh)
    # Channels do not tell them apart: libtpu gives one to several combined sums.
    assert [(c.kind, c.array_bytes) for c in found] == [
        ("reduce-scatter", 2 * 32 * 128 * 2),
        ("reduce-scatter", 2 * 32 * 128 * 2),
        ("all-gather", 32 * 128 * 2),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("{}", [[0, 1, 2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b','a'}", [[0, 2, 1, 3]]),
        ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ],
)
def test_groups_are_read_in_every_notation(text, expected):
    line = f"ROOT %r = f32[4] all-reduce(%p), channel_id=1, replica_groups={text}, to_apply=%add"
    module = hlo.parse(f"HloModule m\nENTRY %e (p: f32[4]) -> f32[4] {{\n  {line}\n}}")
    assert collectives.replica_groups(module.entry.root, 4).tolist() == expected


def test_an_unknown_notation_is_an_error_that_shows_it():
    line = "ROOT %r = f32[4] all-reduce(%p), replica_groups=ring(4), to_apply=%add"
    module = hlo.parse(f"HloModule m\nENTRY %e (p: f32[4]) -> f32[4] {{\n  {line}\n}}")
    with pytest.raises(ValueError, match=r"r: cannot read replica_groups=ring\(4\)"):
        collectives.replica_groups(module.entry.root, 4)
