# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows runs as it stands there, and names what there is."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

from florence2_jax.cli.main import main
from florence2_jax.records import schema
from florence2_jax.records.columns import FEATURES

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "records.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", RECORDS.read_text("utf-8"), re.M | re.S)


def test_every_block_is_run_or_plain_text():
    fences = re.findall(r"^```(.*)$", RECORDS.read_text("utf-8"), re.M)
    assert set(fences) == {"python", "bash", "text", ""}
    assert len(fences) == 2 * sum(len(blocks(name)) for name in ("python", "bash", "text"))


def test_python_runs_from_top_to_bottom(tmp_path):
    (tmp_path / "page.py").write_text("\n".join(blocks("python")), "utf-8")
    run = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "8 square-003 (160, 120) square" in run.stdout
    assert "['square', 'the red square']" in run.stdout
    assert "<VQA> | what colour is the square? | red" in run.stdout
    assert (tmp_path / "squares.html").is_file() and (tmp_path / "statistics.html").is_file()


def test_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "florence2-jax"
        assert main(arguments) == 0, (line, capsys.readouterr().err)
    assert (tmp_path / "scenes.html").is_file() and (tmp_path / "parted").is_dir()


def test_every_field_and_column_is_named():
    text = RECORDS.read_text("utf-8")
    for kind in ("Record", "Text", "Label", "Region", "Span", "Grounding", "Question"):
        for field in dataclasses.fields(getattr(schema, kind)):
            assert f"`{field.name}`" in text, (kind, field.name)
    for field in dataclasses.fields(schema.Provenance):
        assert f"`{field.name}`" in text, field.name
    for column in FEATURES:
        known = f"`{column}`" in text or f"`_{column.partition('_')[2]}`" in text
        assert known, column
