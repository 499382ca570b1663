# SPDX-License-Identifier: Apache-2.0
"""The loop of the data engine: annotate, filter, train, audit, predict, merge, filter, and again.

    DIR/engine.json              the run file and the versions it began with
    DIR/audit/                   the frozen split and what is known of it, see `audit.py`
    DIR/round-0/annotated        phase 1: what the specialists say
    DIR/round-0/filtered         phase 2
    DIR/round-N/model            phase 3, N from 1 on: trained on the filtered labels before it
    DIR/round-N/audit.json       that model on the frozen split; `guard.json`, whether to go on
    DIR/round-N/calibration.json what its scores mean, measured there; `recalls.json`, what of the
                                 true boxes it draws, whatever their scores
    DIR/round-N/predicted        what it says of the training images
    DIR/round-N/annotated        the same merged with the labels of round 0, and
    DIR/round-N/filtered         filtered: what the next model learns from
    DIR/round-N/difference.json  what changed against the round before, `report.json|html` the rest

Every stage leaves a store or a file that is there as a whole or not at all. Started again, the loop
skips what is there and goes on with what is not; a stage that was interrupted goes on by itself.

Nothing is learnt from the frozen images, but a round is judged by what it says about them: round 0
by its specialists (`audit.json` tells how good the first labels are), later ones by their models.
The guard compares models, for a small model may well know less than the specialists it begins with,
and without those that are tuned on rare kinds in round 1, which do not change from then on.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.engine import audit
from florence2_jax.engine.annotate import annotate
from florence2_jax.engine.auditing.matching import Outcome, match_kinds
from florence2_jax.engine.calibrated import calibrated, fit_maker
from florence2_jax.engine.claims import are_new, claim
from florence2_jax.engine.difference import difference
from florence2_jax.engine.filter import FilterConfig, filter_record, filter_store
from florence2_jax.engine.filters.marking import maker_of
from florence2_jax.engine.refine import refine_store
from florence2_jax.engine.report import write_report
from florence2_jax.engine.round_config import A_MODEL, EngineConfig, SparseConfig, round_folder
from florence2_jax.engine.round_files import Tell, by_specialist, filter_values, take_workdir
from florence2_jax.engine.round_training import train_round, train_specialist
from florence2_jax.engine.specialists import create
from florence2_jax.engine.specialists.base import KINDS, Kind
from florence2_jax.engine.subsets import bare, joined, write_changed
from florence2_jax.records.journal import write_file
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import INFO


class Stopped(Exception):
    """A stage was interrupted and has saved what it had; the loop goes on when started again."""


def run(
    config: Mapping[str, Any],
    workdir: Path,
    *,
    num_workers: int = 1,
    ray: str | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Runs the loop, or goes on with it.

    Args:
        config: a run file's values, see `EngineConfig`.
        workdir: of the engine, made if missing.
        num_workers: processes that annotate, filter and merge. Each loads models of its own.
        ray: address of a Ray cluster that does that instead, or "local".
        tell: hears how far it is.

    Returns:
        JSON: `rounds`, what `report` says of each; `stopped`, why the guard ended the loop, empty
        if it did not.

    Raises:
        UserError: before it starts, for whatever does not fit; later as the stages do.
        Stopped: if training was interrupted by a signal.
    """
    engine = EngineConfig.create(config)
    workdir = Path(workdir).absolute()
    take_workdir(workdir, config)
    loop = _Loop(
        engine, workdir, num_workers, ray, tell or (lambda what, done, total, detail="": None)
    )
    return loop.run()


