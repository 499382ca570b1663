# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax records` as a person runs it: what it prints, reports, and says of mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from florence2_jax.cli.main import main
from florence2_jax.records.store import RecordStore, splits_of

HEAVY = ("jax", "tensorflow_datasets", "numpy", "PIL", "rich", "array_record")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "scenes"
    command = ["records", "scenes", "12", str(directory), "--validation", "3", "--size-px", "64"]
    assert main([*command, "--workers", "1"]) == 0
    return directory


def report_of(tmp_path: Path, *arguments: str) -> dict:
    assert main(["records", *arguments, "--json", str(tmp_path / "report.json")]) == 0
    return json.loads((tmp_path / "report.json").read_text())


def complaint(capsys, *arguments: str) -> str:
    assert main(["records", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("florence2-jax: ") and error.count("\n") == 1
    return error.removeprefix("florence2-jax: ").rstrip()


def test_help_imports_nothing_heavy():
    script = f"""if True:
        import sys
        from florence2_jax.cli import records
        records.parser()
        print([name for name in {HEAVY} if name in sys.modules])
    """
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("command", ["", "import", "scenes", "check", "stats", "view"])
def test_each_command_has_help_with_an_example(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main(["records", *command.split(), "--help"])
    assert ended.value.code == 0
    assert f"florence2-jax records {command}" in capsys.readouterr().out.partition("example")[2]


def test_scenes_hold_out_exactly_as_many_as_asked(scenes, capsys, tmp_path):
    assert splits_of(scenes) == {"train": 9, "validation": 3}
    ids = [record.id for record in RecordStore(scenes, "validation")]
    assert ids == [f"scene-{i:06d}" for i in range(3)]
    arguments = ("scenes", "12", str(scenes), "--validation", "3", "--size-px", "64")
    report = report_of(tmp_path, *arguments)  # Finished already: told again, not drawn again.
    assert report["splits"] == {"train": 9, "validation": 3}
    assert report["counts"]["image"] == {
        "read": 12,
        "kept": 12,
        "repaired": {},
        "set_aside": {},
        "noted": {},
    }
    assert f"{scenes}: 9 train, 3 validation" in capsys.readouterr().out


def test_two_workers_draw_the_same_bytes(scenes, tmp_path):
    other = tmp_path / "other"
    command = [sys.executable, "-m", "florence2_jax", "records", "scenes", "12", str(other)]
    command += ["--validation", "3", "--size-px", "64", "--workers", "2"]
    subprocess.run(command, check=True, capture_output=True)
    for path in scenes.iterdir():
        assert (other / path.name).read_bytes() == path.read_bytes(), path.name


def test_other_scenes_in_the_same_directory_are_refused(scenes, capsys):
    arguments = ("scenes", "12", str(scenes), "--validation", "3", "--size-px", "64", "--seed", "1")
    assert complaint(capsys, *arguments) == (
        f"{scenes}: holds the store of another job (job.seed: 0 there, 1 asked for); give another "
        "directory, or remove this one first"
    )


def test_import_prints_the_books(shared_data, capsys, tmp_path):
    source = shared_data / "bccd_voc"
    report = report_of(
        tmp_path, "import", "--from", "voc", str(source), str(tmp_path / "s"), "--workers", "1"
    )
    assert report["directory"] == str(tmp_path / "s")
    assert report["splits"] == {"train": 205, "val": 87, "test": 72}
    out = capsys.readouterr().out
    (row,) = (line for line in out.splitlines() if "region" in line and "4,888" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "region",
        "4,888",
        "4,886",
        "",
        "2 box without area",
    ]
    assert "note: region: truncated, a flag that records do not hold (1,131)" in out
    assert f"one by one: {tmp_path / 's' / 'set_aside.jsonl'}" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("import", "--from", "coco", "{0}/none", "{0}/s"),
            "{0}/none: no such folder; give the folder that holds the dataset",
        ),
        (
            ("import", "--from", "voc", "{0}", "{0}/s"),
            "{0}: no folders Annotations and JPEGImages in it; is it Pascal VOC?",
        ),
        (
            ("import", "--from", "coco", "{0}", "{0}/s", "--one-based"),
            "--one-based says nothing about format 'coco'; leave it out",
        ),
        (
            ("scenes", "5", "{0}/s", "--validation", "5"),
            "--validation 5: hold out 0 or more of 5, not all",
        ),
        (
            ("stats", "{0}"),
            "{0}: is empty (dataset_info.json is missing); make one with: florence2-jax records",
        ),
        (
            ("check", "{0}/none"),
            "{0}/none: no such directory; make a store with: florence2-jax records",
        ),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, arguments, expected):
    arguments = (argument.format(tmp_path) for argument in arguments)
    assert complaint(capsys, *arguments) == expected.format(tmp_path)


def test_wrong_numbers_are_refused_by_the_parser(capsys, tmp_path):
    for wrong in ("0", "-3", "many"):
        with pytest.raises(SystemExit) as ended:
            main(["records", "scenes", wrong, str(tmp_path)])
        assert ended.value.code == 2
    assert "'many' is not a number of 1 or more" in capsys.readouterr().err


def test_check_of_a_sound_store(scenes, capsys, tmp_path):
    report = report_of(tmp_path, "check", str(scenes), "--workers", "1")
    assert (report["num_problems"], report["splits"]) == (0, {"train": 9, "validation": 3})
    assert "No problems" in capsys.readouterr().out


def test_check_of_a_damaged_store_fails_and_still_reports(scenes, capsys, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in scenes.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    shard = broken / "scenes-train.array_record-00000-of-00001"
    shard.write_bytes(b"no shard")
    report = tmp_path / "report.json"
    error = complaint(capsys, "check", str(broken), "--workers", "1", "--json", str(report))
    assert error.startswith(f"{broken}: 1 problems, first in {shard.name}: the shard cannot be")
    assert json.loads(report.read_text())["num_problems"] == 1


def test_stats_are_the_table(scenes, capsys, tmp_path):
    report = report_of(tmp_path, "stats", str(scenes), "--split", "train")
    assert report["totals"]["images"] == 9 and report["totals"]["texts"] == 27
    rows = {(row["type"], row["text"]): row for row in report["rows"]}
    assert rows["text", "detailed"]["num_texts"] == 9
    out = capsys.readouterr().out
    assert "text-phrase-region" in out and "9 images, 27 texts" in out
    assert report_of(tmp_path, "stats", str(scenes))["totals"]["images"] == 12


def test_view_writes_a_page(scenes, tmp_path):
    pytest.importorskip("florence2_jax.viewing.gallery")
    page = tmp_path / "page.html"
    arguments = ("view", str(scenes), "--split", "validation", "--number", "2", "--out", str(page))
    assert report_of(tmp_path, *arguments)["records"] == 2
    assert "2 of 3 records, split validation" in page.read_text()
