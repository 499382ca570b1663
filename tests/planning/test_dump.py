# SPDX-License-Identifier: Apache-2.0
import threading

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from tpu_programs import array, tpu_mesh

from florence2_jax.planning import dump, estimate, hlo
from florence2_jax.planning.chips import CHIPS

ROWS, DIM = 51_328, 768


def sgd_step():
    """A step of four devices whose parameters are donated, not compiled yet."""
    mesh = tpu_mesh("v5e:2x2", (4,), ("device",))
    kernels, x = array((9, 512, 512), mesh), array((4096, 512), mesh, P("device"))

    def step(kernels, x):
        def loss(kernels):
            y, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)
            return jnp.square(y.astype(jnp.float32)).sum()

        value, gradient = jax.value_and_grad(loss)(kernels)
        return kernels - gradient, value

    return jax.jit(step, donate_argnums=0).lower(kernels, x)


def test_the_written_program_is_the_printed_one():
    compiled, text = dump.compile_with_text(sgd_step().compile)
    written, printed = hlo.parse(text), hlo.parse(compiled.as_text())
    costs = [estimate.estimate(module, CHIPS["v5e"]) for module in (written, printed)]
    assert costs[0].cycle_seconds > 0
    for name in ("seconds", "cycle_seconds", "hbm_bytes", "executed_flops"):
        assert getattr(costs[0], name) == getattr(costs[1], name)


def test_a_scheduled_program_tells_time_and_memory_before_its_code_is_there(tmp_path):
    early = []
    waiting = threading.Thread(
        target=lambda: early.append(dump.await_schedule(tmp_path, poll_s=0.05)), daemon=True
    )
    waiting.start()
    compiled = sgd_step().compile(dump.options(tmp_path))
    waiting.join(timeout=30)
    [(text, memory)] = early
    scheduled = estimate.estimate(hlo.parse(text), CHIPS["v5e"])
    finished = estimate.estimate(hlo.parse(dump.finished_text(tmp_path)), CHIPS["v5e"])
    assert scheduled.seconds == finished.seconds and scheduled.hbm_bytes == finished.hbm_bytes
    assert scheduled.cycle_seconds == 0
    stats = compiled.memory_analysis()
    assert stats is not None
    for kind in ("argument", "output", "alias"):
        assert memory[kind] == getattr(stats, f"{kind}_size_in_bytes")
    assert memory["temp"] == pytest.approx(stats.temp_size_in_bytes, rel=0.01, abs=1 << 16)


def test_a_lookup_on_the_sparse_cores_is_costed():
    mesh = tpu_mesh("v6e:2x2", (1,), ("device",))
    arguments = array((ROWS, DIM), mesh, dtype=jnp.float32), array((16_384,), mesh, dtype=jnp.int32)
    lowered = jax.jit(lambda table, ids: jnp.take(table, ids, axis=0)).lower(*arguments)
    _, text = dump.compile_with_text(lowered.compile)  # jaxlib 0.10.2 cannot print it.
    found = estimate.estimate(hlo.parse(text), CHIPS["v6e"])
    taken = 16_384 * DIM * 4
    # Rows are read and written, filled where an id is outside, and not the whole table.
    assert 2 * taken <= found.hbm_bytes < ROWS * DIM * 4 + 2 * taken


def test_a_compiler_that_writes_nothing_is_a_named_error():
    with pytest.raises(dump.NoProgramText, match="did not write the text"):
        dump.compile_with_text(lambda options: None)
