# SPDX-License-Identifier: Apache-2.0
"""Runs a step that went wrong once more, from what the black box wrote: which example was it?"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from florence2_jax.data.loading import Batch
from florence2_jax.data.pipeline import iterate, make_dataset
from florence2_jax.models.config import Florence2Config
from florence2_jax.parallel.mesh import MeshConfig, make_mesh
from florence2_jax.parallel.partitioning import batch_sharding, param_path, state_shardings
from florence2_jax.tasks.registry import TASKS
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.black_box import to_json
from florence2_jax.training.checkpoint import items_of, with_items
from florence2_jax.training.config import RunConfig
from florence2_jax.training.digests import digests
from florence2_jax.training.job import choose_trained, open_mixture, read_exclusions
from florence2_jax.training.optimizer import make_optimizer
from florence2_jax.training.recording import Recording, read_recording
from florence2_jax.training.saved_step import one_line, saved_steps
from florence2_jax.training.state import TrainState, fresh_state, init_params
from florence2_jax.training.step import DEVICE_KEYS, Step, compile_step, make_step
from florence2_jax.training.trained import Trained
from florence2_jax.typing import UserError

Say = Callable[[str], None]


def replay(
    path: Path,
    workdir: Path | None = None,
    *,
    max_examples: int | None = None,
    catch_up: bool = False,
    say: Say,
) -> dict[str, Any]:
    """Runs the step once more on the devices of this process, then each of its examples alone.

    The state is the newest checkpoint from before the step that verifies. Only if that is of the
    very step before are loss and gradient norm those of the run, and to the last bit only on
    devices of the same kind and number; otherwise the recorded examples and keys meet somewhat
    younger parameters, which still tells an example that is broken. With `catch_up` the steps in
    between are done again, on the run's own records.

    Args:
        path: a JSON file of the black box.
        workdir: of the run; by default where the file lies.
        max_examples: examine only so many examples; None for all.
        catch_up: do the steps from the checkpoint to the recorded one again, then that one.
        say: is told what is going on.

    Returns:
        A report for JSON, with texts for numbers that are not finite: `state`, `loss` and
        `grad_norm` beside what was recorded, `tasks`, `examples` with the worst first,
        `non_finite_gradients`.

    Raises:
        UserError: if the file, the run or a checkpoint from before the step is not there; with
            `catch_up` also if the run's records are not, or are no longer what they were.
    """
    recording = read_recording(path)
    workdir = Path(path).absolute().parent.parent if workdir is None else Path(workdir)
    run = RunConfig.create(workdir_lib.load_config(workdir), workdir)
    model, tokenizer = workdir_lib.load_model(workdir)
    first_location_id = tokenizer.first_location_id
    mesh = _mesh(recording)
    optimizer = make_optimizer(run.optimizer, run.total_steps)
    trained = choose_trained(run, model)
    step = make_step(run, model, optimizer, first_location_id=first_location_id, trained=trained)
    state, shardings = _restore(workdir, recording.step, model, optimizer, trained, mesh, say)
    if catch_up and int(state.step) < recording.step - 1:
        state = _catch_up(state, shardings, recording, run, workdir, tokenizer, step, mesh, say)
    state_step = int(state.step)
    kept = jax.device_get(state.replace(opt_state=None))  # The step's own copy is donated.
    # The keys of a step follow from its number.
    state = state.replace(step=jnp.asarray(recording.step - 1, jnp.int32))
    batch = {name: recording.batch[name] for name in DEVICE_KEYS if name in recording.batch}
    say(f"step {recording.step}: {len(batch['image'])} examples on mesh {dict(mesh.shape)}")
    on_devices = jax.device_put(batch, batch_sharding(mesh))
    compiled = compile_step(step, state, shardings, on_devices, mesh)
    _, metrics = compiled(state, on_devices)
    metrics = jax.device_get(metrics)
    alone = dataclasses.replace(run, accumulate=1)
    kept = kept.replace(step=np.asarray(recording.step - 1, np.int32))
    gradients = Gradients(alone, model, kept, trained, first_location_id)
    examples, broken = examine(recording, gradients, max_examples=max_examples, say=say)
    report = {
        "step": recording.step,
        "reason": recording.report["reason"],
        "state": {"step": state_step, "is_step_before": state_step == recording.step - 1},
        "same_mesh": dict(mesh.shape) == recording.report["mesh"],
        "loss": _compare(metrics["loss"], recording.row.get("loss")),
        "grad_norm": _compare(metrics["grad_norm"], recording.row.get("grad_norm")),
        "tasks": _tasks(metrics),
        "examples": examples,
        "non_finite_gradients": broken,
    }
    return to_json(report)


def examine(
    recording: Recording, gradients: "Gradients", *, max_examples: int | None, say: Say
) -> tuple[list[dict[str, Any]], list[str]]:
    """Each example by itself, the worst first; parameters whose gradients are not finite."""
    batch = {name: recording.batch[name] for name in DEVICE_KEYS if name in recording.batch}
    number = min(len(batch["image"]), len(batch["image"]) if max_examples is None else max_examples)
    examples, broken = [], set()
    for row in range(number):
        example, names = gradients({name: x[row : row + 1] for name, x in batch.items()})
        place = {"row": row, "host": int(recording.hosts[row])}
        place |= {name: recording.batch[name][row].item() for name in ("store", "index")}
        examples.append(place | example)
        broken |= names
        say(f"example {row + 1} of {number}: loss {example['loss']:.4g}")
    examples.sort(key=lambda one: _badness(one["loss"], one["grad_norm"]), reverse=True)
    return examples, sorted(broken)


class Gradients:
    """Loss and gradients of one example by itself."""

    def __init__(
        self,
        run: RunConfig,
        model: Florence2Config,
        state: TrainState,
        trained: Trained,
        first_location_id: int,
    ):
        # An optimizer that keeps the gradients: the step itself stays what it is.
        keep = optax.GradientTransformation(init=_no_gradients, update=_keep_gradients)
        self._step = make_step(
            run, model, keep, first_location_id=first_location_id, trained=trained
        )
        self._mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        self._number = int(state.step)
        changing, _ = trained.split(state.params, state.adapters)
        self._state, self._shardings = self._fresh(state.replace(opt_state=keep.init(changing)))
        self._compiled: Any = None

    def _fresh(self, state: TrainState) -> tuple[TrainState, Any]:
        shardings = state_shardings(state, self._mesh)
        return jax.device_put(state, shardings), shardings

    def __call__(self, batch: dict[str, np.ndarray]) -> tuple[dict[str, Any], set[str]]:
        """Scalars of an example, and the parameters whose gradient is not finite."""
        on_device = jax.device_put(batch, batch_sharding(self._mesh))
        if self._compiled is None:
            self._compiled = compile_step(
                self._step, self._state, self._shardings, on_device, self._mesh
            )
        # Parameters stay as they are; what is donated comes back.
        self._state, metrics = self._compiled(
            self._state.replace(step=jnp.asarray(self._number, jnp.int32)), on_device
        )
        metrics = jax.device_get(metrics)
        names = {
            param_path(path)
            for path, grad in jax.tree_util.tree_leaves_with_path(self._state.opt_state)
            if not np.isfinite(np.asarray(grad)).all()
        }
        scalars = {"loss": float(metrics["loss"]), "grad_norm": float(metrics["grad_norm"])}
        return scalars | {"tasks": _tasks(metrics)}, names


def _no_gradients(params: Any) -> Any:
    return jax.tree.map(np.zeros_like, params)


def _keep_gradients(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    """Changes no parameter; the gradients are the new state of this optimizer."""
    del state, params
    return jax.tree.map(jnp.zeros_like, updates), updates


def _mesh(recording: Recording) -> Mesh:
    """The run's own mesh where there are as many devices, else one of them."""
    shape, devices = recording.report["mesh"], jax.devices()
    number = math.prod(shape.values())
    if number > len(devices):
        return make_mesh(MeshConfig(), devices[:1])
    return make_mesh(MeshConfig.create(**shape), devices[:number])


