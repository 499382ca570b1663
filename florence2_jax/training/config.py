# SPDX-License-Identifier: Apache-2.0
"""A run file, checked: a `ConfigDict` ends here, and below it code sees frozen dataclasses."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from florence2_jax.data.augment import AugmentConfig
from florence2_jax.data.loading import BatchSpec
from florence2_jax.data.mixture import WHOLE_RUN, Stage, check_weight, parse_weights
from florence2_jax.data.negatives import NegativesConfig
from florence2_jax.data.packing import CHUNK
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.lora import LoraConfig
from florence2_jax.parallel.mesh import MeshConfig
from florence2_jax.parallel.processes import HostsConfig
from florence2_jax.tasks.targets import Drop, Order
from florence2_jax.training.black_box import BlackBoxConfig
from florence2_jax.training.early_stopping import EarlyStoppingConfig
from florence2_jax.training.evaluating import EvaluationConfig
from florence2_jax.training.loss import LossConfig
from florence2_jax.training.optimizer import OptimizerConfig
from florence2_jax.training.sections import refuse_unknown, section, texts
from florence2_jax.training.starting import starting_model
from florence2_jax.training.state import InitConfig
from florence2_jax.training.trained import EmaConfig
from florence2_jax.typing import Size, UserError

_LEAST_LENGTH = 8  # A region's four locations between `<s>` and `</s>`, and a word.


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """A store of `input.mixture`."""

    records: str
    split: str = "train"
    weight: float = 1.0  # Its images beside those of the others, whatever the stores' sizes.
    tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Instead of `input.tasks`, every one of which it must feed; empty: those that it feeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A time of the run in `input.stages`; stages follow each other by their ends."""

    until: float  # Up to 1 the share of the run's steps that are then done, above 1 a step.
    tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Factors on the task weights, 0 for tasks not named (`all` names them); empty: no change."""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Instead of the weights of these stores; with 0 a store rests and goes on later."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Where examples come from and how a batch is filled.

    Images come from one store (`records`, `split`) or from several (`mixture`: name -> store). Two
    names may read the same split, with other tasks for instance: each walks it in its own order.
    """

    records: str = ""
    split: str = "train"
    mixture: Mapping[str, StoreConfig] = dataclasses.field(default_factory=dict)
    stages: Mapping[str, StageConfig] = dataclasses.field(default_factory=dict)
    batch_size: int
    num_prompts: int = 1
    prompt_length: int = 64
    target_length: int = 256
    pack_length: int = 0  # Cells that the targets of an image share; 0: each has target_length.
    image_sizes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """`"896x640"`, width and height in pixels -> weight: steps take turns in these sizes, and
    `augment.crop` cuts to their shape. Empty: always `model.image_size`."""
    order: str = "random"
    drop: str = "smallest"  # Which regions go where a target does not hold them all.
    scaled_decode: bool = False  # Faster for photos twice as large as the model's; see transforms.
    exclude: str = ""  # List of `records overlap` or `audit freeze`: not trained on; or
    on_excluded: str = "drop"  # with "refuse" the run does not start while the list has any.
    tasks: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"all": 1.0})
    num_workers: int = 0  # Processes; with none, threads of this process load.
    num_threads: int = 4
    buffer: int = 4  # Batches prepared ahead.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """An existing tokenizer folder, or else the size of one to train on the run's records."""

    path: str = ""
    train_size: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often a run saves, and which saves stay."""

    every_steps: int = 1000
    keep: int = 3  # The newest ones; besides them
    keep_best: int = 0  # so many of the best by this metric of the step, lower being better
    best_metric: str = "loss"  # unless
    higher_is_better: bool = False
    keep_every: int = 0  # and those at multiples of so many steps.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run speaks, and how closely it is watched (`watch.py`)."""

    every_steps: int = 50
    stall_s: int = 900  # Without a step for so long, the stacks of all threads are written; 0: no.
    profile_step: int = 0  # The first step of a profile; 0: only on SIGUSR1.
    profile_steps: int = 5
    tensorboard: bool = True
    wandb: str = ""  # A project there.


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run needs to repeat itself."""

    seed: int
    total_steps: int
    accumulate: int
    model: Florence2Config
    input: InputConfig
    tokenizer: TokenizerConfig
    augment: AugmentConfig
    negatives: NegativesConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    init: InitConfig
    freeze: tuple[str, ...]  # Patterns of parameters that stay as they are, see `patterns.py`.
    lora: LoraConfig
    ema: EmaConfig
    early_stopping: EarlyStoppingConfig
    mesh: MeshConfig
    hosts: HostsConfig
    checkpoint: CheckpointConfig
    black_box: BlackBoxConfig
    log: LogConfig
    evaluation: EvaluationConfig

    @classmethod
    def create(cls, config: Mapping[str, Any], workdir: Path | None = None) -> "RunConfig":
        """Checks a run file's values.

        The length of a run is `total_steps`, or `total_samples` images over `input.batch_size`.
        With `init.model` the sizes are that model's, and `model` says what is to differ.

        Args:
            config: as `cli.train.load_config` reads it.
            workdir: of the run; if it has begun there, the model that it starts from is no longer
                needed.

        Raises:
            UserError: naming the key, on unknown keys and on values that do not fit together.
        """
        config = dict(config)
        fields = {field.name for field in dataclasses.fields(cls)}
        refuse_unknown("", config, fields | {"total_samples"})
        for name in ("model", "input", "optimizer"):
            if name not in config:
                raise UserError(f"{name}: the run file must say it")
        inputs = _inputs(config["input"])
        init = section(InitConfig, "init", config.get("init", {}))
        if init.model:
            model = starting_model(init.model, config["model"], workdir)
        else:
            model = Florence2Config.create(**config["model"])
        run = cls(
            seed=int(config.get("seed", 0)),
            total_steps=_total_steps(config, inputs.batch_size),
            accumulate=int(config.get("accumulate", 1)),
            model=model,
            input=inputs,
            tokenizer=section(TokenizerConfig, "tokenizer", config.get("tokenizer", {})),
            augment=section(AugmentConfig, "augment", config.get("augment", {})),
            negatives=section(NegativesConfig, "negatives", config.get("negatives", {})),
            optimizer=section(OptimizerConfig, "optimizer", config["optimizer"]),
            loss=section(LossConfig, "loss", config.get("loss", {})),
            init=init,
            freeze=texts("freeze", config.get("freeze", ())),
            lora=section(LoraConfig, "lora", config.get("lora", {})),
            ema=section(EmaConfig, "ema", config.get("ema", {})),
            early_stopping=section(
                EarlyStoppingConfig, "early_stopping", config.get("early_stopping", {})
            ),
            mesh=MeshConfig.create(**config.get("mesh", {})),
            hosts=section(HostsConfig, "hosts", config.get("hosts", {})),
            checkpoint=section(CheckpointConfig, "checkpoint", config.get("checkpoint", {})),
            black_box=section(BlackBoxConfig, "black_box", config.get("black_box", {})),
            log=section(LogConfig, "log", config.get("log", {})),
            evaluation=section(EvaluationConfig, "evaluation", config.get("evaluation", {})),
        )
        run._check()
        return run

    def batch_spec(self) -> BatchSpec:
        """The shape of the run's batches."""
        return BatchSpec(
            batch_size=self.input.batch_size,
            num_prompts=self.input.num_prompts,
            prompt_length=self.input.prompt_length,
            target_length=self.input.target_length,
            pack_length=self.input.pack_length,
            image_size=self.model.image_size,
            image_sizes=self.image_sizes(),
            weights=parse_weights(self.input.tasks),
            order=self.input.order,  # pyright: ignore[reportArgumentType]
            drop=self.input.drop,  # pyright: ignore[reportArgumentType]
            scaled_decode=self.input.scaled_decode,
            augment=self.augment,
            negatives=self.negatives,
        )

    def image_sizes(self) -> dict[Size, float]:
        """The sizes that steps take turns in, by weight; empty if there is only the model's.

        Raises:
            UserError: on what is no size, or none that this model takes.
        """
        sizes = {}
        for name, weight in self.input.image_sizes.items():
            place = f"input.image_sizes.{name}"
            if not (match := re.fullmatch(r"(\d+)x(\d+)", name)):
                raise UserError(f'{place}: not a width and height in pixels, such as "896x640"')
            size = int(match[1]), int(match[2])
            check_weight(place, weight)
            try:
                dataclasses.replace(self.model, image_size=size)
            except UserError as error:
                raise UserError(f"{place}: {error}") from error
            sizes[size] = float(weight)
        return sizes

    def stages(self) -> tuple[Stage, ...]:
        """The stages in their order, or one that lasts for ever.

        Raises:
            UserError: if one ends before it begins, or the last one not with the run.
        """
        if not self.input.stages:
            return (WHOLE_RUN,)
        stages, start = [], 0
        for end, name in sorted(
            (self._end_step(name, stage.until), name) for name, stage in self.input.stages.items()
        ):
            config, place = self.input.stages[name], f"input.stages.{name}"
            if end <= start:
                raise UserError(
                    f"{place}.until: {config.until} is step {end}, but the stage starts after step "
                    f"{start}"
                )
            tasks = parse_weights(config.tasks, f"{place}.tasks") if config.tasks else None
            stages.append(Stage(name=name, end_step=end, tasks=tasks, weights=config.weights))
            start = end
        if start != self.total_steps:
            raise UserError(
                f"input.stages.{stages[-1].name}.until: the last stage ends with step {start}, the "
                f"run with step {self.total_steps}; give the last stage until=1.0"
            )
        return tuple(stages)

    def _end_step(self, name: str, until: float) -> int:
        is_step = until > 1 and until.is_integer()
        if not (0 < until <= 1 or is_step):
            raise UserError(
                f"input.stages.{name}.until: {until} is neither a share of the run in (0, 1] nor a "
                "whole step"
            )
        return int(until) if is_step else round(until * self.total_steps)

    def _check(self) -> None:
        positive = {
            "total_steps": self.total_steps,
            "accumulate": self.accumulate,
            "checkpoint.every_steps": self.checkpoint.every_steps,
            "checkpoint.keep": self.checkpoint.keep,
            "log.every_steps": self.log.every_steps,
            "input.num_threads": self.input.num_threads,
            "input.buffer": self.input.buffer,
        } | {
            f"input.{name}": getattr(self.input, name)
            for name in ("batch_size", "num_prompts", "prompt_length", "target_length")
        }
        for name, value in positive.items():
            if value < 1:
                raise UserError(f"{name}: {value} must be at least 1")
        if self.input.num_workers < 0:
            raise UserError(f"input.num_workers: {self.input.num_workers} must not be negative")
        choices = {"order": get_args(Order), "drop": get_args(Drop)}
        choices["on_excluded"] = ("drop", "refuse")
        for name, known in choices.items():
            if (value := getattr(self.input, name)) not in known:
                raise UserError(f"input.{name}: {value!r} is not one of {', '.join(known)}")
        if self.input.batch_size % self.accumulate:
            raise UserError(
                f"accumulate: {self.accumulate} does not divide input.batch_size "
                f"{self.input.batch_size}"
            )
        for name in ("prompt_length", "target_length"):
            if getattr(self.input, name) < _LEAST_LENGTH:
                raise UserError(
                    f"input.{name}: {getattr(self.input, name)} must be at least {_LEAST_LENGTH}"
                )
        has_tokenizer = bool(self.tokenizer.path or self.tokenizer.train_size)
        if self.init.model and has_tokenizer:
            raise UserError(
                "tokenizer: init.model brings its own; leave out tokenizer.path and "
                "tokenizer.train_size"
            )
        if not (self.init.model or has_tokenizer):
            raise UserError("tokenizer: give its path or its train_size")
        num_image_tokens = max(
            dataclasses.replace(self.model, image_size=size).num_image_tokens
            for size in self.image_sizes() or [self.model.image_size]
        )
        length = num_image_tokens + self.input.prompt_length
        positions = self.model.text.max_positions
        if max(length, self.input.target_length) > positions:
            raise UserError(
                f"model.text.max_positions: {positions} positions hold neither more than "
                f"{positions} target tokens (input.target_length={self.input.target_length}) nor "
                f"{num_image_tokens} image tokens with a prompt of "
                f"{self.input.prompt_length} (input.prompt_length)"
            )
        if self.input.pack_length:
            self._check_packing(self.input.pack_length, self.input.target_length, positions)
        parse_weights(self.input.tasks)
        self._check_stores()
        self.stages()

    def _check_packing(self, length: int, target_length: int, positions: int) -> None:
        if length % CHUNK:
            raise UserError(f"input.pack_length: {length} must be a multiple of {CHUNK}")
        if not target_length <= length <= positions:
            raise UserError(
                f"input.pack_length: {length} must hold the longest target (input.target_length="
                f"{target_length}) and fit the {positions} positions of model.text.max_positions"
            )

    def _check_stores(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed: {self.seed} must not be negative")
        if bool(self.input.records) == bool(self.input.mixture):
            raise UserError("input.records, input.mixture: the run file must give one of them")
        if self.input.mixture and self.input.split != "train":
            raise UserError(
                f"input.split: {self.input.split!r} is that of input.records; the stores of "
                "input.mixture name their own"
            )
        for name, store in self.input.mixture.items():
            place = f"input.mixture.{name}"
            if not name or not store.records:
                raise UserError(f"{place}: a store must have a name and say its records")
            check_weight(f"{place}.weight", store.weight)
            if store.tasks:
                parse_weights(store.tasks, f"{place}.tasks")


def _inputs(values: Mapping[str, Any]) -> InputConfig:
    """The `input` section; its stores and stages are sections themselves."""
    values = dict(values)
    for key, cls in (("mixture", StoreConfig), ("stages", StageConfig)):
        if isinstance(parts := values.get(key), Mapping):
            values[key] = {
                name: section(cls, f"input.{key}.{name}", part) for name, part in parts.items()
            }
    return section(InputConfig, "input", values)


def _total_steps(config: Mapping[str, Any], batch_size: int) -> int:
    if ("total_steps" in config) == ("total_samples" in config):
        raise UserError("total_steps, total_samples: the run file must give one of them")
    if "total_steps" in config:
        return int(config["total_steps"])
    return int(config["total_samples"]) // max(1, batch_size)
