# SPDX-License-Identifier: Apache-2.0
"""The loop: a batch, a step, and hooks. Every recipe runs through here."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from rich.console import Console

from florence2_jax.data.loading import Batch
from florence2_jax.data.pipeline import DataOrder, iterate, make_dataset
from florence2_jax.parallel import processes
from florence2_jax.parallel.host_rows import HostRows
from florence2_jax.text.tokenizer import PAD_ID
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.black_box import BlackBox
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.early_stopping import EarlyStopping
from florence2_jax.training.job import Job, check_disk, first_state, prepare, tell_counts
from florence2_jax.training.ledger import Ledger
from florence2_jax.training.metrics import HostTimes, Machine, Reporter, Window
from florence2_jax.training.optimizer import learning_rate
from florence2_jax.training.state import TrainState, init_state
from florence2_jax.training.step import DEVICE_KEYS, compile_step
from florence2_jax.training.stopping import Stopping
from florence2_jax.training.watch import Profiler, StallWatch
from florence2_jax.training.writers import choose_writers
from florence2_jax.typing import UserError

Hook: TypeAlias = Callable[[int, TrainState, Reporter], None]
"""Called after a step with its number (from 1), the new state, and where to report.

`state.model_params()` are the parameters to ask: adapters merged, averages where there are any.
What a hook reports may end the run (`early_stopping.metric`) and choose the checkpoints that stay
(`checkpoint.best_metric`)."""

BatchHook: TypeAlias = Callable[[int, Batch], Batch]
"""Called before a step with its number and this host's rows; returns the rows to train on."""


