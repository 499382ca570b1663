# SPDX-License-Identifier: Apache-2.0
"""What must be so before a run may start, on one host and on all of them."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

import florence2_jax
from florence2_jax.conversion.initial import initialize
from florence2_jax.data.mixture import Mixture, Part, parse_weights
from florence2_jax.data.pipeline import DataOrder, check_feeds
from florence2_jax.data.texts import store_texts
from florence2_jax.models.config import Florence2Config
from florence2_jax.parallel import processes
from florence2_jax.parallel.mesh import make_mesh
from florence2_jax.records.excluded import Excluded, read_excluded
from florence2_jax.records.store import RecordStore
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.config import RunConfig
from florence2_jax.training.folders import open_records
from florence2_jax.training.optimizer import make_optimizer
from florence2_jax.training.patterns import chosen
from florence2_jax.training.saved_step import ARRAY_ITEMS, Damaged, saved_steps
from florence2_jax.training.starting import starting_params, starting_tokenizer
from florence2_jax.training.state import TrainState, init_params, starting_from
from florence2_jax.training.step import Step, check_batch, make_step
from florence2_jax.training.trained import Trained, number_of
from florence2_jax.training.trees import by_path
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that may start: everything was looked at and fits together."""

    config: RunConfig
    mixture: Mixture
    tokenizer: Tokenizer
    model: Florence2Config
    mesh: Mesh
    optimizer: optax.GradientTransformation
    make_params: Callable[[], Any]
    initial: Any  # Parameters of others, where a run begins with them; else None.
    step: Step
    excluded: Excluded
    trained: Trained


def prepare(config: Mapping[str, Any], workdir: Path) -> Job:
    """Checks a run and claims its workdir.

    All hosts do the same work, so that none keeps the others waiting; process 0 alone writes.

    Raises:
        UserError: for whatever of config, records, tokenizer, devices or workdir does not fit, or
            differs between hosts.
        LostHost: if a host does not come so far in time.
    """
    workdir_lib.check_place(workdir)
    run = RunConfig.create(config, workdir)
    timeout_s = run.hosts.barrier_timeout_s
    mixture = open_mixture(run, workdir)
    excluded = read_exclusions(run)
    if processes.is_alone() and jax.process_count() > 1:
        raise UserError(
            f"JAX has {jax.process_count()} processes that cannot talk to each other; start the "
            "run by `florence2-jax train` on every host"
        )
    processes.agree(_facts(config, workdir, mixture, excluded), timeout_s)
    check_feeds(mixture, run.batch_spec().weights)
    mesh = make_mesh(run.mesh)
    check_batch(run, mesh)
    tokenizer = _tokenizer(run, mixture, workdir)
    model = run.model if run.init.model else _fit_vocabulary(run.model, tokenizer, config)
    optimizer = make_optimizer(run.optimizer, run.total_steps)
    trained = choose_trained(run, model)
    if run.init.workdir:
        _check_start(Path(run.init.workdir), tokenizer)
    initial = _initial(run, model, tokenizer, workdir)
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    processes.agree({"tokenizer": _digest_of(tokenizer), "devices": devices}, timeout_s)
    if jax.process_index() == 0:
        workdir_lib.claim(workdir, config)
        workdir_lib.save_model(workdir, model, tokenizer)
        workdir_lib.note_environment(workdir, mesh=mesh.shape)
    processes.barrier("workdir", timeout_s)
    _check_shared(workdir)
    make_params = functools.partial(
        init_params,
        model,
        jax.random.key(run.seed),
        run.init,
        first_location_id=tokenizer.first_location_id,
    )
    step = make_step(
        run,
        model,
        optimizer,
        first_location_id=tokenizer.first_location_id,
        trained=trained,
    )
    return Job(
        *(run, mixture, tokenizer, model, mesh, optimizer, make_params, initial, step, excluded),
        trained=trained,
    )


