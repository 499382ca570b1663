# SPDX-License-Identifier: Apache-2.0
"""Two processes answer a block of the records each, and the first one scores what one would."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import random_predictor

from florence2_jax.evaluation.questions import Asking
from florence2_jax.evaluation.runner import evaluate
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import get_task

SCRIPT = """
import json, sys
from florence2_jax.parallel import processes
from florence2_jax.parallel.processes import HostsConfig

port, me, scenes, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
times = dict(init_timeout_s=120, heartbeat_timeout_s=60, barrier_timeout_s=120)
processes.start(
    HostsConfig(coordinator=f"localhost:{port}", num_processes=2, process_id=me, **times)
)
from pathlib import Path
from test_two_hosts import ask
from tiny_model import random_predictor

found = ask(random_predictor(Path(scenes)), scenes, Path(folder))
print("found", json.dumps(found))
"""


def ask(predictor, scenes, folder=None):
    """Metrics by task and the number of answers; None but on process 0."""
    asking = Asking(tasks=(get_task("caption"), get_task("od")))
    store = RecordStore(scenes, "validation")
    result = evaluate(
        predictor, store, asking, batch_size=3, num_resamples=10, folder=folder, job={"a": 1}
    )
    if result is None:
        return None
    return [len(result.answered), [one.to_json() for one in result.results]]


@pytest.mark.slow
def test_two_hosts_find_what_one_finds(scenes, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    here = Path(__file__).resolve().parent
    paths = [str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(port), str(me), str(scenes), str(tmp_path / "out")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for me in range(2)
    ]
    told = []
    for process in started:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]
        lines = [line for line in out.splitlines() if line.startswith("found ")]
        told.append(json.loads(lines[0].removeprefix("found ")))
    assert told[1] is None
    assert told[0] == json.loads(json.dumps(ask(random_predictor(scenes), scenes)))
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [*(f"answers-0000{k}-of-00002.jsonl" for k in range(2)), "job.json"]
