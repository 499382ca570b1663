# SPDX-License-Identifier: Apache-2.0
"""The loop: a batch, a step, and hooks. Every recipe runs through here."""

import dataclasses
import functools
import itertools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console

from florence2_jax.conversion.initial import initialize
from florence2_jax.data.loading import Batch
from florence2_jax.data.mixture import Mixture, Part, parse_weights
from florence2_jax.data.pipeline import DataOrder, check_feeds, iterate, make_dataset
from florence2_jax.data.texts import store_texts
from florence2_jax.models.config import Florence2Config
from florence2_jax.parallel.host_rows import HostRows
from florence2_jax.parallel.mesh import make_mesh
from florence2_jax.records.overlap import read_list
from florence2_jax.records.store import RecordStore
from florence2_jax.text.tokenizer import PAD_ID, Tokenizer
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.config import RunConfig
from florence2_jax.training.metrics import Reporter, Window
from florence2_jax.training.optimizer import learning_rate, make_optimizer
from florence2_jax.training.state import TrainState, init_params, init_state
from florence2_jax.training.step import DEVICE_KEYS, Step, check_batch, compile_step, make_step
from florence2_jax.typing import UserError

Hook: TypeAlias = Callable[[int, TrainState, Reporter], None]
"""Called after a step with its number (from 1), the new state, and where to report."""


