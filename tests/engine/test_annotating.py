# SPDX-License-Identifier: Apache-2.0
"""Phase 1: once per image and specialist whatever is killed, in order, and nothing lost."""

import functools
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from annotators import Absent, Captions, Lights, Tints, write_images
from import_helpers import message

from florence2_jax.engine.accounts import Progress
from florence2_jax.engine.annotate import annotate
from florence2_jax.engine.scaling import ScalingConfig
from florence2_jax.engine.specialists.base import Annotations, Outcome
from florence2_jax.records.schema import Record, Region
from florence2_jax.records.store import RecordStore

NUM = 16
SMALL = ScalingConfig(images_per_part=4, straggler_min_s=0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("source") / "store", NUM)


def asked(log: Path) -> Counter:
    """How often each specialist looked at each image."""
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    return Counter((name, what) for name, _, what in rows if what.startswith("image"))


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def rows_of(directory: Path) -> dict[str, list[bytes]]:
    """The lines of all parts but the last, which holds times."""
    parts = sorted(directory.with_name(f"{directory.name}.parts").glob("*/*.jsonl"))
    return {f"{p.parent.name}/{p.name}": p.read_bytes().splitlines()[:-1] for p in parts}


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory) -> Path:
    """What one process makes of it."""
    directory = tmp_path_factory.mktemp("alone") / "annotated"
    annotate(source, directory, [Tints(), Lights(), Captions()], scaling=SMALL)
    return directory


def test_later_kinds_see_what_earlier_ones_made_and_people_win(source, alone):
    before, after = RecordStore(source, "train"), RecordStore(alone, "train")
    assert [record.id for record in after] == [record.id for record in before]
    assert [after.image(i) for i in range(NUM)] == [before.image(i) for i in range(NUM)]
    for index, record in enumerate(after):
        (region,) = record.regions  # The specialist's box is that of the person.
        maker = "human" if index % 4 == 0 else "specialist"
        assert region.provenance.kind == maker
        category, tint = region.labels
        assert category.text.lower() == "light"
        assert tint.text.startswith("brightness 25") and tint.text.endswith("one of 1")
        assert tint.provenance is not None and tint.provenance.name == "tints@1"
        assert record.texts[0].text.startswith("An image of")


def test_the_round_is_stamped_and_images_stay_in_the_source(source, tmp_path):
    annotate(source, tmp_path / "annotated", [Lights()], round=3)
    record = RecordStore(tmp_path / "annotated", "train")[1]
    assert record.regions[0].provenance.round == 3
    books = json.loads((tmp_path / "annotated" / "store.json").read_text())
    assert (tmp_path / "annotated" / books["images"]).resolve() == source.resolve()


def test_a_killed_worker_costs_no_image_and_doubles_none(source, tmp_path):
    log = tmp_path / "log"
    lights = Lights(log=str(log), kills="image 9", pause_s=0.01)
    report = annotate(source, tmp_path / "killed", [lights], num_workers=2, scaling=SMALL)
    (row,) = report["specialists"]
    assert row["images"] == NUM and not row["failures"]
    assert row["workers"]["died"] == 1 and row["workers"]["done_again"] == 1
    annotate(source, tmp_path / "calm", [Lights()], scaling=SMALL)
    assert files(tmp_path / "killed") == files(tmp_path / "calm")
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "calm")
    # One range was begun twice; the others were looked at once, by workers that loaded once.
    again = {name for (_, name), times in asked(log).items() if times > 1}
    assert again <= {f"image {i}" for i in range(8, 12)}
    loads = Counter(line.split("\t")[1] for line in log.read_text().splitlines() if "load" in line)
    assert set(loads.values()) == {1} and len(loads) >= 2


