# SPDX-License-Identifier: Apache-2.0
"""`annotate`, `annotate filter` and `annotate plan`, as a person types them."""

import json

import pytest

from florence2_jax.cli.main import main
from florence2_jax.records.store import RecordStore, splits_of

RUN_FILE = """# SPDX-License-Identifier: Apache-2.0
from ml_collections import ConfigDict


def get_config(records):
    c = ConfigDict(dict(rounds=0))
    c.source = dict(records=records)
    c.audit = dict(fraction=0.2, near_copies=False)
    c.specialists = dict(
        near=dict(type="imperfect", truth=records, tag="near", seed=1, jitter=0.06),
        far=dict(type="imperfect", truth=records, tag="far", seed=2, jitter=0.06),
    )
    c.filter = dict(filters=("regions",), regions=dict(min_score=0.4))
    return c
"""


@pytest.fixture(scope="module")
def command(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotate")
    (folder / "run.py").write_text(RUN_FILE)
    return folder, ["--config", f"{folder / 'run.py'}:{scenes}"]


@pytest.fixture(scope="module")
def workdir(command):
    folder, config = command
    report = folder / "report.json"
    place = ["--workdir", str(folder / "engine"), "--json", str(report)]
    assert main(["annotate", *config, *place]) == 0
    return folder / "engine", json.loads(report.read_text())


def test_a_person_sees_what_was_kept_and_how_good_it_is(workdir, command, capsys):
    folder, report = workdir
    assert main(["annotate", *command[1], "--workdir", str(folder)]) == 0  # Nothing is left to do.
    out = capsys.readouterr().out
    for said in (
        "labels kept (and dropped)",
        "region",
        "precision",
        "recall",
        "labels to train on",
    ):
        assert said in out
    assert str(folder / "round-0" / "filtered") in out.replace("\n", "")
    assert report["rounds"][0]["filter"]["kinds"]["region"]["kept"] > 0
    assert splits_of(folder / "round-0" / "filtered").keys() == {"train"}


def test_filtering_again_tells_what_changed(workdir, tmp_path, capsys):
    folder, _ = workdir
    trial = ["--out", str(tmp_path / "trial"), "--config.filter.regions.min_score=0.8"]
    assert main(["annotate", "filter", str(folder), *trial]) == 0
    out = capsys.readouterr().out
    assert "by the run file" in out and "score under 0.80" in out
    kept, now = (
        sum(len(record.kept().regions) for record in RecordStore(store, "train"))
        for store in (folder / "round-0" / "filtered", tmp_path / "trial")
    )
    assert now < kept


def test_mistakes_are_one_line_each(workdir, command, tmp_path, capsys):
    folder, _ = workdir
    mistakes = {
        ("annotate", *command[1], "--workdir", str(folder), "--config.audit.fraction=0.3"): (
            "belongs to another run of the engine (audit.fraction: 0.2 there, 0.3 asked for)"
        ),
        ("annotate", *command[1], "--workdir", str(tmp_path / "a"), "--rounds", "2"): "train: ",
        ("annotate", "filter", str(tmp_path)): "engine.json is missing",
        ("annotate", "filter", str(folder), "--min=3"): "unknown argument '--min=3'",
        ("annotate", "filter", str(folder), "--config.filter.regons.a=3"): "no such key",
    }
    for arguments, message in mistakes.items():
        assert main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_fraction_that_freezes_nothing_can_be_mended(command, tmp_path, capsys):
    run = ["annotate", *command[1], "--workdir", str(tmp_path / "few")]
    assert main([*run, "--config.audit.fraction=1e-9"]) == 2
    assert "would freeze 0 of " in (error := capsys.readouterr().err)
    assert "audit.fraction" in error and error.count("\n") == 1
    assert main([*run, "--config.audit.fraction=0.3"]) == 0


def test_a_plan_measures_a_sample_and_multiplies(command, tmp_path, capsys):
    _, config = command
    place = ["--workdir", str(tmp_path / "plan"), "--sample", "24", "--with-workers", "4"]
    status = main(["annotate", "plan", *config, "--images", "1000000", *place])
    said = capsys.readouterr()
    assert len(RecordStore(tmp_path / "plan" / "images-24", "train")) == 24
    # On a busy machine so short a sample may be too uneven; then that is said, and nothing else.
    assert "1,000,000 images" in said.out if status == 0 else "standard error" in said.err