def run(
    config: Mapping[str, Any],
    workdir: Path,
    *,
    stop_after: int | None = None,
    hooks: Sequence[Hook] = (),
    batch_hooks: Sequence[BatchHook] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains until the run's last step; started again, it goes on after its newest checkpoint.

    On SIGTERM or SIGINT it stops after the step under way and saves. On several hosts (see
    `parallel.processes`) every process calls this, and all stop after the same step.

    Args:
        config: a run file's values, see `RunConfig`.
        workdir: this run's own directory, the same on every host.
        stop_after: stop (and save) once this step is done, as if interrupted there.
        hooks: called after every step.
        batch_hooks: called before every step.

    Returns:
        A report: steps done, whether a signal ended it early, the last scalars, where everything
        is.

    Raises:
        UserError: before the first step, for whatever of config, records, tokenizer, devices or
            workdir does not fit; later for a loss that is no number or a disk that is full.
    """
    started_s = time.perf_counter()
    with processes.departure():
        job = prepare(config, workdir)
        fresh, shardings = init_state(job.make_params, job.optimizer, job.mesh, job.trained)
        check_disk(workdir, fresh)
        log = job.config.log
        writers = choose_writers(
            workdir, tensorboard=log.tensorboard, wandb=log.wandb, config=config
        )
    is_first = jax.process_index() == 0
    last_step = min(job.config.total_steps, stop_after or job.config.total_steps)
    order = DataOrder(job.mixture, seed=job.config.seed, batch_size=job.config.input.batch_size)
    with (
        Ledger(workdir, is_active=is_first, started_s=started_s) as ledger,
        Reporter(
            workdir,
            total_steps=job.config.total_steps,
            console=console or Console(),
            is_active=is_first,
            writers=writers,
        ) as reporter,
    ):
        with (
            Checkpoints(
                workdir / workdir_lib.CHECKPOINTS,
                **dataclasses.asdict(job.config.checkpoint),
                barrier_timeout_s=job.config.hosts.barrier_timeout_s,
            ) as checkpoints,
            processes.departure(),  # Within what would wait for other hosts.
            Stopping() as stopping,
        ):
            checkpoints.check_writable()
            with ledger.span("restore"):
                state = first_state(
                    job, fresh, shardings, checkpoints=checkpoints, order=order, say=reporter.say
                )
            first_step = int(state.step)
            ledger.begin_steps(first_step)
            tell_counts(job, state, reporter.say)
            early = EarlyStopping.resume(
                job.config.early_stopping, workdir / "metrics.jsonl", first_step
            )
            reporter.listeners.append(early.note)
            if first_step >= last_step:
                reporter.say(f"nothing to do: step {first_step} of {last_step} is done")
            elif early.is_over:
                reporter.say(f"nothing to do: {early.reason()}")
                last_step = first_step
            loop = _Loop(job, workdir, reporter, checkpoints, ledger, stopping, order, early)
            loop.hooks, loop.batch_hooks = hooks, batch_hooks
            state = loop.run(state, shardings, first_step, last_step, started_s)
        step = int(state.step)
        if step > first_step:
            ledger.committed(step)  # Its save was waited for.
    is_stopped = step < last_step and not early.is_over
    report = {"workdir": str(workdir), "step": step, "stopped": is_stopped}
    return report | {"metrics": loop.scalars}


class _Loop:
    """One pass over the steps; metrics are read one step late, so that the device never waits."""

    hooks: Sequence[Hook] = ()
    batch_hooks: Sequence[BatchHook] = ()

    def __init__(
        self,
        job: Job,
        workdir: Path,
        reporter: Reporter,
        checkpoints: Checkpoints,
        ledger: Ledger,
        stopping: Stopping,
        order: DataOrder,
        early: EarlyStopping,
    ):
        self.early = early
        self.job, self.config, self.workdir = job, job.config, workdir
        self.reporter, self.checkpoints, self.ledger = reporter, checkpoints, ledger
        self.stopping, self.order = stopping, order
        self.rows = HostRows.of(job.mesh, self.config.input.batch_size)
        self.schedule = learning_rate(self.config.optimizer, self.config.total_steps)
        self.box = BlackBox(
            workdir,
            self.config.black_box,
            seed=self.config.seed,
            learning_rate=self.schedule,
            mesh=job.mesh,
            rows=self.rows,
        )
        self.machine = Machine.of(job.mesh, job.model, self.config.batch_spec())
        self.host_times = HostTimes(processes.post, processes.posted, jax.process_count())
        self.window = Window()
        self.scalars: dict[str, float] = {}
        self.saving, self.looked_s = 0, 0.0  # A step whose save is not known to be committed.

    def run(
        self, state: TrainState, shardings: Any, first_step: int, last_step: int, started_s: float
    ) -> TrainState:
        """Steps from the state's own to `last_step`, or until told to stop; saves the last."""
        log, ledger = self.config.log, self.ledger
        stacks = self.workdir / "stalls" / f"host{jax.process_index()}.txt"
        profiler = Profiler(
            self.workdir / "profile",
            first_step=log.profile_step,
            num_steps=log.profile_steps,
            say=self.reporter.say,
        )
        steps: dict[tuple[int, ...], Any] = {}  # Compiled, by the shape of their images.
        pending = None
        batches = self._batches(first_step) if first_step < last_step else iter(())
        self.window = Window()
        with self.box, StallWatch(log.stall_s, stacks) as watch, profiler:
            for number in range(first_step + 1, last_step + 1):
                profiler.before(number)
                batch = self._next(batches, number)
                on_device = self._to_device(batch)
                shape = on_device["image"].shape
                if shape not in steps:
                    with ledger.span("compile"):
                        steps[shape] = self._compile(state, shardings, on_device)
                state, metrics = steps[shape](state, on_device)
                if pending is not None:
                    self._absorb(*pending)
                pending = (number, batch, metrics)
                if number == first_step + 1:
                    jax.block_until_ready(metrics)
                    self._tell_start(number, time.perf_counter() - started_s)
                is_last = self.stopping.reached(number) or number == last_step
                is_reported = is_last or number % log.every_steps == 0
                is_saved = is_last or number % self.config.checkpoint.every_steps == 0
                if is_reported or is_saved:
                    self._absorb(*pending)  # What is not finite is never saved.
                    pending = None
                if is_reported:
                    self._report(number, metrics)
                self._call_hooks(number, state)
                if self.early.is_over:
                    is_last = is_saved = True
                    if pending is not None:
                        self._absorb(*pending)
                        pending = None
                if is_saved:
                    self._save(number, state, metrics, force=is_last)
                self._note_commit()
                self.window.step_times_s.append(ledger.step_done(number))
                watch.beat()
                if is_last:
                    break
        step = int(state.step)
        if first_step < step and self.early.is_over:
            self.reporter.say(self.early.reason())
        elif first_step < step < last_step:
            self.reporter.say(f"stopped after step {step}; run the same command to go on")
        return state

    def _batches(self, first_step: int):
        inputs = self.config.input
        dataset = make_dataset(
            self.job.mixture,
            self.job.tokenizer,
            self.config.batch_spec(),
            seed=self.config.seed,
            process_index=self.rows.block,
            process_count=self.rows.num_blocks,
            set_aside=self.workdir / "set_aside.jsonl",
            excluded=self.job.excluded,
        )
        return iterate(
            dataset,
            start_step=first_step,
            num_workers=inputs.num_workers,
            num_threads=inputs.num_threads,
            buffer=inputs.buffer,
        )

    def _next(self, batches, number: int) -> Batch:
        waiting_s = time.perf_counter()
        with self.ledger.span("data_wait"):
            batch = next(batches)
        self.window.wait_s += time.perf_counter() - waiting_s
        for hook in self.batch_hooks:
            batch = hook(number, batch)
        self.box.note(number, batch)
        return batch

    def _to_device(self, batch: Batch) -> dict[str, jax.Array]:
        mesh = self.job.mesh
        return {name: self.rows.place(batch[name], mesh) for name in DEVICE_KEYS if name in batch}

    def _compile(self, state: TrainState, shardings: Any, batch: dict[str, jax.Array]) -> Any:
        compiling_s = time.perf_counter()
        step = compile_step(self.job.step, state, shardings, batch, self.job.mesh)
        self.window.start_s += time.perf_counter() - compiling_s  # Compiling is no step.
        return step

    def _save(self, number: int, state: TrainState, metrics: Any, *, force: bool) -> None:
        measured = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
        best = self.config.checkpoint.best_metric
        is_of_hook = best not in measured and bool(self.hooks)
        if self.config.optimizer.skips(measured["grad_norm"]):
            measured = None  # They say nothing about the state.
        elif is_of_hook:  # Which does not report every step: such a save is not ranked.
            reported = self.early.at(number)
            measured = measured | {best: reported[best]} if best in reported else None
        is_kept = is_of_hook and self.config.checkpoint.keep_best
        if complaint := self.early.complaint(best if is_kept else ""):
            self.reporter.say(complaint)
        with self.ledger.span("save"):
            position = self.order.position(number)
            self.checkpoints.save(number, state, data=position, metrics=measured, force=force)
        self.saving, self.looked_s = number, time.perf_counter()

    def _note_commit(self) -> None:
        """Books a save that has come to its end; looks once a second, for a bucket is slow."""
        self.checkpoints.check()
        now = time.perf_counter()
        if self.saving and now - self.looked_s > 1.0:
            self.looked_s = now
            if self.checkpoints.latest_step() == self.saving:
                self.ledger.committed(self.saving)
                self.saving = 0

    def _call_hooks(self, number: int, state: TrainState) -> None:
        """Their time is booked as `eval`; it belongs to no step, nor to the window's speed."""
        if not self.hooks:
            return
        calling_s = time.perf_counter()
        with self.ledger.span("eval"):
            for hook in self.hooks:
                hook(number, state, self.reporter)
        self.window.start_s += time.perf_counter() - calling_s

    def _tell_start(self, number: int, seconds: float) -> None:
        self.reporter.say(f"first step after {seconds:.1f} s")
        self.reporter.report(number, {"first_step_s": seconds})

    def _absorb(self, number: int, batch: Batch, metrics: Any) -> None:
        waiting_s = time.perf_counter()
        metrics = jax.device_get(metrics)
        self.window.device_wait_s += time.perf_counter() - waiting_s
        is_skipped = self.config.optimizer.skips(float(metrics["grad_norm"]))
        if reason := self.box.check(number, metrics):
            path = self.box.write(reason)
            told = f"; see florence2-jax replay {path}" if path else ""
            if is_skipped:
                told = f"; it changed nothing{told}"
            elif not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"]):
                raise UserError(
                    f"step {number}: the loss is {metrics['loss']}, the gradient norm "
                    f"{metrics['grad_norm']}; start another --workdir with a lower "
                    "optimizer.peak_lr, from this one's newest checkpoint by "
                    f"--config.init.workdir{told}"
                )
            self.reporter.say(f"step {number}: {reason}{told}")
        # This host's rows stand for all of them. Hosts that share rows are not counted twice.
        window, blocks = self.window, self.rows.num_blocks
        window.steps += 1
        window.skipped += is_skipped
        if is_skipped:
            return
        flops_per_image = self.machine.flops_per_image(batch["image"].shape)
        window.flops += flops_per_image * self.config.input.batch_size
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

    def _report(self, number: int, metrics: Any) -> None:
        self.scalars = self.window.summary(self.machine)
        hosts = self.host_times.share(self.scalars, is_reader=jax.process_index() == 0)
        self.scalars["learning_rate"] = float(np.asarray(self.schedule(number - 1)))
        self.scalars["grad_norm"] = float(metrics["grad_norm"])
        norms = metrics["grad_norms"].items()
        self.scalars |= {f"grad_norm/{name}": float(value) for name, value in norms}
        self.scalars |= self.order.epochs(number)
        self.reporter.progress(number, self.scalars, hosts=hosts)
        self.ledger.write()
        self.window = Window()