def test_an_image_that_always_kills_its_worker_is_a_failure_and_the_rest_is_annotated(
    source, tmp_path
):
    lights = Lights(log=str(tmp_path / "log"), kills="image 6", num_kills=99)
    pairs = ScalingConfig(images_per_part=2, deaths_per_range=1)
    report = annotate(source, tmp_path / "a", [lights], num_workers=2, scaling=pairs)
    (row,) = report["specialists"]
    assert row["images"] == NUM and row["failures"] == {"error": 1}
    (failure,) = map(json.loads, Path(report["failures_file"]).read_text().splitlines())
    assert failure["id"] == "image 6" and "its worker died" in failure["detail"]
    records = list(RecordStore(tmp_path / "a", "train"))
    assert [len(record.regions) for record in records] == [int(i != 6) for i in range(NUM)]


def test_a_straggler_is_given_to_a_second_worker(source, tmp_path):
    lights = Lights(log=str(tmp_path / "log"), sleeps="image 2", sleep_s=300)
    start = time.monotonic()
    report = annotate(source, tmp_path / "a", [lights], num_workers=2, scaling=SMALL)
    assert time.monotonic() - start < 100
    (row,) = report["specialists"]
    assert row["images"] == NUM and row["workers"]["lost_s"] > 0.5
    assert row["workers"]["second_copies"] == 1 and not row["failures"]


SCRIPT = """
import sys
from pathlib import Path
from annotators import Captions, Lights, Tints
from florence2_jax.engine.accounts import Progress
from florence2_jax.engine.annotate import annotate
from florence2_jax.engine.scaling import ScalingConfig
if __name__ == "__main__":
    source, directory, log = sys.argv[1:]
    made = [Tints(log=log), Lights(log=log, pause_s=0.05), Captions(log=log)]
    annotate(Path(source), Path(directory), made, scaling=ScalingConfig(images_per_part=4))
"""


