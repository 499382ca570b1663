# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that verify: what is damaged is noticed, named, and an older step is restored."""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from florence2_jax.training import saved_step
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.saved_step import saved_steps
from florence2_jax.training.state import TrainState
from florence2_jax.typing import UserError

# TensorStore's threads complain of reads that Orbax gave up, in any thread and at any time.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(step, *, large=True):
    rng = np.random.default_rng(step)
    rows = 528 if large else 32
    kernel = rng.normal(size=(rows, 512)).astype(np.float32)  # Large: digested on devices.
    params = {"kernel": kernel, "bias": rng.normal(size=512).astype(np.float32)}
    params["half"] = rng.normal(size=(16, 24)).astype(jnp.bfloat16)
    params = jax.tree.map(jnp.asarray, params)
    moments = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params)
    moments = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 100, x.dtype), moments)
    return TrainState(step=jnp.asarray(step, jnp.int32), params=params, opt_state=moments)


def on_mesh(state, **sizes):
    """Arrays of two axes split over all axes of a mesh, but for `replica`."""
    shape = {"replica": 1, "fsdp": 1, "tensor": 1} | sizes
    number = int(np.prod(list(shape.values())))
    mesh = Mesh(np.array(jax.devices()[:number]).reshape(tuple(shape.values())), tuple(shape))
    shardings = jax.tree.map(
        lambda x: NamedSharding(mesh, P("fsdp", "tensor") if x.ndim == 2 else P()), state
    )
    return jax.device_put(state, shardings)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(found, expected):
    same = jax.tree.map(
        lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), found, expected
    )
    assert all(jax.tree.leaves(same)), same


def save_two(directory, *, large=True):
    states = {step: make_state(step, large=large) for step in (2, 4)}
    with Checkpoints(directory) as checkpoints:
        for step, state in states.items():
            assert checkpoints.save(step, state, data={"at": step}, metrics={"loss": 1 / step})
    return states


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with steps 2 and 4, and their states; to be copied."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    return folder, save_two(folder)


def restore(directory, state):
    """What a run gets: the state, its position in the data, and what it was told."""
    told = []
    with Checkpoints(directory) as checkpoints:
        found = checkpoints.restore(abstract(state), say=told.append)
        return found, checkpoints.restore_data(), told


def flip_a_bit(path, place):
    data = bytearray(path.read_bytes())
    data[place // 8] ^= 1 << (place % 8)
    path.write_bytes(data)


def test_what_a_caller_is_handling_is_no_failure_of_a_save(tmp_path):
    try:
        raise UserError("no such model; train one instead")
    except UserError:
        save_two(tmp_path, large=False)
    assert [step.number for step in saved_steps(tmp_path)] == [2, 4]


@pytest.mark.parametrize(
    "sizes",
    [{"replica": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 2}, {"fsdp": 1}],
    ids=lambda sizes: "x".join(map(str, sizes.values())),
)
def test_a_checkpoint_of_eight_devices_opens_on_other_meshes(tmp_path, sizes):
    state = make_state(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, on_mesh(state, fsdp=8))
    wanted = on_mesh(state, **sizes)
    found, _, told = restore(tmp_path, wanted)
    assert_same(found, state)
    assert found.params["kernel"].sharding == wanted.params["kernel"].sharding
    assert told == []


def test_a_flipped_bit_in_any_file_is_noticed_or_changes_nothing(tmp_path, saved):
    pristine, states = saved
    rng = np.random.default_rng(0)
    files = sorted(p.relative_to(pristine) for p in (pristine / "4").rglob("*") if p.is_file())
    noticed = {"by digest": 0, "by reading": 0}
    for file in files:
        size = (pristine / file).stat().st_size
        is_large = size > 100_000  # Nothing but arrays: none of its flips may pass.
        for _ in range(3 if is_large else 1):
            directory = tmp_path / "copy"
            shutil.copytree(pristine, directory)
            flip_a_bit(directory / file, int(rng.integers(8 * size)))
            found, data, told = restore(directory, states[4])
            step = int(found.step)
            assert_same(found, states[step])
            assert data == {"at": step}
            assert step == 2 or not is_large
            if step == 2:
                assert f"{directory / '4'} does not verify: " in told[0]
                assert told[1] == "falling back to step 2, the newest that verifies"
                noticed["by digest" if "has digest" in told[0] else "by reading"] += 1
            shutil.rmtree(directory)
    assert noticed["by digest"] >= 6, "what Orbax lets pass without a word"
    assert noticed["by reading"] >= 6


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def rewrite_manifest(step, **changes):
    path = step / "manifest" / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(manifest))


