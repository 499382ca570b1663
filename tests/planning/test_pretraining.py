# SPDX-License-Identifier: Apache-2.0
"""Every pretraining recipe can start on the pods it is planned for; its plans are in docs."""

from pathlib import Path

import pytest

from florence2_jax.cli.train import load_config
from florence2_jax.planning.chips import Topology
from florence2_jax.planning.program import Program
from florence2_jax.planning.worker import check_state, describe_devices

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PODS = (("v5e:16x16", 1), ("v5p:8x8x8", 1), ("v6e:16x16", 1), ("v5e:16x16", 4))


@pytest.mark.slow  # Shapes of every model on every pod: a minute.
@pytest.mark.parametrize("file", ["pretrain.py", "pretrain_highres.py"])
@pytest.mark.parametrize("variant", ["base", "large"])
def test_its_mesh_batch_and_state_fit_the_pods(file, variant):
    config = load_config(f"{CONFIGS}/{file}:{variant}", [])
    for name, num_slices in PODS:
        topology = Topology.parse(name, num_slices)
        program = Program.of(config, describe_devices(topology))
        check_state(program, topology)
        assert program.mesh.size == topology.num_devices
        assert program.images_per_device >= 1
