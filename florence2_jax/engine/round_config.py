# SPDX-License-Identifier: Apache-2.0
"""The run file of the data engine, checked before anything starts."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.engine.auditing.guard import GuardConfig
from florence2_jax.engine.combining import CombineConfig
from florence2_jax.engine.evidence import RefineConfig
from florence2_jax.engine.filter import FilterConfig
from florence2_jax.engine.scaling import ScalingConfig
from florence2_jax.engine.specialists import create
from florence2_jax.records.store import splits_of
from florence2_jax.training.config import RunConfig
from florence2_jax.training.optimizer import learning_rate
from florence2_jax.training.sections import refuse_unknown, section
from florence2_jax.typing import UserError

A_MODEL = "the model of a round"
"""Stands for one that is not trained yet, where only its settings matter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """The images, with the labels that there are."""

    records: str
    split: str = "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """The split that is frozen before round 1, see `auditing.frozen`."""

    fraction: float = 0.05
    seed: int = 0
    near_copies: bool = True  # Keep out of training what looks like a frozen image.
    is_guarded: bool = True  # False: the guard only tells, and the loop goes on.
    is_calibrating: bool = True  # Whether scores of models are mapped to the share that is right.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """A rare kind, or rare classes, for which the first model is tuned into a specialist.

    The records that humans have annotated (with `categories`, those in which they found one of
    these) are few. The model of round 1 is tuned on them alone, and what it then says of all images
    counts beside what the model says; later rounds learn it from there.
    Source: Florence-2, section 4.3, on tasks with too little data.
    """

    total_steps: int
    tasks: Mapping[str, float]  # What it is tuned on, by weight, and asked for.
    categories: tuple[str, ...] = ()
    peak_lr: float = 0.0  # 0: that of `train`.
    leave_out: bool = False
    """Whether the model of round 1 is not trained on these tasks: the kind is too rare for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything a run of the engine needs to repeat itself.

    `predict` are settings of the specialist "checkpoint" that the models of the rounds become, or
    of several by name, of which later ones build on what earlier ones say. `human_shares` has one
    share per round, the last one for all that follow: so many of the images that a model learns
    from are drawn from the records which humans have annotated, 0 for no preference. `start` is
    "previous", where the model of a round starts from the one before, or "fresh". With
    `final_model` one more is trained, on the labels of the last round.
    """

    source: SourceConfig
    audit: AuditConfig
    specialists: tuple[Mapping[str, Any], ...]
    rounds: int
    combine: CombineConfig
    scale: ScalingConfig
    filter: Mapping[str, Any]
    refine: RefineConfig
    guard: GuardConfig
    train: Mapping[str, Any]
    predict: tuple[Mapping[str, Any], ...]
    sparse: Mapping[str, SparseConfig]
    human_shares: tuple[float, ...]
    start: str
    final_model: bool

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> "EngineConfig":
        """Checks a run file's values; specialists are made, but nothing is loaded.

        Raises:
            UserError: naming the key, on unknown keys and on values that do not fit.
        """
        refuse_unknown("", config, [field.name for field in dataclasses.fields(cls)])
        for name in ("source", "specialists"):
            if not config.get(name):
                raise UserError(f"{name}: the run file must say it")
        sparse = {
            name: section(SparseConfig, f"sparse.{name}", values)
            for name, values in _mapping(config, "sparse").items()
        }
        engine = cls(
            source=section(SourceConfig, "source", config["source"]),
            audit=section(AuditConfig, "audit", config.get("audit", {})),
            specialists=_specialists(config["specialists"]),
            rounds=_count(config.get("rounds", 0)),
            combine=section(CombineConfig, "combine", config.get("combine", {})),
            scale=section(ScalingConfig, "scale", config.get("scale", {})),
            refine=section(RefineConfig, "refine", config.get("refine", {})),
            guard=section(GuardConfig, "guard", config.get("guard", {})),
            sparse=sparse,
            human_shares=_shares(config.get("human_shares", ())),
            start=config.get("start", "previous"),
            final_model=bool(config.get("final_model", False)),
            predict=_predict(_mapping(config, "predict")),
            filter=_mapping(config, "filter"),
            train=_mapping(config, "train"),
        )
        engine._check()
        return engine

    def human_share(self, round: int) -> float:
        """The share of a round, from 1 on."""
        return self.human_shares[min(round, len(self.human_shares)) - 1] if self.human_shares else 0

    def num_models(self) -> int:
        """How many models are trained, one per round and perhaps a last one."""
        return self.rounds + (self.final_model and self.rounds > 0)

    def _check(self) -> None:
        if self.source.split not in (known := splits_of(self.source.records)):
            raise UserError(f"source.split: {self.source.split!r} is none of {sorted(known)}")
        if not 0 < self.audit.fraction < 1:
            raise UserError(f"audit.fraction: {self.audit.fraction} must lie between 0 and 1")
        if self.start not in ("previous", "fresh"):
            raise UserError(f"start: {self.start!r} is neither previous nor fresh")
        FilterConfig.create(self.filter)
        for one in self.specialists:
            create(**{k: v for k, v in one.items() if k not in ("min_workers", "max_workers")})
        if self.rounds:
            self._check_training()

    def _check_training(self) -> None:
        if not self.train:
            raise UserError("train: rounds of refinement need it, as in the run file of a training")
        inputs = dict(self.train.get("input", {}))
        for key in ("records", "mixture", "exclude"):
            if inputs.get(key):
                raise UserError(f"train.input.{key}: leave it out, every round has its own")
        run = RunConfig.create({**self.train, "input": inputs | {"records": self.source.records}})
        learning_rate(run.optimizer, run.total_steps)
        if not self.predict:
            raise UserError("predict.tasks: say what the models of the rounds are asked for")
        for settings in self.predict:
            if "model" in settings or "type" in settings:
                raise UserError("predict: leave out model and type, every round has its own model")
            create("checkpoint", model=A_MODEL, **settings)


def _mapping(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name, {})
    if not isinstance(value, Mapping):
        raise UserError(f"{name}: {value!r} is not a mapping of names to values")
    return dict(value)


def _predict(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Settings of one specialist, or of several by name."""
    some = [values] if "tasks" in values else list(values.values())
    if not all(isinstance(one, Mapping) and "tasks" in one for one in some):
        raise UserError("predict.tasks: say what the models of the rounds are asked for")
    return tuple({**one, "tasks": tuple(one["tasks"])} for one in some)


def _specialists(values: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(values, Mapping):  # By name, so that `--config.specialists.NAME.key=` reaches it.
        values = tuple(values.values())
    for one in values:
        if not isinstance(one, Mapping) or "type" not in one:
            raise UserError(f"specialists: {one!r} does not say its type")
    return tuple(dict(one) for one in values)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise UserError(f"rounds: {value!r} is not a number of rounds, 0 or more")
    return value


def _shares(values: Any) -> tuple[float, ...]:
    values = (values,) if isinstance(values, int | float) else values
    if not isinstance(values, Sequence) or not all(
        isinstance(v, int | float) and 0 <= v < 1 for v in values
    ):
        raise UserError(f"human_shares: {values!r} are no shares, one per round, from 0 to below 1")
    return tuple(map(float, values))


def round_folder(workdir: Path, round: int) -> Path:
    """`DIR/round-N`."""
    return workdir / f"round-{round}"