def run(
    config: Mapping[str, Any],
    workdir: Path,
    *,
    stop_after: int | None = None,
    hooks: Sequence[Hook] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains until the run's last step; started again, it goes on after its newest checkpoint.

    Args:
        config: a run file's values, see `RunConfig`.
        workdir: a local directory, this run's alone.
        stop_after: stop (and save) once this step is done, as if interrupted there.
        hooks: called after every step.

    Returns:
        A report: steps done, the last scalars, where everything is.

    Raises:
        UserError: before the first step, for whatever of config, records, tokenizer, devices or
            workdir does not fit.
    """
    started_s = time.perf_counter()
    job = _prepare(config, workdir)
    state, shardings = init_state(job.make_params, job.optimizer, job.mesh)
    _check_disk(workdir, state)
    rows = HostRows.of(job.mesh, job.config.input.batch_size)
    dataset = make_dataset(
        job.mixture,
        job.tokenizer,
        job.config.batch_spec(),
        seed=job.config.seed,
        process_index=rows.block,
        process_count=rows.num_blocks,
        set_aside=workdir / "set_aside.jsonl",
        excluded=job.excluded,
    )
    order = DataOrder(job.mixture, seed=job.config.seed, batch_size=job.config.input.batch_size)
    total_steps, saving = job.config.total_steps, job.config.checkpoint
    with (
        Reporter(
            workdir,
            total_steps=total_steps,
            console=console or Console(),
            is_active=jax.process_index() == 0,
        ) as reporter,
        Checkpoints(
            workdir / workdir_lib.CHECKPOINTS, every_steps=saving.every_steps, keep=saving.keep
        ) as checkpoints,
    ):
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(_abstract(state, shardings))
            if (position := checkpoints.restore_data()) is not None:
                order.check(position, int(state.step))
            reporter.say(f"resuming after step {int(state.step)}")
        elif job.config.init.workdir:
            state = _start_from(Path(job.config.init.workdir), state, shardings)
            reporter.say(f"starting from {job.config.init.workdir}")
        elif job.initial is not None:
            state = state.replace(params=jax.device_put(job.initial, shardings.params))
            sources = filter(None, (job.config.init.bart, job.config.init.davit))
            reporter.say(f"starting from {' and '.join(sources)}")
        last_step = min(total_steps, stop_after or total_steps)
        hooks = [*hooks, _save_hook(checkpoints, order)]
        loop = _Loop(job.config, job.mesh, rows, reporter, hooks, order)
        state, scalars = loop.run(job.step, state, shardings, dataset, last_step, started_s)
        step = int(state.step)
        checkpoints.save(step, state, data=order.position(step), force=True)
    return {"workdir": str(workdir), "step": int(state.step), "metrics": scalars}


@dataclasses.dataclass(frozen=True)
class _Job:
    """A run that may start: everything was looked at and fits together."""

    config: RunConfig
    mixture: Mixture
    tokenizer: Tokenizer
    mesh: Mesh
    optimizer: optax.GradientTransformation
    make_params: Callable[[], Any]
    initial: Any  # Parameters from BART and DaViT, where a run begins with them; else None.
    step: Step
    excluded: frozenset[str]


def _prepare(config: Mapping[str, Any], workdir: Path) -> _Job:
    """Checks a run and claims its workdir. Raises UserError, see `run`."""
    run = RunConfig.create(config)
    mixture = _open(run)
    check_feeds(mixture, run.batch_spec().weights)
    excluded = _excluded(run)
    mesh = make_mesh(run.mesh)
    check_batch(run, mesh)
    tokenizer = _tokenizer(run, mixture, workdir)
    model = _fit_vocabulary(run.model, tokenizer, config)
    optimizer = make_optimizer(run.optimizer, run.total_steps)
    if run.init.workdir:
        _check_start(Path(run.init.workdir), tokenizer)
    initial = _initial(run, model, tokenizer, workdir)
    workdir_lib.claim(workdir, config)
    workdir_lib.save_model(workdir, model, tokenizer)
    workdir_lib.note_environment(workdir, mesh=mesh.shape)
    make_params = functools.partial(
        init_params,
        model,
        jax.random.key(run.seed),
        run.init,
        first_location_id=tokenizer.first_location_id,
    )
    step = make_step(run, model, optimizer, first_location_id=tokenizer.first_location_id)
    return _Job(run, mixture, tokenizer, mesh, optimizer, make_params, initial, step, excluded)


class _Loop:
    """One pass over the steps; metrics are read one step late, so that the device never waits."""

    def __init__(
        self,
        config: RunConfig,
        mesh: Mesh,
        rows: HostRows,
        reporter: Reporter,
        hooks: Sequence[Hook],
        order: DataOrder,
    ):
        self.config, self.mesh, self.reporter, self.hooks = config, mesh, reporter, hooks
        self.rows, self.order = rows, order
        self.schedule = learning_rate(config.optimizer, config.total_steps)
        self.scalars: dict[str, float] = {}

    def run(
        self,
        step: Step,
        state: TrainState,
        shardings: Any,
        dataset,
        last_step: int,
        started_s: float,
    ) -> tuple[TrainState, dict[str, float]]:
        """Steps from the state's own to `last_step`."""
        inputs = self.config.input
        first_step = int(state.step)
        if first_step >= last_step:
            self.reporter.say(f"nothing to do: step {first_step} of {last_step} is done")
            return state, self.scalars
        batches = iterate(
            dataset,
            start_step=first_step,
            num_workers=inputs.num_workers,
            num_threads=inputs.num_threads,
            buffer=inputs.buffer,
        )
        steps: dict[tuple[int, ...], Any] = {}  # Compiled, by the shape of their images.
        window, pending = Window(), None
        for number in range(first_step + 1, last_step + 1):
            waiting_s = time.perf_counter()
            batch = next(batches)
            window.wait_s += time.perf_counter() - waiting_s
            on_device = self._to_device(batch)
            shape = on_device["image"].shape
            if shape not in steps:
                compiling_s = time.perf_counter()
                steps[shape] = compile_step(step, state, shardings, on_device, self.mesh)
                window.start_s += time.perf_counter() - compiling_s  # Compiling is no step.
            state, metrics = steps[shape](state, on_device)
            if pending is not None:
                self._absorb(window, *pending)
            pending = (number, batch, metrics)
            if number == first_step + 1:
                jax.block_until_ready(metrics)
                seconds = time.perf_counter() - started_s
                self.reporter.say(f"first step after {seconds:.1f} s")
                self.reporter.report(number, {"first_step_s": seconds})
            is_reported = number % self.config.log.every_steps == 0 or number == last_step
            if is_reported or number % self.config.checkpoint.every_steps == 0:
                self._absorb(window, *pending)  # What is not finite is never saved.
                pending = None
            if is_reported:
                self._report(number, window, metrics)
                window = Window()
            for hook in self.hooks:
                hook(number, state, self.reporter)
        return state, self.scalars

    def _to_device(self, batch: Batch) -> dict[str, jax.Array]:
        return {
            name: self.rows.place(batch[name], self.mesh) for name in DEVICE_KEYS if name in batch
        }

    def _absorb(self, window: Window, number: int, batch: Batch, metrics: Any) -> None:
        metrics = jax.device_get(metrics)
        if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"]):
            raise UserError(
                f"step {number}: the loss is {metrics['loss']}, the gradient norm "
                f"{metrics['grad_norm']}; start another --workdir with a lower optimizer.peak_lr, "
                "from this one's newest checkpoint by --config.init.workdir"
            )
        # This host's rows stand for all of them. Hosts that share rows are not counted twice.
        blocks = self.rows.num_blocks
        window.steps += 1
        window.images += self.config.input.batch_size
        window.annotations += float((batch["task_ids"] >= 0).sum()) * blocks
        window.cells += batch["target_ids"].size * blocks
        window.prompt_cells += batch["prompt_ids"].size * blocks
        window.prompt_tokens += int((batch["prompt_ids"] != PAD_ID).sum()) * blocks
        window.substitutes += int(batch["is_substitute"].sum())
        window.dropped += int(batch["num_dropped"].sum())
        window.unplaced += int(batch["num_unplaced"].sum())
        window.task_loss_sums += metrics["task_loss_sums"]
        window.task_token_sums += metrics["task_token_sums"]

    def _report(self, number: int, window: Window, metrics: Any) -> None:
        self.scalars = window.summary()
        self.scalars["learning_rate"] = float(np.asarray(self.schedule(number - 1)))
        self.scalars["grad_norm"] = float(metrics["grad_norm"])
        self.scalars |= self.order.epochs(number)
        self.reporter.progress(number, self.scalars)


def _save_hook(checkpoints: Checkpoints, order: DataOrder) -> Hook:
    return lambda number, state, reporter: checkpoints.save(
        number, state, data=order.position(number)
    )


def _excluded(run: RunConfig) -> frozenset[str]:
    """Ids in the list of `input.exclude`. Raises UserError if the run refuses to leave them out."""
    if not run.input.exclude:
        return frozenset()
    ids = read_list(Path(run.input.exclude))
    if ids and run.input.on_excluded == "refuse":
        raise UserError(
            f"input.exclude: {run.input.exclude} lists {len(ids)} training records that are in "
            "evaluation data; write a store without them, or leave them out with "
            "--config.input.on_excluded=drop"
        )
    return ids


def _open(run: RunConfig) -> Mixture:
    """The stores of a run. Raises UserError, naming the directory, if one cannot be read."""
    inputs = run.input
    if inputs.records:
        store = RecordStore(inputs.records, inputs.split)
        return Mixture(parts=(Part(name="", store=store),), stages=run.stages())
    parts = tuple(
        Part(
            name=name,
            store=RecordStore(part.records, part.split),
            weight=part.weight,
            tasks=parse_weights(part.tasks) if part.tasks else None,
        )
        for name, part in sorted(inputs.mixture.items())
    )
    return Mixture(parts=parts, stages=run.stages())


def _abstract(state: TrainState, shardings: Any) -> TrainState:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        shardings,
    )


