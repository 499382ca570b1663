# SPDX-License-Identifier: Apache-2.0
"""Evaluation as a run goes: a hook of the training loop that reports scalars of held-out records.

Every host answers its block of the records with the parameters as they are, on its own devices;
process 0 scores and reports. Parameters are gathered once for it, so that each device needs room
for a whole copy beside its share of the state.
"""

import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from florence2_jax.evaluation.questions import ALL_TASKS, Asking, open_held_out
from florence2_jax.evaluation.results import Evaluation
from florence2_jax.evaluation.runner import evaluate
from florence2_jax.inference.generation_config import GenerationConfig
from florence2_jax.inference.predictor import Predictor
from florence2_jax.parallel.gathering import gather
from florence2_jax.tasks.registry import get_task
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.config import RunConfig
from florence2_jax.training.evaluating import EvaluationConfig
from florence2_jax.training.folders import store_of
from florence2_jax.training.metrics import Reporter
from florence2_jax.training.state import TrainState
from florence2_jax.typing import UserError


class EvaluationHook:
    """A `training.loop.Hook`.

    Answers are greedy, without the rule against repeated n-grams: the quickest way to a number that
    moves with the model. Intervals and the blind baseline are left to `florence2-jax evaluate`.

    Raises:
        UserError: before the run starts, if the store is missing or holds out no split, the split
            is of training data, or a task is unknown.
    """

    def __init__(self, config: EvaluationConfig, run: RunConfig, workdir: Path):
        self._config, self._run, self._workdir = config, run, workdir
        records = config.records or run.input.records
        if not records:
            raise UserError("evaluation.records: the run has several stores; name one to evaluate")
        records = store_of(records, workdir, timeout_s=run.hosts.barrier_timeout_s)
        self._store = open_held_out(records, config.split or None)
        tasks = tuple(dict.fromkeys(get_task(name) for name in config.tasks.split())) or ALL_TASKS
        self._asking = Asking(tasks=tasks, per_record=config.per_record)
        self._predictor: Predictor | None = None

    def __call__(self, step: int, state: TrainState, reporter: Reporter) -> None:
        """Evaluates after the steps that the run file says, and after the last one."""
        if step % self._config.every_steps and step != self._run.total_steps:
            return
        started_s, timeout_s = time.perf_counter(), self._run.hosts.barrier_timeout_s
        result = evaluate(
            self._model(state),
            self._store,
            self._asking,
            max_records=self._config.max_records,
            with_blind=False,
            batch_size=self._config.batch_size,
            num_resamples=0,
            timeout_s=timeout_s,
        )
        scalars = {} if result is None else _scalars(result)
        scalars["eval/seconds"] = time.perf_counter() - started_s
        # Every host is told the same: a metric may end the run, and they must end alike.
        told = gather(json.dumps(scalars).encode(), "scalars", timeout_s)
        scalars = json.loads(told[0])
        reporter.report(step, scalars)
        if result is not None:
            headlines = " · ".join(
                f"{one.task.name} {one.headline} {one.metrics[one.headline]:.3f}"
                for one in result.results
            )
            reporter.say(
                f"step {step}: {result.num_records} records of {self._store.split} in "
                f"{scalars['eval/seconds']:.1f} s: {headlines}"
            )

    def _model(self, state: TrainState) -> Predictor:
        """The model with the state's parameters, on a device of this process."""
        if self._predictor is None:  # The loop has written the model's sizes by now.
            config, tokenizer = workdir_lib.load_model(self._workdir)
            length = self._config.max_new_tokens or self._run.input.target_length
            generation = GenerationConfig(
                num_beams=1,
                no_repeat_ngram_size=0,
                max_new_tokens=length,
                pool_locations=self._run.loss.location_smoothing_bins > 0,
            )
            self._predictor = Predictor(config, None, tokenizer, generation=generation)
        # Adapters merged and averages taken, where a run has them.
        self._predictor.params = whole(state.model_params())
        return self._predictor


def _scalars(result: Evaluation) -> dict[str, float]:
    scalars = {
        f"eval/{one.task.name}/{metric}": value
        for one in result.results
        for metric, value in one.metrics.items()
        if math.isfinite(value)
    }
    return scalars | {"eval/records": float(result.num_records - len(result.set_aside))}


def whole(params: Any) -> Any:
    """Parameters out of their shards, each whole on one device of this process."""
    sharding = jax.tree.leaves(params)[0].sharding
    if not isinstance(sharding, NamedSharding):
        return params
    gathered = _gather(sharding.mesh)(params)
    return jax.tree.map(lambda x: x.addressable_shards[0].data, gathered)


@functools.cache
def _gather(mesh: Any) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))