def _restore(
    workdir: Path,
    step: int,
    model: Florence2Config,
    optimizer: optax.GradientTransformation,
    trained: Trained,
    mesh: Mesh,
    say: Say,
) -> tuple[TrainState, Any]:
    """The newest state from before a step that verifies, and its shardings; changes no file."""

    def init() -> TrainState:
        return fresh_state(init_params(model, jax.random.key(0)), optimizer, trained)

    shapes = jax.eval_shape(init)
    shardings = state_shardings(shapes, mesh)
    wanted = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    items = items_of(wanted)
    directory = workdir / workdir_lib.CHECKPOINTS
    for saved in reversed(saved_steps(directory)):
        if saved.number >= step:
            continue
        found: dict[str, Any] = {}
        try:
            found = saved.read(items)
            problems = saved.problems(digests(found))
        except UserError:
            raise
        except Exception as error:  # Orbax raises what its libraries do.
            problems = [one_line(error)]
        if problems:
            say(f"{saved.path} does not verify: {problems[0]}")
            continue
        age = step - 1 - saved.number
        say(
            f"the state is the checkpoint of step {saved.number}, "
            + (f"{age} step(s) before the one it needs" if age else "the step before")
        )
        return with_items(shapes, found), shardings
    raise UserError(
        f"{directory} holds no checkpoint from before step {step} that verifies: copy one there"
    )