DAMAGES = {
    "a truncated file": lambda step: truncate(largest(step / "training")),
    "a deleted file of arrays": lambda step: largest(step / "params").unlink(),
    "an empty step": lambda step: (shutil.rmtree(step), step.mkdir()),
    "no optimizer": lambda step: shutil.rmtree(step / "training"),
    "a truncated manifest": lambda step: truncate(step / "manifest" / "manifest.json"),
    "another loss in the manifest": lambda step: rewrite_manifest(step, metrics={"loss": 0.0}),
    "a deleted manifest": lambda step: shutil.rmtree(step / "manifest"),
    "another position in the data": lambda step: (step / "data" / "metadata").write_text("{}"),
    "no position in the data": lambda step: shutil.rmtree(step / "data"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_makes_a_run_fall_back(tmp_path, saved, damage):
    pristine, states = saved
    directory = tmp_path / "checkpoints"
    shutil.copytree(pristine, directory)
    damage(directory / "4")
    found, data, told = restore(directory, states[4])
    assert_same(found, states[2])
    assert data == {"at": 2}
    assert f"{directory / '4'} does not verify: " in told[0]


def test_what_does_not_verify_is_moved_aside_and_its_step_saved_anew(tmp_path, saved):
    pristine, states = saved
    directory = tmp_path / "checkpoints"
    shutil.copytree(pristine, directory)
    for number, aside in enumerate(("corrupt-4", "corrupt-4.1")):
        truncate(largest(directory / "4" / "params"))
        told = []
        with Checkpoints(directory, every_steps=2) as checkpoints:
            checkpoints.restore(abstract(states[2]), say=told.append)
            assert checkpoints.latest_step() == 2
            assert checkpoints.save(4, states[4], data={"at": 4})
        assert told[-1].startswith(f"{directory / '4'} is now {aside}")
        assert len(list(directory.glob("corrupt-*"))) == number + 1
        assert_same(restore(directory, states[4])[0], states[4])


def test_parameters_alone_are_verified_and_nothing_is_moved(tmp_path, saved):
    pristine, states = saved
    directory = tmp_path / "checkpoints"
    shutil.copytree(pristine, directory)
    truncate(largest(directory / "4" / "training"))  # Not what is asked for.
    with Checkpoints(directory) as checkpoints:
        assert_same(checkpoints.restore_params(abstract(states[4]).params), states[4].params)
    truncate(largest(directory / "4" / "params"))
    with Checkpoints(directory) as checkpoints:
        assert_same(checkpoints.restore_params(abstract(states[4]).params), states[2].params)
    assert sorted(path.name for path in directory.iterdir()) == ["2", "4"]


def test_if_none_verifies_every_one_is_named(tmp_path, saved):
    pristine, states = saved
    directory = tmp_path / "checkpoints"
    shutil.copytree(pristine, directory)
    for step in ("2", "4"):
        shutil.rmtree(directory / step / "manifest")
    with pytest.raises(UserError, match=r"no checkpoint .* \(step 4: .* missing; step 2: .*"):
        restore(directory, states[4])
    assert sorted(path.name for path in directory.iterdir()) == ["2", "4"]


def test_a_checkpoint_without_digests_opens_and_says_so(tmp_path):
    state = make_state(5, large=False)
    items = {"params": state.params, "training": {"step": state.step, "opt_state": state.opt_state}}
    with ocp.CheckpointManager(tmp_path) as manager:  # As versions before 1 saved.
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        manager.save(5, args=ocp.args.Composite(**trees, data=ocp.args.JsonSave({"at": 5})))
    found, data, told = restore(tmp_path, state)
    assert_same(found, state)
    assert data == {"at": 5}
    assert told == [f"{tmp_path / '5'} has no digests (an older version saved it): not verified"]


def test_an_old_checkpoint_that_is_not_finite_is_passed_over(tmp_path):
    good, bad = make_state(1, large=False), make_state(2, large=False)
    bad.params["bias"] = bad.params["bias"].at[3].set(np.nan)
    with ocp.CheckpointManager(tmp_path) as manager:
        for step, state in ((1, good), (2, bad)):
            training = {"step": state.step, "opt_state": state.opt_state}
            trees = {"params": state.params, "training": training}
            saves = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
            manager.save(step, args=ocp.args.Composite(**saves))
    found, data, told = restore(tmp_path, good)
    assert_same(found, good)
    assert data is None
    assert "params/bias holds 1 values that are not finite" in told[0]


def test_a_newer_format_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_step, "PLAIN_FORMAT", saved_step.FORMAT + 1)
    save_two(tmp_path, large=False)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"format 3, this version reads up to 2: install"):
        restore(tmp_path, make_state(4, large=False))
    assert len(saved_steps(tmp_path)) == 2, "a checkpoint of the future was moved away"