def choose_trained(run: RunConfig, model: Florence2Config) -> Trained:
    """What of the model the run trains. Raises UserError on a pattern that matches nothing."""

    def shapes() -> Any:
        return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

    trained = Trained.choose(shapes, freeze=run.freeze, lora=run.lora, ema=run.ema, seed=run.seed)
    if factors := run.optimizer.lr_factors:
        # What is frozen may have a factor, which then does nothing: recipes give them by tower.
        params = shapes()
        adapters = jax.eval_shape(trained.adapters, params)
        chosen(factors, by_path(params) | by_path(adapters or {}), "optimizer.lr_factors")
    return trained


def tell_counts(job: Job, state: TrainState, say: Callable[[str], None]) -> None:
    """Says how many parameters are trained and how many are not, if it is not simply all.

    Raises:
        AssertionError: if that is not what the optimizer holds.
    """
    counts = job.trained.count(state.params, state.adapters)
    total = number_of(state.params) + number_of(state.adapters)
    assert counts["trained"] + counts["frozen"] == total, (counts, total)
    # AdamW keeps two moments of everything that is trained, and else scalars.
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert number_of(moments) == 2 * counts["trained"], (number_of(moments), counts)
    if job.trained.frozen:
        adapters = job.trained.num_adapters(state.adapters)
        beside = f" ({adapters} adapters)" if adapters else ""
        say(
            f"trained parameters: {counts['trained']:,} of {total:,}{beside}; "
            f"frozen: {counts['frozen']:,}"
        )


def first_state(
    job: Job,
    fresh: TrainState,
    shardings: Any,
    *,
    checkpoints: Checkpoints,
    order: DataOrder,
    say: Callable[[str], None],
) -> TrainState:
    """The newest checkpoint's state, or the fresh one with what the run file starts from.

    Raises:
        UserError: if the checkpoint is of another model, or of another order of the data.
    """
    init = job.config.init
    abstract = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        fresh,
        shardings,
    )
    newest = checkpoints.latest_step()
    processes.agree({"newest checkpoint": str(newest)}, job.config.hosts.barrier_timeout_s)
    if newest is not None:
        state = checkpoints.restore(abstract, say=say)
        if (position := checkpoints.restore_data()) is not None:
            order.check(position, int(state.step))
        say(f"resuming after step {int(state.step)}")
        return state
    if init.workdir:
        with Checkpoints(Path(init.workdir) / workdir_lib.CHECKPOINTS) as other:
            params = other.restore_params(abstract.params, say=say)
        say(f"starting from {init.workdir}")
        return starting_from(fresh, params, job.trained)
    if job.initial is not None:
        say(f"starting from {' and '.join(filter(None, (init.model, init.bart, init.davit)))}")
        params = jax.device_put(job.initial, shardings.params)
        return starting_from(fresh, params, job.trained)
    return starting_from(fresh, fresh.params, job.trained)


def check_disk(workdir: Path, state: TrainState) -> None:
    """Refuses to start where not even one checkpoint fits beside the one it replaces."""
    needed = 2 * sum(x.nbytes for x in jax.tree.leaves(state)) // jax.process_count()
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise UserError(
            f"{workdir}: two checkpoints need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are "
            "free; make room or give another --workdir"
        )