def test_a_killed_run_goes_on_where_it_was_and_writes_the_same_bytes(source, alone, tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    log, directory = tmp_path / "log", tmp_path / "a"
    command = [sys.executable, str(tmp_path / "run.py"), str(source), str(directory), str(log)]
    environment = {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, env=environment)
    parts = directory.with_name("a.parts")
    while len(list(parts.glob("*boxes*/*.jsonl"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    there = {path: path.stat().st_mtime_ns for path in parts.glob("*/*.jsonl")}
    made = [Tints(log=str(log)), Lights(log=str(log)), Captions(log=str(log))]
    annotate(source, directory, made, scaling=SMALL)
    assert files(directory) == files(alone) and rows_of(directory) == rows_of(alone)
    assert there.items() <= {p: p.stat().st_mtime_ns for p in there}.items()
    twice = [key for key, times in asked(log).items() if times > 1]
    assert len(twice) <= 4 and {name for name, _ in twice} <= {"lights"}
    before = log.read_text()
    annotate(source, directory, made, scaling=SMALL)  # Nothing is left to do.
    assert log.read_text() == before


def test_another_specialist_makes_parts_of_its_own_and_those_that_see_it_only(source, tmp_path):
    log = tmp_path / "log"
    kept = [Captions(log=str(log)), Tints(log=str(log))]
    annotate(source, tmp_path / "one", [*kept, Lights(log=str(log))])
    (tmp_path / "one.parts").rename(tmp_path / "two.parts")
    annotate(source, tmp_path / "two", [*kept, Lights(log=str(log), version="2")])
    times = Counter(name for name, _ in asked(log).elements())
    assert times == {"captions": NUM, "lights": 2 * NUM, "tints": 2 * NUM}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_specialist_that_cannot_load_stops_the_run_with_what_it_says(
    source, tmp_path, num_workers
):
    run = functools.partial(annotate, source, tmp_path / "a", num_workers=num_workers)
    assert message(lambda: run([Captions(), Absent()])) == (
        "absent: no model at models/absent; download it"
    )
    assert len(list(tmp_path.glob("a.parts/*captions*/*.jsonl"))) == 1  # What is done is kept.
    assert not list(tmp_path.glob("a.parts/*absent*"))


class Wrong(Lights):
    """Garbage, errors and boxes that are too thin for a store, in turns."""

    def look(self, record: Record) -> Outcome:
        number = int(record.id.split()[1]) % 4
        if number == 0:
            raise RuntimeError("out of memory")
        if number == 1:
            return "<html>502</html>"  # pyright: ignore[reportReturnType]
        thin = (1.0, 1.0, 1.0 + 1e-12, 5.0)
        far = (0.0, 0.0, 500.0, 5.0)
        box = thin if number == 2 else far
        return Annotations(regions=(Region(box=box, provenance=self.maker()),))


def test_failures_are_counted_by_reason_and_no_record_is_lost(tmp_path):
    source = write_images(tmp_path / "source", NUM, damaged=[3, 8, 11])
    report = annotate(source, tmp_path / "a", [Wrong(name="wrong"), Lights()], scaling=SMALL)
    wrong, lights = sorted(report["specialists"], key=lambda row: row["name"], reverse=True)
    assert lights["failures"] == {"unreadable image": 3}
    assert wrong["failures"] == {
        "unreadable image": 3,
        "out of memory": 3,
        "garbage answer": 10,
    }
    told = [json.loads(x) for x in Path(report["failures_file"]).read_text().splitlines()]
    assert Counter(row["specialist"] for row in told) == {"wrong@1": NUM, "lights@1": 3}
    assert len(RecordStore(tmp_path / "a", "train")) == NUM
    assert sum(len(r.regions) for r in RecordStore(tmp_path / "a", "train")) == NUM - 2  # 8: human.


def test_progress_counts_images_failures_and_worker_time(source, tmp_path):
    told = []
    annotate(source, tmp_path / "a", [Lights(pause_s=0.01)], on_progress=told.append)
    (last,) = told[-1]
    assert (last.specialist, last.images, last.total, last.failures) == ("lights", NUM, NUM, 0)
    assert last.worker_s >= 0.16 and 0 < last.images_per_s <= 100 and last.money is None


def test_what_cannot_work_stops_before_it_starts(source, tmp_path):
    lights = Lights()
    assert "no specialist is given" in message(lambda: annotate(source, tmp_path / "a", []))
    twice = message(lambda: annotate(source, tmp_path / "a", [lights, Lights()]))
    assert "given twice" in twice
    split = message(lambda: annotate(source, tmp_path / "a", [lights], splits=["val"]))
    assert "no split 'val'" in split
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    assert "is not empty" in message(lambda: annotate(source, tmp_path / "full", [lights]))
    nameless = message(lambda: annotate(source, tmp_path / "a", [{"model": "detr"}]))
    assert nameless.startswith("a specialist without a type")


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="needs the program tesseract")
def test_specialists_come_from_a_run_file(tmp_path):
    source = write_images(tmp_path / "source", 2)
    settings = {"type": "tesseract", "language": "eng", "batch_size": 2, "max_workers": 1}
    told: list[Progress] = []
    report = annotate(source, tmp_path / "a", [settings], on_progress=told.extend)
    (row,) = report["specialists"]
    assert (row["images"], row["kinds"], row["failures"]) == (2, ["text_regions"], {})
    assert told[-1].images == 2


@pytest.mark.slow
def test_two_workers_on_ray_write_the_bytes_of_one_process(source, alone, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))  # So that actors find `annotators`.
    log = tmp_path / "log"
    made = [Tints(), Lights(log=str(log), kills="image 9"), Captions()]
    report = annotate(source, tmp_path / "a", made, num_workers=2, ray="local", scaling=SMALL)
    assert files(tmp_path / "a") == files(alone) and rows_of(tmp_path / "a") == rows_of(alone)
    assert [row["images"] for row in report["specialists"]] == [NUM] * 3
    row = next(row for row in report["specialists"] if row["name"] == "lights")
    assert row["workers"]["died"] == 1