def test_a_checkpoint_of_another_model_is_refused_not_passed_over(saved):
    directory, states = saved
    other = states[4].replace(params=states[4].params | {"bias": jnp.zeros(511)})
    with pytest.raises(
        UserError, match=r"params/bias is float32\[512\] there, float32\[511\] here"
    ):
        restore(directory, other)


@pytest.mark.parametrize("where", ["params", "opt_state"])
def test_what_is_not_finite_is_never_saved(tmp_path, where):
    state = make_state(6, large=False)
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.inf), state.params)
    moments = optax.adam(1e-3).init(broken)[0]._replace(mu=broken)
    state = dataclasses.replace(
        state, **({"params": broken} if where == "params" else {"opt_state": moments})
    )
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"step 6 is not saved, 3 arrays are not finite: "),
    ):
        checkpoints.save(6, state, force=True)
    assert saved_steps(tmp_path) == []


def test_the_newest_the_best_and_the_round_steps_stay(tmp_path):
    state = make_state(0, large=False)
    losses = [5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0]
    for half in (losses[:4], losses[4:]):  # Started again, it still knows the best.
        first = 1 if half == losses[:4] else 5
        with Checkpoints(tmp_path, keep=2, keep_best=2, keep_every=3) as checkpoints:
            for step, loss in enumerate(half, first):
                checkpoints.save(step, state, metrics={"loss": loss, "score": -loss})
    assert [step.number for step in saved_steps(tmp_path)] == [2, 3, 4, 6, 7]


def test_the_best_may_be_the_highest(tmp_path):
    state = make_state(0, large=False)
    with Checkpoints(
        tmp_path, keep=1, keep_best=1, best_metric="coco/cider", higher_is_better=True
    ) as checkpoints:
        for step, score in enumerate((0.2, 0.9, 0.3, 0.1), 1):
            checkpoints.save(step, state, metrics={"coco/cider": score})
        with pytest.raises(UserError, match=r"best_metric: 'coco/cider' is not measured"):
            checkpoints.save(5, state, metrics={"loss": 1.0})
    assert [step.number for step in saved_steps(tmp_path)] == [2, 4]


def test_only_due_steps_are_saved_unless_forced(tmp_path):
    state = make_state(0, large=False)
    with Checkpoints(tmp_path, every_steps=4) as checkpoints:
        made = [step for step in range(1, 10) if checkpoints.save(step, state)]
        assert made == [4, 8]
        assert checkpoints.save(9, state, force=True)
        assert not checkpoints.save(9, state, force=True)


def test_saving_goes_on_while_the_state_is_given_away(tmp_path):
    # A step donates the state's memory while a save still writes it.
    update = jax.jit(
        lambda state: jax.tree.map(lambda x: x + x.dtype.type(1), state), donate_argnums=0
    )
    state = on_mesh(make_state(0), fsdp=8)
    wanted = abstract(state)
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        for step in range(1, 5):
            state = update(state)
            checkpoints.save(step, state, force=True)
            for _ in range(3):
                state = update(state)
    for step in saved_steps(tmp_path):
        assert list(step.audit()) == []
    told = []
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(wanted, say=told.append)
    assert told == []


def test_a_reader_leaves_a_save_in_progress_alone(tmp_path):
    unfinished = tmp_path / "8.orbax-checkpoint-tmp"
    save_two(tmp_path, large=False)
    unfinished.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 4
        checkpoints.restore(abstract(make_state(4, large=False)))
        assert unfinished.is_dir()
        checkpoints.save(6, make_state(6, large=False))
        assert not unfinished.is_dir(), "what a killed run left fills the disk"


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        Checkpoints(tmp_path / "file" / "checkpoints").check_writable()
    Checkpoints(tmp_path / "new").check_writable()


