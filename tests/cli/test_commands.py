# SPDX-License-Identifier: Apache-2.0
"""Commands as a person types them: train, predict, evaluate, tokenizer, and their errors."""

import json
from pathlib import Path

import pytest
from PIL import Image

from florence2_jax.cli.main import COMMANDS, main
from florence2_jax.inference.predictor import Predictor
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.registry import TASKS
from florence2_jax.typing import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def workdir(scenes, tmp_path_factory) -> Path:
    """A run of the embedded recipe, four steps long, at a small size."""
    folder = tmp_path_factory.mktemp("run") / "workdir"
    command = ["train", "--config", f"{ROOT}/configs/scenes.py:{scenes}", "--workdir", str(folder)]
    command += ["--config.total_steps=4", "--config.optimizer.warmup_steps=1"]
    command += ["--config.log.every_steps=2", "--config.input.batch_size=8"]
    report = folder.parent / "report.json"
    assert main([*command, "--json", str(report)]) == 0
    assert json.loads(report.read_text())["step"] == 4
    return folder


@pytest.fixture
def photo(scenes, tmp_path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(RecordStore(scenes, "validation")[0].image)
    return path


def test_every_command_has_help_with_an_example(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"florence2-jax {command}" in capsys.readouterr().out.rpartition("example")[2]


def test_predict_answers_every_task(workdir, photo, tmp_path, capsys):
    command = ["predict", "--model", str(workdir), "--text", "a red car"]
    command += ["--region", "5,5,40,40", "--draw", str(tmp_path / "drawn")]
    for task in TASKS.values():
        command += ["--task", task.name]
    report = tmp_path / "answers.json"
    assert main([*command, str(photo), "--json", str(report)]) == 0
    answers = json.loads(report.read_text())["answers"]
    assert [answer["task"] for answer in answers] == list(TASKS)
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {
        f"0000.photo.{task.name}.png" for task in TASKS.values()
    }
    said = "".join(capsys.readouterr().out.split())  # Lines are broken at the terminal's width.
    assert "photo.png64x64" in said


def test_predict_reads_a_folder_and_sets_damage_aside(workdir, photo, tmp_path, capsys):
    Image.new("L", (30, 20), 128).save(photo.parent / "grey.png")
    (photo.parent / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    report = tmp_path / "out" / "answers.json"
    command = ["predict", "--model", str(workdir), "--task", "<OD>", str(photo.parent)]
    assert main([*command, "--json", str(report)]) == 0
    read = json.loads(report.read_text())
    assert len(read["answers"]) == 2
    assert [Path(row["image"]).name for row in read["set_aside"]] == ["broken.jpg"]
    said = " ".join(capsys.readouterr().out.split())  # Lines are broken at the terminal's width.
    assert "set aside, no image of a known format" in said


@pytest.fixture(scope="module")
def evaluated(workdir, scenes, tmp_path_factory) -> Path:
    """The folder of an evaluation of every task."""
    folder = tmp_path_factory.mktemp("evaluated") / "out"
    command = ["evaluate", "--model", str(workdir), "--records", str(scenes), "--batch-size", "4"]
    command += ["--out", str(folder), "--gallery", str(folder.parent / "g.html")]
    assert main([*command, "--resamples", "20", "--cases", "2", "--per-record", "1"]) == 0
    return folder


def test_evaluate_tells_every_task_beside_the_blind_baseline(evaluated):
    report = json.loads((evaluated / "report.json").read_text())
    assert report["split"] == "validation"
    assert {row["task"] for row in report["tasks"]} == {task.name for task in TASKS.values()}
    for row in report["tasks"]:
        assert row["num_examples"] > 0 and row["metrics"].keys() == row["blind"].keys()
        assert row["metrics"].keys() == row["intervals"].keys() | {
            name for name, value in row["metrics"].items() if value is None
        }, row["no_interval"]
    assert report["num_records"] == 8 and report["set_aside"] == []
    assert set(report["ranking"]["ap"]) == {"constant", "box", "label", "box x label"}
    assert any(" records are rough: give 30 or more" in line for line in report["warnings"])
    assert any("not asked: " in line for line in report["warnings"])
    page = (evaluated / "report.html").read_text()
    assert "the worst answers" in page and "the best answers" in page
    assert "<html" in (evaluated.parent / "g.html").read_text()


def test_evaluate_goes_on_and_compares(evaluated, workdir, scenes, tmp_path, capsys):
    command = ["evaluate", "--model", str(workdir), "--records", str(scenes), "--batch-size", "4"]
    answers = evaluated / "answers-00000-of-00001.jsonl"
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[: len(lines) // 2]))
    before = json.loads((evaluated / "report.json").read_text())
    command += ["--out", str(evaluated), "--resamples", "20", "--per-record", "1"]
    assert main([*command, "--json", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["tasks"] == before["tasks"]
    out = capsys.readouterr().out
    assert "validation" in out and "blind" in out and "box - constant" in out
    compared = ["evaluate", "compare", str(evaluated / "report.json"), str(tmp_path / "again.json")]
    assert main([*compared, "--json", str(tmp_path / "c.json")]) == 0
    rows = json.loads((tmp_path / "c.json").read_text())["differences"]
    assert rows and not any(row["difference"] or row["is_real"] for row in rows)
    assert "noise" in capsys.readouterr().out
    assert main([*command, "--beams", "2"]) == 2
    assert "holds the answers of another evaluation" in capsys.readouterr().err


def test_a_recipe_is_told_beside_the_paper(workdir, scenes, tmp_path, capsys):
    command = ["evaluate", "--config", f"{ROOT}/configs/evaluate_zero_shot.py:refcoco_val"]
    command += ["--model", str(workdir), "--records", str(scenes), "--split", "validation"]
    command += ["--beams", "1", "--max-new-tokens", "20", "--max-records", "2", "--no-blind"]
    assert main([*command, "--json", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    (row,) = report["paper"]
    assert row["paper"] == {"base": 53.9, "large": 56.3} and 0 <= row["measured"] <= 100
    assert report["generation"]["no_repeat_ngram_size"] == 3
    assert any("measured on split validation" in line for line in report["warnings"])
    assert "beside the paper" in capsys.readouterr().out


def test_a_tokenizer_of_its_own(scenes, tmp_path, capsys):
    command = ["tokenizer", "train", "--records", str(scenes), "--size", "400"]
    assert main([*command, str(tmp_path / "t")]) == 0
    assert "ids, <loc_0> is" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "t")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_loading_takes_the_length_of_the_run(workdir):
    predictor = Predictor.load(workdir)
    assert predictor.max_length == 28  # As the run's targets, see configs/scenes.py.
    with pytest.raises(UserError, match="holds no model: give a workdir"):
        Predictor.load(workdir.parent)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict --model {w} --task <ODD> {p}", "unknown task '<ODD>'"),
        ("predict --model {w} --task od nowhere.jpg", "nowhere.jpg: no such image or folder"),
        ("predict --model nowhere --task od {p}", "nowhere: no such folder, and no hub name"),
        ("predict --model {w} --task vqa {p}", "<VQA> needs a text as its input (--text)"),
        ("predict --model {w} --task region_to_ocr {p}", "give --region X0,Y0,X1,Y1"),
        ("predict --model {w} --task region_to_ocr --region 1,2 {p}", "four numbers"),
        ("predict --model {w} --task region_to_ocr --region 9,9,1,99 {p}", "is no box inside 64"),
        ("predict --model {w} --task vqa --text a --text b {p}", "takes one text, got 2"),
        ("predict --model {w} --task od {p} --json /tmp", "this is a folder, give a file"),
        ("evaluate --model {w} --records nowhere", "nowhere: no such directory"),
        (
            "evaluate --model {w} --records {s} --split test",
            "no split 'test'; there are train (40)",
        ),
        ("evaluate --model {w} --records {s} --split train", "training data, a score on it is no"),
        ("evaluate --model {w} --records {s} --tasks odd", "unknown task 'odd'"),
        ("evaluate --model {w} --records {s} --max-records 0", "--max-records 0: must be at least"),
        ("evaluate --model {w} --records {s} --config x.py", "--config x.py: no such file"),
        ("evaluate compare nowhere.json {w}", "nowhere.json: no report of evaluate can be read"),
        ("train --config nowhere.py --workdir x", "--config nowhere.py: no such file"),
        ("train --config {r}/configs/scenes.py --workdir {w} --oops", "oops"),
    ],
)
def test_user_errors_are_one_line_and_status_2(workdir, scenes, photo, capsys, command, message):
    words = command.format(w=workdir, p=photo, s=scenes, r=ROOT).split()
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("florence2-jax: ") and message in lines[0]


def test_a_full_disk_is_one_line(capsys, workdir, photo):
    command = ["predict", "--model", str(workdir), "--task", "od", str(photo)]
    assert main([*command, "--json", "/dev/full"]) == 2
    assert "No space left on device: make room" in capsys.readouterr().err
