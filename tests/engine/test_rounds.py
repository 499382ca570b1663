# SPDX-License-Identifier: Apache-2.0
"""The loop runs from images to refined labels and goes on where it was; frozen images stay out."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from florence2_jax.cli.train import load_config
from florence2_jax.engine import audit
from florence2_jax.engine.refiltering import refilter
from florence2_jax.engine.round_config import EngineConfig
from florence2_jax.engine.rounds import run
from florence2_jax.engine.specialists.imperfect import by_human, three
from florence2_jax.engine.subsets import bare, joined, with_humans, write_changed, write_spread
from florence2_jax.records.schema import Label, Provenance, Record, Region
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import split_by_hash
from florence2_jax.typing import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def some_by_human(record: Record) -> Record:
    share = split_by_hash(record.id, {"human": 0.4, "none": 0.6})
    return by_human(record) if share == "human" else bare(record)


@pytest.fixture(scope="module")
def source(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "store"
    write_changed(scenes, folder, some_by_human, {"format": "some by people"})
    return folder


@pytest.fixture(scope="module")
def config(source, scenes):
    return {
        "source": {"records": str(source)},
        "audit": {"fraction": 0.2, "near_copies": False},
        "specialists": three(str(scenes), blind_to=("star",)),
        "rounds": 0,
        "filter": {"filters": ("regions", "ocr"), "regions": {"min_score": 0.4}},
        "guard": {"min_vanished": 1},
    }


@pytest.fixture(scope="module")
def first_round(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("engine") / "run"
    told = []
    report = run(config, workdir, tell=lambda what, *_: told.append(what))
    return workdir, report, told


def test_round_0_annotates_and_filters_what_is_not_frozen(first_round, source):
    workdir, report, told = first_round
    labels = list(RecordStore(workdir / "round-0" / "filtered", "train"))
    frozen = audit.frozen_ids(workdir)
    ids = {record.id for record in RecordStore(source, "train")}
    assert {record.id for record in labels} == ids - frozen and frozen
    assert any(region.provenance.dropped for record in labels for region in record.regions)
    makers = {region.provenance.kind for record in labels for region in record.regions}
    assert makers == {"human", "specialist"}
    judged = report["rounds"][0]["audit"]
    assert judged["kinds"]["boxes"]["num_true"] > 0 and judged["num_images"] == len(frozen)
    assert (workdir / "round-0" / "report.html").is_file() and not report["stopped"]
    assert "round 0: filtering" in told


def test_specialists_are_judged_without_seeing_the_truth(first_round):
    workdir, *_ = first_round
    precision = json.loads((workdir / "round-0" / "precision.json").read_text())
    assert len(precision) == 2 and all(0 < one < 1 for one in precision.values())
    said = RecordStore(workdir / "round-0" / "audited", "audit")
    assert {r.provenance.kind for record in said for r in record.regions} == {"specialist"}
    used = json.loads((workdir / "round-0" / "filter.json").read_text())["config"]["agreement"]
    assert used["precision"] == precision  # Agreement is weighted by what was measured.


def test_a_finished_round_is_not_made_again(first_round, config):
    workdir, report, _ = first_round
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("round-0/*/*")}
    assert run(config, workdir)["rounds"] == report["rounds"]
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("round-0/*/*")} == before


def test_another_run_file_is_refused_and_named(first_round, config):
    workdir, *_ = first_round
    other = config | {"filter": config["filter"] | {"regions": {"min_score": 0.5}}}
    with pytest.raises(UserError, match=r"belongs to another run .*min_score.*annotate filter"):
        run(other, workdir)


def test_what_rounds_read_may_change_until_one_has_a_model(first_round, config):
    workdir, report, _ = first_round
    again = shutil.copytree(workdir, workdir.with_name("changed"))
    other = config | {"human_shares": (0.2,), "refine": {"echo": 0.1}}
    assert run(other, again)["rounds"][0]["filter"] == report["rounds"][0]["filter"]
    assert json.loads((again / "engine.json").read_text())["config"]["human_shares"] == [0.2]
    (again / "round-1").mkdir()
    (again / "round-1" / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"belongs to another run .*human_shares"):
        run(config, again)


def test_two_processes_write_the_same_labels(first_round, config, tmp_path):
    workdir, *_ = first_round
    run(config, tmp_path / "run", num_workers=2)
    one, two = (
        RecordStore(d / "round-0" / "filtered", "train") for d in (workdir, tmp_path / "run")
    )
    assert list(one) == list(two) and len(one)


def test_what_nobody_has_labelled_is_neither_right_nor_wrong(config, scenes, tmp_path):
    write_changed(scenes, tmp_path / "bare", bare, {"format": "by nobody"})
    report = run(config | {"source": {"records": str(tmp_path / "bare")}}, tmp_path / "run")
    judged = report["rounds"][0]["audit"]
    assert judged["kinds"]["boxes"]["num_found"] > 0 == judged["kinds"]["boxes"]["num_true"]
    assert judged["calibration"] == {}
    folder = tmp_path / "run" / "round-0"
    assert json.loads((folder / "precision.json").read_text()) == {}
    assert "Nobody has named any of these there yet: boxes" in (folder / "report.html").read_text()


def test_thresholds_are_changed_without_annotating_again(first_round, tmp_path):
    workdir, *_ = first_round
    parts = {path: path.stat().st_mtime_ns for path in workdir.glob("round-0/annotated*/**/*")}
    trial = refilter(workdir, 0, {"regions": {"min_score": 0.7}}, out=tmp_path / "trial")
    was, now = (trial[one]["kinds"]["region"]["kept"] for one in ("before", "after"))
    assert now < was
    again = shutil.copytree(workdir, workdir.with_name("copy"))  # Its images stay where they are.
    books = json.loads((again / "engine.json").read_text())
    done = refilter(again, 0, {"regions": {"min_score": 0.7}})
    assert done["after"]["kinds"]["region"]["kept"] == now
    kept = json.loads((again / "engine.json").read_text())["config"]["filter"]
    assert kept["regions"]["min_score"] == 0.7 != books["config"]["filter"]["regions"]["min_score"]
    assert {p: p.stat().st_mtime_ns for p in workdir.glob("round-0/annotated*/**/*")} == parts
    with pytest.raises(UserError, match="no filtered labels"):
        refilter(workdir, 3, {})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("sourc",), {}, "sourc: no such key; did you mean source"),
        (("source", "split"), "dev", r"source\.split: 'dev' is none of"),
        (("rounds",), -1, "rounds: -1 is not a number"),
        (("audit", "fraction"), 1.5, r"audit\.fraction: 1\.5"),
        (("refine",), {"ioo": 0.5}, r"refine\.ioo: no such key; did you mean iou"),
        (("combine",), {"iou": 0.5}, r"combine\.iou: no such key; did you mean human_iou"),
        (("scale",), {"images_per_prat": 3}, r"scale\.images_per_prat: .* images_per_part"),
        (("guard",), {"max_drop": 0.1}, r"guard\.max_drop: .* max_recall_drop"),
        (("guard",), {"significance": 0}, "significance"),
        (("filter", "regions"), {"min_score": 3.0}, "min_score"),
        (("specialists",), [{"type": "imprefect"}], "imprefect.*did you mean.*imperfect"),
        (("specialists",), [{"model": "x"}], "does not say its type"),
        (("human_shares",), (1.5,), "human_shares"),
        (("start",), "again", "start: 'again' is neither"),
        (("rounds",), 1, "train: rounds of refinement need it"),
        (("sparse",), {"rare": {"total_steps": 1}}, r"sparse\.rare\.tasks: the run file must say"),
    ],
)
def test_a_wrong_value_is_named_before_anything_starts(config, place, value, message):
    values = copy.deepcopy(config)
    target = values
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    with pytest.raises(UserError, match=message):
        EngineConfig.create(values)


def test_stores_are_cut_down_to_what_people_said_and_joined_again(source, tmp_path):
    human = tmp_path / "human"
    write_changed(source, human, with_humans, {"format": "human"})
    ids = {r.id for r in RecordStore(source, "train") if r.regions}
    assert {r.id for r in RecordStore(human, "train")} == ids
    star = Region(box=(0, 0, 9, 9), labels=(Label(text="Star"),))
    other = Region(box=(1, 1, 9, 9), labels=(Label(text="fish"),), provenance=Provenance())
    record = Record(id="a", image=b"i", width=10, height=10, regions=(star, other))
    assert with_humans(record, names=("star",)) is record
    assert with_humans(record, names=("tree",)) is None
    first = RecordStore(source, "train")[0]
    whole = joined(bare(first), others=((source, ()),), split="train")
    assert whole == first
    assert write_spread(source, tmp_path / "few", "train", 5) == 5
    assert write_spread(source, tmp_path / "all", "train", 500) == len(RecordStore(source, "train"))


@pytest.mark.parametrize("chosen", ["hub", "local"])
def test_the_run_file_for_photos_is_fit(chosen, scenes):
    if not shutil.which("tesseract"):
        pytest.skip("the program tesseract is not installed")
    values = load_config(f"{CONFIGS / 'annotate.py'}:{scenes},{chosen}", [])
    if chosen == "hub":  # A fresh model of the same kind in place of the one that it starts from.
        model = values["train"]["model"] | {"variant": "base"}
        values["train"] |= {"init": {}, "tokenizer": {"train_size": 400}, "model": model}
    engine = EngineConfig.create(values)
    assert engine.rounds == 2 and len(engine.predict) == (1 if chosen == "local" else 2)
    assert engine.guard.max_recall_drop == 0.2 and engine.combine.human_iou == 0.5
    assert engine.scale.images_per_part == 256
    assert len(engine.specialists) == (3 if chosen == "local" else 7)


@pytest.mark.slow
def test_the_loop_refines_goes_on_where_it_was_and_is_stopped_by_the_guard(
    config, small_run, tmp_path
):
    train = {k: v for k, v in small_run.items() if k != "total_steps"}
    train["input"] = {k: v for k, v in train["input"].items() if k != "records"}
    train["input"]["tasks"] = {"all": 0.0, "od": 1.0}
    tuned = {"tasks": {"od": 1.0}, "categories": ("circle",), "total_steps": 1}
    values = config | {
        "rounds": 1,
        "train": train | {"total_steps": 3},
        "predict": {"tasks": ("od",), "batch_size": 8, "max_new_tokens": 12},
        "human_shares": (0.5,),
        "sparse": {"round_things": tuned},
    }
    workdir = tmp_path / "run"
    report = run(values, workdir)
    before, after = (workdir / f"round-{n}" for n in (0, 1))
    old, new = (list(RecordStore(one / "filtered", "train")) for one in (before, after))
    assert [record.id for record in old] == [record.id for record in new]
    assert not {r.id for r in new} & audit.frozen_ids(workdir)
    for a, b in zip(old, new, strict=True):
        human = [r for r in a.regions if r.provenance.kind == "human"]
        assert [r for r in b.regions if r.provenance.kind == "human"] == human
    assert report["rounds"][1]["difference"]["records"] == len(new)
    run_file = json.loads((after / "model" / "config.json").read_text())
    assert run_file["input"]["mixture"]["human"]["weight"] == 0.5
    assert run_file["input"]["exclude"].endswith("exclude.jsonl")
    trained = (after / "model.json").stat().st_mtime_ns
    for gone in ("annotated", "filtered"):  # As if it had been killed there.
        shutil.rmtree(after / gone)
    for gone in ("merged.json", "filter.json", "difference.json", "report.html"):
        (after / gone).unlink()
    run(values, workdir)
    assert list(RecordStore(after / "filtered", "train")) == new
    assert (after / "model.json").stat().st_mtime_ns == trained
    # Had the model of round 1 known everything, that of round 2 would have forgotten it.
    judged = json.loads((after / "audit.json").read_text())
    for counts in judged["classes"].values():
        counts |= {"num_found": counts["num_true"], "num_matched": counts["num_true"]}
    (after / "audit.json").write_text(json.dumps(judged))
    stopped = run(values | {"rounds": 2}, workdir)
    assert any("vanished" in reason for reason in stopped["stopped"])
    assert not (workdir / "round-2" / "annotated").exists()