PROGRAM = """
import sys
from pathlib import Path

import jax.numpy as jnp
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.state import TrainState
from florence2_jax.typing import UserError

params = {"w": jnp.arange(1_000_000, dtype=jnp.float32) ** 2}  # 4 MB that do not compress away.
state = TrainState(step=jnp.asarray(1), params=params, opt_state=params)
try:
    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        checkpoints.check_writable()
        checkpoints.save(1, state, force=True)
except UserError as error:
    sys.exit(f"refused: {error}")
"""


def save_in_a_process(directory, *, max_file_bytes=0):
    """Saves 8 MB where no file may grow beyond `max_file_bytes`, if given; returns the exit."""
    limit = max_file_bytes or resource.RLIM_INFINITY
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1))"
    return subprocess.run(
        [sys.executable, "-c", limited + PROGRAM, str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_disk_that_takes_no_more_is_one_line(tmp_path):
    done = save_in_a_process(tmp_path / "checkpoints", max_file_bytes=1_000_000)
    assert done.returncode == 1
    # Orbax's own threads log around it.
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("refused: "))
    assert "could not be written to its end (File too large)" in line
    assert str(tmp_path / "checkpoints") in line
    assert "Make room and run the same command again" in line


def test_the_same_save_with_room_succeeds(tmp_path):
    done = save_in_a_process(tmp_path / "checkpoints")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where nobody may")
def test_a_directory_that_may_only_be_read_is_one_line(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match=r"\(Permission denied\).* Make it writable"):
        Checkpoints(tmp_path / "checkpoints").check_writable()


TWO_PROCESSES = """
import sys
import jax
index, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, index)
from pathlib import Path
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.state import TrainState

mesh = Mesh(np.array(jax.devices()), ("fsdp",))
place = lambda x, spec: jax.make_array_from_callback(
    x.shape, NamedSharding(mesh, spec), lambda part: x[part])
def make(step):
    rows = np.random.default_rng(step).normal(size=(1024, 512)).astype(np.float32)
    params = {"kernel": place(rows, P("fsdp")), "bias": place(rows[0], P())}
    return TrainState(step=place(np.int32(step), P()), params=params, opt_state={})

wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(0))
if sys.argv[4] == "save":
    with Checkpoints(Path(directory)) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, make(step), data={"at": step})
else:
    with Checkpoints(Path(directory)) as checkpoints:
        state = checkpoints.restore(wanted, say=lambda text: print("told", text))
        step = int(state.step)
        print("found", step, checkpoints.restore_data())
        for name, x in make(step).params.items():
            for a, b in zip(x.addressable_shards, state.params[name].addressable_shards):
                assert np.array_equal(a.data, b.data)
    with Checkpoints(Path(sys.argv[5])) as checkpoints:
        assert int(checkpoints.restore(wanted).step) == 2
        checkpoints.save(6, make(6))
    print("again", int(Checkpoints(Path(sys.argv[5])).restore(wanted).step))
"""


def two_processes(tmp_path, directories, action):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", TWO_PROCESSES]
    with contextlib.ExitStack() as logs:
        running = [
            subprocess.Popen(
                [*command, str(index), port, str(directory), action, str(directories[0])],
                stdout=subprocess.PIPE,
                stderr=logs.enter_context((tmp_path / f"{action}{index}").open("w")),
                text=True,
                env=environment,
            )
            for index, directory in enumerate(directories)
        ]
        texts = [process.communicate(timeout=180)[0] for process in running]
    for index, process in enumerate(running):
        assert process.returncode == 0, (tmp_path / f"{action}{index}").read_text()[-3000:]
    return texts


def test_processes_fall_back_together_though_one_alone_cannot_read(tmp_path):
    shared, other = tmp_path / "shared", tmp_path / "other"
    two_processes(tmp_path, [shared, shared], "save")
    # The second host sees a disk of its own: there 6 lacks files. On both, 4 has another bit.
    for file in (shared / "4" / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 100_000:
            flip_a_bit(file, 800_000)
    shutil.copytree(shared, other)
    shutil.rmtree(other / "6" / "params" / "ocdbt.process_1")  # What it wrote itself.
    texts = two_processes(tmp_path, [shared, other], "restore")
    for text in texts:
        assert "found 2 {'at': 2}" in text
        assert "6 does not verify: " in text
        assert "(process 1)" in text
        assert "4 does not verify: params/kernel has digest" in text
        assert "again 6" in text
