# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax records` as a person runs it: what it prints, reports, and says of mistakes."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from import_helpers import write_jpegs

from florence2_jax.cli.main import main
from florence2_jax.records.importers import IMPORTERS
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


def test_import_tells_the_format_and_shrinks_images(capsys, tmp_path):
    write_jpegs(tmp_path / "f", "train/a.jpg", "val/b.jpg", width=64, height=48)
    command = ("import", str(tmp_path / "f"), str(tmp_path / "s"), "--shorter-side", "24")
    report = report_of(tmp_path, *command, "--verify-pixels", "--workers", "1")
    assert report["format"] == "images" and report["splits"] == {"train": 1, "val": 1}
    record = RecordStore(tmp_path / "s", "val")[0]
    assert record.size == (32, 24) and record.source_size == (64, 48)
    out = capsys.readouterr().out
    assert f"{tmp_path / 'f'}: format images" in out
    assert "note: image: shrunk to a shorter side of 24 pixels (2)" in out
    other = complaint(capsys, *command[:3], "--workers", "1")
    assert "(job.shorter_side_px: 24 there, null asked for)" in other


def test_import_lists_formats_with_their_options(capsys):
    with pytest.raises(SystemExit):
        main(["records", "import", "--help"])
    out = capsys.readouterr().out
    for name, row in IMPORTERS.items():
        assert f"  {name} " in out
        assert all(f"--option {option}=" in out for option in row.options)


def test_options_are_pairs(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["records", "import", str(tmp_path), str(tmp_path / "s"), "--option", "one_based"])
    assert "'one_based' is not NAME=VALUE" in capsys.readouterr().err


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
            ("import", "--from", "coco", "{0}", "{0}/s", "--option", "one_based=true"),
            "option 'one_based' says nothing about format 'coco'; it takes images",
        ),
        (
            ("import", "--from", "voc", "{0}", "{0}/s", "--option", "one_based=yes"),
            "option one_based=yes: write true or false",
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
    assert "in FLD-5B" in out and "31.65" in out
    assert report_of(tmp_path, "stats", str(scenes))["totals"]["images"] == 12


def test_stats_of_an_even_sample_with_plots(scenes, capsys, tmp_path):
    plots = tmp_path / "new" / "plots.html"
    report = report_of(tmp_path, "stats", str(scenes), "--sample", "4", "--plots", str(plots))
    assert (report["counted"], report["records"], report["totals"]["images"]) == (4, 12, 4)
    assert sum(report["distributions"]["regions_per_image"]) == 4
    assert "an even sample of 4 of 12 records" in plots.read_text("utf-8")
    assert f"drawn in {plots}" in capsys.readouterr().out
    report = report_of(tmp_path, "stats", str(scenes), "--sample", "99")
    assert report["counted"] == report["totals"]["images"] == 12


def test_an_even_sample_spans_all_splits():
    from florence2_jax.cli.records.looking import _even_sample

    parts = [list("abc"), list("d"), [], list("efghijkl")]
    assert "".join(_even_sample(parts, 12)) == "abcdefghijkl"
    assert "".join(_even_sample(parts, 4)) == "adgj"
    assert "".join(_even_sample(parts, 1)) == "a"


def test_a_bar_with_the_time_left_after_two_seconds():
    """On a real terminal, and nothing on anything else."""
    script = """if True:
        import time
        from florence2_jax.cli.terminal import Progress
        with Progress("records") as progress:
            for _ in progress.over(range(60), 60):
                time.sleep(0.06)
    """
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stderr=theirs, env=environment) as run:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux: a terminal that nobody writes to any more.
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert run.returncode == 0
    assert b"records" in shown and b"/60" in shown and b"0:00:0" in shown
    quiet = subprocess.run(command, capture_output=True, check=True)
    assert quiet.stderr == b""


def test_view_writes_a_page(scenes, tmp_path):
    page = tmp_path / "page.html"
    arguments = ("view", str(scenes), "--split", "validation", "--number", "2", "--out", str(page))
    report = report_of(tmp_path, *arguments)
    assert (report["records"], report["bytes"]) == (2, page.stat().st_size)
    assert "2 of 3 records, split validation" in page.read_text()
    small = report_of(tmp_path, *arguments, "--image-px", "16")
    assert small["bytes"] < report["bytes"]
