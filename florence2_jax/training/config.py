# SPDX-License-Identifier: Apache-2.0
"""A run file, checked: a `ConfigDict` ends here, and below it code sees frozen dataclasses."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_args

from florence2_jax.data.loading import BatchSpec
from florence2_jax.data.mixture import parse_weights
from florence2_jax.models.config import Florence2Config
from florence2_jax.parallel.mesh import MeshConfig
from florence2_jax.tasks.targets import Order
from florence2_jax.training.loss import LossConfig
from florence2_jax.training.optimizer import OptimizerConfig
from florence2_jax.training.state import InitConfig
from florence2_jax.typing import UserError

_LEAST_LENGTH = 8  # A region's four locations between `<s>` and `</s>`, and a word.


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Where examples come from and how a batch is filled."""

    records: str
    split: str = "train"
    batch_size: int
    num_prompts: int = 1
    prompt_length: int = 64
    target_length: int = 256
    order: str = "random"
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
    """How often a run saves, and how many saves it keeps."""

    every_steps: int = 1000
    keep: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run speaks."""

    every_steps: int = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run needs to repeat itself."""

    seed: int
    total_steps: int
    accumulate: int
    model: Florence2Config
    input: InputConfig
    tokenizer: TokenizerConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    init: InitConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig
    log: LogConfig

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> "RunConfig":
        """Checks a run file's values.

        The length of a run is `total_steps`, or `total_samples` images over `input.batch_size`.

        Raises:
            UserError: naming the key, on unknown keys and on values that do not fit together.
        """
        config = dict(config)
        fields = {field.name for field in dataclasses.fields(cls)}
        _refuse_unknown("", config, fields | {"total_samples"})
        for name in ("model", "input", "optimizer"):
            if name not in config:
                raise UserError(f"{name}: the run file must say it")
        inputs = _section(InputConfig, "input", config["input"])
        run = cls(
            seed=int(config.get("seed", 0)),
            total_steps=_total_steps(config, inputs.batch_size),
            accumulate=int(config.get("accumulate", 1)),
            model=Florence2Config.create(**config["model"]),
            input=inputs,
            tokenizer=_section(TokenizerConfig, "tokenizer", config.get("tokenizer", {})),
            optimizer=_section(OptimizerConfig, "optimizer", config["optimizer"]),
            loss=_section(LossConfig, "loss", config.get("loss", {})),
            init=_section(InitConfig, "init", config.get("init", {})),
            mesh=MeshConfig.create(**config.get("mesh", {})),
            checkpoint=_section(CheckpointConfig, "checkpoint", config.get("checkpoint", {})),
            log=_section(LogConfig, "log", config.get("log", {})),
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
            image_size=self.model.image_size,
            weights=parse_weights(self.input.tasks),
            order=self.input.order,  # pyright: ignore[reportArgumentType]
        )

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
        if self.input.order not in get_args(Order):
            raise UserError(
                f"input.order: {self.input.order!r} is not one of {', '.join(get_args(Order))}"
            )
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
        if not (self.tokenizer.path or self.tokenizer.train_size):
            raise UserError("tokenizer: give its path or its train_size")
        length = self.model.num_image_tokens + self.input.prompt_length
        positions = self.model.text.max_positions
        if max(length, self.input.target_length) > positions:
            raise UserError(
                f"model.text.max_positions: {positions} positions hold neither more than "
                f"{positions} target tokens (input.target_length={self.input.target_length}) nor "
                f"{self.model.num_image_tokens} image tokens with a prompt of "
                f"{self.input.prompt_length} (input.prompt_length)"
            )
        parse_weights(self.input.tasks)


def _total_steps(config: Mapping[str, Any], batch_size: int) -> int:
    if ("total_steps" in config) == ("total_samples" in config):
        raise UserError("total_steps, total_samples: the run file must give one of them")
    if "total_steps" in config:
        return int(config["total_steps"])
    return int(config["total_samples"]) // max(1, batch_size)


def _section(cls: type, name: str, values: Mapping[str, Any]) -> Any:
    values = dict(values)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    _refuse_unknown(f"{name}.", values, fields)
    for key, value in values.items():
        wanted = fields[key].type
        if wanted is float and type(value) is int:
            values[key] = value = float(value)
        if wanted in (int, str, float) and type(value) is not wanted:
            raise UserError(f"{name}.{key}: {value!r} is not of type {wanted.__name__}")
        if wanted not in (int, str, float) and not isinstance(value, Mapping):
            raise UserError(f"{name}.{key}: {value!r} is not a mapping of names to values")
    missing = [
        key
        for key, field in fields.items()
        if key not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{name}.{missing[0]}: the run file must say it")
    return cls(**values)


def _refuse_unknown(place: str, values: Mapping[str, Any], known) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), cutoff=0.5) or sorted(known)
            raise UserError(f"{place}{name}: no such key; did you mean {', '.join(near)}?")