class _Loop:
    def __init__(
        self, engine: EngineConfig, workdir: Path, num_workers: int, ray: str | None, tell: Tell
    ):
        self.engine, self.workdir, self.tell = engine, workdir, tell
        self.where: dict[str, Any] = {"num_workers": num_workers, "ray": ray}
        self.split = engine.source.split

    def run(self) -> dict[str, Any]:
        self._freeze()
        reports = [self._first_round()]
        stopped: list[str] = []
        for number in range(1, self.engine.num_models() + 1):
            self._train(number)
            stopped = self._judge(number)
            if stopped and self.engine.audit.is_guarded:
                reports.append(self._numbers(number))
                break
            if number <= self.engine.rounds:
                reports.append(self._refine(number))
            else:
                reports.append(self._numbers(number))
        is_over = bool(stopped) and self.engine.audit.is_guarded
        report = {"workdir": str(self.workdir), "rounds": reports}
        report["stopped"] = stopped if is_over else []
        write_file(self.workdir / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
        return report

    # The stages.

    def _freeze(self) -> None:
        settings = self.engine.audit
        self.tell("freezing the audited split", 0, 0)
        audit.freeze(
            Path(self.engine.source.records).absolute(),
            self.workdir,
            fraction=settings.fraction,
            seed=settings.seed,
            split=self.split,
            near_copies=settings.near_copies,
            keep=True,
            num_workers=self.where["num_workers"],
            on_progress=functools.partial(self.tell, "freezing the audited split"),
        )
        self.training = audit.training_store(self.workdir)
        self.frozen = audit.frozen_store(self.workdir)
        # Specialists must not see what people said of the images that they are judged by.
        self.bare = self.workdir / "audit" / "bare"
        if not (self.bare / INFO).is_file():
            write_changed(self.frozen, self.bare, bare, {"format": "bare"}, splits=(audit.SPLIT,))

    def _first_round(self) -> dict[str, Any]:
        folder = round_folder(self.workdir, 0)
        self._annotate(self.training, folder / "annotated", self.engine.specialists, 0)
        self._annotate(self.bare, folder / "audited", self.engine.specialists, 0)
        self._measure(0, folder / "audited")
        self._filter(0)
        return self._report(0)

    def _train(self, number: int) -> None:
        folder = round_folder(self.workdir, number)
        self.tell(f"round {number}: training", 0, 0)
        report = train_round(self.engine, self.workdir, number)
        for name, sparse in self._sparse(number).items():
            if report["stopped"]:
                break
            self.tell(f"round {number}: tuning a specialist of {name}", 0, 0)
            report = train_specialist(self.engine, self.workdir, number, name, sparse)
        if report["stopped"]:
            raise Stopped(f"{folder}: training stopped early; run the same command to go on")

    def _judge(self, number: int) -> list[str]:
        """The reasons for which the guard would stop; the audit is written."""
        folder = round_folder(self.workdir, number)
        if not (folder / "guard.json").is_file():
            self._predict(self.bare, folder / "audited", number)
            self._measure(number, folder / "audited")
            audits = [
                audit.RoundAudit.from_json(self._read(n, "audit.json"))
                for n in range(1, number + 1)
            ]
            decision = audit.guard(audits, self.engine.guard)
            self._write(number, "guard.json", decision.to_json())
        return list(self._read(number, "guard.json")["reasons"])

    def _refine(self, number: int) -> dict[str, Any]:
        folder, before = round_folder(self.workdir, number), round_folder(self.workdir, number - 1)
        if not (folder / "merged.json").is_file():
            self._merge(number, folder)
        self._filter(number)
        if not (folder / "difference.json").is_file():
            change = difference(
                before / "filtered",
                folder / "filtered",
                splits=(self.split,),
                on_progress=functools.partial(self.tell, f"round {number}: comparing"),
            )
            self._write(number, "difference.json", change)
        return self._report(number)

    def _merge(self, number: int, folder: Path) -> None:
        failed = self._predict(self.training, folder / "predicted", number)
        merged = refine_store(
            round_folder(self.workdir, 0) / "annotated",
            folder / "predicted",
            folder / "annotated",
            self.engine.refine,
            round=number,
            asked=self._asked(number),
            recalls=self._read(number, "recalls.json"),
            failed=failed,
            calibration=self._read(number, "calibration.json"),
            splits=(self.split,),
            images=self.training,
            on_progress=functools.partial(self.tell, f"round {number}: merging"),
            **self.where,
        )
        self._write(number, "merged.json", merged)

    # What stages are made of.

    def _annotate(
        self, source: Path, directory: Path, specialists: Sequence[Mapping[str, Any]], number: int
    ) -> None:
        if (directory / INFO).is_file():
            return
        what = "the audited split" if source == self.bare else "images"

        annotate(
            source,
            directory,
            specialists,
            round=number,
            splits=(audit.SPLIT if source == self.bare else self.split,),
            combining=self.engine.combine,
            scaling=self.engine.scale,
            on_progress=by_specialist(self.tell, f"round {number}: annotating {what}"),
            **self.where,
        )

    def _predict(self, source: Path, directory: Path, number: int) -> set[str]:
        """Lets the round's model annotate; the ids it failed at.

        What the specialists of round 1 say of sparse kinds counts in every round.
        """
        folder = round_folder(self.workdir, number)
        model = {"type": "checkpoint", "model": str(folder / "model")}
        main = [model | dict(settings) for settings in self.engine.predict]
        sparse = self.engine.sparse
        own = _own(directory) if sparse else directory
        self._annotate(source, own, main, number)
        stores = []
        for name, one in sparse.items():
            first = round_folder(self.workdir, 1)
            tuned = {"model": str(first / f"{name}-model"), "tasks": tuple(one.tasks)}
            stores.append((first / f"{directory.name}-{name}", one.categories))
            self._annotate(source, stores[-1][0], [main[0] | tuned], 1)
        if sparse and not (directory / INFO).is_file():
            split = audit.SPLIT if source == self.bare else self.split
            change = functools.partial(joined, others=tuple(stores), split=split)
            job = {"format": "joined", "stores": [str(path) for path, _ in stores]}
            write_changed(own, directory, change, job, splits=(split,))
        return _failed(own)

    def _measure(self, number: int, predicted: Path) -> None:
        """Judges what a round says of the frozen split; writes `audit.json`."""
        if (round_folder(self.workdir, number) / "audit.json").is_file():
            return
        said = list(RecordStore(predicted, audit.SPLIT))
        truth, names = audit.truth(self.workdir), audit.current(self.workdir)
        makers = sorted({maker_of(claim(region)) for r in said for region in r.regions})
        by_maker = {maker: [_only(record, maker) for record in said] for maker in makers}
        self._write(number, "precision.json", _precisions(truth, by_maker, names))
        calibration: dict[str, Any] = {}
        if number:
            judged = audit.judge_round(truth, said, ontology=names)
            self._write(number, "recalls.json", _recalls(judged.to_json()))
            if self.engine.audit.is_calibrating:
                before = RecordStore(round_folder(self.workdir, 0) / "audited", audit.SPLIT)
                new = [self._new(*both) for both in zip(before, said, strict=True)]
                calibration = {
                    maker: fit_maker(
                        _judged(truth, by_maker[maker], names),
                        _judged(truth, [_only(record, maker) for record in new], names),
                    )
                    for maker in makers
                }
            self._write(number, "calibration.json", calibration)
        own = _own(predicted)
        by_model = RecordStore(own, audit.SPLIT) if own.is_dir() else said
        config = FilterConfig.create(filter_values(self.workdir, self.engine.filter, number))
        kept = [filter_record(calibrated(record, calibration), config) for record in by_model]
        judged = audit.judge_round(truth, kept, round=number, ontology=names)
        if number:
            audit.write_predictions(self.workdir, number, kept)
        self._write(number, "audit.json", judged.to_json())

    def _new(self, before: Record, said: Record) -> Record:
        """What a model says where nothing was said before."""
        new = are_new(before.regions, said.regions, self.engine.refine.new_iou)
        kept = tuple(r for r, one in zip(said.regions, new, strict=True) if one)
        return dataclasses.replace(said, regions=kept)

    def _filter(self, number: int) -> None:
        folder = round_folder(self.workdir, number)
        if (folder / "filtered" / INFO).is_file() and (folder / "filter.json").is_file():
            return
        report = filter_store(
            folder / "annotated",
            folder / "filtered",
            FilterConfig.create(filter_values(self.workdir, self.engine.filter, number)),
            on_progress=functools.partial(self.tell, f"round {number}: filtering"),
            **self.where,
        )
        self._write(number, "filter.json", report)

    def _report(self, number: int) -> dict[str, Any]:
        """The round in numbers; its page is written."""
        folder = round_folder(self.workdir, number)
        report = self._numbers(number)
        if (folder / "report.html").is_file():
            return report
        made = folder / ("predicted" if number else "annotated")
        made = made if made.with_name(f"{made.name}.parts").is_dir() else folder / "predicted-model"
        path = made.with_name(f"{made.name}.parts") / "report.json"
        write_report(
            folder,
            audits=[self._read(n, "audit.json") for n in range(number + 1)],
            guard=[self._read(n, "guard.json") for n in range(1, number + 1)],
            annotate=json.loads(path.read_text("utf-8")) if path.is_file() else None,
            difference=report.get("difference"),
        )
        return report

    def _numbers(self, number: int) -> dict[str, Any]:
        """What is known of a round so far, by the files that say it."""
        folder = round_folder(self.workdir, number)
        names = ("audit", "filter", "guard", "merged", "difference")
        known = {
            n: self._read(number, f"{n}.json") for n in names if (folder / f"{n}.json").is_file()
        }
        return {"round": number, "asked": self._asked(number)} | known

    def _asked(self, number: int) -> list[Kind]:
        """The kinds that a round's specialists, or its models, are asked for."""
        makers = [{"type": "checkpoint", "model": A_MODEL, **one} for one in self.engine.predict]
        hints = ("min_workers", "max_workers")  # Of how it runs, beside the settings.
        made = [
            create(**{key: value for key, value in one.items() if key not in hints})
            for one in (makers if number else self.engine.specialists)
        ]
        asked = {kind for specialist in made for kind in specialist.kinds}
        return [kind for kind in KINDS if kind in asked]

    def _sparse(self, number: int) -> Mapping[str, SparseConfig]:
        return self.engine.sparse if number == 1 else {}

    def _read(self, number: int, name: str) -> dict[str, Any]:
        return json.loads((round_folder(self.workdir, number) / name).read_text("utf-8"))

    def _write(self, number: int, name: str, value: Any) -> None:
        text = json.dumps(value, indent=1, ensure_ascii=False)
        write_file(round_folder(self.workdir, number) / name, text + "\n")


def _recalls(judged: Mapping[str, Any]) -> dict[str, float]:
    """Recall by class and of all, as merging takes them.

    A class counts as if there were two more true boxes of it, found as often as those of all
    classes: so few true boxes say little.
    """
    overall = judged["kinds"].get("boxes", {}).get("recall") or 0.0
    recalls = {
        name.casefold(): (row["num_matched"] + 2 * overall) / (row["num_true"] + 2)
        for name, row in judged["classes"].items()
    }
    return recalls | {"": overall}


def _own(directory: Path) -> Path:
    """Where the round's model has what it says by itself, if tuned specialists say more."""
    return directory.with_name(f"{directory.name}-model")


def _precisions(
    truth: Sequence[Record], by_maker: Mapping[str, Sequence[Record]], names: audit.Ontology
) -> dict[str, float]:
    """The share of each maker's boxes that is right, where it drew any and people did."""
    judged = {maker: _judged(truth, said, names).get("boxes") for maker, said in by_maker.items()}
    found = {maker: boxes.total.precision for maker, boxes in judged.items() if boxes}
    return {maker: precision for maker, precision in found.items() if precision is not None}


def _judged(
    truth: Sequence[Record], said: Sequence[Record], names: audit.Ontology
) -> dict[str, Outcome]:
    """What is right of what was said, in the kinds of which people have named anything."""
    pairs = [(true.kept(), one) for true, one in zip(truth, said, strict=True)]
    outcomes = match_kinds(pairs, names)
    return {kind: outcome for kind, outcome in outcomes.items() if outcome.is_judged}


def _only(record: Record, maker: str) -> Record:
    regions = tuple(r for r in record.regions if maker_of(claim(r)) == maker)
    return dataclasses.replace(record, texts=(), regions=regions, groundings=(), questions=())


def _failed(directory: Path) -> set[str]:
    """Ids of images at which a specialist failed, as `annotate` has written them down."""
    path = directory.with_name(f"{directory.name}.parts") / "failures.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {json.loads(line)["id"] for line in lines if line.strip()}