def _start_from(workdir: Path, state: TrainState, shardings: Any) -> TrainState:
    """A fresh state with the newest parameters of another run."""
    with Checkpoints(workdir / workdir_lib.CHECKPOINTS) as other:
        return state.replace(params=other.restore_params(_abstract(state, shardings).params))


def _initial(
    run: RunConfig, model: Florence2Config, tokenizer: Tokenizer, workdir: Path
) -> Any | None:
    """What `init.bart` and `init.davit` give; None without them, or where the run goes on."""
    goes_on = any((workdir / workdir_lib.CHECKPOINTS).glob("[0-9]*"))
    if goes_on or not (run.init.bart or run.init.davit):
        return None
    return initialize(
        model,
        bart=run.init.bart,
        davit=run.init.davit,
        seed=run.seed,
        init=run.init,
        tokenizer=tokenizer,
    )


def _check_start(workdir: Path, tokenizer: Tokenizer) -> None:
    """Refuses parameters that belong to no run, or to another vocabulary."""
    if not (workdir / workdir_lib.CHECKPOINTS).is_dir():
        raise UserError(f"init.workdir: {workdir} holds no checkpoints; give the workdir of a run")
    if workdir_lib.load_model(workdir)[1] != tokenizer:
        raise UserError(
            f"init.workdir: {workdir} has another tokenizer than this run; give "
            f"tokenizer.path={workdir / workdir_lib.TOKENIZER}"
        )


def _check_disk(workdir: Path, state: TrainState) -> None:
    """Refuses to start where not even one checkpoint fits beside the one it replaces."""
    needed = 2 * sum(x.nbytes for x in jax.tree.leaves(state)) // jax.process_count()
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise UserError(
            f"{workdir}: two checkpoints need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are "
            "free; make room or give another --workdir"
        )


def _tokenizer(config: RunConfig, mixture: Mixture, workdir: Path) -> Tokenizer:
    """The workdir's own if it has one: a run never changes its vocabulary."""
    own = workdir / workdir_lib.TOKENIZER
    if own.is_dir():
        return Tokenizer.load(own)
    if config.tokenizer.path:
        return Tokenizer.load(Path(config.tokenizer.path))
    most = 100_000 // len(mixture.parts)
    texts = (store_texts(part.store, max_records=most) for part in mixture.parts)
    return Tokenizer.train(
        itertools.chain.from_iterable(texts), vocab_size=config.tokenizer.train_size
    )


def _fit_vocabulary(
    model: Florence2Config, tokenizer: Tokenizer, config: Mapping[str, Any]
) -> Florence2Config:
    """The model with the tokenizer's vocabulary size, unless the run file insists on another."""
    asked = dict(config["model"]).get("text", {}).get("vocab_size")
    if asked is not None and asked < len(tokenizer):
        raise UserError(
            f"model.text.vocab_size: {asked} rows do not hold the tokenizer's {len(tokenizer)} ids"
        )
    values = model.to_dict()
    values["text"]["vocab_size"] = asked or len(tokenizer)
    return Florence2Config.create(**values)