def _catch_up(
    state: TrainState,
    shardings: Any,
    recording: Recording,
    run: RunConfig,
    workdir: Path,
    tokenizer: Tokenizer,
    step: Step,
    mesh: Mesh,
    say: Say,
) -> TrainState:
    """The state of the step before the recorded one, by training up to it again."""
    dataset = make_dataset(
        open_mixture(run, workdir),
        tokenizer,
        run.batch_spec(),
        seed=run.seed,
        excluded=read_exclusions(run),
    )
    first_step = int(state.step)
    batches = iterate(
        dataset,
        start_step=first_step,
        num_workers=run.input.num_workers,
        num_threads=run.input.num_threads,
        buffer=run.input.buffer,
    )
    compiled: dict[tuple[int, ...], Any] = {}
    for number in range(first_step + 1, recording.step):
        batch = next(batches)
        _check_examples(batch, number, recording)
        arrays = {name: batch[name] for name in DEVICE_KEYS if name in batch}
        on_devices = jax.device_put(arrays, batch_sharding(mesh))
        if (shape := on_devices["image"].shape) not in compiled:
            compiled[shape] = compile_step(step, state, shardings, on_devices, mesh)
        state, metrics = compiled[shape](state, on_devices)
        say(f"step {number} of {recording.step - 1} again: loss {float(metrics['loss']):.4g}")
    return state


def _check_examples(batch: Batch, number: int, recording: Recording) -> None:
    """Refuses to go on with other examples than the run's, as far as the box remembers them."""
    row = next((row for row in recording.report["steps"] if row["step"] == number), {})
    for name in ("store", "index"):
        known = set(row.get(name, ()))
        if known - set(batch[name].tolist()):
            raise UserError(
                f"step {number} of the run had other examples than its records give now ({name} "
                f"{sorted(known)[:4]} ...): they were changed; replay without --catch-up"
            )


def _compare(value: Any, recorded: Any) -> dict[str, Any]:
    """A float32 beside the recorded one; `is_same` if no bit differs (any NaN is any other)."""
    row: dict[str, Any] = {"replayed": float(value)}
    if recorded is not None:
        before = np.float32(float(recorded))
        row["recorded"] = float(before)
        row["is_same"] = bool(np.array_equal(before, np.float32(value), equal_nan=True))
    return row


def _tasks(metrics: dict[str, Any]) -> dict[str, float]:
    rows = zip(TASKS.values(), metrics["task_loss_sums"], metrics["task_token_sums"], strict=True)
    return {task.name: float(loss / number) for task, loss, number in rows if number > 0}


def _badness(loss: float, grad_norm: float) -> tuple[float, float]:
    """What is not finite before all that is."""
    values = np.nan_to_num(np.array([loss, grad_norm]), nan=np.inf, posinf=np.inf)
    return float(not np.isfinite(values).all()), float(values[0])
