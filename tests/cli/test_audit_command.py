# SPDX-License-Identifier: Apache-2.0
"""`audit freeze`, `check`, `serve` and `report` as they are typed."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from florence2_jax.cli.audit import parser
from florence2_jax.engine import audit
from florence2_jax.typing import UserError
from tests.engine.audit_workdir import record, region, said
from tests.records.test_combining import store


def run(*arguments) -> dict:
    args = parser().parse_args(list(map(str, arguments)))
    return json.loads(json.dumps(args.run(args)))


@pytest.fixture
def workdir(tmp_path):
    source = store(tmp_path / "source", train=[record(k) for k in range(12)])
    command = ("freeze", source, tmp_path / "engine", "--count", 4, "--workers", 1)
    assert run(*command, "--no-near-copies")["num_frozen"] == 4
    return tmp_path / "engine"


def test_freeze_says_where_everything_is(workdir, tmp_path, capsys):
    again = run("freeze", tmp_path / "source", workdir, "--count", 4, "--no-near-copies")
    told = capsys.readouterr().out.replace("\n", "")
    assert "4 of 12 images are frozen" in told and str(audit.exclude_list(workdir)) in told
    assert again["training"] == str(audit.training_store(workdir))


def test_check_refuses_a_store_with_frozen_images(workdir, tmp_path):
    listed = tmp_path / "held-out.jsonl"
    with pytest.raises(UserError, match="4 images are frozen"):
        run("check", workdir, tmp_path / "source", "--out", listed, "--workers", 1)
    assert len(listed.read_text().splitlines()) == 4
    assert run("check", workdir, audit.training_store(workdir), "--workers", 1)["frozen"] == []


def test_report_shows_rounds_classes_and_the_guard(workdir, tmp_path, capsys):
    with pytest.raises(UserError, match="no round has been audited"):
        run("report", workdir)
    audit.write_predictions(workdir, 0, said(workdir, region("cat", score=0.9)))
    audit.write_predictions(workdir, 1, said(workdir, region("kitty [bold]", score=0.9)))
    labels = tmp_path / "labels.yaml"
    labels.write_text("version: 1\nnames: [{name: cat, synonyms: [puss]}]\n")
    report = run("report", workdir, "--ontology", labels)
    told = capsys.readouterr().out
    assert "STOP in round 1: class 'cat' vanished" in told
    assert "unstable names: cat / kitty [bold]" in told
    assert "not in the ontology: kitty [bold]" in told
    assert "0 verdicts" in told
    assert [one["kinds"]["boxes"]["recall"] for one in report["rounds"]] == [1, 0]
    assert [one["ok"] for one in report["guard"]] == [True, False]
    assert report["rounds"][0]["ontology_version"] == 1


def test_serve_answers_until_it_is_interrupted(workdir):
    """As a command of its own, which prints its address and ends well with Ctrl+C."""
    script = "import sys; from florence2_jax.cli.audit import parser; "
    script += "args = parser().parse_args(sys.argv[1:]); args.run(args)"
    command = [sys.executable, "-c", script, "serve", str(workdir)]
    wide = os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=wide) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[0].startswith("8 statements")
        address, token = re.fullmatch(
            r"(http://127\.0\.0\.1:\d+/)#([\w-]{43})\n", lines[1]
        ).groups()
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert token not in answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert "stopped" in process.stdout.read()
        assert process.wait(30) == 0