def _facts(
    config: Mapping[str, Any], workdir: Path, mixture: Mixture, excluded: Excluded
) -> dict[str, str]:
    """What must be the same on every host, by its name; digests where it is long."""
    facts = {"code of florence2_jax": _code_digest(), "python": platform.python_version()}
    facts |= {name: metadata.version(name) for name in workdir_lib.PACKAGES}
    facts |= {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    facts["--workdir"] = str(workdir.absolute())
    facts |= {f"config.{key}": repr(value) for key, value in _flat(config)}
    for part in mixture.parts:
        facts[f"{part.place} (records)"] = _store_digest(part.store)
    hashes = (f"{one:016x}" for one in sorted(excluded.hashes))
    facts["input.exclude (list)"] = _digest(*sorted(excluded.ids), *hashes)
    return facts


def _flat(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in sorted(values.items()):
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:12]


@functools.cache
def _code_digest() -> str:
    root = Path(florence2_jax.__path__[0])
    files = sorted(root.rglob("*.py"))
    return _digest(*(x for path in files for x in (str(path.relative_to(root)), path.read_bytes())))


def _store_digest(store: RecordStore) -> str:
    """Of names, sizes and counts: reading the records themselves would take hours."""
    sizes = [str(path.stat().st_size) for path in store.shards]
    names = [path.name for path in store.shards]
    return _digest(*names, *sizes, *map(str, store.shard_lengths))


def _digest_of(tokenizer: Tokenizer) -> str:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        files = sorted(Path(folder).iterdir())
        return _digest(*(x for path in files for x in (path.name, path.read_bytes())))


_SHARED_WITHIN_S = 60.0


def _check_shared(workdir: Path) -> None:
    """Refuses hosts that do not see what process 0 wrote; file systems may show it late."""
    deadline_s = time.monotonic() + _SHARED_WITHIN_S
    while not (workdir / workdir_lib.CONFIG).is_file():
        if time.monotonic() > deadline_s:
            raise UserError(
                f"--workdir {workdir}: what process 0 wrote is not here; it must be one directory "
                "that every host sees, a mounted bucket or network file system"
            )
        time.sleep(0.1)


def read_exclusions(run: RunConfig) -> Excluded:
    """The list of `input.exclude`. Raises UserError if the run refuses to leave them out."""
    if not run.input.exclude:
        return Excluded()
    excluded = read_excluded(Path(run.input.exclude))
    if excluded and run.input.on_excluded == "refuse":
        raise UserError(
            f"input.exclude: {run.input.exclude} lists {len(excluded.ids)} training records that "
            "are in evaluation data; write a store without them and leave the list out, or train "
            "without them by --config.input.on_excluded=drop"
        )
    return excluded


def open_mixture(run: RunConfig, workdir: Path | None = None) -> Mixture:
    """The stores of a run; what is no store is imported into the workdir (see `folders.py`).

    Raises:
        UserError: naming the directory, if one cannot be read.
    """
    inputs = run.input
    open_store = functools.partial(
        open_records, workdir=workdir, timeout_s=run.hosts.barrier_timeout_s
    )
    if inputs.records:
        store = open_store(inputs.records, inputs.split)
        return Mixture(parts=(Part(name="", store=store),), stages=run.stages())
    parts = tuple(
        Part(
            name=name,
            store=open_store(part.records, part.split),
            weight=part.weight,
            tasks=parse_weights(part.tasks) if part.tasks else None,
        )
        for name, part in sorted(inputs.mixture.items())
    )
    return Mixture(parts=parts, stages=run.stages())


def _initial(
    run: RunConfig, model: Florence2Config, tokenizer: Tokenizer, workdir: Path
) -> Any | None:
    """What `init.model`, or `init.bart` and `init.davit`, give.

    None without them, or where the run goes on.
    """
    goes_on = bool(saved_steps(workdir / workdir_lib.CHECKPOINTS))
    if goes_on:
        return None
    if run.init.model:
        return starting_params(run.init.model, model)
    if not (run.init.bart or run.init.davit):
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
    newest = saved_steps(workdir / workdir_lib.CHECKPOINTS)[-1:]
    has_more = False
    with contextlib.suppress(Damaged):  # That is told when it is read.
        has_more = any(step.items() != ARRAY_ITEMS for step in newest)
    if has_more:
        raise UserError(
            f"init.workdir: {workdir} has adapters or an average beside its parameters; start from "
            "it by init.model, which puts them together"
        )


def _tokenizer(config: RunConfig, mixture: Mixture, workdir: Path) -> Tokenizer:
    """The workdir's own if it has one: a run never changes its vocabulary."""
    own = workdir / workdir_lib.TOKENIZER
    if own.is_dir():
        return Tokenizer.load(own)
    if config.init.model:
        return starting_tokenizer(config.init.model)
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
