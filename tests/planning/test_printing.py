# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import pytest
from tpu_programs import array, tpu_mesh

from florence2_jax.planning import estimate, hlo, printing
from florence2_jax.planning.chips import CHIPS

ROWS, DIM = 51_328, 768


def instructions(text: str) -> dict[str, list[str]]:
    """Names and opcodes by computation."""
    computations = hlo.parse(text).computations.values()
    return {c.name: [f"{i.name} {i.opcode} {i.operands}" for i in c] for c in computations}


def test_the_serialised_program_is_the_printed_one():
    mesh = tpu_mesh("v5e:2x2", (1,), ("device",))
    arguments = array((12, 256, 256), mesh), array((512, 256), mesh)

    def scan(kernels, x):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), x), x, kernels)

    compiled = jax.jit(scan).lower(*arguments).compile()
    serialized = compiled.runtime_executable().serialize()
    assert instructions(printing._print(serialized)) == instructions(compiled.as_text())


def test_a_lookup_on_the_sparse_cores_is_printed_and_costed():
    mesh = tpu_mesh("v6e:2x2", (1,), ("device",))
    arguments = array((ROWS, DIM), mesh, dtype=jnp.float32), array((16_384,), mesh, dtype=jnp.int32)
    compiled = jax.jit(lambda table, ids: jnp.take(table, ids, axis=0)).lower(*arguments).compile()
    module = hlo.parse(printing.program_text(compiled))  # jaxlib 0.10.2 cannot print it.
    found = estimate.estimate(module, CHIPS["v6e"])
    taken = 16_384 * DIM * 4
    # Rows are read and written, filled where an id is outside, and not the whole table.
    assert 2 * taken <= found.hbm_bytes < ROWS * DIM * 4 + 2 * taken


def test_what_cannot_be_printed_is_a_named_error():
    class Unprintable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nmore")

        def runtime_executable(self):
            return self

        def serialize(self):
            return b"something else"

    with pytest.raises(printing.NoProgramText, match=r"RET_CHECK failure; nor .* another form"):
        printing.program_text(Unprintable())
